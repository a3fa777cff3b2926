"""One vsock stream between a guest's port and a unix socket: credit, unsent bytes, which directions are open.

virtio 1.2 section 5.10.6: counters are modulo 2^32; each side may send as much as the other has room for.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from enum import IntEnum
from typing import NamedTuple

#: What we take from the guest before the program at the unix socket reads it, for each connection.
BUFFER = 256 * 1024
COUNTER = 0xFFFFFFFF
STREAM = 1
SHUTDOWN_RECEIVE, SHUTDOWN_SEND = 1, 2
IOV_MAX = 1024
HEADER = struct.Struct("<QQIIIHHIII")


class Op(IntEnum):
    """Section 5.10.6: `op`."""

    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Header(NamedTuple):
    """struct virtio_vsock_hdr."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    length: int
    type: int
    op: int
    flags: int
    buf_alloc: int
    fwd_cnt: int


class Key(NamedTuple):
    """Names a connection of the one guest; `host_cid` is whom the guest talks to."""

    host_cid: int
    host_port: int
    guest_port: int


class Connection:
    """State of one stream; the device decides what packets follow from it."""

    __slots__ = (
        "announced", "asked", "closed", "eof", "established", "forwarded", "gone", "guest_receives", "guest_sends",
        "hung_up", "key", "peer_alloc", "peer_forwarded", "pending", "pending_size", "queued", "readable", "sent",
        "shut", "sock", "told", "updating",
    )  # fmt: skip

    def __init__(self, key: Key, sock: socket.socket) -> None:
        self.key = key
        self.sock = sock
        self.established = False
        #: The guest has heard of it, so that its end needs a packet.
        self.announced = False
        #: No more packets: reset by either side.
        self.closed = False
        # From the guest: what the unix socket did not take yet, and the counters of our own credit.
        self.pending: deque[bytes] = deque()
        self.pending_size = 0
        self.forwarded = 0
        self.told = 0
        self.updating = False
        self.guest_sends = True
        # To the guest.
        self.peer_alloc = 0
        self.peer_forwarded = 0
        self.sent = 0
        self.asked = False
        self.guest_receives = True
        # The unix socket, as epoll told: something to read, its writer ended, its owner is gone, its end was read.
        self.readable = False
        self.hung_up = False
        self.gone = False
        self.eof = False
        #: Stands in the device's line of connections to read from.
        self.queued = False
        #: The SHUTDOWN flags that the guest was told.
        self.shut = 0

    @property
    def credit(self) -> int:
        """Bytes that the guest has room for."""
        return max(0, self.peer_alloc - ((self.sent - self.peer_forwarded) & COUNTER))

    @property
    def flowing(self) -> bool:
        """Whether there may be something to carry to the guest."""
        return self.established and self.readable and not self.eof and self.guest_receives and not self.closed

    @property
    def update_due(self) -> bool:
        """Whether enough room became free to tell the guest by itself."""
        return (self.forwarded - self.told) & COUNTER >= BUFFER // 4

    def deliver(self, views: list[memoryview], size: int) -> bool:
        """Hand `size` bytes of the guest on, or keep them; False when the guest sent beyond its credit.

        Raises OSError when the program at the other end is gone.
        """
        if self.pending_size + size > BUFFER:
            return False
        taken = 0
        if not self.pending:
            try:
                taken = self.sock.sendmsg(views[:IOV_MAX])
            except BlockingIOError:
                taken = 0
            self.forwarded = (self.forwarded + taken) & COUNTER
        if taken < size:
            # The guest reuses its memory as soon as the buffer is returned: this is the one copy.
            self.pending.append(b"".join(views)[taken:])
            self.pending_size += size - taken
        return True

    def flush(self) -> None:
        """Hand on what was kept, as far as it goes; raises OSError."""
        try:
            while self.pending:
                taken = self.sock.send(self.pending[0])
                self.forwarded = (self.forwarded + taken) & COUNTER
                self.pending_size -= taken
                if taken == len(self.pending[0]):
                    self.pending.popleft()
                else:
                    self.pending[0] = self.pending[0][taken:]
        except BlockingIOError:
            pass
