"""What a policy may demand of a genuine TDX quote."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cloister.errors import PolicyDocumentError, RefusedError
from cloister.tee import dcap
from cloister.tee.claims import Claims
from cloister.tee.format import Rule
from cloister.tee.tdx.evidence import TdReport
from cloister.tee.tdx.measurement import Measurement, read
from cloister.tee.tdx.verify import Details
from cloister.wire.toml import Table

#: TD attributes (TDX module ABI, "ATTRIBUTES"); debug bits are never allowed and have no name here.
ATTRIBUTES = {
    "LASS": 27, "SEPT_VE_DISABLE": 28, "MIGRATABLE": 29, "PKS": 30, "KL": 31, "TPA": 62, "PERFMON": 63,
}  # fmt: skip
SEPT_VE_DISABLE = 1 << 28


def _details(claims: Claims) -> Details:
    assert isinstance(claims.details, Details)
    return claims.details


def _report(claims: Claims) -> TdReport:
    return _details(claims).report


def _measurement(claims: Claims, allowed: tuple[Measurement, ...]) -> str:
    details = _details(claims)
    nearest: list[str] | None = None
    for each in allowed:
        wrong = each.wrong(details.report, details.events)
        if not wrong:
            return each.label or ", ".join(each.names())
        if nearest is None or len(wrong) < len(nearest):
            nearest = wrong
    raise RefusedError(f"the TD runs another image than the policy names: {', '.join(nearest or [])} differ")


def _attributes(claims: Claims, allowed: tuple[str, ...]) -> str:
    return dcap.flags(_report(claims).td_attributes, ATTRIBUTES, allowed, "the TD's attributes")


def _sept_ve_disable(claims: Claims, required: bool) -> str:
    found = bool(int.from_bytes(_report(claims).td_attributes, "little") & SEPT_VE_DISABLE)
    if found is not required:
        raise RefusedError("the TD runs without SEPT_VE_DISABLE")
    return "set"


def _read_sept_ve_disable(table: Table) -> bool | None:
    value = table.flag("sept_ve_disable")
    if value is False:
        raise PolicyDocumentError(
            f"{table.name('sept_ve_disable')} can only be true", hint="A TD without it is always refused."
        )
    return value


def _tcb_svn(claims: Claims, minima: tuple[str, ...]) -> str:
    report = _report(claims)
    found = [svn for svn in (report.tee_tcb_svn, report.tee_tcb_svn2) if svn is not None]
    for least in map(bytes.fromhex, minima):
        if all(value >= wanted for svn in found for value, wanted in zip(svn, least, strict=True)):
            return report.tee_tcb_svn.hex()
    raise RefusedError("a component of the TEE TCB SVN is lower than the policy wants")


def _same(name: str, field: str, number: int, title: str, example: str, size: int = 48) -> Rule:
    """A rule that one field of the TD report is one of the listed values."""

    def check(claims: Claims, allowed: tuple[str, ...]) -> str:
        return dcap.one_of(getattr(_report(claims), field).hex(), allowed, name.upper())

    read_values: Callable[[Table], Any] = dcap.hexes(name, size, what="a value")
    return Rule(
        name=name, title=f"{number}. {title}", example=f'[tdx] {name} = ["{example}"]', read=read_values, check=check
    )


ZERO = "00" * 48

RULES: tuple[Rule, ...] = (
    Rule(
        name="measurement",
        title="8. Firmware, boot chain and what else is stated are those of an image that the policy names",
        example='[[tdx.measurement]] mrtd = "…" rtmr1 = "…" rtmr2 = "…"',
        read=read,
        check=_measurement,
        waivable=False,
    ),
    Rule(
        name="attributes",
        title="9. The TD has no attribute that the policy does not name",
        example='[tdx] attributes = ["SEPT_VE_DISABLE"]',
        read=lambda table: table.choices("attributes", ATTRIBUTES),
        check=_attributes,
    ),
    Rule(
        name="sept_ve_disable",
        title="10. The host cannot make pages vanish under the TD unnoticed",
        example="[tdx] sept_ve_disable = true",
        read=_read_sept_ve_disable,
        check=_sept_ve_disable,
    ),
    Rule(
        name="xfam",
        title="11. XFAM is within a mask of the policy",
        example='[tdx] xfam = ["e702060000000000"]',
        read=dcap.hexes("xfam", 8, what="an XFAM mask"),
        check=lambda claims, masks: dcap.within_mask(_report(claims).xfam, masks, "XFAM"),
    ),
    _same("mrseam", "mr_seam", 12, "The TDX module is one that the policy names", "…"),
    _same(
        "mrsignerseam", "mr_signer_seam", 13, "The TDX module's signer is one that the policy names (zero: Intel)", ZERO
    ),
    _same(
        "seamattributes",
        "seam_attributes",
        14,
        "The TDX module's attributes are ones that the policy names",
        "00" * 8,
        8,
    ),
    _same("mrservicetd", "mr_service_td", 15, "The TD is bound to no service TD that the policy does not name", ZERO),
    _same("mrconfigid", "mr_config_id", 16, "MRCONFIGID is one that the policy names", ZERO),
    _same("mrowner", "mr_owner", 17, "MROWNER is one that the policy names", ZERO),
    _same("mrownerconfig", "mr_owner_config", 18, "MROWNERCONFIG is one that the policy names", ZERO),
    Rule(
        name="tee_tcb_svn_min",
        title="19. Every component of the TEE TCB SVN is high enough",
        example=f'[tdx] tee_tcb_svn_min = ["0501{"00" * 14}"]',
        read=dcap.hexes("tee_tcb_svn_min", 16, what="a TEE TCB SVN"),
        check=_tcb_svn,
    ),
    *dcap.tcb_rules("tdx", 20, lambda claims: _details(claims).verified),
)
