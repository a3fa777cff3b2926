"""Messages between supervisor and worker over a socket pair: u32 length, u8 kind, u32 request, payload.

Both ends are ours and on one machine; the framing is simple and still checked, because a damaged worker must not be
able to confuse the process that holds the keys.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from cloister.errors import EngineError

_HEAD = struct.Struct("<IBI")
MAX_MESSAGE = 64 * 1024 * 1024


class Kind(IntEnum):
    """What a message is; the first group goes to the worker, the second comes from it."""

    CONFIG = 1
    REQUEST = 2
    CANCEL = 3
    PING = 4
    STOP = 5

    READY = 16
    FAILED = 17
    CHUNK = 18
    DONE = 19
    ERROR = 20
    PONG = 21


def pack(kind: Kind, request: int = 0, payload: bytes = b"") -> bytes:
    """One message."""
    return _HEAD.pack(len(payload), kind, request) + payload


class Unpacker:
    """Cuts a byte stream into (kind, request, payload)."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def push(self, data: bytes) -> list[tuple[Kind, int, bytes]]:
        """Messages that `data` completes; raises EngineError for what is not one."""
        self._buffer += data
        messages = []
        at = 0
        while len(self._buffer) - at >= _HEAD.size:
            size, kind, request = _HEAD.unpack_from(self._buffer, at)
            if size > MAX_MESSAGE:
                raise EngineError("the worker sent a message of an impossible size")
            end = at + _HEAD.size + size
            if len(self._buffer) < end:
                break
            try:
                messages.append((Kind(kind), request, bytes(self._buffer[at + _HEAD.size : end])))
            except ValueError:
                raise EngineError("the worker sent a message of an unknown kind") from None
            at = end
        del self._buffer[:at]
        return messages
