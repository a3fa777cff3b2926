"""Is this SEV-SNP attestation report genuine? The steps are numbered as in README.md beside this file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from cloister.errors import MalformedError, NotGenuineError, UndecidedError
from cloister.tee.claims import Claims
from cloister.tee.context import Context
from cloister.tee.snp.certificates import CHIP_ID_SIZE, Endorsement
from cloister.tee.snp.evidence import Product, Report, SigningKey, Tcb
from cloister.tee.snp.roots import ANCHORS, INTERMEDIATES
from cloister.trust import chain, crl, signatures
from cloister.trust.anchors import Anchor
from cloister.trust.certificates import load_certificate
from cloister.trust.signatures import Algorithm

CHECKS: tuple[tuple[str, str], ...] = (
    ("snp.report", "1. One report of 1184 bytes, version 2 to 5, reserved bytes zero, ECDSA P-384 with SHA-384"),
    ("snp.certificate", "2. A VCEK or VLEK certificate of AMD's shape is there, for this product and kind of key"),
    ("snp.chain", "3. It chains to the product's ARK through an ASK or ASVK and is valid at the time of the check"),
    ("snp.crl", "4. No list of the ARK that was given revokes the intermediate or the VLEK"),
    ("snp.signature", "5. The endorsement key signed this report"),
    ("snp.endorsement", "6. The certificate is for the TCB that the report states, and for its chip"),
    ("snp.firmware", "7. The report does not contradict itself: nothing committed is newer than what runs"),
)

#: AMD's own certificates; a VCEK has no key usage.
_PROFILE = chain.Profile(algorithms=frozenset({Algorithm.RSA_PSS_SHA384}), rooted=False, leaf_usage=False)
_NO_CHIP = bytes(CHIP_ID_SIZE)


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A genuine report with what its rules look at.

    `revocation_until` is the nextUpdate of the newest list that was checked, None where no list was given.
    """

    report: Report
    product: Product
    endorsement: Endorsement
    reported: Tcb
    current: Tcb
    committed: Tcb
    launch: Tcb
    revocation_until: datetime | None

    @property
    def chip_masked(self) -> bool:
        """Does the report hide which chip signed it?"""
        return self.report.chip_id == _NO_CHIP


@dataclass(frozen=True, kw_only=True)
class _Path:
    """A validated chain: its anchor, the intermediate's serial number, and the subjects from the root down."""

    root: Anchor
    serial: int
    subjects: tuple[str, ...]


def verify(evidence: bytes, context: Context) -> Claims:
    """Claims of a genuine report, or MalformedError, NotGenuineError, or UndecidedError where a certificate is missing.

    Collateral: `amd-vcek` (needed), `amd-ask`, `amd-crl`. The caller has planned CHECKS.
    """
    checklist = context.checklist
    with checklist.step("snp.report") as step:
        report = Report.parse(evidence)
        step.detail = f"version {report.version}, signed by a {report.signing_key}"
    with checklist.step("snp.certificate") as step:
        endorsement = _choose(report, context.collateral.of("amd-vcek"))
        product = _check_shape(report, endorsement)
        step.detail = f"{endorsement.kind} of {product}"
    with checklist.step("snp.chain") as step:
        path = _validate(endorsement, product, context)
        step.detail = f"{len(path.subjects)} names from {path.root.subject}"
    with checklist.step("snp.crl") as step:
        lists = _lists(path.root, context)
        for revocations in lists:
            _check_not_revoked(revocations, path.serial, "the intermediate")
            if endorsement.kind is SigningKey.VLEK:
                _check_not_revoked(revocations, endorsement.serial, "the VLEK")
        until = max((found for each in lists if (found := each.next_update_utc)), default=None)
        step.detail = f"list valid until {until:%Y-%m-%d}" if until else "no list was given; the policy may demand one"
    with checklist.step("snp.signature"):
        _check_signature(report, endorsement.key)
    # From here on the report's own words may be believed.
    with checklist.step("snp.endorsement") as step:
        verified = Verified(
            report=report,
            product=product,
            endorsement=endorsement,
            reported=Tcb.parse(report.reported_tcb, product),
            current=Tcb.parse(report.current_tcb, product),
            committed=Tcb.parse(report.committed_tcb, product),
            launch=Tcb.parse(report.launch_tcb, product),
            revocation_until=until,
        )
        step.detail = _check_endorsement(verified)
    with checklist.step("snp.firmware") as step:
        _check_firmware(verified)
        step.detail = f"firmware {report.current}, {verified.current}"
    return Claims(
        tee="snp",
        genuine=path.root.genuine,
        debug=report.policy.debug,
        measurements={"measurement": report.measurement.hex()},
        user_data=report.report_data,
        nonce=None,
        signed_at=None,
        chain=path.subjects,
        facts=_facts(verified, path.root),
        details=verified,
    )


def _choose(report: Report, certificates: Sequence[bytes]) -> Endorsement:
    """Of several, the one that says it is for this report; else the first, so that a later check says what differs."""
    if not certificates:
        raise UndecidedError(
            f"the {report.signing_key} certificate is missing",
            hint="The replica sends it, or it is fetched from AMD's KDS for this chip and TCB.",
        )
    candidates = [Endorsement.parse(der) for der in certificates]
    return next((each for each in candidates if _fits(report, each)), candidates[0])


def _fits(report: Report, endorsement: Endorsement) -> bool:
    if endorsement.kind is not report.signing_key or report.product not in (None, endorsement.product):
        return False
    try:
        same = Tcb.parse(report.reported_tcb, endorsement.product) == endorsement.tcb
    except MalformedError:  # the layout of another product
        return False
    return same and (endorsement.chip_id is None or report.chip_id in (endorsement.chip_id, _NO_CHIP))


def _check_shape(report: Report, endorsement: Endorsement) -> Product:
    if endorsement.kind is not report.signing_key:
        raise NotGenuineError(f"the report names a {report.signing_key}, the certificate is a {endorsement.kind}'s")
    product = endorsement.product
    if report.product not in (None, product):
        raise NotGenuineError(f"the report is of {report.product}, the certificate of {product}")
    issuer = f"SEV-{product}" if endorsement.kind is SigningKey.VCEK else f"SEV-VLEK-{product}"
    if endorsement.issuer != issuer:
        raise NotGenuineError(f"the certificate of a {endorsement.kind} of {product} was not issued by {issuer}")
    return product


def _validate(endorsement: Endorsement, product: Product, context: Context) -> _Path:
    """Through a built-in intermediate, or one that came along: names choose, signatures decide."""
    certificate, now = endorsement.certificate, context.now
    roots = [anchor for anchor in context.roots("snp", ANCHORS) if f"CN=ARK-{product}" in anchor.subject.split(",")]
    if not roots:
        raise NotGenuineError(f"no root of {product} is trusted here")
    issuer, leaf = certificate.issuer.rfc4514_string(), certificate.subject.rfc4514_string()
    failure: NotGenuineError | None = None
    for known in INTERMEDIATES:
        if known.root in roots and known.key.subject == issuer:
            try:
                chain.validate((), certificate, (known.key,), now=now, profile=_PROFILE)
                return _Path(root=known.root, serial=known.serial, subjects=(known.root.subject, issuer, leaf))
            except NotGenuineError as error:
                failure = error
    for der in context.collateral.of("amd-ask"):
        intermediate = load_certificate(der, "intermediate")
        if intermediate.subject != certificate.issuer:
            continue
        try:
            root, _ = chain.validate((der,), certificate, roots, now=now, profile=_PROFILE)
            return _Path(root=root, serial=intermediate.serial_number, subjects=(root.subject, issuer, leaf))
        except NotGenuineError as error:
            failure = failure or error
    if failure is not None:
        raise failure
    raise UndecidedError(
        f"the certificate of {endorsement.issuer} is missing", hint="It is in AMD's KDS, under cert_chain."
    )


def _lists(root: Anchor, context: Context) -> list[x509.CertificateRevocationList]:
    """The current lists of that root; raises if some were given and none is good."""
    lists, failure = [], None
    for der in context.collateral.of("amd-crl"):
        if crl.issuer(der) != root.subject:
            continue
        try:
            lists.append(crl.load(der, root.subject, signatures.public_key(root.spki), _PROFILE, now=context.now))
        except NotGenuineError as error:
            failure = error
    if failure is not None and not lists:
        raise failure
    return lists


def _check_not_revoked(revocations: x509.CertificateRevocationList, serial: int, what: str) -> None:
    if revocations.get_revoked_certificate_by_serial_number(serial) is not None:
        raise NotGenuineError(f"{what} was revoked")


def _check_signature(report: Report, key: ec.EllipticCurvePublicKey) -> None:
    try:
        key.verify(encode_dss_signature(report.r, report.s), report.signed, ec.ECDSA(SHA384()))
    except InvalidSignature:
        raise NotGenuineError(
            "the report was not signed by the key of this certificate",
            hint="A VCEK is for one chip at one TCB; after an update of its firmware there is another.",
        ) from None


def _check_endorsement(verified: Verified) -> str:
    endorsement, report = verified.endorsement, verified.report
    if endorsement.tcb != verified.reported:
        raise NotGenuineError(f"the certificate is for {endorsement.tcb}, the report states {verified.reported}")
    if endorsement.chip_id is None:
        return f"reported TCB {verified.reported}; {endorsement.csp_id}"
    if verified.chip_masked:
        return f"reported TCB {verified.reported}; the chip is not named"
    if report.chip_id != endorsement.chip_id:
        raise NotGenuineError("the certificate is for another chip")
    return f"reported TCB {verified.reported}; the chip's own certificate"


def _check_firmware(verified: Verified) -> None:
    report = verified.report
    if not verified.committed <= verified.current or not report.committed <= report.current:
        raise NotGenuineError("the report says that firmware newer than the running one was committed")


def _facts(verified: Verified, root: Anchor) -> dict[str, str]:
    report, endorsement = verified.report, verified.endorsement
    facts = {
        "product": verified.product.value,
        "version": str(report.version),
        "signing_key": endorsement.kind.value,
        "reported_tcb": str(verified.reported),
        "firmware": str(report.current),
        "vmpl": str(report.vmpl),
        "guest_svn": str(report.guest_svn),
        "chip_id": "masked" if verified.chip_masked else report.chip_id.hex(),
        "root_sha256": root.sha256,
    }
    if endorsement.csp_id is not None:
        facts["csp_id"] = endorsement.csp_id
    if report.current_mitigations is not None:
        facts["mitigations"] = f"launch {report.launch_mitigations:#x} current {report.current_mitigations:#x}"
    if verified.product is Product.MILAN:
        facts["degraded"] = MILAN
    return facts


#: arXiv 2605.12990 (BadFuse).
MILAN = "reports of Milan can be forged in software whatever TCB they state"
