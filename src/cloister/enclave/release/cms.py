"""CMS EnvelopedData as AWS KMS wraps a data key for an enclave (RFC 5652 section 6, RFC 4055 section 4.1).

The one shape that KMS sends: BER with indefinite lengths, version 2, one recipient named by a subject key identifier of
32 bytes (the SHA-256 of the attested SubjectPublicKeyInfo), RSAES-OAEP with SHA-256, AES-256-CBC. Anything else is
refused. The format authenticates nothing: the TLS that carries it ends in the enclave, and the weights that its key
opens are authenticated block by block.

`asn1crypto` reads the structure because `cryptography` reads DER only, and because our own BER reader would be new code
in the measured image; the arithmetic is `cryptography`'s.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

from asn1crypto import cms
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.errors import MalformedError

#: A wrapped 32-byte key takes 493 bytes under RSA-2048.
MAX_ENVELOPE = 4096
MAX_CONTENT = 1024
KEY_BYTES = 32
BLOCK = 16

_OAEP = padding.OAEP(mgf=padding.MGF1(algorithm=SHA256()), algorithm=SHA256(), label=None)
_OAEP_SHA256 = {
    "hash_algorithm": {"algorithm": "sha256", "parameters": None},
    "mask_gen_algorithm": {"algorithm": "mgf1", "parameters": {"algorithm": "sha256", "parameters": None}},
    "p_source_algorithm": {"algorithm": "p_specified", "parameters": b""},
}
#: Whatever goes wrong with the ciphertext, the answer is the same: no oracle for whoever sent it.
_CANNOT_OPEN = "CMS: the envelope does not open with this key"


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """The parts of the envelope that matter, lengths checked."""

    recipient: bytes
    encrypted_key: bytes = field(repr=False)
    iv: bytes
    ciphertext: bytes = field(repr=False)

    @classmethod
    def parse(cls, data: bytes) -> Envelope:
        """Read the one shape that KMS sends; raises MalformedError."""
        if len(data) > MAX_ENVELOPE:
            raise MalformedError(f"CMS: {len(data)} bytes, the limit is {MAX_ENVELOPE}")
        try:
            info = cms.ContentInfo.load(data, strict=True)
            if info["content_type"].native != "enveloped_data":
                raise MalformedError("CMS: not EnvelopedData")
            # Forces the lazy parser through everything, so that nothing fails later.
            enveloped = info["content"].native
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError):
            raise MalformedError("CMS: not a well-formed ContentInfo") from None
        if not isinstance(enveloped, dict) or enveloped["version"] != "v2":
            raise MalformedError("CMS: not EnvelopedData of version 2")
        if enveloped["originator_info"] is not None or enveloped["unprotected_attrs"] is not None:
            raise MalformedError("CMS: originator or attributes where KMS sends none")
        if len(enveloped["recipient_infos"]) != 1:
            raise MalformedError("CMS: not exactly one recipient")
        (recipient,) = enveloped["recipient_infos"]
        content = enveloped["encrypted_content_info"]
        return cls(
            **_recipient(recipient),
            iv=_iv(content["content_type"], content["content_encryption_algorithm"]),
            ciphertext=_octets(content["encrypted_content"], "encrypted content", range(BLOCK, MAX_CONTENT + 1, BLOCK)),
        )

    def open(self, key: rsa.RSAPrivateKey) -> bytes:
        """The content; raises MalformedError, always with the same words for a ciphertext that does not open."""
        if not hmac.compare_digest(self.recipient, recipient_id(key.public_key())):
            raise MalformedError("CMS: the envelope is for another key", hint="The answer fits another request.")
        try:
            content_key = key.decrypt(self.encrypted_key, _OAEP)
            if len(content_key) != KEY_BYTES:
                raise ValueError
            decryptor = Cipher(algorithms.AES256(content_key), modes.CBC(self.iv)).decryptor()
            unpadder = PKCS7(8 * BLOCK).unpadder()
            padded = decryptor.update(self.ciphertext) + decryptor.finalize()
            return unpadder.update(padded) + unpadder.finalize()
        except ValueError:
            raise MalformedError(_CANNOT_OPEN) from None


def recipient_id(key: rsa.RSAPublicKey) -> bytes:
    """How KMS names the recipient: the SHA-256 of the DER SubjectPublicKeyInfo (seen in real answers)."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def _recipient(recipient: object) -> dict[str, bytes]:
    # Other kinds of recipient (key agreement, password) have other members.
    members = ("version", "rid", "key_encryption_algorithm", "encrypted_key")
    if not isinstance(recipient, dict) or tuple(recipient) != members or recipient["version"] != "v2":
        raise MalformedError("CMS: the recipient is not a key transport of version 2")
    algorithm = recipient["key_encryption_algorithm"]
    if algorithm["algorithm"] != "rsaes_oaep" or algorithm["parameters"] != _OAEP_SHA256:
        raise MalformedError("CMS: the key is not wrapped with RSAES-OAEP and SHA-256")
    return {
        "recipient": _octets(recipient["rid"], "recipient identifier", range(32, 33)),
        "encrypted_key": _octets(recipient["encrypted_key"], "encrypted key", range(256, 513)),
    }


def _iv(content_type: object, algorithm: object) -> bytes:
    if content_type != "data" or not isinstance(algorithm, dict) or algorithm["algorithm"] != "aes256_cbc":
        raise MalformedError("CMS: the content is not data under AES-256-CBC")
    return _octets(algorithm["parameters"], "initialization vector", range(BLOCK, BLOCK + 1))


def _octets(value: object, what: str, sizes: range) -> bytes:
    if not isinstance(value, bytes) or len(value) not in sizes:
        raise MalformedError(f"CMS: {what} of the wrong type or size")
    return value
