"""Tokens and key sets of an issuer of our own, for every algorithm that services use."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384

from cloister.trust.jwt import KeySet
from cloister.wire.strict_json import encode_base64url

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ISSUER = "https://issuer.example"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
P384_KEY = ec.generate_private_key(ec.SECP384R1())
P256_KEY = ec.generate_private_key(ec.SECP256R1())
CLAIMS = {"iss": ISSUER, "iat": int(NOW.timestamp()), "exp": int(NOW.timestamp()) + 3600}
NONE = timedelta(0)
HOUR = timedelta(hours=1)


def encoded(value: object) -> str:
    """Base64url of bytes, or of a value as JSON."""
    return encode_base64url(value if isinstance(value, bytes) else json.dumps(value).encode())


def number(value: int, size: int | None = None) -> str:
    """An unsigned integer as a member of a key."""
    return encode_base64url(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


def ecdsa(key: ec.EllipticCurvePrivateKey, digest: SHA256 | SHA384, size: int) -> Callable[[bytes], bytes]:
    """Signs as JWS does: r ‖ s."""

    def sign(data: bytes) -> bytes:
        return b"".join(part.to_bytes(size, "big") for part in decode_dss_signature(key.sign(data, ec.ECDSA(digest))))

    return sign


SIGNERS: dict[str, Callable[[bytes], bytes]] = {
    "RS256": lambda data: RSA.sign(data, padding.PKCS1v15(), SHA256()),
    "PS384": lambda data: RSA.sign(data, padding.PSS(padding.MGF1(SHA384()), 48), SHA384()),
    "ES256": ecdsa(P256_KEY, SHA256(), 32),
    "ES384": ecdsa(P384_KEY, SHA384(), 48),
}


def sign(
    claims: object = CLAIMS, alg: str = "ES384", header: dict | None = None, kid: str = "k",
    key: ec.EllipticCurvePrivateKey | None = None,
) -> bytes:  # fmt: skip
    """A token; `key` signs ES384 in the place of the issuer's own."""
    signed = f"{encoded({'alg': alg, 'kid': kid, 'typ': 'JWT', **(header or {})})}.{encoded(claims)}"
    signer = SIGNERS[alg] if key is None else ecdsa(key, SHA384(), 48)
    return f"{signed}.{encoded(signer(signed.encode()))}".encode()


def rsa_entry(**more: object) -> dict:
    """Our RSA key as an entry of a key set."""
    numbers = RSA.public_key().public_numbers()
    return {"kty": "RSA", "kid": "k", "n": number(numbers.n), "e": number(numbers.e), **more}


def ec_entry(key: ec.EllipticCurvePrivateKey = P384_KEY, **more: object) -> dict:
    """An EC key as an entry of a key set."""
    numbers, size = key.public_key().public_numbers(), (key.key_size + 7) // 8
    crv = {48: "P-384", 32: "P-256"}[size]
    return {"kty": "EC", "crv": crv, "kid": "k", "x": number(numbers.x, size), "y": number(numbers.y, size), **more}


def key_set(*entries: dict, issuer: str = ISSUER) -> KeySet:
    """Entries as the key set of an issuer."""
    return KeySet.parse(json.dumps({"issuer": issuer, "keys": list(entries)}).encode())


ENTRIES = {"RS256": rsa_entry(), "PS384": rsa_entry(), "ES256": ec_entry(P256_KEY), "ES384": ec_entry()}
