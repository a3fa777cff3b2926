"""Register values for code on an ordinary machine: honest digests of what runs, vouched for by nobody."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def extend(digest: bytes) -> bytes:
    """A register after one extension from zero: SHA-384(0^48 || digest), as the Nitro boot code does."""
    return hashlib.sha384(bytes(48) + digest).digest()


def measure_tree(root: Path) -> bytes:
    """SHA-384 over the sorted relative paths and contents of all files under `root`, byte code caches left out."""
    total = hashlib.sha384()
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            name = path.relative_to(root).as_posix().encode()
            total.update(len(name).to_bytes(4, "big") + name + hashlib.sha384(path.read_bytes()).digest())
    return total.digest()


def measure_strings(parts: Iterable[str]) -> bytes:
    """SHA-384 over length-prefixed strings."""
    total = hashlib.sha384()
    for part in parts:
        data = part.encode()
        total.update(len(data).to_bytes(4, "big") + data)
    return total.digest()
