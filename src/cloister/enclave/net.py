"""The only ways out of an enclave: a vsock stream to the parent, and through its egress pipe to a named host.

Nothing that leaves here is protected by this module: TLS to a service ends inside the enclave, on top of `egress`.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Protocol

from cloister.errors import UndecidedError
from cloister.wire.ports import EGRESS, PARENT_CID

TIMEOUT = 20.0
#: An answer to CONNECT is one short head.
HEAD_BYTES = 4096


class CutError(UndecidedError):
    """The way through the parent ended: it may restart, so asking again may work."""


class Dial(Protocol):
    """Opens a stream to a port of the parent."""

    def __call__(self, port: int) -> socket.socket:
        """A connected, blocking stream socket with a time-out; raises UndecidedError."""
        ...


def vsock(port: int) -> socket.socket:
    """A stream to the parent over the enclave's vsock device."""
    stream = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    return _connect(stream, (PARENT_CID, port), port)


def hybrid(path: Path) -> Dial:
    """A dialer for a process beside the parent agent: port N is the unix socket `PATH_N` (Firecracker's convention)."""

    def dial(port: int) -> socket.socket:
        return _connect(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), f"{path}_{port}", port)

    return dial


def egress(dial: Dial, host: str, port: int) -> socket.socket:
    """A raw stream to `host:port` through the egress pipe (RFC 9110 section 9.3.6); raises UndecidedError."""
    stream = dial(EGRESS)
    try:
        stream.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode("ascii"))
        head = b""
        # Byte by byte: what follows the head belongs to whoever gets the stream.
        while not head.endswith(b"\r\n\r\n"):
            piece = stream.recv(1)
            if not piece or len(head) >= HEAD_BYTES:
                raise CutError(f"the parent closed the way to {host}", hint="Look at the host agent's log.")
            head += piece
        status = head.split(b" ", 2)[1:2]
        if status == [b"502"]:
            raise CutError(f"the parent cannot reach {host}:{port}", hint="Look at the host agent's log.")
        if status != [b"200"]:
            reason = "is not on its allow-list" if status == [b"403"] else "got no proper answer"
            raise UndecidedError(
                f"the parent refused egress: {host}:{port} {reason}", hint="See [egress] in cloister.toml."
            )
    except OSError as error:
        stream.close()
        raise CutError(f"the way to {host} was cut: {error.strerror}", hint="Look at the host agent's log.") from None
    except UndecidedError:
        stream.close()
        raise
    return stream


def _connect(stream: socket.socket, address: object, port: int) -> socket.socket:
    stream.settimeout(TIMEOUT)
    try:
        stream.connect(address)  # type: ignore[arg-type]
    except OSError as error:
        stream.close()
        raise CutError(
            f"the parent does not answer on vsock port {port}: {error.strerror or 'timed out'}",
            hint="The parent agent must run beside the enclave: docs/parent.md.",
        ) from None
    return stream
