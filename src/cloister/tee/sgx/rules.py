"""What a policy may demand of a genuine SGX quote."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.errors import PolicyDocumentError, RefusedError
from cloister.tee import dcap
from cloister.tee.claims import Claims
from cloister.tee.format import Rule
from cloister.tee.sgx.verify import Details
from cloister.trust.dcap.quote import EnclaveReport
from cloister.wire.toml import Table

#: Enclave attributes (Intel SDM volume 3D, "ATTRIBUTES Structure"); DEBUG is never allowed and has no name here.
ATTRIBUTES = {
    "INIT": 0, "MODE64BIT": 2, "PROVISIONKEY": 4, "EINITTOKEN_KEY": 5, "CET": 6, "KSS": 7, "AEXNOTIFY": 10,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One enclave by `mrenclave`, or a signer's product by `mrsigner`, `isvprodid` and the least `isvsvn`.

    What is stated must all match; hex of 32 bytes. Raises PolicyDocumentError when it names no enclave.
    """

    mrenclave: str | None = None
    mrsigner: str | None = None
    isvprodid: int | None = None
    isvsvn: int | None = None
    label: str = ""

    def __post_init__(self) -> None:
        if self.mrenclave is None and None in (self.mrsigner, self.isvprodid, self.isvsvn):
            raise PolicyDocumentError(
                "a measurement must name the enclave", hint="State mrenclave, or mrsigner with isvprodid and isvsvn."
            )

    def wrong(self, report: EnclaveReport) -> list[str]:
        """The names of what does not match."""
        return [
            name
            for name, stated, fits in (
                ("mrenclave", self.mrenclave, report.mr_enclave.hex() == self.mrenclave),
                ("mrsigner", self.mrsigner, report.mr_signer.hex() == self.mrsigner),
                ("isvprodid", self.isvprodid, report.isv_prod_id == self.isvprodid),
                ("isvsvn", self.isvsvn, report.isv_svn >= (self.isvsvn or 0)),
            )
            if stated is not None and not fits
        ]


def _details(claims: Claims) -> Details:
    assert isinstance(claims.details, Details)
    return claims.details


def _report(claims: Claims) -> EnclaveReport:
    return _details(claims).report


def _read(table: Table) -> tuple[Measurement, ...] | None:
    return tuple(_measurement(each) for each in table.tables("measurement")) or None


def _measurement(table: Table) -> Measurement:
    mrenclave, mrsigner = (table.hex(name, 32) for name in ("mrenclave", "mrsigner"))
    isvprodid, isvsvn = (table.number(name, 0, 0xFFFF) for name in ("isvprodid", "isvsvn"))
    label = table.line("label") or ""
    table.done()
    try:
        return Measurement(mrenclave=mrenclave, mrsigner=mrsigner, isvprodid=isvprodid, isvsvn=isvsvn, label=label)
    except PolicyDocumentError as error:
        raise PolicyDocumentError(f"{table.path}: {error.message}", hint=error.hint) from None


def _check(claims: Claims, allowed: tuple[Measurement, ...]) -> str:
    nearest = min((each.wrong(_report(claims)) for each in allowed), key=len)
    for each in allowed:
        if not each.wrong(_report(claims)):
            return each.label or ("mrenclave" if each.mrenclave else "mrsigner, isvprodid, isvsvn")
    raise RefusedError(f"the enclave is none that the policy names: {', '.join(nearest)} differ")


def _attributes(claims: Claims, allowed: tuple[str, ...]) -> str:
    return dcap.flags(_report(claims).attributes, ATTRIBUTES, allowed, "the enclave's attributes")


def _config_svn(claims: Claims, least: int) -> str:
    if _report(claims).config_svn < least:
        raise RefusedError("the enclave's CONFIGSVN is lower than the policy wants")
    return str(_report(claims).config_svn)


RULES: tuple[Rule, ...] = (
    Rule(
        name="measurement",
        title="7. The enclave is one that the policy names",
        example='[[sgx.measurement]] mrenclave = "…"',
        read=_read,
        check=_check,
        waivable=False,
    ),
    Rule(
        name="attributes",
        title="8. The enclave has no attribute that the policy does not name",
        example='[sgx] attributes = ["INIT", "MODE64BIT"]',
        read=lambda table: table.choices("attributes", ATTRIBUTES),
        check=_attributes,
    ),
    Rule(
        name="xfrm",
        title="9. XFRM is within a mask of the policy",
        example='[sgx] xfrm = ["e702000000000000"]',
        read=dcap.hexes("xfrm", 8, what="an XFRM mask"),
        check=lambda claims, masks: dcap.within_mask(_report(claims).xfrm, masks, "XFRM"),
    ),
    Rule(
        name="miscselect",
        title="10. MISCSELECT is within a mask of the policy",
        example='[sgx] miscselect = ["00000000"]',
        read=dcap.hexes("miscselect", 4, what="a MISCSELECT mask"),
        check=lambda claims, masks: dcap.within_mask(_report(claims).misc_select, masks, "MISCSELECT"),
    ),
    Rule(
        name="configid",
        title="11. CONFIGID is one that the policy names",
        example=f'[sgx] configid = ["{"00" * 64}"]',
        read=dcap.hexes("configid", 64, what="a CONFIGID"),
        check=lambda claims, allowed: dcap.one_of(_report(claims).config_id.hex(), allowed, "CONFIGID"),
    ),
    Rule(
        name="configsvn_min",
        title="12. CONFIGSVN is high enough",
        example="[sgx] configsvn_min = 0",
        read=lambda table: table.number("configsvn_min", 0, 0xFFFF),
        check=_config_svn,
    ),
    *dcap.tcb_rules("sgx", 13, lambda claims: _details(claims).verified),
)
