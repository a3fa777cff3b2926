"""Join two streams: both ways, half-close, back-pressure by never reading what could not be written, time-outs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

#: Bytes held for one direction of one connection; all the memory that a slow reader can cost.
CHUNK = 256 * 1024
#: The first bytes on a connection are few: a small buffer until there was a full one.
FIRST = 16 * 1024
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
    """One listener whose every connection is handled by `serve`; `close` ends them all."""

    listener: socket.socket
    serve: Callable[[socket.socket, Capture | None], Awaitable[None]]
    name: str
    limit: int = MAX_CONNECTIONS
    capture: Path | None = None
    totals: Totals = field(default_factory=Totals)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self) -> None:
        """Accept until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    stream, _ = await loop.sock_accept(self.listener)
                except OSError:
                    # Out of descriptors, most likely: the next connection may find some.
                    await asyncio.sleep(0.1)
                    continue
                if len(self._tasks) >= self.limit:
                    self.totals.refused += 1
                    stream.close()
                    continue
                self.totals.connections += 1
                task = asyncio.create_task(self._one(stream, self.totals.connections))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        finally:
            self.listener.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

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


async def join(near: socket.socket, far: socket.socket, totals: Totals, capture: Capture | None = None) -> None:
    """Carry bytes until both directions ended; closes `far`. Raises OSError or TimeoutError when one broke."""
    beat = _Beat()

    def count_up(size: int) -> None:
        totals.up += size

    def count_down(size: int) -> None:
        totals.down += size

    try:
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(beat.watch())
            pumps = (
                group.create_task(_pump(near, far, beat, count_up, capture.up if capture else None)),
                group.create_task(_pump(far, near, beat, count_down, capture.down if capture else None)),
            )
            await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
            watch.cancel()
    except* (OSError, TimeoutError):
        # One side broke: whoever reads the other must see a broken stream too, not an orderly end.
        _reset(near)
        _reset(far)
    finally:
        far.close()


class _Beat:
    """Ends a connection that is silent for too long."""

    def __init__(self) -> None:
        self.moved = False

    async def watch(self) -> None:
        while True:
            self.moved = False
            await asyncio.sleep(IDLE_SECONDS)
            if not self.moved:
                raise TimeoutError


async def _pump(
    source: socket.socket, sink: socket.socket, beat: _Beat, count: Callable[[int], None], copy: BinaryIO | None
) -> None:
    loop = asyncio.get_running_loop()
    buffer = memoryview(bytearray(FIRST))
    while size := await loop.sock_recv_into(source, buffer):
        piece = buffer[:size]
        if copy is not None:
            copy.write(piece)
        await loop.sock_sendall(sink, piece)
        beat.moved = True
        count(size)
        if size == len(buffer) < CHUNK:
            buffer = memoryview(bytearray(CHUNK))
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _reset(stream: socket.socket) -> None:
    with contextlib.suppress(OSError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
