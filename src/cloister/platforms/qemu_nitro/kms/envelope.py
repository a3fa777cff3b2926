"""Writes CiphertextForRecipient byte for byte in the shape of real answers (SIMULATED KMS): BER, indefinite lengths.

Written by hand so that the enclave's reader is tested against an encoder that shares nothing with it. Source: RFC 5652
section 6, RFC 4055 section 4.1, and the outline of CiphertextForRecipient values published in enclave SDKs' tests.
"""

from __future__ import annotations

import hashlib
import os

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

SEQUENCE, SET, OCTETS, INTEGER, OID, NULL = 0x30, 0x31, 0x04, 0x02, 0x06, b"\x05\x00"
CONTEXT_0, CONTEXT_0_CONSTRUCTED, CONTEXT_1_CONSTRUCTED = 0x80, 0xA0, 0xA1

ENVELOPED_DATA = bytes.fromhex("06092a864886f70d010703")
DATA = bytes.fromhex("06092a864886f70d010701")
RSAES_OAEP = bytes.fromhex("06092a864886f70d010107")
MGF1 = bytes.fromhex("06092a864886f70d010108")
SHA_256 = bytes.fromhex("0609608648016503040201")
AES_256_CBC = bytes.fromhex("060960864801650304012a")


def definite(tag: int, *content: bytes) -> bytes:
    """Tag, shortest length, content."""
    body = b"".join(content)
    if len(body) < 0x80:
        return bytes((tag, len(body))) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + body


def indefinite(tag: int, *content: bytes) -> bytes:
    """Tag, open length, content, end of contents (X.690 section 8.1.3.6)."""
    return bytes((tag, 0x80)) + b"".join(content) + b"\x00\x00"


def seal(content: bytes, key: rsa.RSAPublicKey) -> bytes:
    """EnvelopedData over `content` for the holder of `key`."""
    content_key, iv = os.urandom(32), os.urandom(16)
    padder = PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES256(content_key), modes.CBC(iv)).encryptor()
    ciphertext = encryptor.update(padder.update(content) + padder.finalize()) + encryptor.finalize()
    oaep = padding.OAEP(mgf=padding.MGF1(algorithm=SHA256()), algorithm=SHA256(), label=None)
    name = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    sha256 = definite(SEQUENCE, SHA_256, NULL)
    recipient = definite(
        SEQUENCE,
        definite(INTEGER, b"\x02"),
        definite(CONTEXT_0, name),
        definite(
            SEQUENCE,
            RSAES_OAEP,
            definite(
                SEQUENCE,
                definite(CONTEXT_0_CONSTRUCTED, sha256),
                definite(CONTEXT_1_CONSTRUCTED, definite(SEQUENCE, MGF1, sha256)),
            ),
        ),
        definite(OCTETS, key.encrypt(content_key, oaep)),
    )
    encrypted = indefinite(
        SEQUENCE,
        DATA,
        definite(SEQUENCE, AES_256_CBC, definite(OCTETS, iv)),
        indefinite(CONTEXT_0_CONSTRUCTED, definite(OCTETS, ciphertext)),
    )
    enveloped = indefinite(SEQUENCE, definite(INTEGER, b"\x02"), definite(SET, recipient), encrypted)
    return indefinite(SEQUENCE, ENVELOPED_DATA, indefinite(CONTEXT_0_CONSTRUCTED, enveloped))
