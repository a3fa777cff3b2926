"""The guest's memory as QEMU shares it, and split virtqueues in it (virtio 1.2 section 2.7), the device's side.

The guest writes all of this memory whenever it likes: an index, a length or an address is read once, checked, and only
then used; what does not fit raises MalformedError, which ends the device.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from dataclasses import dataclass

from cloister.errors import MalformedError

MAX_QUEUE = 1 << 15
DESCRIPTOR = struct.Struct("<QIHH")
USED_ELEMENT = struct.Struct("<II")
NEXT, WRITE = 1, 2
NO_INTERRUPT = 1

# Taking a lock is a full barrier (on x86 a locked instruction): the index that we published is visible before we look
# whether the guest wants an interrupt, or both sides could wait for each other.
_BARRIER = threading.Lock()


def malformed(what: str) -> MalformedError:
    """The error that ends a device."""
    return MalformedError(f"virtio: {what}", hint="The guest's driver or QEMU broke the protocol; the device ended.")


@dataclass(frozen=True)
class Region:
    """A piece of guest memory: where the guest and where QEMU sees it, and its bytes."""

    guest: int
    user: int
    view: memoryview

    @classmethod
    def map(cls, descriptor: int, *, guest: int, user: int, size: int, offset: int) -> Region:
        """Map a region of the vhost-user memory table; the file must really hold it, or reading would kill us."""
        end = offset + size
        if not 0 < size <= end <= os.fstat(descriptor).st_size:
            raise malformed("a memory region is larger than its file")
        if max(guest, user) + size > 1 << 64:
            raise malformed("a memory region ends beyond the address space")
        try:
            view = memoryview(mmap.mmap(descriptor, end))
        except (OSError, ValueError, OverflowError):
            raise malformed("a memory region cannot be mapped") from None
        return cls(guest, user, view[offset:end])


class Memory:
    """All regions; replaced as a whole when QEMU sends a new table."""

    def __init__(self) -> None:
        self.regions: tuple[Region, ...] = ()

    def guest(self, address: int, size: int) -> memoryview:
        """The bytes at a guest physical address."""
        for region in self.regions:
            start = address - region.guest
            if start >= 0 and start + size <= len(region.view):
                return region.view[start : start + size]
        raise malformed("a guest address outside the guest's memory")

    def user(self, address: int, size: int, alignment: int) -> memoryview:
        """The bytes at an address of QEMU's, as the vhost-user protocol names the rings."""
        for region in self.regions:
            start = address - region.user
            if address % alignment == 0 and start >= 0 and start + size <= len(region.view):
                return region.view[start : start + size]
        raise malformed("a ring outside the guest's memory, or not aligned")


class Chain:
    """One buffer of the guest: the parts to read come before the parts to write (section 2.7.4.2)."""

    __slots__ = ("head", "readable", "writable")

    def __init__(self, head: int) -> None:
        self.head = head
        self.readable: list[memoryview] = []
        self.writable: list[memoryview] = []

    def read(self, limit: int) -> bytes:
        """At most `limit` bytes of the parts to read."""
        data = b""
        for part in self.readable:
            data += part[: limit - len(data)]
        return data

    def write(self, data: bytes) -> int:
        """Fill the parts to write from their start; how many bytes fitted."""
        written = 0
        for part in self.writable:
            piece = data[written : written + len(part)]
            part[: len(piece)] = piece
            written += len(piece)
        return written


class Queue:
    """A split virtqueue; no indirect descriptors and no event index, which are not offered."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.size = 0
        self.next = 0
        self.addresses = (0, 0, 0)
        self.enabled = False
        self.kick: int | None = None
        self.call: int | None = None
        self._used_index = 0
        self._pushed = False
        self._mapped = False

    @property
    def active(self) -> bool:
        """Whether the ring may be touched: set up, started by a kick descriptor, and enabled."""
        return self._mapped and self.enabled and self.kick is not None

    def map(self) -> None:
        """Find the three areas in memory, again whenever an address or the memory table changes."""
        self._mapped = False
        if not self.size or not any(self.addresses) or not self._memory.regions:
            return
        descriptors, available, used = self.addresses
        self._table = self._memory.user(descriptors, DESCRIPTOR.size * self.size, 16)
        # Section 2.7.6 and 2.7.8: flags, index, then the ring. 16-bit views are read and written in one access.
        self._available = self._memory.user(available, 4 + 2 * self.size, 2).cast("H")
        used_area = self._memory.user(used, 4 + USED_ELEMENT.size * self.size, 4)
        self._used, self._used_ring = used_area[:4].cast("H"), used_area[4:]
        self._used_index = self._used[1]
        self._mapped = True

    def pop(self) -> Chain | None:
        """The next buffer of the guest, or None when there is none yet."""
        if not self.active:
            return None
        waiting = (self._available[1] - self.next) & 0xFFFF
        if not waiting:
            return None
        if waiting > self.size:
            raise malformed("more buffers are available than the ring holds")
        chain = self._walk(self._available[2 + self.next % self.size])
        self.next = (self.next + 1) & 0xFFFF
        return chain

    def unpop(self, count: int = 1) -> None:
        """Give back the last `count` buffers, unused."""
        self.next = (self.next - count) & 0xFFFF

    def push(self, chain: Chain, written: int) -> None:
        """Return a buffer into which `written` bytes were written; `notify` tells the guest."""
        USED_ELEMENT.pack_into(self._used_ring, USED_ELEMENT.size * (self._used_index % self.size), chain.head, written)
        self._used_index = (self._used_index + 1) & 0xFFFF
        self._used[1] = self._used_index
        self._pushed = True

    def notify(self) -> None:
        """Interrupt the guest if buffers were returned and it wants to know (section 2.7.7)."""
        if self._pushed:
            self._pushed = False
            with _BARRIER:
                wanted = not self._available[0] & NO_INTERRUPT
            if wanted:
                self.interrupt()

    def interrupt(self) -> None:
        """Interrupt the guest."""
        if self.call is not None:
            os.eventfd_write(self.call, 1)

    def _walk(self, index: int) -> Chain:
        chain, memory = Chain(index), self._memory
        for _ in range(self.size):
            if index >= self.size:
                raise malformed("a descriptor index outside the table")
            address, size, flags, following = DESCRIPTOR.unpack_from(self._table, DESCRIPTOR.size * index)
            if flags & ~(NEXT | WRITE):
                raise malformed("a descriptor with flags that were not negotiated")
            if flags & WRITE:
                chain.writable.append(memory.guest(address, size))
            elif chain.writable:
                raise malformed("a part to read after a part to write")
            else:
                chain.readable.append(memory.guest(address, size))
            if not flags & NEXT:
                return chain
            index = following
        raise malformed("a chain of descriptors with a loop")
