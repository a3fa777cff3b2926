"""Client nonces gathered into one Merkle root, so that one quote answers many clients (RFC 9334 section 10).

leaf = SHA-256(00 || nonce), node = SHA-256(01 || left || right); an odd node moves up unchanged. The root is F of the
binding; each client gets the path from its own nonce to the root.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal

from cloister.errors import MalformedError, NotGenuineError
from cloister.wire.strict_json import decode_base64url, encode_base64url

MIN_NONCE, MAX_NONCE = 16, 64
#: 2^16 clients in one batch is far beyond what a replica gathers.
MAX_PATH = 16

Step = tuple[Literal["L", "R"], bytes]
"""The side on which the sibling stands, and the sibling (32 bytes)."""


def _leaf(nonce: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + nonce).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def check_nonce(nonce: bytes) -> bytes:
    """The nonce itself if it is 16 to 64 bytes; raises MalformedError."""
    if not MIN_NONCE <= len(nonce) <= MAX_NONCE:
        raise MalformedError(f"nonce: {len(nonce)} bytes, expected {MIN_NONCE} to {MAX_NONCE}")
    return nonce


def gather(nonces: list[bytes]) -> tuple[bytes, list[tuple[Step, ...]]]:
    """The root over one or more nonces and, for each in order, its path to the root."""
    if not nonces:
        raise ValueError("no nonces to gather")
    if len(nonces) > 1 << MAX_PATH:
        raise ValueError("too many nonces for one root")
    level = [_leaf(check_nonce(nonce)) for nonce in nonces]
    paths: list[list[Step]] = [[] for _ in nonces]
    position = list(range(len(nonces)))
    while len(level) > 1:
        for index, place in enumerate(position):
            sibling = place ^ 1
            if sibling < len(level):
                paths[index].append(("L" if place & 1 else "R", level[sibling]))
            position[index] = place // 2
        pairs = range(0, len(level) - 1, 2)
        level = [_node(level[at], level[at + 1]) for at in pairs] + (level[-1:] if len(level) & 1 else [])
    return level[0], [tuple(path) for path in paths]


def root_from(nonce: bytes, path: tuple[Step, ...]) -> bytes:
    """The root that `nonce` and its path lead to."""
    value = _leaf(check_nonce(nonce))
    for side, sibling in path:
        value = _node(sibling, value) if side == "L" else _node(value, sibling)
    return value


def check_answer(nonce: bytes, echoed: bytes) -> None:
    """Require that the bundle answers our nonce and not somebody else's."""
    if not hmac.compare_digest(nonce, echoed):
        raise NotGenuineError("the evidence answers another nonce than the one sent")


def encode_path(path: tuple[Step, ...]) -> list[list[str]]:
    """The path as JSON: [["L"|"R", base64url], ...]."""
    return [[side, encode_base64url(sibling)] for side, sibling in path]


def decode_path(items: list[object]) -> tuple[Step, ...]:
    """A received path; raises MalformedError."""
    if len(items) > MAX_PATH:
        raise MalformedError("fresh.path: too long")
    path: list[Step] = []
    for item in items:
        if not isinstance(item, list) or len(item) != 2 or not isinstance(item[1], str):
            raise MalformedError("fresh.path: a step is [side, sibling]")
        if item[0] == "L":
            path.append(("L", decode_base64url(item[1], "fresh.path", size=32)))
        elif item[0] == "R":
            path.append(("R", decode_base64url(item[1], "fresh.path", size=32)))
        else:
            raise MalformedError("fresh.path: a side is L or R")
    return tuple(path)
