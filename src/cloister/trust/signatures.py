"""The signature algorithms of vendors' certificates, by name; a chain states which of them it allows."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.x509.oid import SignatureAlgorithmOID

from cloister.errors import NotGenuineError

MIN_RSA_BITS = 2048
MAX_RSA_BITS = 8192


class Algorithm(StrEnum):
    """Key kind, padding and hash in one name."""

    ECDSA_P256_SHA256 = "ECDSA P-256 with SHA-256"
    ECDSA_P384_SHA384 = "ECDSA P-384 with SHA-384"
    RSA_PSS_SHA256 = "RSASSA-PSS with SHA-256"
    RSA_PSS_SHA384 = "RSASSA-PSS with SHA-384"
    RSA_PKCS1_SHA256 = "RSASSA-PKCS1-v1_5 with SHA-256"
    RSA_PKCS1_SHA384 = "RSASSA-PKCS1-v1_5 with SHA-384"
    RSA_PKCS1_SHA512 = "RSASSA-PKCS1-v1_5 with SHA-512"


_CURVES: Mapping[Algorithm, tuple[type[ec.EllipticCurve], HashAlgorithm]] = {
    Algorithm.ECDSA_P256_SHA256: (ec.SECP256R1, SHA256()),
    Algorithm.ECDSA_P384_SHA384: (ec.SECP384R1, SHA384()),
}
_PKCS1: Mapping[Algorithm, HashAlgorithm] = {
    Algorithm.RSA_PKCS1_SHA256: SHA256(),
    Algorithm.RSA_PKCS1_SHA384: SHA384(),
    Algorithm.RSA_PKCS1_SHA512: SHA512(),
}
#: MGF1 with the same hash, a salt as long as the digest.
_PSS: Mapping[Algorithm, HashAlgorithm] = {Algorithm.RSA_PSS_SHA256: SHA256(), Algorithm.RSA_PSS_SHA384: SHA384()}
_NAMES: Mapping[x509.ObjectIdentifier, Algorithm] = {
    SignatureAlgorithmOID.ECDSA_WITH_SHA256: Algorithm.ECDSA_P256_SHA256,
    SignatureAlgorithmOID.ECDSA_WITH_SHA384: Algorithm.ECDSA_P384_SHA384,
    SignatureAlgorithmOID.RSA_WITH_SHA256: Algorithm.RSA_PKCS1_SHA256,
    SignatureAlgorithmOID.RSA_WITH_SHA384: Algorithm.RSA_PKCS1_SHA384,
    SignatureAlgorithmOID.RSA_WITH_SHA512: Algorithm.RSA_PKCS1_SHA512,
}


def of(signed: x509.Certificate | x509.CertificateRevocationList) -> Algorithm | None:
    """The algorithm that a certificate or CRL says it was signed with; None for one that is not in the list."""
    if signed.signature_algorithm_oid == SignatureAlgorithmOID.RSASSA_PSS:
        try:
            parameters = signed.signature_algorithm_parameters
            seen = signed.signature_hash_algorithm
        except (ValueError, UnsupportedAlgorithm):
            return None
        for algorithm, digest in _PSS.items():
            if (
                isinstance(parameters, padding.PSS)
                and isinstance(seen, type(digest))
                and isinstance(parameters.mgf._algorithm, type(digest))
                and parameters._salt_length == digest.digest_size
            ):
                return algorithm
        return None
    return of_oid(signed.signature_algorithm_oid)


def of_oid(oid: x509.ObjectIdentifier) -> Algorithm | None:
    """The algorithm of an identifier that needs no parameters; None for one that is not in the list."""
    return _NAMES.get(oid)


def check(key: CertificatePublicKeyTypes, algorithm: Algorithm, signature: bytes, data: bytes, what: str) -> None:
    """Raises NotGenuineError unless `key` is of the algorithm's kind and made `signature` (ECDSA: DER) over `data`."""
    try:
        if isinstance(key, ec.EllipticCurvePublicKey) and algorithm in _CURVES:
            curve, digest = _CURVES[algorithm]
            if isinstance(key.curve, curve):
                key.verify(signature, data, ec.ECDSA(digest))
                return
        elif isinstance(key, rsa.RSAPublicKey) and MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            if algorithm in _PSS:
                digest = _PSS[algorithm]
                key.verify(signature, data, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
                return
            if algorithm in _PKCS1:
                key.verify(signature, data, padding.PKCS1v15(), _PKCS1[algorithm])
                return
    except InvalidSignature:
        raise NotGenuineError(f"{what}: the signature does not verify") from None
    raise NotGenuineError(f"{what}: the key does not fit {algorithm}")


def from_raw(signature: bytes) -> bytes:
    """An ECDSA signature r ‖ s, halves of one size (JWS, COSE, SPDM, XML), as the DER that `check` takes."""
    half = len(signature) // 2
    r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
    return encode_dss_signature(r, s)


def public_key(spki: bytes) -> CertificatePublicKeyTypes:
    """An anchor's key from its DER SubjectPublicKeyInfo."""
    key = load_der_public_key(spki)
    assert isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey)
    return key
