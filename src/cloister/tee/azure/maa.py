"""Tokens of Microsoft Azure Attestation about confidential VMs: read, and is one genuine? Numbered as in README.md.

Two kinds are known: of the guest attestation client (`azurevm`, whose hardware part is in `x-ms-isolation-tee`) and of
the platform alone (`sevsnpvm`, `tdxvm`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from cloister.errors import MalformedError, NotGenuineError
from cloister.tee.azure.hcl import VmConfiguration, user_data
from cloister.tee.claims import Claims
from cloister.tee.context import Context
from cloister.trust.jwt import Alg, KeySet, Token
from cloister.trust.need import Need
from cloister.wire.strict_json import Fields

NAME = "azure-maa"
WHAT = "Azure Attestation token"
GUEST = "azurevm"
#: Registers of each kind of hardware: our name, the claim, bytes.
REGISTERS: Mapping[str, tuple[tuple[str, str, int], ...]] = {
    "sevsnpvm": (
        ("launch_measurement", "x-ms-sevsnpvm-launchmeasurement", 48),
        ("host_data", "x-ms-sevsnpvm-hostdata", 32),
        ("id_key_digest", "x-ms-sevsnpvm-idkeydigest", 48),
    ),
    "tdxvm": (
        ("mrtd", "tdx_mrtd", 48),
        *((f"rtmr{index}", f"tdx_rtmr{index}", 48) for index in range(4)),
        ("mrseam", "tdx_mrseam", 48),
    ),
}
REPORT_DATA = {"sevsnpvm": "x-ms-sevsnpvm-reportdata", "tdxvm": "tdx_report_data"}
#: Security versions of SNP tokens: our name and the claim.
SVNS = {
    "bootloader": "x-ms-sevsnpvm-bootloader-svn",
    "tee": "x-ms-sevsnpvm-tee-svn",
    "snp": "x-ms-sevsnpvm-snpfw-svn",
    "microcode": "x-ms-sevsnpvm-microcode-svn",
    "guest": "x-ms-sevsnpvm-guestsvn",
}
#: Claims that say "this may be looked into"; of the first group one must be there, and all that are must be false.
DEBUG = {
    "sevsnpvm": ("x-ms-sevsnpvm-is-debuggable",),
    "tdxvm": ("tdx_td_attributes_debug",),
}
GUEST_DEBUG = tuple(f"x-ms-azurevm-{name}-enabled" for name in ("bootdebug", "hypervisordebug", "kerneldebug"))
#: An instance of the service in the public cloud, and in those for governments and for China.
_ISSUER = re.compile(r"https://[a-z0-9]+(?:[.-][a-z0-9]+)*\.attest\.azure\.(?:net|us|cn)\Z")

CHECKS: tuple[tuple[str, str], ...] = (
    ("azure-maa.token", "1. One token of at most 64 KiB, RS256"),
    ("azure-maa.issuer", "2. The issuer is an instance of Azure Attestation, and its own keys are at hand"),
    ("azure-maa.signature", "3. The key of that issuer that the token names signed it"),
    ("azure-maa.times", "4. Within the token's own times and the policy's age"),
    ("azure-maa.claims", "5. The claims are those of one confidential VM"),
)


@dataclass(frozen=True, kw_only=True)
class Attestation:
    """What the service says of one VM.

    `kind` is the token's own type, `hardware` that of the part about the hardware. `registers` are lower-case hex.
    `svns` and `vmpl` are SNP's, `tcb_status` and `tcb_svn` TDX's. `secure_boot` is None where nothing speaks of it,
    and True only where all that does agrees. `user_data` (64 bytes) is the guest's, by way of the vTPM or of the report
    data itself; `nonce` is the text of the guest attestation client's payload.
    """

    kind: str
    hardware: str
    registers: Mapping[str, str]
    svns: Mapping[str, int]
    vmpl: int | None
    migration: bool | None
    tcb_status: str | None
    tcb_svn: bytes | None
    debug: bool
    compliance: str
    policy_hash: str
    secure_boot: bool | None
    unique_id: str | None
    user_data: bytes | None
    nonce: str | None

    @classmethod
    def parse(cls, token: Token) -> Attestation:
        """Read the claims strictly; raises MalformedError. Claims of other purposes are passed over."""
        top = token.fields()
        kind = top.text("x-ms-attestation-type", limit=32)
        part = top.member("x-ms-isolation-tee") if kind == GUEST else top
        hardware = part.text("x-ms-attestation-type", limit=32)
        if hardware not in REGISTERS:
            raise MalformedError(f"{WHAT}: not about a confidential VM of a kind that is known here")
        snp = hardware == "sevsnpvm"
        runtime = _optional(part, "x-ms-runtime")
        vm = _vm(runtime)
        return cls(
            kind=kind,
            hardware=hardware,
            registers={name: part.hex(claim, size).hex() for name, claim, size in REGISTERS[hardware]},
            svns={name: part.integer(claim, maximum=2**32 - 1) for name, claim in SVNS.items()} if snp else {},
            vmpl=part.integer("x-ms-sevsnpvm-vmpl", maximum=3) if snp else None,
            migration=part.flag("x-ms-sevsnpvm-migration-allowed") if snp else None,
            tcb_status=None if snp else part.text("attester_tcb_status", limit=64),
            tcb_svn=None if snp else part.hex("tdx_tee_tcb_svn", 16),
            debug=_debug(top, part, hardware),
            compliance=part.text("x-ms-compliance-status", limit=64) if part.has("x-ms-compliance-status") else "",
            policy_hash=top.text("x-ms-policy-hash", limit=64) if top.has("x-ms-policy-hash") else "",
            secure_boot=_secure_boot(top, vm),
            unique_id=None if vm is None else vm.unique_id,
            user_data=_user_data(part, runtime, kind, hardware),
            nonce=_nonce(top),
        )


def verify(evidence: bytes, context: Context) -> Claims:
    """Claims of a genuine token, or MalformedError, NotGenuineError, UndecidedError (its issuer's keys are missing)."""
    step_of = context.checklist.step
    with step_of("azure-maa.token"):
        token = Token.parse(evidence, WHAT)
        if token.alg != Alg.RS256:
            raise NotGenuineError(f"{WHAT}: it is not signed with RS256")
    with step_of("azure-maa.issuer") as step:
        issuer = token.fields().text("iss", limit=128)
        if not _ISSUER.match(issuer):
            raise NotGenuineError(f"{WHAT}: the issuer is no instance of the service")
        keys = KeySet.of(context.collateral, issuer)
        step.detail = issuer
    with step_of("azure-maa.signature"):
        token.verify(keys, Alg.RS256)
    with step_of("azure-maa.times") as step:
        issued = token.check_times(now=context.now, leeway=context.max_skew, max_age=context.max_age)
        step.detail = f"issued {issued:%Y-%m-%dT%H:%M:%SZ}"
    with step_of("azure-maa.claims") as step:
        attestation = Attestation.parse(token)
        step.detail = f"{attestation.kind}, {attestation.hardware}"
    return Claims(
        tee=NAME,
        genuine=True,
        debug=attestation.debug,
        measurements=attestation.registers,
        user_data=attestation.user_data,
        nonce=None if attestation.nonce is None else attestation.nonce.encode(),
        signed_at=issued,
        facts={
            "issuer": issuer,
            "kind": attestation.kind,
            "hardware": attestation.hardware,
            "compliance": attestation.compliance,
            "policy_hash": attestation.policy_hash,
            "tcb": attestation.tcb_status or " ".join(f"{name} {svn}" for name, svn in attestation.svns.items()),
        },
        details=Verified(attestation=attestation, issuer=issuer),
    )


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What the rules look at."""

    attestation: Attestation
    issuer: str


def needs(evidence: bytes) -> tuple[Need, ...]:
    """The issuer's keys, if it can be an instance of the service; raises MalformedError."""
    issuer = Token.parse(evidence, WHAT).fields().text("iss", limit=128)
    if not _ISSUER.match(issuer):
        raise MalformedError(f"{WHAT}: the issuer is no instance of the service")
    return (Need(kind="jwks", parameters={"issuer": issuer}),)


def parse(evidence: bytes) -> Attestation:
    """Without verifying it; raises MalformedError."""
    return Attestation.parse(Token.parse(evidence, WHAT))


def _debug(top: Fields, part: Fields, hardware: str) -> bool:
    """Anything but a clear no is a yes; of the hardware's own claims one has to be there."""
    flags = [part.flag(name) for name in DEBUG[hardware] if part.has(name)]
    states = [part.text("dbgstat", limit=64) != "disabled"] if part.has("dbgstat") else []
    guest = [top.flag(name) for name in GUEST_DEBUG if top.has(name)]
    return any(flags) or any(states) or any(guest) or not (flags or (states and hardware == "tdxvm"))


def _secure_boot(top: Fields, vm: VmConfiguration | None) -> bool | None:
    said = [top.flag("secureboot")] if top.has("secureboot") else []
    if vm is not None and vm.secure_boot is not None:
        said.append(vm.secure_boot)
    return all(said) if said else None


def _vm(runtime: Fields | None) -> VmConfiguration | None:
    found = None if runtime is None else _optional(runtime, "vm-configuration")
    return None if found is None else VmConfiguration.parse(found)


def _user_data(part: Fields, runtime: Fields | None, kind: str, hardware: str) -> bytes | None:
    """Under a paravisor the report data is its own, and the guest's 64 bytes are in the runtime data that it hashed."""
    data = part.hex(REPORT_DATA[hardware], 64)
    written = None if runtime is None else user_data(runtime)
    return written if written is not None or kind == GUEST else data


def _nonce(top: Fields) -> str | None:
    runtime = _optional(top, "x-ms-runtime")
    payload = None if runtime is None else _optional(runtime, "client-payload")
    return payload.text("nonce", limit=1024) if payload is not None and payload.has("nonce") else None


def _optional(fields: Fields, name: str) -> Fields | None:
    return fields.member(name) if fields.has(name) and not fields.is_null(name) else None
