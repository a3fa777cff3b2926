"""A trust anchor is a name and a key (RFC 5280 section 6.1.1), kept as facts with their origin."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.errors import MalformedError, PolicyDocumentError

SIMULATED_MARK = "SIMULATED"

# Everything that `cryptography` raises for a certificate it cannot read; they have no common base.
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """`subject` is the RFC 4514 name, `spki` the DER public key, `sha256` the hex digest of the certificate's DER.

    `genuine` is False for a root made in software: whatever chains to it proves nothing about hardware.
    """

    subject: str
    spki: bytes
    not_before: datetime
    not_after: datetime
    sha256: str
    origin: str
    genuine: bool = True

    @classmethod
    def simulated(cls, pem: str) -> Anchor:
        """The anchor of a simulated TEE's root certificate (PEM); raises PolicyDocumentError.

        The root must be self-signed and say in its own name that it is simulated, so that no vendor's root can be
        smuggled in as, or mistaken for, one.
        """
        try:
            certificate = x509.load_pem_x509_certificate(pem.encode("ascii"))
            certificate.verify_directly_issued_by(certificate)
            der = certificate.public_bytes(Encoding.DER)
            anchor = cls(
                subject=certificate.subject.rfc4514_string(),
                spki=certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
                not_before=certificate.not_valid_before_utc,
                not_after=certificate.not_valid_after_utc,
                sha256=hashlib.sha256(der).hexdigest(),
                origin="the policy",
                genuine=False,
            )
        except (*_UNREADABLE, InvalidSignature):
            raise PolicyDocumentError(
                "the simulated root is not a self-signed certificate in PEM",
                hint="Paste the root certificate that the simulated replica printed or wrote.",
            ) from None
        if SIMULATED_MARK not in anchor.subject:
            raise PolicyDocumentError(
                "the simulated root does not call itself SIMULATED", hint="A vendor's root does not belong there."
            )
        return anchor


def load_certificate(der: bytes, what: str) -> x509.Certificate:
    """Parse one DER certificate without trailing bytes; raises MalformedError."""
    try:
        certificate, reencoded = _parsed(der)
    except _UNREADABLE:
        raise MalformedError(f"{what}: not an X.509 certificate") from None
    if reencoded != der:
        raise MalformedError(f"{what}: not one DER certificate")
    return certificate


# Roots and intermediates are the same in every verification. Only what parsed is kept, by all of its bytes; whether it
# is valid, and who signed it, is looked at each time.
@lru_cache(maxsize=128)
def _parsed(der: bytes) -> tuple[x509.Certificate, bytes]:
    """A certificate, and its bytes encoded again."""
    certificate = x509.load_der_x509_certificate(der)
    # Parse what is lazy now, so that nothing later can fail in another way.
    certificate.extensions  # noqa: B018
    certificate.subject.rfc4514_string()
    certificate.issuer.rfc4514_string()
    certificate.public_key()
    return certificate, certificate.public_bytes(Encoding.DER)
