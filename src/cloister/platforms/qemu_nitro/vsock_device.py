"""virtio-vsock (virtio 1.2 section 5.10) as a process, with unix sockets on the host side exactly as Firecracker's:

a program connects to `UDS`, writes `CONNECT port` and a newline, and reads `OK n` when the guest accepted (the end of
the stream when nobody listens there); a guest that connects to port P of CID 3, its parent as on AWS, gets the unix
socket `UDS_P`, or a reset. `python -m cloister.platforms.qemu_nitro.vsock_device --socket S --uds-path UDS ...`

Long because both directions of a connection's life are one state machine: split, neither half could be read alone.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from cloister.errors import UsageError
from cloister.platforms.qemu_nitro import vhost_user
from cloister.platforms.qemu_nitro.virtqueue import Chain, Queue, malformed
from cloister.platforms.qemu_nitro.vsock_connection import (
    BUFFER,
    COUNTER,
    HEADER,
    SHUTDOWN_RECEIVE,
    SHUTDOWN_SEND,
    STREAM,
    Connection,
    Header,
    Key,
    Op,
)
from cloister.wire.ports import PARENT_CID

MAX_CONNECTIONS = 4096
#: Answers that wait for the guest's buffers; a guest that makes more without giving buffers gets none.
MAX_CONTROLS = 4 * MAX_CONNECTIONS
#: Packets of one queue before other events are looked at.
BURST = 128
#: Buffers of the guest filled by one read: large enough to be fast, small enough to be fair.
BATCH = 16
MAX_GREETING = 32
FIRST_HOST_PORT = 1 << 30
#: How often and how long a unix socket whose queue of connections is full is tried again.
RETRY, RETRY_FOR = 0.01, 2.0
EDGE = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET


class VsockDevice(vhost_user.Backend):
    """Queues: 0 to the guest, 1 from the guest, 2 events (none are sent)."""

    def __init__(self, listener: socket.socket, uds: Path, guest_cid: int, limit: int = MAX_CONNECTIONS) -> None:
        super().__init__(queues=3)
        self.config = struct.pack("<Q", guest_cid)
        self._uds = uds
        self._cid = guest_cid
        self._limit = limit
        self._connections: dict[Key, Connection] = {}
        #: Closed for the guest, with bytes that still go to their program.
        self._lingering: set[Connection] = set()
        self._greetings: dict[socket.socket, bytes] = {}
        self._dials: deque[tuple[Header, float]] = deque()
        self._controls: deque[tuple[Key, Op, int, Connection | None]] = deque()
        self._ready: deque[Connection] = deque()
        self._next_port = FIRST_HOST_PORT
        self._listener = listener
        self._clients_wait = False
        listener.setblocking(False)
        self.watch(listener.fileno(), select.EPOLLIN | select.EPOLLET, self._on_listener)

    def process(self) -> bool:
        """Carry a bounded number of packets each way."""
        to_guest, from_guest, _events = self.queues
        if self._clients_wait:
            self._accept()
        self._dial_again()
        more = self._from_guest(from_guest)
        more = self._to_guest(to_guest) or more
        from_guest.notify()
        to_guest.notify()
        return more

    def timeout(self) -> float | None:
        """Wake up for connections that are tried again."""
        return RETRY if self._dials else None

    def close(self) -> None:
        """Let go of every socket."""
        for connection in (*self._connections.values(), *self._lingering):
            connection.sock.close()
        for client in self._greetings:
            client.close()
        super().close()

    # To the guest

    def _to_guest(self, queue: Queue) -> bool:
        for _ in range(BURST):
            if self._controls:
                chain = queue.pop()
                if chain is None:
                    return False
                if not self._control(queue, chain, *self._controls.popleft()):
                    queue.unpop()
            elif self._ready:
                if not self._forward(queue, self._ready.popleft()):
                    return False
            else:
                return False
        return True

    def _control(self, queue: Queue, chain: Chain, key: Key, op: Op, flags: int, connection: Connection | None) -> bool:
        """One packet without content; False if it is not needed any more."""
        if connection is not None and connection.closed:
            return False
        header = self._header(key, op, 0, flags, connection)
        if chain.write(header) < len(header):
            raise malformed("a buffer too small for a vsock header")
        if connection is not None:
            connection.announced = True
            if op is Op.CREDIT_UPDATE:
                connection.updating = False
        queue.push(chain, len(header))
        return True

    def _header(self, key: Key, op: Op, length: int, flags: int, connection: Connection | None) -> bytes:
        forwarded = 0
        if connection is not None:
            forwarded = connection.told = connection.forwarded
        return HEADER.pack(
            key.host_cid, self._cid, key.host_port, key.guest_port, length, STREAM, op, flags,
            BUFFER if connection else 0, forwarded,
        )  # fmt: skip

    def _forward(self, queue: Queue, connection: Connection) -> bool:
        """Fill some of the guest's buffers from one connection, then to the end of the line; False without any."""
        connection.queued = False
        if not connection.flowing:
            return True
        credit = connection.credit
        if not credit:
            if not connection.asked:
                connection.asked = True
                self._say(connection, Op.CREDIT_REQUEST)
            return True
        chains: list[tuple[Chain, int]] = []
        views: list[memoryview] = []
        room = 0
        while room < credit and len(chains) < BATCH and (chain := queue.pop()):
            content = _content(chain.writable)
            size = 0
            for view in content:
                piece = view[: credit - room - size]
                size += len(piece)
                views.append(piece)
            chains.append((chain, size))
            room += size
        if not chains:
            self._enqueue(connection, first=True)
            return False
        size = self._read(connection, views)
        used = 0
        for chain, capacity in chains:
            if not size:
                break
            length = min(size, capacity)
            chain.write(self._header(connection.key, Op.RW, length, 0, connection))
            queue.push(chain, HEADER.size + length)
            size -= length
            room -= length
            connection.sent = (connection.sent + length) & COUNTER
            used += 1
        queue.unpop(len(chains) - used)
        if room and not connection.hung_up:
            # The socket is empty; what comes after this is told by epoll.
            connection.readable = False
        self._enqueue(connection)
        return True

    def _read(self, connection: Connection, views: list[memoryview]) -> int:
        try:
            size = connection.sock.recvmsg_into(views)[0]
        except BlockingIOError:
            connection.readable = False
            return 0
        except OSError:
            self._reset(connection)
            return 0
        if not size:
            connection.eof = True
            self._shut(connection)
        return size

    def _enqueue(self, connection: Connection, *, first: bool = False) -> None:
        if connection.flowing and not connection.queued:
            connection.queued = True
            if first:
                self._ready.appendleft(connection)
            else:
                self._ready.append(connection)

    def _say(self, connection: Connection, op: Op, flags: int = 0) -> None:
        self._controls.append((connection.key, op, flags, connection))

    def _shut(self, connection: Connection) -> None:
        """Tell the guest which directions are over for it (section 5.10.6.5), once each."""
        if not connection.eof or connection.closed:
            return
        over = connection.gone or not (connection.guest_sends or connection.pending)
        flags = SHUTDOWN_SEND | (SHUTDOWN_RECEIVE if over else 0)
        if flags != connection.shut:
            connection.shut = flags
            self._say(connection, Op.SHUTDOWN, flags)

    # From the guest

    def _from_guest(self, queue: Queue) -> bool:
        for _ in range(BURST):
            chain = queue.pop()
            if chain is None:
                return False
            if chain.writable:
                raise malformed("a packet to send with a part to write")
            self._packet(chain)
            queue.push(chain, 0)
        return True

    def _packet(self, chain: Chain) -> None:
        data = chain.read(HEADER.size)
        if len(data) < HEADER.size:
            raise malformed("a packet shorter than its header")
        header = Header(*HEADER.unpack(data))
        if header.src_cid != self._cid:
            return
        key = Key(header.dst_cid, header.dst_port, header.src_port)
        connection = self._connections.get(key)
        if header.op == Op.REQUEST and header.type == STREAM and connection is None:
            self._dial(header)
        elif connection is None or header.type != STREAM:
            if header.op != Op.RST:
                self._refuse(key)
        else:
            connection.peer_alloc, connection.peer_forwarded = header.buf_alloc, header.fwd_cnt
            if header.length and header.op != Op.RW:
                raise malformed("a control packet with content")
            self._connected_packet(connection, header, chain)
            if connection.credit:
                connection.asked = False
                self._enqueue(connection)

    def _connected_packet(self, connection: Connection, header: Header, chain: Chain) -> None:
        established = connection.established
        if header.op == Op.RW and established and connection.guest_sends:
            self._data(connection, header.length, chain)
        elif header.op == Op.CREDIT_UPDATE and established:
            pass
        elif header.op == Op.CREDIT_REQUEST and established:
            self._update(connection)
        elif header.op == Op.RESPONSE and not established:
            connection.established = True
            with contextlib.suppress(OSError):
                connection.sock.send(b"OK %d\n" % connection.key.host_port)
        elif header.op == Op.SHUTDOWN and established:
            self._guest_shuts(connection, header.flags)
        elif header.op == Op.RST:
            self._end(connection)
        else:
            self._reset(connection)

    def _data(self, connection: Connection, length: int, chain: Chain) -> None:
        views, size = [], 0
        for view in _content(chain.readable):
            piece = view[: length - size]
            size += len(piece)
            views.append(piece)
        if size < length:
            raise malformed("a packet shorter than its header says")
        if not size:
            return
        try:
            if not connection.deliver(views, size):
                self._reset(connection)
                return
        except OSError:
            self._reset(connection)
            return
        if connection.update_due:
            self._update(connection)

    def _update(self, connection: Connection) -> None:
        if not connection.updating:
            connection.updating = True
            self._say(connection, Op.CREDIT_UPDATE)

    def _guest_shuts(self, connection: Connection, flags: int) -> None:
        if flags & SHUTDOWN_SEND:
            connection.guest_sends = False
        if flags & SHUTDOWN_RECEIVE and connection.guest_receives:
            connection.guest_receives = False
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RD)
        if not connection.guest_sends and not connection.guest_receives:
            # A clean disconnect is answered with RST (section 5.10.6.5).
            self._refuse(connection.key)
            self._end(connection)
        elif not connection.pending:
            self._flushed(connection)

    def _dial(self, header: Header, deadline: float | None = None) -> None:
        """Connect to the unix socket of the port that the guest asks for."""
        key = Key(header.dst_cid, header.dst_port, header.src_port)
        if key in self._connections:  # asked for twice, and meanwhile there
            return
        if header.dst_cid != PARENT_CID or (deadline is None and self._full()):
            self._refuse(key)
            return
        try:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.setblocking(False)
                sock.connect(f"{self._uds}_{header.dst_port}")
            except OSError:
                sock.close()
                raise
        except BlockingIOError:  # its backlog is full
            now = time.monotonic()
            deadline = now + RETRY_FOR if deadline is None else deadline
            if now < deadline:
                self._dials.append((header, deadline))
            else:
                self._refuse(key)
            return
        except OSError:
            self._refuse(key)
            return
        connection = Connection(key, sock)
        connection.peer_alloc, connection.peer_forwarded = header.buf_alloc, header.fwd_cnt
        connection.established = True
        self._open(connection, Op.RESPONSE)

    def _dial_again(self) -> None:
        for _ in range(len(self._dials)):
            self._dial(*self._dials.popleft())

    # Programs on the host

    def _on_listener(self, _events: int) -> None:
        self._clients_wait = True

    def _accept(self) -> None:
        while not self._full():
            try:
                client, _address = self._listener.accept()
            except BlockingIOError:
                self._clients_wait = False
                return
            except OSError:  # out of descriptors: again when something ends
                return
            client.setblocking(False)
            self._greetings[client] = b""
            self.watch(client.fileno(), select.EPOLLIN, lambda _events, client=client: self._greet(client))  # type: ignore[misc]

    def _greet(self, client: socket.socket) -> None:
        """Read `CONNECT port` and its newline, and nothing after it."""
        text = self._greetings[client]
        try:
            peeked = client.recv(MAX_GREETING - len(text), socket.MSG_PEEK)
            text += client.recv(peeked.find(b"\n") + 1 or len(peeked)) if peeked else b""
        except BlockingIOError:
            return
        except OSError:
            peeked = b""
        complete = text.endswith(b"\n")
        if peeked and not complete and len(text) < MAX_GREETING:
            self._greetings[client] = text
            return
        del self._greetings[client]
        self.unwatch(client.fileno())
        word, _, port = text.strip().partition(b" ")
        if not (complete and word.upper() == b"CONNECT" and port.isdigit() and int(port) <= COUNTER):
            client.close()
            return
        while (key := Key(PARENT_CID, self._next_port, int(port))) in self._connections:
            self._next_port = self._next_port % COUNTER + 1
        self._next_port = max(FIRST_HOST_PORT, (self._next_port + 1) & COUNTER)
        self._open(Connection(key, client), Op.REQUEST)

    def _on_socket(self, connection: Connection, events: int) -> None:
        if events & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR):
            connection.hung_up = True
        if events & (select.EPOLLHUP | select.EPOLLERR):
            connection.gone = True
        if connection.gone and not connection.established:
            self._reset(connection)
            return
        if events & ~select.EPOLLOUT:
            connection.readable = True
            self._enqueue(connection)
        if connection.pending:
            try:
                connection.flush()
            except OSError:
                connection.pending.clear()
                self._reset(connection)
            else:
                if connection.update_due and not connection.closed:
                    self._update(connection)
            if not connection.pending:
                self._flushed(connection)
        self._shut(connection)

    # Beginnings and ends

    def _full(self) -> bool:
        return len(self._connections) + len(self._greetings) + len(self._lingering) + len(self._dials) >= self._limit

    def _open(self, connection: Connection, op: Op) -> None:
        self._connections[connection.key] = connection
        self._say(connection, op)
        self.watch(connection.sock.fileno(), EDGE, lambda events: self._on_socket(connection, events))

    def _flushed(self, connection: Connection) -> None:
        """All that the guest sent is with its program."""
        if connection in self._lingering:
            self._lingering.remove(connection)
            self._release(connection)
        elif not connection.guest_sends and not connection.closed:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_WR)
            self._shut(connection)

    def _refuse(self, key: Key) -> None:
        if len(self._controls) < MAX_CONTROLS:
            self._controls.append((key, Op.RST, 0, None))

    def _reset(self, connection: Connection) -> None:
        """End a connection from our side."""
        if not connection.closed:
            if connection.announced:
                self._refuse(connection.key)
            connection.pending.clear()
            self._end(connection)

    def _end(self, connection: Connection) -> None:
        """No more packets; bytes that the guest sent before still reach their program."""
        connection.closed = True
        del self._connections[connection.key]
        if connection.pending:
            self._lingering.add(connection)
        else:
            self._release(connection)

    def _release(self, connection: Connection) -> None:
        self.unwatch(connection.sock.fileno())
        connection.sock.close()


def _content(parts: list[memoryview]) -> list[memoryview]:
    """The parts of a packet behind its header."""
    skip, content = HEADER.size, []
    for part in parts:
        if skip < len(part):
            content.append(part[skip:])
        skip = max(0, skip - len(part))
    if skip:
        raise malformed("a buffer too small for a vsock header")
    return content


def start(arguments: Sequence[str]) -> None:
    """Read the options and be the device."""
    parser = argparse.ArgumentParser(prog="vsock_device", description="virtio-vsock for QEMU with unix sockets")
    parser.add_argument("--socket", type=Path, required=True, help="where QEMU connects")
    parser.add_argument("--uds-path", type=Path, required=True, help="where programs connect to reach the guest")
    parser.add_argument("--guest-cid", type=int, required=True, help="the guest's context identifier, 4 or more")
    options = parser.parse_args(arguments)
    if not PARENT_CID < options.guest_cid < COUNTER:
        raise UsageError("the guest's CID is 4 to 4294967294")
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit = MAX_CONNECTIONS if hard == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, hard - 64)
    with vhost_user.listening(options.uds_path, backlog=512) as listener:
        vhost_user.run(VsockDevice(listener, options.uds_path, options.guest_cid, limit), options.socket)


if __name__ == "__main__":
    vhost_user.main(start)
