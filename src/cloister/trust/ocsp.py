"""OCSP responses (RFC 6960) as collateral: signed words about one certificate, checked at a time that the caller gives.

How old a response may be is the caller's policy, so that an answer carries its times.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import Hash
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from cloister.errors import MalformedError, NotGenuineError
from cloister.trust import signatures
from cloister.trust.certificates import UNREADABLE, load_certificate
from cloister.trust.chain import Profile, check_signed

MAX_RESPONSE = 16 * 1024


class Status(StrEnum):
    """What a responder says. A hold is a revocation that may end (RFC 5280 section 5.3.1)."""

    GOOD = "good"
    HOLD = "certificate hold"
    REVOKED = "revoked"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A genuine response: what it says and from when to when (aware)."""

    status: Status
    this_update: datetime
    next_update: datetime | None


def parse(der: bytes) -> ocsp.OCSPResponse:
    """A successful response about exactly one certificate; raises MalformedError."""
    if len(der) > MAX_RESPONSE:
        raise MalformedError(f"OCSP: {len(der)} bytes, the limit is {MAX_RESPONSE}")
    try:
        response = ocsp.load_der_ocsp_response(der)
        fits = (
            response.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL
            and response.public_bytes(Encoding.DER) == der
            and len(list(response.responses)) == 1
            and len(response.certificates) <= 4
            and not any(extension.critical for extension in (*response.extensions, *response.single_extensions))
        )
        # Parse what is lazy now, so that nothing later can fail in another way.
        _ = (response.certificate_status, response.this_update_utc, response.next_update_utc, response.hash_algorithm)
        _ = (response.revocation_reason, response.responder_name, response.serial_number, response.tbs_response_bytes)
    except UNREADABLE:
        raise MalformedError("OCSP: not a response") from None
    if not fits:
        raise MalformedError("OCSP: not one successful response about one certificate")
    return response


def about(response: ocsp.OCSPResponse, certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Does the response speak of that certificate of that issuer (RFC 6960 section 4.1.1, CertID)?"""
    if response.serial_number != certificate.serial_number:
        return False
    digests = []
    for data in (issuer.subject.public_bytes(), _key_bits(issuer)):
        digest = Hash(response.hash_algorithm)
        digest.update(data)
        digests.append(digest.finalize())
    return digests == [response.issuer_name_hash, response.issuer_key_hash]


def check(
    response: ocsp.OCSPResponse, issuer: x509.Certificate, profile: Profile, *, now: datetime, skew: timedelta
) -> Answer:
    """What a response says that the issuer, or a responder it delegated, signed (RFC 6960 section 4.2.2.2).

    Raises NotGenuineError for any other signer, one whose certificate is not valid at `now`, and a response that is
    more than `skew` from the future; MalformedError.
    """
    signer = _signer(response, issuer, profile, now)
    algorithm = signatures.of_oid(response.signature_algorithm_oid)
    if algorithm is None or algorithm not in profile.algorithms:
        raise NotGenuineError("the OCSP response is signed with an algorithm that is not allowed")
    key = signer.public_key()
    signatures.check(key, algorithm, response.signature, response.tbs_response_bytes, "the OCSP response")
    if response.this_update_utc - now > skew:
        raise NotGenuineError("the OCSP response is from the future", hint="Check this machine's clock.")
    return Answer(status=_status(response), this_update=response.this_update_utc, next_update=response.next_update_utc)


def _status(response: ocsp.OCSPResponse) -> Status:
    if response.certificate_status is ocsp.OCSPCertStatus.GOOD:
        return Status.GOOD
    if response.certificate_status is ocsp.OCSPCertStatus.REVOKED:
        return Status.HOLD if response.revocation_reason is x509.ReasonFlags.certificate_hold else Status.REVOKED
    return Status.UNKNOWN


def _signer(response: ocsp.OCSPResponse, issuer: x509.Certificate, profile: Profile, now: datetime) -> x509.Certificate:
    if _is_responder(response, issuer):
        return issuer
    for embedded in response.certificates:
        # Parsed again so that what is lazy in it fails here.
        certificate = load_certificate(embedded.public_bytes(Encoding.DER), "OCSP responder")
        if _is_responder(response, certificate):
            _check_delegated(certificate, issuer, profile, now)
            return certificate
    raise NotGenuineError("the OCSP response names a responder that is not the issuer's")


def _is_responder(response: ocsp.OCSPResponse, certificate: x509.Certificate) -> bool:
    if response.responder_key_hash is not None:
        # RFC 6960 names a key by its SHA-1; the signature decides.
        return hashlib.sha1(_key_bits(certificate), usedforsecurity=False).digest() == response.responder_key_hash
    return response.responder_name == certificate.subject


def _check_delegated(certificate: x509.Certificate, issuer: x509.Certificate, profile: Profile, now: datetime) -> None:
    if certificate.issuer != issuer.subject:
        raise NotGenuineError("the OCSP responder was delegated by another issuer")
    check_signed(certificate, issuer.public_key(), profile, "the OCSP responder's certificate")
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise NotGenuineError(f"the OCSP responder's certificate is not valid at {now:%Y-%m-%dT%H:%M:%SZ}")
    purposes: list[x509.ObjectIdentifier] = []
    signs = False
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.ExtendedKeyUsage):
            purposes = list(value)
        elif isinstance(value, x509.KeyUsage):
            signs = value.digital_signature
        elif isinstance(value, x509.BasicConstraints):
            if value.ca:
                raise NotGenuineError("the OCSP responder is a certificate authority")
        elif extension.critical and extension.oid != ExtensionOID.OCSP_NO_CHECK:
            raise NotGenuineError("the OCSP responder has a critical extension that is not understood")
    if not signs or ExtendedKeyUsageOID.OCSP_SIGNING not in purposes:
        raise NotGenuineError("the OCSP responder was not delegated to sign responses")


def _key_bits(certificate: x509.Certificate) -> bytes:
    """The key as CertID and KeyHash hash it: the BIT STRING's value, without its header and unused bits."""
    key = certificate.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return key.public_bytes(Encoding.DER, PublicFormat.PKCS1)
