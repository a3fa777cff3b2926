"""Strict JSON (RFC 8259) from strangers: bounded, no duplicate names, no NaN; and base64url fields."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import NoReturn

from cloister.errors import MalformedError

MAX_DEPTH = 32

_HEX = re.compile(r"(?:[0-9a-f]{2})*\Z")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*\Z")


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members: dict[str, object] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError("a name occurs twice in one object")
        members[name] = value
    return members


def _no_constant(_text: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def _check_depth(value: object) -> None:
    """Bound the nesting here: how deep the library goes differs between versions of Python."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise ValueError("nested too deep")


def loads(data: bytes, what: str, *, limit: int) -> dict[str, object]:
    """The JSON object in `data` (at most `limit` bytes); raises MalformedError without quoting any of it."""
    value = _loads(data, what, limit)
    if not isinstance(value, dict):
        raise MalformedError(f"{what}: not a JSON object")
    return value


def loads_array(data: bytes, what: str, *, limit: int) -> list[object]:
    """The JSON array in `data` (at most `limit` bytes); raises MalformedError without quoting any of it."""
    value = _loads(data, what, limit)
    if not isinstance(value, list):
        raise MalformedError(f"{what}: not a JSON array")
    return value


def _loads(data: bytes, what: str, limit: int) -> object:
    if len(data) > limit:
        raise MalformedError(f"{what}: {len(data)} bytes, the limit is {limit}")
    try:
        value: object = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        _check_depth(value)
        # A lone surrogate escape parses but is not text that anyone could send on.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        # The decoder's own message quotes the input: it must not travel.
        raise MalformedError(f"{what}: not strict JSON") from None
    return value


class Fields:
    """Typed access to the members of one JSON object; `done()` rejects members nobody asked for."""

    def __init__(self, members: dict[str, object], what: str) -> None:
        self._members = members
        self._what = what
        self._seen: set[str] = set()

    def _get(self, name: str) -> object:
        self._seen.add(name)
        if name not in self._members:
            raise MalformedError(f"{self._what}: {name} is missing")
        return self._members[name]

    def has(self, name: str) -> bool:
        """Is the member there (null counts)?"""
        self._seen.add(name)
        return name in self._members

    def is_null(self, name: str) -> bool:
        """Is the member there, and null?"""
        return self._get(name) is None

    def value(self, name: str) -> object:
        """Whatever the member holds."""
        return self._get(name)

    def text(self, name: str, *, limit: int = 1024) -> str:
        """A string of at most `limit` characters."""
        value = self._get(name)
        if not isinstance(value, str) or len(value) > limit:
            raise MalformedError(f"{self._what}: {name} must be a string of at most {limit} characters")
        return value

    def integer(self, name: str, *, minimum: int = 0, maximum: int = 2**53 - 1) -> int:
        """An integer in the closed range."""
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise MalformedError(f"{self._what}: {name} must be an integer from {minimum} to {maximum}")
        return value

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self._get(name)
        if not isinstance(value, bool):
            raise MalformedError(f"{self._what}: {name} is neither true nor false")
        return value

    def hex(self, name: str, size: int | None = None, *, limit: int = 65536) -> bytes:
        """Lower-case hex, of `size` or at most `limit` bytes."""
        text = self.text(name, limit=2 * (limit if size is None else size))
        if not _HEX.match(text) or (size is not None and len(text) != 2 * size):
            raise MalformedError(f"{self._what}: {name} is not lower-case hex{f' of {size} bytes' if size else ''}")
        return bytes.fromhex(text)

    def octets(self, name: str, *, size: int | None = None, limit: int = 65536) -> bytes:
        """A base64url member without padding, decoded (RFC 4648 section 5)."""
        return decode_base64url(self.text(name, limit=limit * 2), f"{self._what}: {name}", size=size, limit=limit)

    def member(self, name: str) -> Fields:
        """A member that is itself an object."""
        value = self._get(name)
        if not isinstance(value, dict):
            raise MalformedError(f"{self._what}: {name} must be an object")
        return Fields(value, f"{self._what}.{name}")

    def array(self, name: str, *, limit: int) -> list[object]:
        """An array of at most `limit` items."""
        value = self._get(name)
        if not isinstance(value, list) or len(value) > limit:
            raise MalformedError(f"{self._what}: {name} must be an array of at most {limit} items")
        return value

    def names(self) -> set[str]:
        """The names of all members."""
        return set(self._members)

    def done(self) -> None:
        """Raise if a member was never asked for: an unknown member may change the meaning."""
        unknown = set(self._members) - self._seen
        if unknown:
            raise MalformedError(f"{self._what}: {len(unknown)} unknown member(s)")


def decode_base64url(text: str, what: str, *, size: int | None = None, limit: int = 65536) -> bytes:
    """Unpadded base64url in its one canonical spelling; `size` or `limit` in bytes."""
    # Bits left over in the last character would give one value several spellings.
    try:
        if not _BASE64URL.match(text):
            raise ValueError
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        if encode_base64url(data) != text:
            raise ValueError
    except (ValueError, binascii.Error):
        raise MalformedError(f"{what}: not unpadded base64url") from None
    if (size is not None and len(data) != size) or len(data) > limit:
        raise MalformedError(f"{what}: {len(data)} bytes, expected {size if size is not None else f'at most {limit}'}")
    return data


def encode_base64url(data: bytes) -> str:
    """Unpadded base64url (RFC 4648 section 5)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
