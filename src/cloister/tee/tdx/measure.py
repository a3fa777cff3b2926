"""Registers of a TD from what was measured into them.

RTMR0 to RTMR3 start at zero and are extended: RTMR = SHA384(RTMR ‖ digest) (TDX module ABI, TDG.MR.RTMR.EXTEND). Which
digests a firmware, boot loader and kernel extend depends on their versions, so nothing is predicted from an image here.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

REGISTER_BYTES = 48
#: What dstack's guest agent and tools of its kind call an event that they measure while the TD runs.
RUNTIME_EVENT = 0x08000001


def extend(register: bytes, digest: bytes) -> bytes:
    """A register (48 bytes) after it was extended by a SHA-384 digest."""
    return hashlib.sha384(register + digest).digest()


def replay(digests: Iterable[bytes]) -> bytes:
    """The register after these digests, in order, from zero."""
    register = bytes(REGISTER_BYTES)
    for digest in digests:
        register = extend(register, digest)
    return register


def runtime_digest(name: str, payload: bytes, event_type: int = RUNTIME_EVENT) -> bytes:
    """The digest of a runtime event as dstack measures it: SHA384(LE32(type) ‖ ":" ‖ name ‖ ":" ‖ payload)."""
    return hashlib.sha384(struct.pack("<I", event_type) + b":" + name.encode() + b":" + payload).digest()
