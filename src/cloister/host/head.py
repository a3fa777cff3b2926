"""The head of an HTTP/1.1 request from the enclave, strictly (RFC 9112): what the agent's small services need."""

from __future__ import annotations

import asyncio
import re
import socket
from dataclasses import dataclass

from cloister.errors import MalformedError

HEAD_BYTES = 4096
_LINE = re.compile(rb"([A-Z]{1,16}) ([!-~]{1,1024}) HTTP/1\.1")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}):[ \t]*([ -~\t]*)")
REASONS = {
    200: "OK",
    206: "Partial Content",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    416: "Range Not Satisfiable",
    502: "Bad Gateway",
}


@dataclass(frozen=True)
class Head:
    """Method, target and fields (lower-case names) of one request."""

    method: str
    target: str
    fields: dict[str, str]


def parse(head: bytes) -> Head:
    """Parse a head without its empty line; raises MalformedError. A body is never expected: its fields are refused."""
    line, *rest = head.split(b"\r\n")
    match = _LINE.fullmatch(line)
    if match is None or len(head) > HEAD_BYTES:
        raise MalformedError("not an HTTP/1.1 request line")
    fields: dict[str, str] = {}
    for each in rest:
        found = _FIELD.fullmatch(each)
        if found is None:
            raise MalformedError("not an HTTP field line")
        name = found[1].decode("ascii").lower()
        if name in fields or name in ("transfer-encoding", "content-length"):
            raise MalformedError("a field twice, or a body")
        fields[name] = found[2].decode("ascii").strip()
    return Head(match[1].decode("ascii"), match[2].decode("ascii"), fields)


async def read(stream: socket.socket) -> Head | None:
    """The next head on a stream, None at its end; raises MalformedError. Nothing after it is taken off the stream."""
    loop = asyncio.get_running_loop()
    got = b""
    while not got.endswith(b"\r\n\r\n"):
        piece = await loop.sock_recv(stream, 1)
        if not piece:
            if got:
                raise MalformedError("the request was cut")
            return None
        got += piece
        if len(got) > HEAD_BYTES:
            raise MalformedError("the request's head is too long")
    return parse(got[:-4])


async def request(stream: socket.socket, seconds: float) -> Head | None:
    """The next head within that time; None at the stream's end, and after a wrong head was answered with 400."""
    try:
        async with asyncio.timeout(seconds):
            return await read(stream)
    except MalformedError:
        await asyncio.get_running_loop().sock_sendall(stream, answer(400))
        return None


def answer(status: int, *, fields: dict[str, str] | None = None, body: bytes = b"") -> bytes:
    """A whole answer with that body."""
    lines = [f"HTTP/1.1 {status} {REASONS[status]}"]
    lines += [f"{name}: {value}" for name, value in {"Content-Length": str(len(body)), **(fields or {})}.items()]
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body
