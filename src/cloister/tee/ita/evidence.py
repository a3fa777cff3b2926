"""The claims of an Intel Trust Authority token (Intel's EAT profile 1.0.1; versions 1 and 2 of the token).

Version 1 holds the claims of one TEE at the top; version 2 holds an object for each attester (`tdx`, `sgx`, `nvgpu`).
The pre-release shape (`amber_*`) is refused.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

from cloister.errors import MalformedError
from cloister.trust.jwt import Token
from cloister.wire.strict_json import Fields

MAX_HELD = 16 * 1024
MAX_IDS = 64
WHAT = "Trust Authority token"
#: Registers of each kind of attester: our name, the claim, bytes.
REGISTERS: Mapping[str, tuple[tuple[str, str, int], ...]] = {
    "TDX": (
        ("mrtd", "tdx_mrtd", 48),
        *((f"rtmr{index}", f"tdx_rtmr{index}", 48) for index in range(4)),
        ("mrseam", "tdx_mrseam", 48),
        ("mrconfigid", "tdx_mrconfigid", 48),
    ),
    "SGX": (("mrenclave", "sgx_mrenclave", 32), ("mrsigner", "sgx_mrsigner", 32)),
}
#: Claims of each kind that say "this may be looked into from outside"; every one that is there must be false.
DEBUG: Mapping[str, tuple[str, ...]] = {
    "TDX": ("tdx_is_debuggable", "tdx_td_attributes_debug"),
    "SGX": ("sgx_is_debuggable",),
}


@dataclass(frozen=True, kw_only=True)
class Nonce:
    """What the service gave to be signed over; `val` and `iat` are the decoded bytes."""

    val: bytes
    iat: bytes


@dataclass(frozen=True, kw_only=True)
class Attestation:
    """What the service says of one CPU TEE.

    `held_data` is what the attester handed in beside its quote, `report_data` (64 bytes) what the quote carries.
    `gpu` is the overall result for GPUs of a version 2 token, None without one. `registers` are lower-case hex.
    """

    version: int
    attester_type: str
    tcb_status: str
    tcb_date: str
    advisories: tuple[str, ...]
    debug: bool
    registers: Mapping[str, str]
    isvprodid: int | None
    isvsvn: int | None
    report_data: bytes
    held_data: bytes
    nonce: Nonce | None
    policies: tuple[str, ...]
    unmatched: tuple[str, ...]
    gpu: bool | None

    @classmethod
    def parse(cls, token: Token) -> Attestation:
        """Read the claims strictly; raises MalformedError. Claims of other purposes are passed over."""
        top = token.fields()
        version = _version(top)
        part = top if version == 1 else _part(top)
        kind = part.text("attester_type", limit=32)
        if kind not in REGISTERS:
            raise MalformedError(f"{WHAT}: an attester of a kind that is not known here")
        prefix = kind.lower()
        svn = kind == "SGX"
        return cls(
            version=version,
            attester_type=kind,
            tcb_status=part.text("attester_tcb_status", limit=64),
            tcb_date=part.text("attester_tcb_date", limit=64) if part.has("attester_tcb_date") else "",
            advisories=_names(part, "attester_advisory_ids"),
            debug=_debug(top, part, kind),
            registers={name: part.hex(claim, size).hex() for name, claim, size in REGISTERS[kind]},
            isvprodid=part.integer("sgx_isvprodid", maximum=0xFFFF) if svn else None,
            isvsvn=part.integer("sgx_isvsvn", maximum=0xFFFF) if svn else None,
            report_data=part.hex(f"{prefix}_report_data", 64),
            held_data=_base64(part, "attester_held_data", MAX_HELD) if part.has("attester_held_data") else b"",
            nonce=_nonce(part if part.has("verifier_nonce") else top),
            policies=_policies(top, "policy_ids_matched"),
            unmatched=_policies(top, "policy_ids_unmatched"),
            gpu=_gpu(top) if version == 2 else None,
        )


def _version(top: Fields) -> int:
    major = top.text("ver", limit=16).partition(".")[0]
    if major not in ("1", "2"):
        raise MalformedError(f"{WHAT}: another version than 1 or 2")
    return int(major)


def _part(top: Fields) -> Fields:
    """The one CPU attester of a version 2 token."""
    found = [name for name in ("tdx", "sgx") if top.has(name)]
    if len(found) != 1:
        raise MalformedError(f"{WHAT}: it speaks of no CPU TEE that is known here, or of several")
    return top.member(found[0])


def _debug(top: Fields, part: Fields, kind: str) -> bool:
    """Anything but a clear no is a yes; at least one of the claims has to be there."""
    states = [each.text("dbgstat", limit=64) != "disabled" for each in _distinct(top, part) if each.has("dbgstat")]
    flags = [part.flag(name) for name in DEBUG[kind] if part.has(name)]
    return any(states) or any(flags) or not flags


def _distinct(top: Fields, part: Fields) -> tuple[Fields, ...]:
    return (top,) if top is part else (top, part)


def _base64(fields: Fields, name: str, limit: int) -> bytes:
    try:
        return base64.b64decode(fields.text(name, limit=2 * limit), validate=True)
    except ValueError:  # binascii.Error is one; so is what is not ASCII
        raise MalformedError(f"{WHAT}: {name} is not base64") from None


def _names(fields: Fields, name: str) -> tuple[str, ...]:
    """A list of short strings; null and absence are the empty list."""
    if not fields.has(name) or fields.is_null(name):
        return ()
    items = fields.array(name, limit=MAX_IDS)
    found = tuple(item for item in items if isinstance(item, str) and len(item) <= 64)
    if len(found) != len(items):
        raise MalformedError(f"{WHAT}: {name} is not a list of short strings")
    return found


def _policies(top: Fields, name: str) -> tuple[str, ...]:
    """The identifiers in a list of {id, version, hash}."""
    if not top.has(name) or top.is_null(name):
        return ()
    found = []
    for item in top.array(name, limit=MAX_IDS):
        if not isinstance(item, dict) or not isinstance(item.get("id"), str) or len(item["id"]) > 64:
            raise MalformedError(f"{WHAT}: {name} does not hold identifiers of policies")
        found.append(item["id"].lower())
    return tuple(found)


def _nonce(fields: Fields) -> Nonce | None:
    if not fields.has("verifier_nonce") or fields.is_null("verifier_nonce"):
        return None
    nonce = fields.member("verifier_nonce")
    return Nonce(val=_base64(nonce, "val", 1024), iat=_base64(nonce, "iat", 1024))


def _gpu(top: Fields) -> bool | None:
    return top.member("nvgpu").flag("x-nvidia-overall-att-result") if top.has("nvgpu") else None
