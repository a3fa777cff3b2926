"""A reader over untrusted bytes with named fields, and the variable-length integers of RFC 9000 section 16."""

from __future__ import annotations

from cloister.errors import MalformedError

MAX_VARINT = (1 << 62) - 1


class Reader:
    """Reads fields off `data` in order; every method raises MalformedError naming the field that did not fit."""

    __slots__ = ("_data", "_pos", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._pos = 0
        self._what = what

    @property
    def position(self) -> int:
        """Bytes read so far."""
        return self._pos

    @property
    def remaining(self) -> int:
        """Bytes not yet read."""
        return len(self._data) - self._pos

    def take(self, size: int, field: str) -> bytes:
        """The next `size` bytes."""
        end = self._pos + size
        if size < 0 or end > len(self._data):
            raise MalformedError(f"{self._what}: {field} wants {size} bytes, {self.remaining} are left")
        piece = self._data[self._pos : end]
        self._pos = end
        return piece

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(self.remaining, "rest")

    def uint(self, size: int, field: str) -> int:
        """A big-endian unsigned integer of `size` bytes."""
        return int.from_bytes(self.take(size, field), "big")

    def varint(self, field: str) -> int:
        """A variable-length integer (RFC 9000 section 16); longer encodings than needed are allowed there and here."""
        first = self.uint(1, field)
        size = 1 << (first >> 6)
        value = first & 0x3F
        return (value << (8 * (size - 1))) | self.uint(size - 1, field) if size > 1 else value

    def vector(self, field: str, *, limit: int) -> bytes:
        """A varint length, at most `limit`, and that many bytes."""
        size = self.varint(field)
        if size > limit:
            raise MalformedError(f"{self._what}: {field} is {size} bytes, the limit is {limit}")
        return self.take(size, field)

    def end(self) -> None:
        """Require that nothing is left."""
        if self.remaining:
            raise MalformedError(f"{self._what}: {self.remaining} trailing bytes")


def varint_size(first_byte: int) -> int:
    """Bytes (1, 2, 4 or 8) of the varint that starts with `first_byte`."""
    return 1 << (first_byte >> 6)


def encode_varint(value: int) -> bytes:
    """The shortest encoding of `value` (0 .. 2^62-1), RFC 9000 section 16."""
    if value < 0 or value > MAX_VARINT:
        raise ValueError("varint out of range")
    if value < 1 << 6:
        return value.to_bytes(1, "big")
    if value < 1 << 14:
        return (value | 1 << 14).to_bytes(2, "big")
    if value < 1 << 30:
        return (value | 2 << 30).to_bytes(4, "big")
    return (value | 3 << 62).to_bytes(8, "big")
