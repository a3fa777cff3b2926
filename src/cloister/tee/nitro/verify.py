"""Is this AWS Nitro attestation document genuine? The steps are numbered as in README.md beside this file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from cloister.errors import MalformedError, NotGenuineError
from cloister.tee.checks import Checklist
from cloister.tee.claims import Claims
from cloister.tee.nitro.evidence import MAX_DOCUMENT, AttestationDocument
from cloister.trust import chain
from cloister.trust.anchors import Anchor
from cloister.wire import cose

ES384 = -35
SIGNATURE_SIZE = 96

CHECKS: tuple[tuple[str, str], ...] = (
    ("nitro.cose", "1-2. One COSE_Sign1 of at most 16 KiB, ES384 and nothing else in its protected header"),
    ("nitro.document", "3. The payload is an attestation document with fields of the right types and sizes"),
    ("nitro.chain", "4. The certificates chain to a trusted root and are valid at the time of the check"),
    ("nitro.signature", "5. The leaf's key signed this document"),
    ("nitro.freshness", "6. The document was signed recently enough"),
)


def verify(
    evidence: bytes,
    *,
    now: datetime,
    anchors: Sequence[Anchor],
    max_age: timedelta,
    max_skew: timedelta,
    chain_time: Literal["now", "signed"] = "now",
    checklist: Checklist,
) -> Claims:
    """Claims of a genuine document, or MalformedError or NotGenuineError.

    `now` is aware. `chain_time="signed"` validates the chain at the document's own time, for stored evidence whose
    leaf (3 hours) has ended; `max_age` still bounds its age at `now`. The caller has planned CHECKS in `checklist`.
    """
    with checklist.step("nitro.cose"):
        message = cose.Sign1.parse(evidence, "attestation document", limit=MAX_DOCUMENT)
        if message.protected_header != {cose.ALG: ES384}:
            raise MalformedError("attestation document: the protected header is not exactly ES384")
        if len(message.signature) != SIGNATURE_SIZE:
            raise MalformedError("attestation document: the signature is not 96 bytes")
    with checklist.step("nitro.document"):
        document = AttestationDocument.parse(message.payload)
        signed_at = datetime.fromtimestamp(document.timestamp / 1000, UTC)
    with checklist.step("nitro.chain") as step:
        anchor, certificates = chain.validate(
            document.cabundle, document.certificate, anchors, now=now if chain_time == "now" else signed_at
        )
        subjects = tuple(certificate.subject.rfc4514_string() for certificate in certificates)
        step.detail = f"{len(subjects)} certificates from {anchor.subject}"
    with checklist.step("nitro.signature"):
        _check_signature(message, chain.p384(certificates[-1]))
    # From here on the document's own words may be believed.
    with checklist.step("nitro.freshness") as step:
        age = now - signed_at
        step.detail = f"signed {signed_at:%Y-%m-%dT%H:%M:%SZ}, {age.total_seconds():.1f} s ago"
        if age > max_age:
            raise NotGenuineError(
                f"the document is {age.total_seconds():.0f} s old, {max_age.total_seconds():.0f} allowed"
            )
        if age < -max_skew:
            raise NotGenuineError(
                f"the document is from {-age.total_seconds():.0f} s in the future", hint="Check this machine's clock."
            )
    return Claims(
        tee="nitro",
        genuine=anchor.genuine,
        debug=_debug(document),
        measurements={f"pcr{index}": digest.hex() for index, digest in sorted(document.pcrs.items())},
        user_data=document.user_data,
        nonce=document.nonce,
        signed_at=signed_at,
        chain=subjects,
        facts={"module_id": document.module_id, "root_sha256": anchor.sha256},
    )


def _check_signature(message: cose.Sign1, key: ec.EllipticCurvePublicKey) -> None:
    """RFC 9053 section 2.1: r || s, each 48 bytes. A high s is valid: real documents have it."""
    half = SIGNATURE_SIZE // 2
    r, s = (int.from_bytes(part, "big") for part in (message.signature[:half], message.signature[half:]))
    try:
        key.verify(encode_dss_signature(r, s), message.to_be_signed(), ec.ECDSA(SHA384()))
    except InvalidSignature:
        raise NotGenuineError("the document was not signed by the key of its leaf certificate") from None


def _debug(document: AttestationDocument) -> bool:
    """7. An enclave in debug mode reports PCR0, PCR1 and PCR2 as zero; one that lacks them is treated alike."""
    return not any(any(document.pcrs.get(index, b"")) for index in (0, 1, 2))
