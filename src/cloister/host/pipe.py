"""Join two streams: both ways, half-close, back-pressure by never reading what could not be written, time-outs."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

#: Bytes read at once, and the most held for one direction: all the memory that a slow reader can cost. In a pipe they
#: are pages that the socket held before.
CHUNK, PIPE = 256 * 1024, 512 * 1024
#: From TCP splice(2) was measured to be faster, from unix sockets slower; of vsock nothing is known.
SPLICED_FROM = (socket.AF_INET, socket.AF_INET6)
SPLICED_TO = (*SPLICED_FROM, socket.AF_UNIX)
#: A piece of that size is taken for one of many, and the next is spliced; frames are quicker copied.
BULK = 64 * 1024
#: Free holders kept for the next slow reader.
KEPT = 8
#: Before the next attempt to accept when there are no descriptors.
RETRY_SECONDS = 0.1
CONNECT_SECONDS = 10.0
#: Seconds without a byte in either direction.
IDLE_SECONDS = 900.0
MAX_CONNECTIONS = 4096


@dataclass
class Totals:
    """What went through: all that a blind agent can say about its traffic."""

    connections: int = 0
    refused: int = 0
    up: int = 0
    down: int = 0


@dataclass
class Door:
    """One listener whose every connection is handled by `serve`."""

    listener: socket.socket
    serve: Callable[[socket.socket, Capture | None], Awaitable[None]]
    name: str
    limit: int = MAX_CONNECTIONS
    capture: Path | None = None
    totals: Totals = field(default_factory=Totals)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _accepting: asyncio.Task[None] | None = None

    @property
    def open(self) -> int:
        """Connections now."""
        return len(self._tasks)

    async def run(self) -> None:
        """Accept until `drain` was called and the last connection ended; drops them all when cancelled."""
        self._accepting = asyncio.create_task(self._accept())
        try:
            await asyncio.wait({self._accepting})
            self.listener.close()
            if self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            self._accepting.cancel()
            self.listener.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(self._accepting, *self._tasks, return_exceptions=True)

    def drain(self) -> None:
        """Accept no more."""
        if self._accepting is not None:
            self._accepting.cancel()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                stream, _ = await loop.sock_accept(self.listener)
            except OSError:
                # Out of descriptors, most likely: the next connection may find some.
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if len(self._tasks) >= self.limit:
                self.totals.refused += 1
                stream.close()
                continue
            self.totals.connections += 1
            task = asyncio.create_task(self._one(stream, self.totals.connections))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _one(self, stream: socket.socket, number: int) -> None:
        stream.setblocking(False)
        if stream.family in (socket.AF_INET, socket.AF_INET6):
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            with Capture.open(self.capture, f"{self.name}-{number:06d}") as capture:
                await self.serve(stream, capture)
        except (OSError, TimeoutError):
            pass
        finally:
            stream.close()


class Capture:
    """Copies of both directions of one connection: for audits and tests of what a parent can see."""

    def __init__(self, up: BinaryIO, down: BinaryIO) -> None:
        self.up, self.down = up, down

    @staticmethod
    @contextlib.contextmanager
    def open(folder: Path | None, name: str):  # type: ignore[no-untyped-def]
        """Yields a Capture, or None without a folder."""
        if folder is None:
            yield None
            return
        with (
            (folder / f"{name}.up").open("wb", buffering=0) as up,
            (folder / f"{name}.down").open("wb", buffering=0) as down,
        ):
            yield Capture(up, down)


async def join(
    near: socket.socket,
    far: socket.socket,
    totals: Totals,
    capture: Capture | None = None,
    *,
    idle: float = IDLE_SECONDS,
) -> None:
    """Carry bytes until both directions ended, or one broke, or nothing moved for `idle` seconds; closes `far`."""
    joined = _Joined(idle)
    up = _Way(joined, near, far, totals, "up", capture.up if capture else None)
    down = _Way(joined, far, near, totals, "down", capture.down if capture else None)
    try:
        up.start()
        down.start()
        await joined.done
    except (OSError, TimeoutError):
        # One side broke: whoever reads the other must see a broken stream too, not an orderly end.
        _reset(near)
        _reset(far)
    finally:
        joined.timer.cancel()
        up.stop()
        down.stop()
        far.close()


class _Copied:
    """Holds bytes in this process: what a capture needs, and streams that the kernel does not splice."""

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(CHUNK))
        self.held = self._buffer[:0]

    def fill(self, source: socket.socket) -> int:
        size = source.recv_into(self._buffer)
        self.held = self._buffer[:size]
        return size

    def drain(self, sink: socket.socket) -> int:
        sent = sink.send(self.held)
        self.held = self.held[sent:]
        return sent


class _Spliced:
    """Holds bytes in a pipe of the kernel (splice(2)): they never enter this process."""

    def __init__(self) -> None:
        self._ends: tuple[int, ...] = ()
        self._ends = self._out, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # as many as the kernel lets this user have
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, PIPE)
        self.held = 0

    def fill(self, source: socket.socket) -> int:
        self.held = os.splice(source.fileno(), self._in, PIPE)
        return self.held

    def drain(self, sink: socket.socket) -> int:
        sent = os.splice(self._out, sink.fileno(), self.held)
        self.held -= sent
        return sent

    def __del__(self) -> None:
        for end in self._ends:
            os.close(end)


class _Spare(threading.local):
    """Holders of one thread. A piece is passed on before the next is read, so that one serves every connection; only
    what a sink did not take keeps its holder, until it did."""

    def __init__(self) -> None:
        self._free: dict[type, list[_Copied | _Spliced]] = {_Copied: [], _Spliced: []}

    def take(self, kind: type[_Copied | _Spliced]) -> _Copied | _Spliced:
        """One that holds nothing."""
        try:
            return self._free[kind].pop() if self._free[kind] else kind()
        except OSError:  # no descriptors left for a pipe
            return _Copied()

    def give(self, holder: _Copied | _Spliced) -> None:
        """Back, empty."""
        free = self._free[type(holder)]
        if len(free) < KEPT:
            free.append(holder)


_spare = _Spare()


class _Joined:
    """The end of two ways, and the time of their last byte."""

    def __init__(self, idle: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self.loop.create_future()
        self.open = 2
        self.moved = self.loop.time()
        self._idle = idle
        self.timer = self.loop.call_later(idle, self._look)

    def ended(self) -> None:
        self.open -= 1
        if not self.open and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: OSError) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def _look(self) -> None:
        at = self.moved + self._idle
        if at <= self.loop.time():
            self.fail(TimeoutError())
        else:
            self.timer = self.loop.call_at(at, self._look)


class _Way:
    """One direction. Callbacks, not a task: a frame costs one turn of the loop, an idle connection no buffer."""

    def __init__(
        self, joined: _Joined, source: socket.socket, sink: socket.socket, totals: Totals, name: str,
        copy: BinaryIO | None,
    ) -> None:  # fmt: skip
        self._joined, self._source, self._sink = joined, source, sink
        self._totals, self._name, self._copy = totals, name, copy
        self._splices = copy is None and source.family in SPLICED_FROM and sink.family in SPLICED_TO
        self._kind: type[_Copied | _Spliced] = _Copied
        #: What the sink did not take; while there is any, nothing is read.
        self._left: _Copied | _Spliced | None = None

    def start(self) -> None:
        self._joined.loop.add_reader(self._source, self._read)

    def stop(self) -> None:
        self._joined.loop.remove_reader(self._source)
        self._joined.loop.remove_writer(self._sink)

    def _read(self) -> None:
        holder = _spare.take(self._kind)
        try:
            size = self._fill(holder)
            if size:
                self._kind = _Spliced if self._splices and size >= BULK else _Copied
                if self._copy is not None and isinstance(holder, _Copied):
                    self._copy.write(holder.held)
                self._drain(holder)
            elif size == 0:
                self._end()
        except OSError as error:
            # The holder is dropped: what is in it must never reach another connection.
            self._joined.fail(error)
            return
        if holder.held:
            self._left = holder
            self._joined.loop.remove_reader(self._source)
            self._joined.loop.add_writer(self._sink, self._write)
        else:
            _spare.give(holder)

    def _fill(self, holder: _Copied | _Spliced) -> int | None:
        """Bytes, 0 at the end, None when there are none yet."""
        try:
            return holder.fill(self._source)
        except BlockingIOError:
            return None

    def _write(self) -> None:
        assert self._left is not None
        try:
            self._drain(self._left)
        except OSError as error:
            self._joined.fail(error)
            return
        if not self._left.held:
            _spare.give(self._left)
            self._left = None
            self._joined.loop.remove_writer(self._sink)
            self._joined.loop.add_reader(self._source, self._read)

    def _drain(self, holder: _Copied | _Spliced) -> None:
        try:
            sent = holder.drain(self._sink)
        except BlockingIOError:
            return
        self._joined.moved = self._joined.loop.time()
        if self._name == "up":
            self._totals.up += sent
        else:
            self._totals.down += sent

    def _end(self) -> None:
        self._joined.loop.remove_reader(self._source)
        with contextlib.suppress(OSError):
            self._sink.shutdown(socket.SHUT_WR)
        self._joined.ended()


def _reset(stream: socket.socket) -> None:
    with contextlib.suppress(OSError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
