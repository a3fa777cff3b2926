"""The far end of the pipe's benchmark: stands for the enclave behind a hybrid vsock path, and for `socat` without one.

    python -m cloister.bench.pipe_peer FOLDER

Listens on `FOLDER/v` (greeting, then the stream), on `FOLDER/plain` and on TCP (the stream at once), and prints the TCP
port. A stream begins with one letter and eight bytes of length: `U` takes so many and answers one byte, `D` sends so
many, `B` does both at once, `E` returns frames of that size until the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
import sys
from pathlib import Path

HEAD = 9
PIECE = bytes(1 << 18)


async def _take(stream: socket.socket, size: int) -> None:
    loop, buffer = asyncio.get_running_loop(), bytearray(1 << 18)
    while size > 0 and (got := await loop.sock_recv_into(stream, buffer)):
        size -= got


async def _give(stream: socket.socket, size: int) -> None:
    loop = asyncio.get_running_loop()
    while size > 0:
        await loop.sock_sendall(stream, PIECE[: min(size, len(PIECE))])
        size -= len(PIECE)


async def _echo(stream: socket.socket, size: int) -> None:
    loop, buffer = asyncio.get_running_loop(), bytearray(size)
    while got := await loop.sock_recv_into(stream, buffer):
        await loop.sock_sendall(stream, buffer[:got])


async def exactly(stream: socket.socket, size: int) -> bytes:
    """So many bytes; raises ConnectionError at an early end."""
    data = b""
    while len(data) < size:
        piece = await asyncio.get_running_loop().sock_recv(stream, size - len(data))
        if not piece:
            raise ConnectionResetError
        data += piece
    return data


async def _serve(stream: socket.socket, greet: bool) -> None:
    loop = asyncio.get_running_loop()
    stream.setblocking(False)
    with contextlib.suppress(OSError), stream:
        if greet:
            while await exactly(stream, 1) != b"\n":
                pass
            await loop.sock_sendall(stream, b"OK 1073741824\n")
        head = await exactly(stream, HEAD)
        size = int.from_bytes(head[1:], "big")
        match head[:1]:
            case b"U":
                await _take(stream, size)
                await loop.sock_sendall(stream, b".")
            case b"D":
                await _give(stream, size)
            case b"B":
                # The one byte comes last: two senders on one socket would take the loop from each other.
                await asyncio.gather(_take(stream, size), _give(stream, size))
                await loop.sock_sendall(stream, b".")
            case _:
                await _echo(stream, size)


async def _accept(listener: socket.socket, greet: bool) -> None:
    loop, tasks = asyncio.get_running_loop(), set()
    listener.setblocking(False)
    while True:
        stream, _ = await loop.sock_accept(listener)
        if stream.family == socket.AF_INET:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = asyncio.create_task(_serve(stream, greet))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def main(folder: Path) -> None:
    """Serve until SIGTERM."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    listeners = []
    for name in ("v", "plain"):
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(folder / name))
        listener.listen(4096)
        listeners.append(listener)
    listeners.append(socket.create_server(("127.0.0.1", 0), backlog=4096))
    tasks = [asyncio.create_task(_accept(each, number == 0)) for number, each in enumerate(listeners)]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print(listeners[-1].getsockname()[1], flush=True)  # noqa: T201 - whoever started us waits for this line
    await stop.wait()
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
