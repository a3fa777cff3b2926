"""Who signed a quote: attestation key <- quoting enclave <- PCK certificate <- Intel; checked here, beside dcap-qvl."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cloister.errors import NotGenuineError
from cloister.trust import chain, signatures
from cloister.trust.anchors import Anchor
from cloister.trust.certificates import from_pem
from cloister.trust.dcap.quote import Quote
from cloister.trust.signatures import Algorithm

P256 = chain.Profile(algorithms=frozenset({Algorithm.ECDSA_P256_SHA256}))
#: Enclave attributes: the host may read the enclave.
DEBUG = 1 << 1
#: The CAs of PCK certificates by the names that the Provisioning Certification Service has for them.
CAS = {"processor": "Intel SGX PCK Processor CA", "platform": "Intel SGX PCK Platform CA"}


@dataclass(frozen=True, kw_only=True)
class PckChain:
    """A validated chain: the anchor, the root's DER, the CA that issued the PCK certificate, and that certificate."""

    anchor: Anchor
    root: bytes
    issuer: x509.Certificate
    leaf: x509.Certificate

    @property
    def subjects(self) -> tuple[str, ...]:
        """RFC 4514 names, root first."""
        return (self.anchor.subject, *(each.subject.rfc4514_string() for each in (self.issuer, self.leaf)))


def certificates(pem: bytes, count: int, what: str) -> tuple[bytes, ...]:
    """Exactly `count` certificates (DER) of a PEM text with nothing but white space (and final NULs) around them."""
    return from_pem(pem.rstrip(b"\x00"), what, smallest=count, largest=count)


def validate(quote: Quote, anchors: Sequence[Anchor], *, now: datetime) -> PckChain:
    """The quote's own chain, at `now`: PCK, its CA, root. Raises MalformedError or NotGenuineError."""
    leaf, issuer, root = certificates(quote.pck_chain, 3, "PCK certificate chain")
    anchor, (_, issuer_certificate, leaf_certificate) = chain.validate(
        (root, issuer), leaf, anchors, now=now, profile=P256
    )
    return PckChain(anchor=anchor, root=root, issuer=issuer_certificate, leaf=leaf_certificate)


def check_signatures(quote: Quote, pck: PckChain) -> None:
    """The PCK key signed the QE's report, which binds the attestation key, which signed the quote.

    Raises NotGenuineError.
    """
    raw_check(pck.leaf.public_key(), quote.qe_report_signature, quote.qe_report.raw, "the quoting enclave's report")
    if quote.qe_report.attributes[0] & DEBUG:
        raise NotGenuineError("the quoting enclave runs in debug mode: whoever runs it has its keys")
    bound = hashlib.sha256(quote.attestation_key + quote.qe_auth_data).digest().ljust(64, b"\x00")
    if not hmac.compare_digest(quote.qe_report.report_data, bound):
        raise NotGenuineError("the quoting enclave does not vouch for the attestation key")
    x, y = (int.from_bytes(part, "big") for part in (quote.attestation_key[:32], quote.attestation_key[32:]))
    try:
        key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    except ValueError:
        raise NotGenuineError("the attestation key is not a point of P-256") from None
    raw_check(key, quote.signature, quote.signed, "the quote")


def raw_check(key: CertificatePublicKeyTypes, signature: bytes, data: bytes, what: str) -> None:
    """`signature` is r ‖ s of 32 bytes each, ECDSA P-256 with SHA-256. A high s is valid. Raises NotGenuineError."""
    r, s = (int.from_bytes(part, "big") for part in (signature[:32], signature[32:]))
    signatures.check(key, Algorithm.ECDSA_P256_SHA256, encode_dss_signature(r, s), data, what)
