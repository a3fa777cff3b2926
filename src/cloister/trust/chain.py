"""Certificate path validation (RFC 5280 section 6) for short vendor chains of ECDSA P-384 with SHA-384.

`cryptography`'s own path validation demands the shape of web server certificates, which vendor chains do not have, so
each link is checked here by hand, in the order of the chain that the evidence carries.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.x509.oid import SignatureAlgorithmOID

from cloister.errors import NotGenuineError
from cloister.trust.anchors import Anchor, load_certificate


def validate(
    chain: Sequence[bytes], leaf: bytes, anchors: Sequence[Anchor], *, now: datetime
) -> tuple[Anchor, tuple[x509.Certificate, ...]]:
    """Validate DER `chain` (root first) and `leaf` at `now` (aware); returns the matched anchor and the parsed chain.

    chain[0] must be, byte for byte, the certificate of one of `anchors`. Raises MalformedError or NotGenuineError.
    """
    digest = hashlib.sha256(chain[0]).hexdigest()
    anchor = next((item for item in anchors if hmac.compare_digest(item.sha256, digest)), None)
    if anchor is None:
        raise NotGenuineError("the chain starts at a root that is not trusted here")
    certificates = tuple(load_certificate(der, f"certificate {at}") for at, der in enumerate([*chain, leaf]))
    for at, certificate in enumerate(certificates):
        last = at == len(certificates) - 1
        _check_time(certificate, at, now)
        _check_role(certificate, at, ca=not last, below=len(certificates) - 2 - at)
        if at:
            _check_signature(certificate, certificates[at - 1], at)
    return anchor, certificates


def _check_time(certificate: x509.Certificate, at: int, now: datetime) -> None:
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        when = "not valid yet" if now < certificate.not_valid_before_utc else "expired"
        raise NotGenuineError(f"certificate {at} of the chain is {when} at {now:%Y-%m-%dT%H:%M:%SZ}")


def _check_role(certificate: x509.Certificate, at: int, *, ca: bool, below: int) -> None:
    """`below` counts the intermediate certificates under this one."""
    constraints: x509.BasicConstraints | None = None
    usage: x509.KeyUsage | None = None
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.BasicConstraints):
            constraints = extension.value
        elif isinstance(extension.value, x509.KeyUsage):
            usage = extension.value
        elif extension.critical:
            raise NotGenuineError(f"certificate {at} has a critical extension that is not understood")
    if ca:
        if constraints is None or not constraints.ca:
            raise NotGenuineError(f"certificate {at} may not issue certificates")
        if constraints.path_length is not None and constraints.path_length < below:
            raise NotGenuineError(f"certificate {at} may not have so long a chain below it")
        if usage is None or not usage.key_cert_sign:
            raise NotGenuineError(f"certificate {at} has no key usage for signing certificates")
    else:
        if constraints is not None and constraints.ca:
            raise NotGenuineError("the leaf is a certificate authority")
        if usage is None or not usage.digital_signature:
            raise NotGenuineError("the leaf has no key usage for signing")


def _check_signature(certificate: x509.Certificate, issuer: x509.Certificate, at: int) -> None:
    if certificate.issuer != issuer.subject:
        raise NotGenuineError(f"certificate {at} names another issuer than the one before it")
    key = p384(issuer)
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA384:
        raise NotGenuineError(f"certificate {at} is not signed with ECDSA and SHA-384")
    try:
        key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(SHA384()))
    except InvalidSignature:
        raise NotGenuineError(f"certificate {at} is not signed by the one before it") from None


def p384(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """The certificate's P-384 key; raises NotGenuineError for any other."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise NotGenuineError("a key of the chain is not on P-384")
    return key
