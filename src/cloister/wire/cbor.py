"""Strict CBOR (RFC 8949) from strangers, over cbor2: one bounded item of plain types, no duplicate keys, no tags."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import NoReturn, TypeAlias

import cbor2

from cloister.errors import MalformedError

Value: TypeAlias = "int | str | bytes | bool | list[Value] | dict[int | str, Value] | None"
"""What a strict item may be made of: no floats, tags, sets, undefined or simple values."""

MAX_DEPTH = 8

# Tags that cbor2 interprets by itself; all others reach the tag hook. Shared references could even make cycles.
_KNOWN_TAGS = (
    *range(6), *range(21, 31), *range(32, 38), 43, 100, 256, 258, 260, 261, 1004, 43000, 55799,
)  # fmt: skip


def _no_tag(*_arguments: object) -> NoReturn:
    raise ValueError("a tag")


_SEMANTIC: dict[int, Callable[..., object]] = dict.fromkeys(_KNOWN_TAGS, _no_tag)


def loads(data: bytes, what: str, *, limit: int) -> Value:
    """The one CBOR item in `data` (at most `limit` bytes); raises MalformedError.

    Indefinite lengths are allowed: real attestation documents use them.
    """
    if len(data) > limit:
        raise MalformedError(f"{what}: {len(data)} bytes, the limit is {limit}")
    stream = BytesIO(data)
    try:
        item = cbor2.CBORDecoder(
            stream,
            tag_hook=_no_tag,
            semantic_decoders=_SEMANTIC,
            max_depth=MAX_DEPTH + 1,
            allow_duplicate_keys=False,
            read_size=1,
        ).decode()
    except (cbor2.CBORDecodeError, ValueError, TypeError, OverflowError, MemoryError, RecursionError):
        # The library's message may quote input.
        raise MalformedError(f"{what}: not strict CBOR") from None
    # cbor2 stops after the first item and says nothing of what follows.
    if stream.tell() != len(data):
        raise MalformedError(f"{what}: {len(data) - stream.tell()} trailing bytes")
    return _plain(item, what, MAX_DEPTH)


def _plain(item: object, what: str, depth: int) -> Value:
    if depth < 0:
        raise MalformedError(f"{what}: nested too deep")
    if item is None or isinstance(item, bool | str | bytes):
        return item
    if isinstance(item, int):
        if not -(1 << 64) <= item < 1 << 64:
            raise MalformedError(f"{what}: integer too large")
        return item
    if isinstance(item, list):
        return [_plain(member, what, depth - 1) for member in item]
    if isinstance(item, dict):
        members: dict[int | str, Value] = {}
        for key, member in item.items():
            if isinstance(key, bool) or not isinstance(key, int | str):
                raise MalformedError(f"{what}: map key is neither integer nor text")
            members[key] = _plain(member, what, depth - 1)
        return members
    raise MalformedError(f"{what}: a value of a type that is not allowed")
