"""The model store: sealed containers from one folder over HTTP/1.1 with single ranges (RFC 9110 section 14)."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from pathlib import Path

from cloister.host import head
from cloister.host.pipe import Capture, Totals

_NAME = re.compile(r"/models/([A-Za-z0-9][A-Za-z0-9._-]{0,126})")
_RANGE = re.compile(r"bytes=(\d{1,15})-(\d{0,15})")
IDLE_SECONDS = 60.0


class Store:
    """Serves GET and HEAD of `/models/NAME`; regular files only, never through a link."""

    def __init__(self, folder: Path, totals: Totals) -> None:
        self._folder, self._totals = folder, totals

    async def serve(self, near: socket.socket, capture: Capture | None) -> None:
        """One connection of the enclave: requests until it closes."""
        del capture  # what goes out here is the file itself
        while (request := await head.request(near, IDLE_SECONDS)) is not None:
            if not await self._answer(near, request):
                return

    async def _answer(self, near: socket.socket, request: head.Head) -> bool:
        loop = asyncio.get_running_loop()
        match = _NAME.fullmatch(request.target)
        if request.method not in ("GET", "HEAD") or match is None:
            await loop.sock_sendall(near, head.answer(405 if match else 404))
            return True
        try:
            descriptor = os.open(self._folder / match[1], os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            await loop.sock_sendall(near, head.answer(404))
            return True
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            size = os.fstat(descriptor).st_size
            span = _span(request.fields.get("range"), size)
            if span is None:
                await loop.sock_sendall(near, head.answer(416, fields={"Content-Range": f"bytes */{size}"}))
                return True
            start, length = span
            partial = "range" in request.fields
            fields = {
                "Accept-Ranges": "bytes",
                "Content-Type": "application/octet-stream",
                "Content-Length": str(length),
            }
            if partial:
                fields["Content-Range"] = f"bytes {start}-{start + length - 1}/{size}"
            await loop.sock_sendall(near, head.answer(206 if partial else 200, fields=fields))
            if request.method == "GET" and length:
                sent = await self._send(near, file, start, length)
                self._totals.down += sent
                # A file that shrank meanwhile: the enclave must see a cut, not a short answer.
                return sent == length
        return True

    async def _send(self, near: socket.socket, file: object, start: int, length: int) -> int:
        sent = await asyncio.get_running_loop().sock_sendfile(near, file, start, length)  # type: ignore[arg-type]
        return int(sent or 0)


def _span(text: str | None, size: int) -> tuple[int, int] | None:
    """First byte and length for a Range field; None when it cannot be satisfied or is not one plain range."""
    if text is None:
        return 0, size
    match = _RANGE.fullmatch(text)
    if match is None:
        return None
    first = int(match[1])
    last = min(int(match[2]), size - 1) if match[2] else size - 1
    return (first, last - first + 1) if first <= last else None
