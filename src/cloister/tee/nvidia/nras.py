"""Is this an attestation result of NVIDIA's Remote Attestation Service (NRAS)? Steps as in README.md beside this file.

A detached EAT bundle (RFC 9711 section 4.3.2): [["JWT", overall], {"GPU-0": JWT, …}], every token signed with ES384.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from cloister.errors import MalformedError, NotGenuineError
from cloister.tee.claims import Claims
from cloister.tee.context import Context
from cloister.tee.nvidia.evidence import MAX_DEVICES, Kind
from cloister.tee.nvidia.roots import NRAS_ISSUER
from cloister.trust.jwt import Alg, KeySet, Token, strings
from cloister.wire import strict_json

MAX_BUNDLE = 512 * 1024
MAX_SUBMODULE = 16 * 1024
NONCE_SIZE = 32
CHECKS: tuple[tuple[str, str], ...] = (
    ("nvidia-nras.bundle", "1. One overall token and one token for each device, strictly parsed, of bounded size"),
    ("nvidia-nras.signature", "2. NRAS signed the overall token and every device's, with ES384"),
    ("nvidia-nras.issuer", "3. All are of NRAS's production issuer and in force"),
    ("nvidia-nras.submodules", "4. The overall token names exactly these devices' tokens by their digests"),
    ("nvidia-nras.nonce", "5. All answer one and the same nonce; no device occurs twice"),
)
_NAME = re.compile(r"(GPU|SWITCH|NVSWITCH)-(0|[1-9][0-9]?)\Z")
_NONCE = re.compile(r"[0-9a-fA-F]{64}\Z")
_RIM = ("fetched", "schema-validated", "signature-verified", "measurements-available")
_REPORT = ("parsed", "signature-verified", "nonce-match")


def _names(prefix: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{prefix}-{name}" for name in names)


def _required(kind: Kind, version: str) -> frozenset[str]:
    """The boolean claims that a device's token of that version must have."""
    rims = ("driver-rim", "vbios-rim") if kind is Kind.GPU else ("bios-rim",)
    rim = (*_RIM, "version-match") if version == "3.0" else (*_RIM, "cert-validated")
    report = (*_REPORT, "cert-chain-fwid-match") if version == "3.0" else (*_REPORT, "cert-chain-validated")
    names = [name for each in rims for name in _names(each, rim)] + ["arch-check"]
    names += [*_names("attestation-report", report), *(["vbios-index-no-conflict"] if kind is Kind.GPU else [])]
    return frozenset(_names(f"x-nvidia-{kind}", tuple(names)))


#: Version 3 says of each chain what version 2 says with a boolean.
_CHAINS: Mapping[Kind, tuple[str, ...]] = {
    Kind.GPU: ("attestation-report-cert-chain", "driver-rim-cert-chain", "vbios-rim-cert-chain"),
    Kind.SWITCH: ("attestation-report-cert-chain", "bios-rim-cert-chain"),
}
VERSIONS = ("2.0", "3.0")


@dataclass(frozen=True, kw_only=True)
class Result:
    """NRAS's word on one device. `failed` names every claim that is not as it must be; `ueid` is decimal."""

    name: str
    kind: Kind
    ueid: str
    hwmodel: str
    driver: str | None
    vbios: str
    debug: bool
    failed: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Results:
    """NRAS's word on all of them."""

    version: str
    overall: bool
    results: tuple[Result, ...]


def verify(evidence: bytes, context: Context) -> Claims:
    """Claims of a genuine bundle, or MalformedError, NotGenuineError, or UndecidedError without NRAS's keys.

    `user_data` and `nonce` are the 32 bytes of `eat_nonce`; `details` is Results.
    """
    checklist = context.checklist
    with checklist.step("nvidia-nras.bundle") as step:
        overall, submodules = parse(evidence)
        tokens = {name: Token.parse(text, "NRAS token", limit=MAX_SUBMODULE) for name, text in submodules.items()}
        step.detail = ", ".join(tokens)
    with checklist.step("nvidia-nras.signature"):
        keys = KeySet.of(context.collateral, NRAS_ISSUER)
        for token in (overall, *tokens.values()):
            token.verify(keys, Alg.ES384)
    # From here on the tokens' own words may be believed as NRAS's.
    with checklist.step("nvidia-nras.issuer") as step:
        issued = []
        for token in (overall, *tokens.values()):
            token.check_issuer(NRAS_ISSUER)
            issued.append(token.check_times(now=context.now, leeway=context.max_skew, max_age=context.max_age))
        step.detail = f"issued {min(issued):%Y-%m-%dT%H:%M:%SZ}"
    with checklist.step("nvidia-nras.submodules"):
        _check_digests(overall, submodules)
        version = overall.fields().text("x-nvidia-ver", limit=16)
        if version not in VERSIONS:
            raise MalformedError("NRAS token: another version of its claims")
        results = tuple(_result(name, token, version) for name, token in tokens.items())
    with checklist.step("nvidia-nras.nonce") as step:
        nonces = {_nonce(token) for token in (overall, *tokens.values())}
        if len(nonces) != 1:
            raise NotGenuineError("the tokens answer different nonces")
        nonce = nonces.pop()
        if len({result.ueid for result in results}) != len(results):
            raise NotGenuineError("one device is counted twice")
        step.detail = ", ".join(result.ueid for result in results)
    return Claims(
        tee="nvidia-nras",
        genuine=True,
        debug=any(result.debug for result in results),
        measurements={},
        user_data=nonce,
        nonce=nonce,
        signed_at=min(issued),
        facts={
            "devices": ", ".join(f"{result.hwmodel} {result.ueid}" for result in results),
            "drivers": ", ".join(sorted({result.driver for result in results if result.driver})),
            "vbios": ", ".join(sorted({result.vbios for result in results})),
        },
        details=Results(
            version=version, overall=overall.claims.get("x-nvidia-overall-att-result") is True, results=results
        ),
    )


def parse(evidence: bytes) -> tuple[Token, dict[str, bytes]]:
    """The overall token and each device's token, by the device's name; raises MalformedError."""
    parts = strict_json.loads_array(evidence, "NRAS bundle", limit=MAX_BUNDLE)
    if len(parts) != 2 or not isinstance(parts[0], list) or not isinstance(parts[1], dict):
        raise MalformedError("NRAS bundle: not an overall token and devices' tokens")
    if len(parts[0]) != 2 or parts[0][0] != "JWT" or not 0 < len(parts[1]) <= MAX_DEVICES:
        raise MalformedError("NRAS bundle: not an overall token and devices' tokens")
    if not all(_NAME.match(name) for name in parts[1]):
        raise MalformedError("NRAS bundle: a device of another kind")
    submodules = {name: _text(value) for name, value in parts[1].items()}
    return Token.parse(_text(parts[0][1]), "NRAS token", limit=MAX_SUBMODULE), submodules


def _text(value: object) -> bytes:
    if not isinstance(value, str) or not value.isascii():
        raise MalformedError("NRAS bundle: a token is not text")
    return value.encode("ascii")


def _check_digests(overall: Token, submodules: Mapping[str, bytes]) -> None:
    """submods: {"GPU-0": ["DIGEST", ["SHA-256", hex of the token's text]]}, no device more and none less."""
    named = overall.claims.get("submods")
    if not isinstance(named, dict) or set(named) != set(submodules):
        raise NotGenuineError("the overall token is of other devices")
    for name, text in submodules.items():
        if named[name] != ["DIGEST", ["SHA-256", hashlib.sha256(text).hexdigest()]]:
            raise NotGenuineError(f"the overall token is of another token of {name}")


def _nonce(token: Token) -> bytes:
    values = strings(token.claims, "eat_nonce", "NRAS token", limit=1)
    if not _NONCE.match(values[0]):
        raise MalformedError("NRAS token: eat_nonce is not 32 bytes in hex")
    return bytes.fromhex(values[0])


def _result(name: str, token: Token, version: str) -> Result:
    fields, claims = token.fields(), token.claims
    kind = Kind.GPU if name.startswith("GPU-") else Kind.SWITCH
    prefix = f"x-nvidia-{kind}"
    return Result(
        name=name,
        kind=kind,
        ueid=fields.text("ueid", limit=64),
        hwmodel=fields.text("hwmodel", limit=64),
        driver=fields.text(f"{prefix}-driver-version", limit=64) if kind is Kind.GPU else None,
        vbios=fields.text(f"{prefix}-{'vbios' if kind is Kind.GPU else 'bios'}-version", limit=64).upper(),
        debug=claims.get("dbgstat") != "disabled",
        failed=tuple(sorted(_failed(claims, kind, version))),
    )


def _failed(claims: Mapping[str, object], kind: Kind, version: str) -> set[str]:
    """Claims that are missing or not as they must be; a check that this version does not know must not have failed."""
    required = _required(kind, version)
    known = {name for name, value in claims.items() if isinstance(value, bool) and name.startswith("x-nvidia-")}
    failed = {name for name in required | known if claims.get(name) is not True}
    # By identity for what JSON has one spelling of: 1 == True.
    fits = {
        "measres": claims.get("measres") == "success",
        "secboot": claims.get("secboot") is True,
        "x-nvidia-attestation-warning": claims.get("x-nvidia-attestation-warning") is None,
    }
    failed |= {name for name, good in fits.items() if not good}
    chains = {name for name in claims if name.endswith("-cert-chain")}
    if version == "3.0":
        chains |= set(_names(f"x-nvidia-{kind}", _CHAINS[kind]))
    return failed | {name for name in chains if not _good(claims.get(name))}


def _good(value: object) -> bool:
    """Version 3's word on a certificate chain."""
    return (
        isinstance(value, dict)
        and value.get("x-nvidia-cert-status") == "valid"
        and value.get("x-nvidia-cert-ocsp-status") == "good"
        and value.get("x-nvidia-cert-revocation-reason") is None
    )
