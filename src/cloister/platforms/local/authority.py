"""What the SIMULATED verification services share: keys that sign tokens, and the evidence they look at."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from cloister.tee import registry
from cloister.tee.checks import Checklist
from cloister.tee.claims import Claims
from cloister.tee.context import Context
from cloister.trust.anchors import Anchor
from cloister.trust.collateral import Collateral
from cloister.trust.jwt import Alg
from cloister.wire.strict_json import encode_base64url

LIFE = timedelta(days=366)
LISTS = timedelta(days=30)
BITS = 3072


@dataclass(frozen=True)
class Authority:
    """A certificate and its RSA key."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey

    @classmethod
    def issue(cls, name: str, issuer: Authority | None, *, ca: bool, start: datetime) -> Authority:
        """A certificate for a new key, signed with SHA-512; self-signed without an issuer."""
        key = rsa.generate_private_key(65537, BITS)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.certificate.subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + LIFE)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, content_commitment=False,
                    key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .sign(issuer.key if issuer else key, SHA512())
        )  # fmt: skip
        return cls(certificate, key)

    @property
    def der(self) -> bytes:
        """The certificate's DER."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> str:
        """The certificate as PEM."""
        return self.certificate.public_bytes(Encoding.PEM).decode("ascii")

    @property
    def kid(self) -> str:
        """Hex SHA-384 of the public key."""
        spki = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha384(spki).hexdigest()

    def revocations(self, now: datetime) -> bytes:
        """A list of this authority that revokes nothing, DER."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - timedelta(hours=1))
            .next_update(now + LISTS)
            .add_extension(x509.CRLNumber(int(now.timestamp())), critical=False)
        )
        return builder.sign(self.key, SHA512()).public_bytes(Encoding.DER)

    def entry(self, chain: Sequence[Authority], **members: object) -> dict[str, object]:
        """The key as a member of a JWK Set (RFC 7517), with its chain, leaf first."""
        numbers = self.key.public_key().public_numbers()
        return {
            "kty": "RSA",
            "kid": self.kid,
            "n": encode_base64url(numbers.n.to_bytes(BITS // 8, "big")),
            "e": encode_base64url(numbers.e.to_bytes(3, "big")),
            "x5c": [base64.b64encode(each.der).decode("ascii") for each in (self, *chain)],
            **members,
        }

    def sign(self, claims: Mapping[str, object], alg: Alg, *, jku: str) -> str:
        """A token over the claims: a compact serialisation (RFC 7515 section 7.1)."""
        head = {"alg": str(alg), "jku": jku, "kid": self.kid, "typ": "JWT"}
        signed = ".".join(encode_base64url(json.dumps(part).encode()) for part in (head, claims))
        if alg is Alg.PS384:
            signature = self.key.sign(signed.encode(), padding.PSS(padding.MGF1(SHA384()), 48), SHA384())
        elif alg is Alg.RS256:
            signature = self.key.sign(signed.encode(), padding.PKCS1v15(), SHA256())
        else:
            raise ValueError(f"this key does not sign with {alg}")
        return f"{signed}.{encode_base64url(signature)}"


def times(now: datetime, life: timedelta) -> dict[str, object]:
    """`iat`, `nbf` and `exp` of a token made now."""
    at = int(now.astimezone(UTC).timestamp())
    return {"iat": at, "nbf": at, "exp": at + int(life.total_seconds())}


def verify(name: str, evidence: bytes, anchors: Sequence[Anchor], collateral: Collateral, *, now: datetime) -> Claims:
    """The claims of evidence of that format, by this package's own verifier; raises CloisterError."""
    form, checklist = registry.get(name), Checklist()
    checklist.plan(form.checks)
    context = Context(
        now=now,
        checklist=checklist,
        max_age=timedelta(minutes=5),
        max_skew=timedelta(minutes=1),
        anchors={name: tuple(anchors)},
        collateral=collateral,
    )
    claims = form.verify(evidence, context)
    if not checklist.complete():
        raise AssertionError("a check was forgotten")
    return claims
