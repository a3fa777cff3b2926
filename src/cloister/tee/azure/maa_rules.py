"""What a policy may demand of a genuine token of Microsoft Azure Attestation."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cloister.errors import PolicyDocumentError, RefusedError
from cloister.tee.azure.maa import GUEST, REGISTERS, SVNS, Attestation, Verified
from cloister.tee.claims import Claims
from cloister.tee.format import Rule
from cloister.wire.toml import Table

COMPLIANCE = ("azure-compliant-cvm", "azure-compliant-uvm")
TCB_STATUSES = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
)
_SIZES = {name: size for registers in REGISTERS.values() for name, _, size in registers if name != "id_key_digest"}
_NEEDED = (("launch_measurement",), ("mrtd", "rtmr1", "rtmr2"))
_POLICY_HASH = re.compile(r"[A-Za-z0-9_-]{43}\Z")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Registers (lower-case hex) of one VM that a policy names; every one stated must match."""

    registers: tuple[tuple[str, str], ...]
    label: str


@dataclass(frozen=True, kw_only=True)
class MinimumSvn:
    """The least security versions, part by part: SNP's by name, TDX's 16 components; None where not stated."""

    snp: Mapping[str, int] | None
    tdx: bytes | None


def _attestation(claims: Claims) -> Attestation:
    assert isinstance(claims.details, Verified)
    return claims.details.attestation


def _check_issuer(claims: Claims, allowed: Sequence[str]) -> str:
    assert isinstance(claims.details, Verified)
    if claims.details.issuer not in allowed:
        raise RefusedError("the token is of an instance that the policy does not name")
    return claims.details.issuer


def _check_kind(claims: Claims, allowed: Sequence[str]) -> str:
    kind = _attestation(claims).kind
    if kind not in allowed:
        raise RefusedError(f"the token is of the type {kind}, which the policy does not accept")
    return kind


def _check_hardware(claims: Claims, allowed: Sequence[str]) -> str:
    hardware = _attestation(claims).hardware
    if hardware not in allowed:
        raise RefusedError(f"the hardware is {hardware}, which the policy does not accept")
    return hardware


def _read_measurement(table: Table) -> tuple[Measurement, ...] | None:
    return tuple(_measurement(each) for each in table.tables("measurement")) or None


def _measurement(table: Table) -> Measurement:
    stated = {name: value for name, size in _SIZES.items() if (value := table.hex(name, size)) is not None}
    label = table.line("label") or ""
    table.done()
    if not any(all(name in stated for name in names) for names in _NEEDED):
        raise PolicyDocumentError(
            f"{table.path} must name the code",
            hint="launch_measurement; or mrtd, rtmr1 and rtmr2 (zeros, where the token has zeros).",
        )
    if any(not stated[name].strip("0") for name in ("launch_measurement", "mrtd") if name in stated):
        raise PolicyDocumentError(f"{table.path} names a register that is all zero", hint="Copy it from the build.")
    return Measurement(registers=tuple(stated.items()), label=label)


def _check_measurement(claims: Claims, allowed: Sequence[Measurement]) -> str:
    registers = _attestation(claims).registers
    for each in allowed:
        if all(hmac.compare_digest(value, registers.get(name, "")) for name, value in each.registers):
            return each.label or ", ".join(name for name, _ in each.registers)
    raise RefusedError("the token is about other code than the policy names")


def _check_compliance(claims: Claims, allowed: Sequence[str]) -> str:
    status = _attestation(claims).compliance
    if status not in allowed:
        raise RefusedError("the service does not say that the VM is compliant as the policy demands")
    return status


def _read_minimum(table: Table) -> MinimumSvn | None:
    inner = table.table("minimum_svn")
    parts = {name: value for name in SVNS if (value := inner.number(name, 0, 2**32 - 1)) is not None}
    tdx = inner.hex("tee_tcb_svn", 16)
    inner.done()
    if parts and len(parts) < len(SVNS):
        missing = ", ".join(name for name in SVNS if name not in parts)
        raise PolicyDocumentError(f"{inner.path} lacks {missing}", hint="SNP's versions are stated whole.")
    if not parts and tdx is None:
        return None
    return MinimumSvn(snp=parts or None, tdx=None if tdx is None else bytes.fromhex(tdx))


def _check_minimum(claims: Claims, least: MinimumSvn) -> str:
    attestation = _attestation(claims)
    if attestation.tcb_svn is not None:
        if least.tdx is None:
            raise RefusedError("the policy states no minimum for TDX")
        if any(seen < wanted for seen, wanted in zip(attestation.tcb_svn, least.tdx, strict=True)):
            raise RefusedError("a component of the TEE TCB SVN is lower than the policy demands")
        return attestation.tcb_svn.hex()
    if least.snp is None:
        raise RefusedError("the policy states no minimum for SEV-SNP")
    for name, wanted in least.snp.items():
        if attestation.svns[name] < wanted:
            raise RefusedError(f"the version of {name} is {attestation.svns[name]}, the policy demands {wanted}")
    return " ".join(f"{name} {svn}" for name, svn in attestation.svns.items())


def _check_tcb_status(claims: Claims, allowed: Sequence[str]) -> str:
    status = _attestation(claims).tcb_status
    if status is None:
        return "tokens about SEV-SNP have none"
    if status not in allowed:
        raise RefusedError("the platform's TCB has a status that the policy does not accept")
    return status


def _check_vmpl(claims: Claims, wanted: int) -> str:
    vmpl = _attestation(claims).vmpl
    if vmpl is None:
        return "tokens about TDX have none"
    if vmpl != wanted:
        raise RefusedError(f"the report was requested at VMPL {vmpl}, the policy demands {wanted}")
    return str(vmpl)


def _check_migration(claims: Claims, wanted: str) -> str:
    migration = _attestation(claims).migration
    if migration and wanted == "forbidden":
        raise RefusedError("a migration agent may move the VM")
    return "allowed" if migration else "none"


def _check_secure_boot(claims: Claims, _wanted: str) -> str:
    if _attestation(claims).secure_boot is not True:
        raise RefusedError("the token does not say that the VM booted securely")
    return "on"


def _read_policy_hash(table: Table) -> tuple[str, ...] | None:
    values = table.texts("policy_hash")
    if not all(map(_POLICY_HASH.match, values or ())):
        raise PolicyDocumentError(
            f"{table.name('policy_hash')} must hold SHA-256 digests in base64url, 43 characters each",
            hint="It is the x-ms-policy-hash of the instance's policy.",
        )
    return values


def _check_policy_hash(claims: Claims, allowed: Sequence[str]) -> str:
    found = _attestation(claims).policy_hash
    if found not in allowed:
        raise RefusedError("the service applied another policy than this one names")
    return found


def _check_id_key(claims: Claims, allowed: Sequence[str]) -> str:
    found = _attestation(claims).registers.get("id_key_digest")
    if found is None:
        return "tokens about TDX have none"
    if not any(hmac.compare_digest(found, each) for each in allowed):
        raise RefusedError("the ID key's digest is not one that the policy names")
    return f"{found[:16]}…"


def _check_vm_id(claims: Claims, allowed: Sequence[str]) -> str:
    unique = _attestation(claims).unique_id
    if unique is None or unique not in [each.lower() for each in allowed]:
        raise RefusedError("the VM is none that the policy names")
    return unique


RULES: tuple[Rule, ...] = (
    # Whoever has an instance can give it a policy that issues any claim.
    Rule(
        name="issuer",
        title="6. The token is of an instance that the policy names",
        example='[azure-maa] issuer = ["https://sharedeus2.eus2.attest.azure.net"]',
        read=lambda table: table.texts("issuer"),
        check=_check_issuer,
        waivable=False,
    ),
    Rule(
        name="attestation_type",
        title="7. The token is of a type that the policy names",
        example='[azure-maa] attestation_type = ["azurevm"]',
        read=lambda table: table.choices("attestation_type", (GUEST, *REGISTERS)),
        check=_check_kind,
        waivable=False,
    ),
    Rule(
        name="isolation",
        title="8. The hardware is of a kind that the policy names",
        example='[azure-maa] isolation = ["sevsnpvm"]',
        read=lambda table: table.choices("isolation", REGISTERS),
        check=_check_hardware,
        waivable=False,
    ),
    Rule(
        name="measurement",
        title="9. The registers are those of a VM that the policy names",
        example='[[azure-maa.measurement]] launch_measurement = "…"',
        read=_read_measurement,
        check=_check_measurement,
        waivable=False,
    ),
    Rule(
        name="compliance",
        title="10. The service says that the VM complies with Azure's own baseline",
        example='[azure-maa] compliance = ["azure-compliant-cvm"]',
        read=lambda table: table.choices("compliance", COMPLIANCE),
        check=_check_compliance,
    ),
    Rule(
        name="minimum_svn",
        title="11. Every security version is at least the policy's, part by part",
        example="[azure-maa.minimum_svn] bootloader = 4, tee = 0, snp = 24, microcode = 219, guest = 10",
        read=_read_minimum,
        check=_check_minimum,
    ),
    Rule(
        name="tcb_status",
        title="12. A TDX platform's TCB has a status that the policy accepts",
        example='[azure-maa] tcb_status = ["UpToDate"]',
        read=lambda table: table.choices("tcb_status", TCB_STATUSES),
        check=_check_tcb_status,
    ),
    Rule(
        name="vmpl",
        title="13. An SNP report was requested at the privilege level that the policy names",
        example="[azure-maa] vmpl = 0",
        read=lambda table: table.number("vmpl", 0, 3),
        check=_check_vmpl,
    ),
    Rule(
        name="migration",
        title="14. No migration agent may move the VM, or the policy allows it",
        example='[azure-maa] migration = "forbidden"',
        read=lambda table: table.choice("migration", ("forbidden", "allowed")),
        check=_check_migration,
    ),
    Rule(
        name="secure_boot",
        title="15. The VM booted securely",
        example='[azure-maa] secure_boot = "required"',
        read=lambda table: table.choice("secure_boot", ("required",)),
        check=_check_secure_boot,
    ),
    Rule(
        name="policy_hash",
        title="16. The service applied a policy that this one names",
        example='[azure-maa] policy_hash = ["…"]',
        read=_read_policy_hash,
        check=_check_policy_hash,
    ),
    Rule(
        name="id_key_digest",
        title="17. An SNP VM's ID key is one that the policy names",
        example='[azure-maa] id_key_digest = ["…"]',
        read=lambda table: table.hexes("id_key_digest", 48),
        check=_check_id_key,
    ),
    Rule(
        name="vm_unique_id",
        title="18. The VM is one that the policy names",
        example='[azure-maa] vm_unique_id = ["…"]',
        read=lambda table: table.texts("vm_unique_id"),
        check=_check_vm_id,
    ),
)
