"""JSON Web Encryption in the one shape that our key broker sends: flattened, ECDH-ES+A256KW on P-256, A256GCM.

Sources: RFC 7516 section 7.2.2 (flattened JSON serialization), RFC 7518 sections 4.6 (ECDH-ES), 4.4 (AES key wrap), 5.3
(AES GCM) and 6.2 (EC keys). A JOSE library would bring every other algorithm, the broken RSA1_5 among them, into the
measured image; with the primitives of `cryptography` this one takes a page.
"""

from __future__ import annotations

import json
import os
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from cloister.errors import MalformedError
from cloister.wire import strict_json
from cloister.wire.strict_json import encode_base64url

ALGORITHM, ENCRYPTION, CURVE = "ECDH-ES+A256KW", "A256GCM", "P-256"
KEY_BYTES, COORDINATE, IV, TAG = 32, 32, 12, 16
MAX_PLAINTEXT = 1024
MAX_JWE = 8 * 1024
MAX_HEADER = 1024
#: RFC 3394: eight bytes more than what is wrapped.
WRAPPED = KEY_BYTES + 8
#: RFC 7518 section 4.6.2: AlgorithmID, PartyUInfo, PartyVInfo (both empty), SuppPubInfo (the key's length in bits).
_OTHER_INFO = struct.pack(">I", len(ALGORITHM)) + ALGORITHM.encode("ascii") + struct.pack(">III", 0, 0, 8 * KEY_BYTES)
#: Whatever goes wrong with the ciphertext, the answer is the same: no oracle for whoever sent it.
_CANNOT_OPEN = "JWE: it does not open with this key"


def public_jwk(key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    """The public key as a JWK that says what it is for (RFC 7517 section 4.4)."""
    return {**_point(key), "alg": ALGORITHM}


def read_jwk(fields: strict_json.Fields) -> ec.EllipticCurvePublicKey:
    """The key in a JWK of exactly the members that `public_jwk` writes; raises MalformedError."""
    if fields.text("alg", limit=32) != ALGORITHM:
        raise MalformedError(f"JWK: alg is not {ALGORITHM}")
    return _read_point(fields)


def seal(plaintext: bytes, recipient: ec.EllipticCurvePublicKey) -> dict[str, str]:
    """The members of a JWE for `recipient`; `plaintext` has at most 1024 bytes."""
    if len(plaintext) > MAX_PLAINTEXT:
        raise ValueError("the plaintext is too long for this envelope")
    ephemeral = ec.generate_private_key(ec.SECP256R1())
    header = {"alg": ALGORITHM, "enc": ENCRYPTION, "epk": _point(ephemeral.public_key())}
    protected = encode_base64url(json.dumps(header, separators=(",", ":")).encode("ascii"))
    key, iv = os.urandom(KEY_BYTES), os.urandom(IV)
    sealed = AESGCM(key).encrypt(iv, plaintext, protected.encode("ascii"))
    return {
        "protected": protected,
        "encrypted_key": encode_base64url(aes_key_wrap(_agree(ephemeral, recipient), key)),
        "iv": encode_base64url(iv),
        "ciphertext": encode_base64url(sealed[:-TAG]),
        "tag": encode_base64url(sealed[-TAG:]),
    }


def open_sealed(data: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The plaintext of a JWE (its JSON); raises MalformedError, always with the same words if it does not open."""
    fields = strict_json.Fields(strict_json.loads(data, "JWE", limit=MAX_JWE), "JWE")
    protected = fields.text("protected", limit=2 * MAX_HEADER)
    wrapped, iv = fields.octets("encrypted_key", size=WRAPPED), fields.octets("iv", size=IV)
    ciphertext, tag = fields.octets("ciphertext", limit=MAX_PLAINTEXT), fields.octets("tag", size=TAG)
    fields.done()
    header = _header(protected)
    try:
        content_key = aes_key_unwrap(_agree(key, header), wrapped)
        return AESGCM(content_key).decrypt(iv, ciphertext + tag, protected.encode("ascii"))
    except (InvalidUnwrap, InvalidTag, ValueError):
        raise MalformedError(_CANNOT_OPEN) from None


def _header(protected: str) -> ec.EllipticCurvePublicKey:
    """The sender's ephemeral key, from a protected header that names our algorithms and nothing else."""
    data = strict_json.decode_base64url(protected, "JWE: protected", limit=MAX_HEADER)
    fields = strict_json.Fields(strict_json.loads(data, "JWE header", limit=MAX_HEADER), "JWE header")
    if fields.text("alg", limit=32) != ALGORITHM or fields.text("enc", limit=32) != ENCRYPTION:
        raise MalformedError(f"JWE: not {ALGORITHM} with {ENCRYPTION}")
    ephemeral = _read_point(fields.member("epk"))
    fields.done()
    return ephemeral


def _agree(key: ec.EllipticCurvePrivateKey, other: ec.EllipticCurvePublicKey) -> bytes:
    shared = key.exchange(ec.ECDH(), other)
    return ConcatKDFHash(algorithm=SHA256(), length=KEY_BYTES, otherinfo=_OTHER_INFO).derive(shared)


def _point(key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    numbers = key.public_numbers()
    coordinates = (value.to_bytes(COORDINATE, "big") for value in (numbers.x, numbers.y))
    return {"kty": "EC", "crv": CURVE, **dict(zip("xy", map(encode_base64url, coordinates), strict=True))}


def _read_point(fields: strict_json.Fields) -> ec.EllipticCurvePublicKey:
    if fields.text("kty", limit=8) != "EC" or fields.text("crv", limit=8) != CURVE:
        raise MalformedError(f"JWK: not a key on {CURVE}")
    x, y = (int.from_bytes(fields.octets(name, size=COORDINATE), "big") for name in "xy")
    fields.done()
    try:
        return ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    except ValueError:
        raise MalformedError(f"JWK: not a point of {CURVE}") from None
