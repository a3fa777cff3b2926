"""A virtio device in a process of its own: the slice of the vhost-user protocol that QEMU as front end speaks with it.

Follows the vhost-user specification (QEMU docs/interop/vhost-user.rst) with REPLY_ACK, CONFIG and MQ; what QEMU sends
beyond it, or wrongly, raises MalformedError and ends the device.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from cloister.errors import CloisterError, UsageError
from cloister.platforms.qemu_nitro.virtqueue import MAX_QUEUE, Memory, Queue, Region, malformed

VERSION, VERSION_MASK, REPLY, NEED_REPLY = 1, 3, 1 << 2, 1 << 3
MAX_PAYLOAD = 4096
MAX_REGIONS = 8
MAX_CONFIG = 256

VIRTIO_F_VERSION_1 = 1 << 32
VHOST_USER_F_PROTOCOL_FEATURES = 1 << 30
FEATURES = VIRTIO_F_VERSION_1 | VHOST_USER_F_PROTOCOL_FEATURES
PROTOCOL_F_MQ, PROTOCOL_F_REPLY_ACK, PROTOCOL_F_CONFIG = 1 << 0, 1 << 3, 1 << 9
PROTOCOL_FEATURES = PROTOCOL_F_MQ | PROTOCOL_F_REPLY_ACK | PROTOCOL_F_CONFIG

HEADER = struct.Struct("<III")
NUMBER = struct.Struct("<Q")
RING_STATE = struct.Struct("<II")
RING_ADDRESS = struct.Struct("<IIQQQQ")
TABLE_HEAD = struct.Struct("<II")
TABLE_REGION = struct.Struct("<QQQQ")
CONFIG_HEAD = struct.Struct("<III")
#: In the number that goes with a ring's descriptor: the ring's index, and "no descriptor comes with it".
RING_INDEX, NO_DESCRIPTOR = 0xFF, 0x100


class Request(IntEnum):
    """The front end's requests that are served."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24
    SET_CONFIG = 25


@dataclass(frozen=True)
class Message:
    """A request's header: what follows is `size` bytes long."""

    request: Request
    need_reply: bool
    size: int

    @classmethod
    def parse(cls, header: bytes) -> Message:
        """Raises MalformedError."""
        request, flags, size = _unpack(HEADER, header)
        if flags & VERSION_MASK != VERSION or flags & REPLY or size > MAX_PAYLOAD:
            raise malformed("a vhost-user header with a wrong version, direction or size")
        try:
            return cls(Request(request), bool(flags & NEED_REPLY), size)
        except ValueError:
            raise malformed(f"vhost-user request {request}, which was not offered") from None


class Backend(ABC):
    """A device: subclasses answer `process`; `config` is the device's configuration space."""

    config = b""

    def __init__(self, queues: int) -> None:
        self.memory = Memory()
        self.queues = tuple(Queue(self.memory) for _ in range(queues))
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[int], None]] = {}
        self._connected = False

    @abstractmethod
    def process(self) -> bool:
        """Do a bounded part of what can be done now; True when there is more."""

    # Events

    def watch(self, descriptor: int, events: int, callback: Callable[[int], None]) -> None:
        """Call back with the events that happened."""
        self._epoll.register(descriptor, events)
        self._watched[descriptor] = callback

    def unwatch(self, descriptor: int) -> None:
        """Forget a descriptor, before it is closed."""
        self._epoll.unregister(descriptor)
        del self._watched[descriptor]

    def timeout(self) -> float | None:
        """Seconds after which `process` wants to be called even if nothing happens."""
        return None

    def serve(self, channel: socket.socket) -> None:
        """Be the device until QEMU closes the channel; raises MalformedError."""
        self.watch(channel.fileno(), select.EPOLLIN, lambda _events: self._receive(channel))
        self._connected, more = True, False
        while self._connected:
            for descriptor, events in self._epoll.poll(0 if more else self.timeout()):
                # An earlier callback may have closed this one.
                if callback := self._watched.get(descriptor):
                    callback(events)
            more = self.process()

    # vhost-user

    def _receive(self, channel: socket.socket) -> None:
        try:
            header, descriptors, flags, _address = socket.recv_fds(channel, HEADER.size, MAX_REGIONS)
        except ConnectionError:
            header, descriptors, flags = b"", [], 0
        try:
            if not header:
                self._connected = False
                return
            if flags & socket.MSG_CTRUNC:
                raise malformed("more descriptors than a request may carry")
            message = Message.parse(header)
            payload = channel.recv(message.size, socket.MSG_WAITALL) if message.size else b""
            reply = self.handle(message.request, payload, descriptors)
            if reply is None and message.need_reply:
                reply = NUMBER.pack(0)
            if reply is not None:
                channel.sendall(HEADER.pack(message.request, VERSION | REPLY, len(reply)) + reply)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def handle(self, request: Request, payload: bytes, descriptors: list[int]) -> bytes | None:
        """Carry out one request; descriptors that are kept are taken out of the list. Raises MalformedError."""
        match request:
            case Request.GET_FEATURES:
                return NUMBER.pack(FEATURES)
            case Request.SET_FEATURES:
                _subset(payload, FEATURES)
            case Request.GET_PROTOCOL_FEATURES:
                return NUMBER.pack(PROTOCOL_FEATURES)
            case Request.SET_PROTOCOL_FEATURES:
                _subset(payload, PROTOCOL_FEATURES)
            case Request.GET_QUEUE_NUM:
                return NUMBER.pack(len(self.queues))
            case Request.SET_MEM_TABLE:
                self._set_memory(payload, descriptors)
            case Request.GET_CONFIG:
                return self._get_config(payload)
            case Request.SET_CONFIG:
                raise malformed("the configuration space is read only")
            case Request.SET_VRING_KICK | Request.SET_VRING_CALL | Request.SET_VRING_ERR:
                self._set_descriptor(request, payload, descriptors)
            case Request.SET_VRING_ADDR:
                index, _flags, descriptor_table, used, available, _log = _unpack(RING_ADDRESS, payload)
                queue = self._queue(index)
                queue.addresses = descriptor_table, available, used
                queue.map()
            case Request.SET_VRING_NUM | Request.SET_VRING_BASE | Request.SET_VRING_ENABLE | Request.GET_VRING_BASE:
                return self._set_state(request, *_unpack(RING_STATE, payload))
            case Request.SET_OWNER | Request.RESET_OWNER:
                pass
        return None

    def _queue(self, index: int) -> Queue:
        if index >= len(self.queues):
            raise malformed("a ring that the device does not have")
        return self.queues[index]

    def _set_state(self, request: Request, index: int, value: int) -> bytes | None:
        queue = self._queue(index)
        match request:
            case Request.SET_VRING_NUM:
                if not 0 < value <= MAX_QUEUE or value & (value - 1):
                    raise malformed("a ring size that is not a power of two up to 32768")
                queue.size = value
                queue.map()
            case Request.SET_VRING_BASE:
                if value > 0xFFFF:
                    raise malformed("a ring index beyond 65535")
                queue.next = value
            case Request.SET_VRING_ENABLE:
                queue.enabled = value == 1
            case _:  # GET_VRING_BASE also stops the ring
                self._replace_kick(queue, None)
                queue.addresses = (0, 0, 0)
                queue.map()
                return RING_STATE.pack(index, queue.next)
        return None

    def _set_memory(self, payload: bytes, descriptors: list[int]) -> None:
        count, _padding = _unpack(TABLE_HEAD, payload[: TABLE_HEAD.size])
        if not 0 < count <= MAX_REGIONS or count != len(descriptors):
            raise malformed("a memory table whose regions and descriptors differ")
        if len(payload) < TABLE_HEAD.size + count * TABLE_REGION.size:
            raise malformed("a memory table cut short")
        regions = []
        for number, descriptor in enumerate(descriptors):
            guest, size, user, offset = TABLE_REGION.unpack_from(payload, TABLE_HEAD.size + number * TABLE_REGION.size)
            regions.append(Region.map(descriptor, guest=guest, user=user, size=size, offset=offset))
        self.memory.regions = tuple(regions)
        for queue in self.queues:
            queue.map()

    def _get_config(self, payload: bytes) -> bytes:
        offset, size, flags = _unpack(CONFIG_HEAD, payload[: CONFIG_HEAD.size])
        if offset + size > MAX_CONFIG or len(payload) != CONFIG_HEAD.size + size:
            raise malformed("a configuration read outside the configuration space")
        return CONFIG_HEAD.pack(offset, size, flags) + self.config[offset : offset + size].ljust(size, b"\0")

    def _set_descriptor(self, request: Request, payload: bytes, descriptors: list[int]) -> None:
        (value,) = _unpack(NUMBER, payload)
        queue = self._queue(value & RING_INDEX)
        if value & ~(RING_INDEX | NO_DESCRIPTOR) or len(descriptors) != (0 if value & NO_DESCRIPTOR else 1):
            raise malformed("a ring's descriptor is missing or not announced")
        if request is Request.SET_VRING_ERR:
            return
        descriptor = descriptors.pop() if descriptors else None
        if request is Request.SET_VRING_KICK:
            self._replace_kick(queue, descriptor)
            return
        if queue.call is not None:
            os.close(queue.call)
        queue.call = descriptor
        if queue.active:
            # An interrupt raised on the old descriptor while QEMU had masked it would be lost.
            queue.interrupt()

    def _replace_kick(self, queue: Queue, descriptor: int | None) -> None:
        if queue.kick is not None:
            self.unwatch(queue.kick)
            os.close(queue.kick)
        queue.kick = None
        if descriptor is not None:
            try:
                os.set_blocking(descriptor, False)
                self.watch(descriptor, select.EPOLLIN, lambda _events: _drain(descriptor))
            except OSError:
                os.close(descriptor)
                raise malformed("a kick descriptor that cannot be waited for") from None
            queue.kick = descriptor

    def close(self) -> None:
        """Let go of every descriptor."""
        for queue in self.queues:
            self._replace_kick(queue, None)
            if queue.call is not None:
                os.close(queue.call)
            queue.call = None
        self._epoll.close()


def _drain(descriptor: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.read(descriptor, 8)


def _unpack(layout: struct.Struct, data: bytes) -> tuple[int, ...]:
    if len(data) != layout.size:
        raise malformed("a vhost-user message of a wrong size")
    return layout.unpack(data)


def _subset(payload: bytes, offered: int) -> None:
    (features,) = _unpack(NUMBER, payload)
    if features & ~offered:
        raise malformed("features that were not offered")


@contextlib.contextmanager
def listening(path: Path, backlog: int = 1) -> Iterator[socket.socket]:
    """A listening unix socket, its file removed with the block; raises UsageError."""
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(str(path))
        except OSError as error:
            raise UsageError(f"cannot listen on the socket {path}: {error.strerror or error}") from None
        try:
            listener.listen(backlog)
            yield listener
        finally:
            path.unlink(missing_ok=True)


def run(backend: Backend, path: Path) -> None:
    """Announce `ready` on stdout, take QEMU's one connection on the socket `path`, and end with it."""
    try:
        with listening(path) as listener:
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            channel, _address = listener.accept()
            with channel:
                backend.serve(channel)
    finally:
        backend.close()


def main(start: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> None:
    """A backend's process: SIGTERM ends it in order, our own errors become a line and an exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        start(sys.argv[1:] if arguments is None else arguments)
    except CloisterError as error:
        sys.stderr.write(f"{error.message}\n{error.hint}\n")
        sys.exit(error.exit_code)
