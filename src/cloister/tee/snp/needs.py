"""What a report needs from AMD's Key Distribution Service (57230); the report is a stranger's word."""

from __future__ import annotations

from cloister.errors import NotGenuineError
from cloister.tee.snp.certificates import CHIP_ID_SIZE, HWID_SIZES, Endorsement
from cloister.tee.snp.evidence import Product, Report, SigningKey, Tcb
from cloister.trust.need import Life, Need

#: Version 2 does not name its product, and is older than Turin.
_UNNAMED = (Product.MILAN, Product.GENOA)


def needs(evidence: bytes) -> tuple[Need, ...]:
    """The VCEK of the report's chip at its reported TCB, the intermediate, the list of the ARK; raises MalformedError.

    Where the report does not name its product, each that it can be is asked for.
    """
    report = Report.parse(evidence)
    products = (report.product,) if report.product is not None else _UNNAMED
    key: Need | None = None
    for product in reversed(products):
        key = _key(report, product, otherwise=key)
    assert key is not None
    kind = report.signing_key.value.lower()
    intermediates = [Need(kind="amd-ask", parameters={"product": each, "kind": kind}) for each in products]
    return (key, *intermediates, *(Need(kind="amd-crl", parameters={"product": each}) for each in products))


def _key(report: Report, product: Product, *, otherwise: Need | None) -> Need:
    if report.signing_key is SigningKey.VLEK:
        return Need(kind="amd-vcek", parameters={"kind": "vlek"})
    chip_id = report.chip_id[: HWID_SIZES[product]]
    tcb = Tcb.parse(report.reported_tcb, product)

    def check(der: bytes) -> Life:
        endorsement = Endorsement.parse(der)
        fits = (endorsement.kind, endorsement.product, endorsement.tcb) == (SigningKey.VCEK, product, tcb)
        if not fits or endorsement.chip_id != chip_id.ljust(CHIP_ID_SIZE, b"\x00"):
            raise NotGenuineError("the certificate is for another chip, or another TCB")
        return Life(endorsement.certificate.not_valid_before_utc, endorsement.certificate.not_valid_after_utc)

    parts = zip(("fmc", "bootloader", "tee", "snp", "microcode"), map(str, tcb.parts()), strict=True)
    return Need(
        kind="amd-vcek",
        parameters={"product": product, "chip_id": chip_id.hex(), **dict(parts)},
        check=check,
        otherwise=otherwise,
    )
