"""`Recipient` of the SIMULATED KMS: is the document genuine (under the SIMULATED root), and what does it say?

AWS publishes neither how old a document may be nor which error a bad one gets. Five minutes and ValidationException are
this emulator's assumptions; the code that asks depends on neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from cloister.errors import CloisterError
from cloister.platforms.qemu_nitro.kms.errors import invalid
from cloister.tee.checks import Checklist
from cloister.tee.nitro import verify as nitro
from cloister.tee.nitro.evidence import MAX_DOCUMENT, AttestationDocument
from cloister.trust.anchors import Anchor
from cloister.wire import cose

ALGORITHM = "RSAES_OAEP_SHA_256"
MAX_AGE = timedelta(minutes=5)
MAX_SKEW = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class Recipient:
    """An attested key and the condition keys that its document sets."""

    key: rsa.RSAPublicKey
    #: Condition keys in lower case; PCRs in lower-case hex, the zeros of a debug enclave as zeros.
    context: dict[str, list[str]]


def verify(document: bytes, *, anchor: Anchor, now: datetime) -> Recipient:
    """What a genuine, fresh document vouches for; raises KmsError (ValidationException)."""
    checklist = Checklist()
    checklist.plan(nitro.CHECKS)
    try:
        claims = nitro.verify(
            document, now=now, anchors=(anchor,), max_age=MAX_AGE, max_skew=MAX_SKEW, checklist=checklist
        )
    except CloisterError as error:
        raise invalid(f"the attestation document does not verify: {error.message}") from None
    # The same bytes, now known to be signed.
    signed = AttestationDocument.parse(cose.Sign1.parse(document, "attestation document", limit=MAX_DOCUMENT).payload)
    context = {f"kms:recipientattestation:{name}": [value] for name, value in claims.measurements.items()}
    if "pcr0" in claims.measurements:
        context["kms:recipientattestation:imagesha384"] = [claims.measurements["pcr0"]]
    return Recipient(key=_rsa(signed.public_key), context=context)


def _rsa(der: bytes | None) -> rsa.RSAPublicKey:
    if der is None:
        raise invalid("the attestation document holds no public key")
    try:
        key = load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm):
        raise invalid("the attestation document's public key cannot be read") from None
    if not isinstance(key, rsa.RSAPublicKey) or not 2048 <= key.key_size <= 4096:
        raise invalid("the attestation document's public key is not RSA of 2048 to 4096 bits")
    return key
