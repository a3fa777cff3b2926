"""The simulated root and the certificate chain under it, in the shape of AWS's: root, region, zone, instance, leaf."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from cloister.errors import UsageError
from cloister.trust.certificates import UNREADABLE

NAME = "cloister SIMULATED root - NOT A TEE"


@dataclass(frozen=True)
class Issued:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        """The certificate's DER."""
        return self.certificate.public_bytes(Encoding.DER)


def issue(
    name: str, issuer: Issued | None, *, start: datetime, life: timedelta, ca: bool, path_length: int | None = None
) -> Issued:
    """A certificate for a new P-384 key, self-signed without an issuer."""
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + life)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length if ca else None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, content_commitment=False,
                key_encipherment=False, data_encipherment=False, key_agreement=False,
                encipher_only=False, decipher_only=False,
            ),
            critical=True,
        )
        .sign(issuer.key if issuer else key, SHA384())
    )  # fmt: skip
    return Issued(certificate, key)


@dataclass(frozen=True)
class SimulatedRoot:
    """A root made in software; whoever holds its key can sign any evidence, which is why it proves nothing."""

    issued: Issued

    @classmethod
    def create(cls, now: datetime | None = None) -> SimulatedRoot:
        """A new root, valid for a year."""
        start = (now or datetime.now(UTC)) - timedelta(hours=1)
        return cls(issue(NAME, None, start=start, life=timedelta(days=366), ca=True))

    @classmethod
    def load_or_create(cls, path: Path, create: Callable[[], SimulatedRoot] | None = None) -> SimulatedRoot:
        """The root kept in `path` (PEM key and certificate, mode 0600), made there when it is missing or over.

        `create` makes it; without, it is one of the shape of AWS's.

        Raises UsageError when the file cannot be used.
        """
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            data = b""
        except OSError as error:
            raise UsageError(f"cannot read the simulated root: {error.strerror}") from None
        if data:
            try:
                key = load_pem_private_key(data, None)
                certificate = x509.load_pem_x509_certificate(data)
            except UNREADABLE:
                raise UsageError("the simulated root file is damaged", hint="Remove it; a new one is made.") from None
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise UsageError("the simulated root file is damaged", hint="Remove it; a new one is made.")
            if certificate.not_valid_after_utc > datetime.now(UTC) + timedelta(days=2):
                return cls(Issued(certificate, key))
        root = (create or cls.create)()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(root.issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            file.write(root.pem.encode("ascii"))
        temporary.replace(path)
        return root

    @property
    def pem(self) -> str:
        """The root certificate as PEM: what a policy must name."""
        return self.issued.certificate.public_bytes(Encoding.PEM).decode("ascii")
