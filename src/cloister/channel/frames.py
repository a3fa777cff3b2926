"""Fixed-size response frames: what an observer sees of an answer is how many frames there were, not their fill.

The Binary HTTP response is one stream of bytes cut every `size` bytes, each cut sealed as one chunk. When something
must leave before a frame is full, an SSE comment line (":" spaces LF) fills it exactly; clients drop comments. The last
frame is filled with zeros, which Binary HTTP allows after its end.
"""

from __future__ import annotations

import hashlib

from cloister.wire import bhttp

FRAME = 512


def _filler(size: int) -> tuple[bytes, bytes]:
    """A content chunk of exactly `size` encoded bytes holding one SSE comment line; the chunk, and its content.

    `size` is at least 3: one byte of length, ":" and LF.
    """
    if size <= 64:
        prefix, length = bytes([size - 1]), size - 1
    else:
        # A two-byte length: one byte more than the shortest form would need at 65, which the format allows.
        prefix, length = (size - 2 | 1 << 14).to_bytes(2, "big"), size - 2
    line = b":" + b" " * (length - 2) + b"\n"
    return prefix + line, line


class FrameShaper:
    """Turns a response into plaintext chunks that are all exactly `size` bytes, the final one a multiple of it.

    `head` once, `content` any number of times, `flush` to let out what is pending, `end` once. With size 0 nothing is
    padded. Content passed with `sse=True` must be whole events, because filler goes between them.
    """

    def __init__(self, *, sse: bool, size: int = FRAME) -> None:
        self._sse = sse
        self._size = size
        self._pending = b""
        self._content = hashlib.sha256()

    def head(self, status: int, headers: bhttp.Fields) -> list[bytes]:
        """Begin the response."""
        return self._emit(bhttp.encode_head(status, headers))

    def content(self, data: bytes) -> list[bytes]:
        """Add content; returns the frames that it fills."""
        if self._sse and not data.endswith(b"\n\n"):
            raise ValueError("event streams are framed by whole events")
        self._content.update(data)
        frames: list[bytes] = []
        # One content chunk per 16 KiB keeps a decoder's steps small.
        for at in range(0, len(data), 16384):
            frames += self._emit(bhttp.encode_content(data[at : at + 16384]))
        return frames

    def flush(self) -> list[bytes]:
        """Let out what is pending, filled up to a whole frame; only for event streams."""
        if not self._pending:
            return []
        if not self._size:
            pending, self._pending = self._pending, b""
            return [pending]
        if not self._sse:
            raise ValueError("only event streams can be filled")
        room = self._size - len(self._pending)
        chunk, line = _filler(room if room >= 3 else room + self._size)
        self._content.update(line)
        return self._emit(chunk)

    def content_sha256(self) -> bytes:
        """SHA-256 of all content so far, filler included: what the client sees before it drops comments."""
        return self._content.copy().digest()

    def end(self, trailers: bhttp.Fields) -> bytes:
        """The final chunk's plaintext: what is left, the trailers and zeros up to a multiple of `size`."""
        rest = self._pending + bhttp.encode_end(trailers)
        return rest.ljust(-(-len(rest) // self._size) * self._size, b"\x00") if self._size else rest

    def _emit(self, data: bytes) -> list[bytes]:
        self._pending += data
        if not self._size:
            # Unpadded: everything leaves at once, in chunks of a legal size.
            pending, self._pending = self._pending, b""
            return [pending[at : at + 16384] for at in range(0, len(pending), 16384)]
        whole = len(self._pending) // self._size * self._size
        frames = [self._pending[at : at + self._size] for at in range(0, whole, self._size)]
        self._pending = self._pending[whole:]
        return frames
