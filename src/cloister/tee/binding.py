"""The evidence binds our key and answers our challenge: the comparisons that formats share (PROTOCOL.md section 4.4).

Whole values of fixed length are compared, never prefixes. Evidence without the binding proves that some TEE exists, not
that the key is in it.
"""

from __future__ import annotations

import hmac

from cloister.errors import NotGenuineError
from cloister.tee.claims import Claims

REPORT_DATA = 64


def user_data_and_nonce(claims: Claims, binding: bytes, challenge: bytes | None) -> None:
    """Require user_data == binding (32 bytes) and nonce == challenge (32 bytes, or none); raises NotGenuineError."""
    _check(claims.user_data, binding)
    if not hmac.compare_digest(claims.nonce or b"", challenge or b""):
        raise NotGenuineError("the evidence does not answer this client's challenge")


def report_data(claims: Claims, binding: bytes, challenge: bytes | None) -> None:
    """Require the 64 bytes user_data == binding ‖ 32 zero bytes; raises NotGenuineError.

    The challenge needs no field of its own: B covers it.
    """
    del challenge
    _check(claims.user_data, binding.ljust(REPORT_DATA, b"\x00"))


def user_data_alone(claims: Claims, binding: bytes, challenge: bytes | None) -> None:
    """Require user_data == binding (32 bytes) exactly; raises NotGenuineError. B covers the challenge."""
    del challenge
    _check(claims.user_data, binding)


def _check(carried: bytes | None, expected: bytes) -> None:
    if carried is None or not hmac.compare_digest(carried, expected):
        raise NotGenuineError("the evidence does not bind this replica's key statement")
