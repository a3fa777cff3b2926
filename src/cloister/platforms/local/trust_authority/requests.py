"""Requests to the SIMULATED Trust Authority, parsed strictly: version 2 (an object for each attester) and 1 (flat)."""

from __future__ import annotations

import base64
import uuid
from dataclasses import dataclass

from cloister.errors import MalformedError
from cloister.trust.jwt import Alg
from cloister.wire import strict_json
from cloister.wire.strict_json import Fields

MAX_BODY = 512 * 1024
MAX_QUOTE, MAX_HELD, MAX_LOG = 16 * 1024, 16 * 1024, 256 * 1024
MAX_POLICIES = 10
ALGORITHMS = (Alg.PS384, Alg.RS256)
WHAT = "request"


@dataclass(frozen=True, kw_only=True)
class Nonce:
    """A nonce as it came back: the decoded bytes."""

    val: bytes
    iat: bytes
    signature: bytes


@dataclass(frozen=True, kw_only=True)
class AttestRequest:
    """What is asked for. `version` is that of the token; `held_data` and `nonce` are None where they were left out."""

    version: int
    quote: bytes
    held_data: bytes | None
    nonce: Nonce | None
    policy_ids: tuple[str, ...]
    policy_must_match: bool
    algorithm: Alg

    @classmethod
    def parse(cls, data: bytes, *, version: int) -> AttestRequest:
        """Raises MalformedError, also for what the emulator does not do: GPUs, SGX, separate user data."""
        top = Fields(strict_json.loads(data, WHAT, limit=MAX_BODY), WHAT)
        part = top.member("tdx") if version == 2 else top
        request = cls(
            version=version,
            quote=_octets(part, "quote", MAX_QUOTE),
            held_data=_octets(part, "runtime_data", MAX_HELD) if _given(part, "runtime_data") else None,
            nonce=_nonce(part) if _given(part, "verifier_nonce") else None,
            policy_ids=_policy_ids(top),
            policy_must_match=_flag(top, "policy_must_match"),
            algorithm=_algorithm(top),
        )
        # A log explains registers; the service takes it into the token, the emulator only looks at its shape.
        if _given(part, "event_log"):
            _octets(part, "event_log", MAX_LOG)
        # Intel's clients send members that they do not use as null.
        if _given(part, "user_data"):
            raise MalformedError(f"{WHAT}: user_data belongs to attesters that are not emulated")
        part.done()
        top.done()
        return request


def _given(fields: Fields, name: str) -> bool:
    return fields.has(name) and not fields.is_null(name)


def _octets(fields: Fields, name: str, limit: int) -> bytes:
    try:
        data = base64.b64decode(fields.text(name, limit=2 * limit), validate=True)
    except ValueError:  # binascii.Error is one; so is what is not ASCII
        raise MalformedError(f"{WHAT}: {name} is not base64") from None
    if not 0 < len(data) <= limit:
        raise MalformedError(f"{WHAT}: {name} has not 1 to {limit} bytes")
    return data


def _nonce(fields: Fields) -> Nonce:
    nonce = fields.member("verifier_nonce")
    found = Nonce(**{name: _octets(nonce, name, 1024) for name in ("val", "iat", "signature")})
    nonce.done()
    return found


def _policy_ids(fields: Fields) -> tuple[str, ...]:
    items = fields.array("policy_ids", limit=MAX_POLICIES) if _given(fields, "policy_ids") else []
    try:
        found = tuple(str(uuid.UUID(item)) for item in items if isinstance(item, str) and len(item) == 36)
    except ValueError:
        found = ()
    if len(found) != len(items) or len(set(found)) != len(found):
        raise MalformedError(f"{WHAT}: policy_ids are not different UUIDs")
    return found


def _flag(fields: Fields, name: str) -> bool:
    value = fields.value(name) if _given(fields, name) else False
    if not isinstance(value, bool):
        raise MalformedError(f"{WHAT}: {name} is neither true nor false")
    return value


def _algorithm(fields: Fields) -> Alg:
    """Without a word, PS384 (an assumption)."""
    name = fields.text("token_signing_alg", limit=16) if _given(fields, "token_signing_alg") else Alg.PS384
    if name not in ALGORITHMS:
        raise MalformedError(f"{WHAT}: token_signing_alg is neither PS384 nor RS256")
    return Alg(name)
