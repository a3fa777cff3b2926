"""Certificate path validation (RFC 5280 section 6) for the short chains of hardware vendors.

`cryptography`'s own path validation demands the shape of web server certificates, which vendor chains do not have, so
each link is checked here by hand, in the order of the chain that the evidence carries.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.errors import NotGenuineError
from cloister.trust import signatures
from cloister.trust.anchors import Anchor
from cloister.trust.certificates import load_certificate
from cloister.trust.signatures import Algorithm


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What one vendor's chains look like; everything that is not allowed here is refused.

    `rooted`: the chain brings its root, byte for byte an anchor's certificate; else its first certificate is signed by
    an anchor's key. `understood` are critical extensions that the format checks itself.
    """

    algorithms: frozenset[Algorithm]
    rooted: bool = True
    ca_usage: bool = True
    leaf_usage: bool = True
    understood: frozenset[x509.ObjectIdentifier] = frozenset()


P384 = Profile(algorithms=frozenset({Algorithm.ECDSA_P384_SHA384}))


def validate(
    chain: Sequence[bytes | x509.Certificate],
    leaf: bytes | x509.Certificate,
    anchors: Sequence[Anchor],
    *,
    now: datetime,
    profile: Profile = P384,
) -> tuple[Anchor, tuple[x509.Certificate, ...]]:
    """Validate `chain` (nearest to the root first) and `leaf`, each DER or parsed already, at `now` (aware).

    Returns the anchor and the parsed certificates, leaf last. Raises MalformedError or NotGenuineError.
    """
    certificates = tuple(
        der if isinstance(der, x509.Certificate) else load_certificate(der, f"certificate {at}")
        for at, der in enumerate([*chain, leaf])
    )
    if profile.rooted:
        anchor = _by_digest(certificates[0].public_bytes(Encoding.DER), anchors)
    else:
        anchor = _by_signature(certificates[0], anchors, now, profile)
    for at, certificate in enumerate(certificates):
        last = at == len(certificates) - 1
        _check_time(certificate, at, now)
        _check_role(certificate, at, profile, ca=not last, below=len(certificates) - 2 - at)
        if at:
            issuer = certificates[at - 1]
            if certificate.issuer != issuer.subject:
                raise NotGenuineError(f"certificate {at} names another issuer than the one before it")
            check_signed(certificate, issuer.public_key(), profile, f"certificate {at}")
    return anchor, certificates


def check_signed(
    signed: x509.Certificate | x509.CertificateRevocationList,
    key: CertificatePublicKeyTypes,
    profile: Profile,
    what: str,
) -> None:
    """Raises NotGenuineError unless `key` signed a certificate or CRL with an algorithm of the profile."""
    algorithm = signatures.of(signed)
    if algorithm is None or algorithm not in profile.algorithms:
        raise NotGenuineError(f"{what} is not signed with {' or '.join(sorted(profile.algorithms))}")
    body = signed.tbs_certificate_bytes if isinstance(signed, x509.Certificate) else signed.tbs_certlist_bytes
    signatures.check(key, algorithm, signed.signature, body, what)


def _by_digest(root: bytes, anchors: Sequence[Anchor]) -> Anchor:
    digest = hashlib.sha256(root).hexdigest()
    for anchor in anchors:
        if hmac.compare_digest(anchor.sha256, digest):
            return anchor
    raise NotGenuineError("the chain starts at a root that is not trusted here")


def _by_signature(first: x509.Certificate, anchors: Sequence[Anchor], now: datetime, profile: Profile) -> Anchor:
    """An anchor is a name and a key (RFC 5280 section 6.1.1): the name chooses, the key decides."""
    named = [anchor for anchor in anchors if anchor.subject == first.issuer.rfc4514_string()]
    if not named:
        raise NotGenuineError("the chain was issued by a root that is not trusted here")
    failure = None
    # Vendors have had two roots of one name at a time.
    for anchor in named:
        try:
            check_signed(first, signatures.public_key(anchor.spki), profile, "certificate 0")
            if not anchor.not_before <= now <= anchor.not_after:
                raise NotGenuineError(f"the root is not valid at {now:%Y-%m-%dT%H:%M:%SZ}")
        except NotGenuineError as error:
            failure = error
        else:
            return anchor
    assert failure is not None
    raise failure


def _check_time(certificate: x509.Certificate, at: int, now: datetime) -> None:
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        when = "not valid yet" if now < certificate.not_valid_before_utc else "expired"
        raise NotGenuineError(f"certificate {at} of the chain is {when} at {now:%Y-%m-%dT%H:%M:%SZ}")


def _check_role(certificate: x509.Certificate, at: int, profile: Profile, *, ca: bool, below: int) -> None:
    """`below` counts the intermediate certificates under this one."""
    constraints: x509.BasicConstraints | None = None
    usage: x509.KeyUsage | None = None
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.BasicConstraints):
            constraints = extension.value
        elif isinstance(extension.value, x509.KeyUsage):
            usage = extension.value
        elif extension.critical and extension.oid not in profile.understood:
            raise NotGenuineError(f"certificate {at} has a critical extension that is not understood")
    if ca:
        if constraints is None or not constraints.ca:
            raise NotGenuineError(f"certificate {at} may not issue certificates")
        if constraints.path_length is not None and constraints.path_length < below:
            raise NotGenuineError(f"certificate {at} may not have so long a chain below it")
        if not (usage.key_cert_sign if usage is not None else not profile.ca_usage):
            raise NotGenuineError(f"certificate {at} has no key usage for signing certificates")
    else:
        if constraints is not None and constraints.ca:
            raise NotGenuineError("the leaf is a certificate authority")
        if not (usage.digital_signature if usage is not None else not profile.leaf_usage):
            raise NotGenuineError("the leaf has no key usage for signing")


def p384(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """The certificate's P-384 key; raises NotGenuineError for any other."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise NotGenuineError("a key of the chain is not on P-384")
    return key
