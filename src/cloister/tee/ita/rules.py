"""What a policy may demand of a genuine token of Intel Trust Authority."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from cloister.errors import PolicyDocumentError, RefusedError, UndecidedError
from cloister.tee.claims import Claims
from cloister.tee.format import Rule
from cloister.tee.ita.evidence import REGISTERS, Attestation
from cloister.tee.ita.verify import ALGORITHMS, ISSUERS, Verified
from cloister.wire.toml import Table

#: Intel's words for the state of a platform's trusted computing base.
TCB_STATUSES = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
)
_SIZES = {name: size for registers in REGISTERS.values() for name, _, size in registers}


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Registers (lower-case hex) that name the code; every one stated must match.

    TDX: `mrtd` and one of `rtmr1` to `rtmr3`, because MRTD covers only the firmware. SGX: `mrenclave`, or `mrsigner`
    with `isvprodid` and the least `isvsvn`.
    """

    registers: tuple[tuple[str, str], ...]
    isvprodid: int | None
    isvsvn: int | None
    label: str


def _details(claims: Claims) -> Verified:
    assert isinstance(claims.details, Verified)
    return claims.details


def _read_measurement(table: Table) -> tuple[Measurement, ...] | None:
    return tuple(_measurement(each) for each in table.tables("measurement")) or None


def _measurement(table: Table) -> Measurement:
    stated = {name: value for name, size in _SIZES.items() if (value := table.hex(name, size)) is not None}
    product = table.number("isvprodid", 0, 0xFFFF)
    least = table.number("isvsvn", 0, 0xFFFF)
    label = table.line("label") or ""
    table.done()
    names_td = "mrtd" in stated and any(name in stated for name in ("rtmr1", "rtmr2", "rtmr3"))
    names_enclave = "mrenclave" in stated or ("mrsigner" in stated and product is not None and least is not None)
    if not names_td and not names_enclave:
        raise PolicyDocumentError(
            f"{table.path} must name the code",
            hint="mrtd and one of rtmr1 to rtmr3; or mrenclave; or mrsigner, isvprodid and isvsvn.",
        )
    if any(not value.strip("0") for name, value in stated.items() if name in ("mrtd", "mrenclave", "mrsigner")):
        raise PolicyDocumentError(f"{table.path} names a register that is all zero", hint="Copy it from the build.")
    return Measurement(registers=tuple(stated.items()), isvprodid=product, isvsvn=least, label=label)


def _check_measurement(claims: Claims, allowed: Sequence[Measurement]) -> str:
    attestation = _details(claims).attestation
    for measurement in allowed:
        if _fits(attestation, measurement):
            return measurement.label or ", ".join(name for name, _ in measurement.registers)
    raise RefusedError("the token is about other code than the policy names")


def _fits(attestation: Attestation, wanted: Measurement) -> bool:
    registers = all(hmac.compare_digest(value, attestation.registers.get(name, "")) for name, value in wanted.registers)
    product = wanted.isvprodid is None or attestation.isvprodid == wanted.isvprodid
    version = wanted.isvsvn is None or (attestation.isvsvn is not None and attestation.isvsvn >= wanted.isvsvn)
    return registers and product and version


def _check_tcb_status(claims: Claims, allowed: Sequence[str]) -> str:
    status = _details(claims).attestation.tcb_status
    if status not in allowed:
        raise RefusedError(f"the platform's TCB is {status}, which the policy does not accept")
    return status


def _check_advisories(claims: Claims, refused: Sequence[str]) -> str:
    found = sorted(set(_details(claims).attestation.advisories) & set(refused))
    if found:
        raise RefusedError(f"the platform is subject to {', '.join(found)}")
    return ", ".join(_details(claims).attestation.advisories) or "none"


def _check_algorithm(claims: Claims, allowed: Sequence[str]) -> str:
    algorithm = _details(claims).algorithm
    if algorithm not in allowed:
        raise RefusedError(f"the token is signed with {algorithm}, which the policy does not accept")
    return algorithm


def _check_issuer(claims: Claims, allowed: Sequence[str]) -> str:
    issuer = _details(claims).issuer
    if issuer not in allowed:
        raise RefusedError("the token is of an issuer that the policy does not name")
    return issuer


def _check_policies(claims: Claims, wanted: Sequence[str]) -> str:
    attestation = _details(claims).attestation
    missing = [each for each in wanted if each.lower() not in attestation.policies]
    if missing:
        raise RefusedError(f"the service's policy {missing[0]} was not matched")
    if attestation.unmatched:
        raise RefusedError("the service says that one of its policies was not matched")
    return ", ".join(wanted)


def _check_revocation(claims: Claims, _wanted: str) -> str:
    until = _details(claims).revocation_until
    if until is None:
        raise UndecidedError(
            "the revocation lists of the service's CAs are not at hand", hint="Fetch both of them (ita-crl)."
        )
    return f"lists valid until {until:%Y-%m-%d}"


def _check_gpu(claims: Claims, wanted: str) -> str:
    gpu = _details(claims).attestation.gpu
    if wanted == "required" and gpu is not True:
        raise RefusedError("the service does not vouch for the GPUs")
    if gpu is False:
        raise RefusedError("the service says that the GPUs did not verify")
    return {None: "none", True: "verified"}[gpu]


RULES: tuple[Rule, ...] = (
    Rule(
        name="measurement",
        title="7. The registers are those of code that the policy names",
        example='[[ita.measurement]] mrtd = "…" rtmr1 = "…"',
        read=_read_measurement,
        check=_check_measurement,
        waivable=False,
    ),
    Rule(
        name="tcb_status",
        title="8. The platform's TCB has a status that the policy accepts",
        example='[ita] tcb_status = ["UpToDate"]',
        read=lambda table: table.choices("tcb_status", TCB_STATUSES),
        check=_check_tcb_status,
        waivable=False,
    ),
    Rule(
        name="refused_advisories",
        title="9. The platform is subject to no advisory that the policy refuses",
        example='[ita] refused_advisories = ["INTEL-SA-…"]',
        read=lambda table: table.texts("refused_advisories"),
        check=_check_advisories,
    ),
    Rule(
        name="algorithm",
        title="10. The token is signed with an algorithm that the policy names",
        example='[ita] algorithm = ["PS384"]',
        read=lambda table: table.choices("algorithm", ALGORITHMS),
        check=_check_algorithm,
        waivable=False,
    ),
    Rule(
        name="issuer",
        title="11. The token is of an issuer that the policy names",
        example='[ita] issuer = ["https://portal.trustauthority.intel.com"]',
        read=lambda table: table.choices("issuer", ISSUERS),
        check=_check_issuer,
        waivable=False,
    ),
    Rule(
        name="policies",
        title="12. The service matched every one of its policies that are named here, and none was unmatched",
        example='[ita] policies = ["<uuid>"]',
        read=lambda table: table.texts("policies"),
        check=_check_policies,
    ),
    Rule(
        name="revocation",
        title="13. Current lists of both CAs say that the token's key is not revoked",
        example='[ita] revocation = "required"',
        read=lambda table: table.choice("revocation", ("required",)),
        check=_check_revocation,
    ),
    Rule(
        name="gpu",
        title="14. The service vouches for the GPUs, where the policy demands it",
        example='[ita] gpu = "required" or "none"',
        read=lambda table: table.choice("gpu", ("required", "none")),
        check=_check_gpu,
    ),
)
