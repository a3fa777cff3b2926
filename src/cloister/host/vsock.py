"""Streams between a parent and its enclave: kernel vsock on EC2, hybrid unix sockets beside an emulated guest.

The hybrid form is Firecracker's (docs/vsock.md): to reach the guest's port, connect to the socket PATH, send
`CONNECT port\\n` and read `OK n\\n`; the guest's streams to the parent's port P arrive at the unix socket `PATH_P`.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Protocol

BACKLOG = 1024
#: `OK ` and a number of ten digits and the newline.
GREETING_BYTES = 16
RETRY_SECONDS = 0.01


class Vsock(Protocol):
    """The parent's end."""

    async def connect(self, port: int) -> socket.socket:
        """A stream to the enclave's port; raises OSError."""
        ...

    def listen(self, port: int) -> socket.socket:
        """A listener for the enclave's streams to the parent's port; raises OSError."""
        ...


def chosen(cid: int | None, uds: Path | None) -> Vsock:
    """The one of the two that is given."""
    if uds is not None:
        return HybridVsock(uds)
    assert cid is not None
    return KernelVsock(cid)


class KernelVsock:
    """AF_VSOCK: the enclave has a context identifier of its own."""

    def __init__(self, cid: int) -> None:
        self._cid = cid

    async def connect(self, port: int) -> socket.socket:
        """A stream to the enclave's port; raises OSError."""
        stream = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        return await _connected(stream, (self._cid, port))

    def listen(self, port: int) -> socket.socket:
        """A listener on every address of this machine; raises OSError."""
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        return _bound(listener, (socket.VMADDR_CID_ANY, port))


class HybridVsock:
    """Unix sockets under one path."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def connect(self, port: int) -> socket.socket:
        """A stream to the guest's port; raises OSError when nobody listens there."""
        stream = await self._stream()
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(stream, b"CONNECT %d\n" % port)
            greeting = b""
            while not greeting.endswith(b"\n"):
                piece = await loop.sock_recv(stream, 1)
                if not piece or len(greeting) >= GREETING_BYTES:
                    raise ConnectionRefusedError("nobody listens on that port of the guest")
                greeting += piece
            if not greeting.startswith(b"OK "):
                raise ConnectionRefusedError("nobody listens on that port of the guest")
        except BaseException:
            stream.close()
            raise
        return stream

    async def _stream(self) -> socket.socket:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            # A full queue of a unix listener is EAGAIN at once, and nothing tells when it has room (connect(2)).
            while True:
                try:
                    stream.connect(str(self._path))
                except BlockingIOError:
                    await asyncio.sleep(RETRY_SECONDS)
                else:
                    return stream
        except BaseException:
            stream.close()
            raise

    def listen(self, port: int) -> socket.socket:
        """A listener for the guest's streams to that port; a stale socket of an earlier run is replaced."""
        path = Path(f"{self._path}_{port}")
        path.unlink(missing_ok=True)
        return _bound(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK), str(path))


async def _connected(stream: socket.socket, address: object) -> socket.socket:
    try:
        await asyncio.get_running_loop().sock_connect(stream, address)  # type: ignore[arg-type]
    except BaseException:
        stream.close()
        raise
    return stream


def _bound(listener: socket.socket, address: object) -> socket.socket:
    try:
        listener.bind(address)  # type: ignore[arg-type]
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
