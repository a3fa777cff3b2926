"""Protocol Buffers messages from strangers (the encoding of proto3): bounded, nothing twice, nothing unasked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cloister.errors import MalformedError
from cloister.wire.reader import Reader

MAX_FIELDS = 4096
_MAX_NUMBER = (1 << 29) - 1

T = TypeVar("T")


class Message:
    """The fields of one message by number; every getter raises MalformedError, `done` for numbers nobody asked for.

    A field that is absent has proto3's default value. One that may be there once and comes twice is refused, though a
    lenient decoder would take the last.
    """

    def __init__(self, data: bytes, what: str) -> None:
        self._what = what
        self._fields: dict[int, list[int | bytes]] = {}
        self._asked: set[int] = set()
        reader = Reader(data, what)
        for _ in range(MAX_FIELDS):
            if not reader.remaining:
                return
            tag = _varint(reader)
            self._fields.setdefault(self._number(tag), []).append(self._value(reader, tag & 7))
        if reader.remaining:
            raise MalformedError(f"{what}: more than {MAX_FIELDS} fields")

    def _number(self, tag: int) -> int:
        if not 1 <= tag >> 3 <= _MAX_NUMBER:
            raise MalformedError(f"{self._what}: a field number out of range")
        return tag >> 3

    def _value(self, reader: Reader, kind: int) -> int | bytes:
        match kind:
            case 0:
                return _varint(reader)
            case 1:
                return int.from_bytes(reader.take(8, "field"), "little")
            case 2:
                return reader.take(_varint(reader), "field")
            case 5:
                return int.from_bytes(reader.take(4, "field"), "little")
        raise MalformedError(f"{self._what}: a field of a kind that is not used")

    def _one(self, number: int) -> int | bytes | None:
        values = self._all(number)
        if len(values) > 1:
            raise MalformedError(f"{self._what}: field {number} comes twice")
        return values[0] if values else None

    def _all(self, number: int) -> list[int | bytes]:
        self._asked.add(number)
        return self._fields.get(number, [])

    def has(self, number: int) -> bool:
        """Is the field there?"""
        return bool(self._all(number))

    def integer(self, number: int, *, maximum: int = (1 << 64) - 1) -> int:
        """An unsigned integer of at most `maximum`; 0 if absent."""
        value = self._one(number)
        if value is None:
            return 0
        if not isinstance(value, int) or value > maximum:
            raise MalformedError(f"{self._what}: field {number} is no integer up to {maximum}")
        return value

    def flag(self, number: int) -> bool:
        """A bool; False if absent."""
        return self.integer(number, maximum=1) == 1

    def octets(self, number: int, *, size: int | None = None, limit: int = 1024 * 1024) -> bytes:
        """Bytes of exactly `size`, or at most `limit`; empty if absent and no size is given."""
        return self._bytes(self._one(number), number, size, limit)

    def every(self, number: int, *, count: int, size: int | None = None, limit: int = 1024 * 1024) -> tuple[bytes, ...]:
        """Each occurrence of a repeated bytes field, at most `count`."""
        values = self._all(number)
        if len(values) > count:
            raise MalformedError(f"{self._what}: field {number} comes more than {count} times")
        return tuple(self._bytes(value, number, size, limit) for value in values)

    def _bytes(self, value: int | bytes | None, number: int, size: int | None, limit: int) -> bytes:
        if value is None:
            value = b""
        if not isinstance(value, bytes):
            raise MalformedError(f"{self._what}: field {number} is not bytes")
        if (size is not None and len(value) != size) or len(value) > limit:
            wanted = size if size is not None else f"at most {limit}"
            raise MalformedError(f"{self._what}: field {number} has {len(value)} bytes, expected {wanted}")
        return value

    def message(self, number: int, what: str) -> Message | None:
        """A message within this one, None if absent."""
        return Message(self.octets(number), what) if self.has(number) else None

    def messages(self, number: int, what: str, *, count: int) -> tuple[Message, ...]:
        """Each occurrence of a repeated message, at most `count`."""
        return tuple(Message(data, what) for data in self.every(number, count=count))

    def mapping(self, number: int, value: Callable[[Message], T], *, count: int, maximum: int) -> dict[int, T]:
        """A map with unsigned integer keys: `value` reads field 2 of each entry; a key twice is refused."""
        found: dict[int, T] = {}
        for entry in self.messages(number, f"{self._what} entry", count=count):
            key = entry.integer(1, maximum=maximum)
            if key in found:
                raise MalformedError(f"{self._what}: a key of field {number} comes twice")
            found[key] = value(entry)
            entry.done()
        return found

    def done(self) -> None:
        """Refuse fields that nobody asked for: what is not understood may change the meaning."""
        unknown = set(self._fields) - self._asked
        if unknown:
            raise MalformedError(f"{self._what}: {len(unknown)} unknown field(s)")


def _varint(reader: Reader) -> int:
    """Up to ten bytes of seven bits, the lowest first."""
    value = 0
    for shift in range(0, 70, 7):
        byte = reader.uint(1, "varint")
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    else:
        raise MalformedError("protobuf: a varint of more than ten bytes")
    if value >> 64:
        raise MalformedError("protobuf: an integer of more than 64 bits")
    return value
