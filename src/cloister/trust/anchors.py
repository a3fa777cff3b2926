"""A trust anchor is a name and a key (RFC 5280 section 6.1.1), kept as facts with their origin."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.errors import NotGenuineError, PolicyDocumentError
from cloister.trust.certificates import UNREADABLE, load_certificate

SIMULATED_MARK = "SIMULATED"


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
    def of(cls, certificate: x509.Certificate, origin: str, *, genuine: bool = True) -> Anchor:
        """The facts of a certificate that was checked already."""
        return cls(
            subject=certificate.subject.rfc4514_string(),
            spki=certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            sha256=hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest(),
            origin=origin,
            genuine=genuine,
        )

    @classmethod
    def root(cls, der: bytes, origin: str) -> Anchor:
        """A vendor's root that somebody names by its certificate (DER): self-signed, for signing certificates.

        Raises MalformedError or NotGenuineError, also for a root that calls itself SIMULATED.
        """
        certificate = load_certificate(der, "root")
        anchor = cls.of(certificate, origin)
        values = [extension.value for extension in certificate.extensions]
        if not any(isinstance(value, x509.BasicConstraints) and value.ca for value in values) or not any(
            isinstance(value, x509.KeyUsage) and value.key_cert_sign for value in values
        ):
            raise NotGenuineError("the certificate is not one of a root: it may not issue certificates")
        try:
            certificate.verify_directly_issued_by(certificate)
        except (*UNREADABLE, InvalidSignature):
            raise NotGenuineError("the certificate is not one of a root: it did not sign itself") from None
        if SIMULATED_MARK in anchor.subject:
            raise NotGenuineError("the root calls itself SIMULATED")
        return anchor

    @classmethod
    def simulated(cls, pem: str) -> Anchor:
        """The anchor of a simulated TEE's root certificate (PEM); raises PolicyDocumentError.

        The root must be self-signed and say in its own name that it is simulated, so that no vendor's root can be
        smuggled in as, or mistaken for, one.
        """
        try:
            certificate = x509.load_pem_x509_certificate(pem.encode("ascii"))
            certificate.verify_directly_issued_by(certificate)
            anchor = cls.of(certificate, "the policy", genuine=False)
        except (*UNREADABLE, InvalidSignature):
            raise PolicyDocumentError(
                "the simulated root is not a self-signed certificate in PEM",
                hint="Paste the root certificate that the simulated replica printed or wrote.",
            ) from None
        if SIMULATED_MARK not in anchor.subject:
            raise PolicyDocumentError(
                "the simulated root does not call itself SIMULATED", hint="A vendor's root does not belong there."
            )
        return anchor
