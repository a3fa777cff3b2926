"""Hybrid public key encryption, base mode (RFC 9180), with contexts and export.

`cryptography`'s own HPKE is single-shot; Oblivious HTTP needs a context that seals many chunks and exports a secret, so
the key schedule is here, over that library's primitives. KEMs: MLKEM768-X25519 (0x647a of draft-ietf-hpke-pq, which is
X-Wing) and DHKEM(X25519, HKDF-SHA256). KDF: HKDF-SHA256. AEADs: AES-GCM and ChaCha20-Poly1305.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from cloister.errors import ChannelError, MalformedError

KEM_X25519 = 0x0020
KEM_MLKEM768_X25519 = 0x647A
KDF_HKDF_SHA256 = 0x0001
AEAD_AES_128_GCM = 0x0001
AEAD_AES_256_GCM = 0x0002
AEAD_CHACHA20_POLY1305 = 0x0003

NONCE_SIZE = 12
TAG_SIZE = 16
_HASH_SIZE = 32
_XWING_LABEL = b"\\.//^\\"
_MLKEM_PUBLIC, _MLKEM_CIPHERTEXT = 1184, 1088


class OpenError(ChannelError):
    """A ciphertext does not authenticate under this context."""


class PrivateKey(Protocol):
    """The recipient's key: knows its KEM, gives its public bytes, opens encapsulations."""

    def public_bytes(self) -> bytes:
        """The public key as it goes into a key configuration."""
        ...

    def decap(self, enc: bytes) -> bytes:
        """The 32-byte shared secret of an encapsulation; raises MalformedError or OpenError."""
        ...


class Kem(Protocol):
    """A key encapsulation mechanism: sizes in bytes, key making, encapsulation."""

    id: int
    public_size: int
    enc_size: int

    def generate(self) -> PrivateKey:
        """A new random key pair."""
        ...

    def load_private(self, data: bytes) -> PrivateKey:
        """The key pair of a serialised private key (32 bytes)."""
        ...

    def encap(self, public: bytes) -> tuple[bytes, bytes]:
        """A fresh shared secret (32 bytes) and its encapsulation for that public key; raises MalformedError."""
        ...


# --- KDF (RFC 9180 section 4) -----------------------------------------------------------------------------------------


def hkdf_extract(salt: bytes, ikm: bytes) -> bytes:
    """HKDF-Extract with SHA-256 (RFC 5869); 32 bytes."""
    return hmac.digest(salt or bytes(_HASH_SIZE), ikm, "sha256")


def hkdf_expand(prk: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand with SHA-256 (RFC 5869)."""
    return HKDFExpand(hashes.SHA256(), length, info).derive(prk)


def _labeled_extract(suite: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
    return hkdf_extract(salt, b"HPKE-v1" + suite + label + ikm)


def _labeled_expand(suite: bytes, prk: bytes, label: bytes, info: bytes, length: int) -> bytes:
    return hkdf_expand(prk, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info, length)


# --- KEMs -------------------------------------------------------------------------------------------------------------


def _x25519(private: X25519PrivateKey, public: bytes) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        # Wrong length, or the all-zero result of a low-order point (RFC 7748 section 6.1).
        raise MalformedError("HPKE: not an X25519 public key") from None


class _X25519Key:
    def __init__(self, private: X25519PrivateKey) -> None:
        self._private = private
        self._public = private.public_key().public_bytes_raw()

    def public_bytes(self) -> bytes:
        return self._public

    def decap(self, enc: bytes) -> bytes:
        return _dhkem_secret(_x25519(self._private, enc), enc, self._public)


def _dhkem_secret(shared: bytes, enc: bytes, public: bytes) -> bytes:
    """ExtractAndExpand of RFC 9180 section 4.1."""
    suite = b"KEM" + KEM_X25519.to_bytes(2, "big")
    prk = _labeled_extract(suite, b"", b"eae_prk", shared)
    return _labeled_expand(suite, prk, b"shared_secret", enc + public, 32)


class _DhkemX25519:
    id, public_size, enc_size = KEM_X25519, 32, 32

    def generate(self) -> PrivateKey:
        return _X25519Key(X25519PrivateKey.generate())

    def load_private(self, data: bytes) -> PrivateKey:
        return _X25519Key(X25519PrivateKey.from_private_bytes(data))

    def encap(self, public: bytes) -> tuple[bytes, bytes]:
        return self._encap(public, X25519PrivateKey.generate())

    def _encap(self, public: bytes, ephemeral: X25519PrivateKey) -> tuple[bytes, bytes]:
        """Encapsulate with a given ephemeral key: for published vectors only."""
        enc = ephemeral.public_key().public_bytes_raw()
        return _dhkem_secret(_x25519(ephemeral, public), enc, public), enc


class _XWingKey:
    def __init__(self, seed: bytes) -> None:
        if len(seed) != 32:
            raise ValueError("an X-Wing private key is 32 bytes")
        # draft-ietf-hpke-pq: the seed expands to d || z of ML-KEM and the X25519 scalar.
        expanded = hashlib.shake_256(seed).digest(96)
        self._mlkem = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
        self._x25519 = X25519PrivateKey.from_private_bytes(expanded[64:])
        self._x25519_public = self._x25519.public_key().public_bytes_raw()
        self._public = self._mlkem.public_key().public_bytes_raw() + self._x25519_public

    def public_bytes(self) -> bytes:
        return self._public

    def decap(self, enc: bytes) -> bytes:
        if len(enc) != _XWing.enc_size:
            raise MalformedError("HPKE: wrong length of an MLKEM768-X25519 encapsulation")
        ciphertext, ephemeral = enc[:_MLKEM_CIPHERTEXT], enc[_MLKEM_CIPHERTEXT:]
        return _xwing_secret(
            self._mlkem.decapsulate(ciphertext), _x25519(self._x25519, ephemeral), ephemeral, self._x25519_public
        )


def _xwing_secret(mlkem: bytes, x25519: bytes, ephemeral: bytes, public: bytes) -> bytes:
    return hashlib.sha3_256(mlkem + x25519 + ephemeral + public + _XWING_LABEL).digest()


class _XWing:
    id, public_size, enc_size = KEM_MLKEM768_X25519, _MLKEM_PUBLIC + 32, _MLKEM_CIPHERTEXT + 32

    def generate(self) -> PrivateKey:
        return _XWingKey(X25519PrivateKey.generate().private_bytes_raw())

    def load_private(self, data: bytes) -> PrivateKey:
        return _XWingKey(data)

    def encap(self, public: bytes) -> tuple[bytes, bytes]:
        if len(public) != self.public_size:
            raise MalformedError("HPKE: wrong length of an MLKEM768-X25519 public key")
        try:
            mlkem, ciphertext = MLKEM768PublicKey.from_public_bytes(public[:_MLKEM_PUBLIC]).encapsulate()
        except ValueError:
            raise MalformedError("HPKE: not an ML-KEM-768 public key") from None
        ephemeral = X25519PrivateKey.generate()
        shared = _x25519(ephemeral, public[_MLKEM_PUBLIC:])
        ephemeral_public = ephemeral.public_key().public_bytes_raw()
        return _xwing_secret(mlkem, shared, ephemeral_public, public[_MLKEM_PUBLIC:]), ciphertext + ephemeral_public


KEMS: dict[int, Kem] = {KEM_X25519: _DhkemX25519(), KEM_MLKEM768_X25519: _XWing()}


def kem(kem_id: int) -> Kem:
    """The KEM of that identifier; raises MalformedError."""
    try:
        return KEMS[kem_id]
    except KeyError:
        raise MalformedError("HPKE: unknown KEM") from None


# --- Contexts (RFC 9180 section 5) ------------------------------------------------------------------------------------

_AEADS: dict[int, tuple[type[AESGCM] | type[ChaCha20Poly1305], int]] = {
    AEAD_AES_128_GCM: (AESGCM, 16),
    AEAD_AES_256_GCM: (AESGCM, 32),
    AEAD_CHACHA20_POLY1305: (ChaCha20Poly1305, 32),
}


def aead_key_size(aead_id: int) -> int:
    """Nk in bytes; raises MalformedError for an unknown AEAD."""
    if aead_id not in _AEADS:
        raise MalformedError("HPKE: unknown AEAD")
    return _AEADS[aead_id][1]


class AeadSequence:
    """An AEAD whose nonce is a base XOR a counter that grows by one with each message (RFC 9180 section 5.2)."""

    __slots__ = ("_aead", "_base", "_sequence")

    def __init__(self, aead_id: int, key: bytes, base_nonce: bytes) -> None:
        self._aead = _AEADS[aead_id][0](key)
        self._base = int.from_bytes(base_nonce, "big")
        self._sequence = 0

    def _nonce(self) -> bytes:
        if self._sequence >= 1 << 64:
            raise ChannelError("too many messages under one key")
        return (self._base ^ self._sequence).to_bytes(NONCE_SIZE, "big")

    def seal(self, plaintext: bytes, aad: bytes = b"") -> bytes:
        """Ciphertext and 16-byte tag of the next message."""
        sealed = self._aead.encrypt(self._nonce(), plaintext, aad)
        self._sequence += 1
        return sealed

    def open(self, ciphertext: bytes, aad: bytes = b"") -> bytes:
        """Plaintext of the next message; raises OpenError and does not move on."""
        try:
            plaintext = self._aead.decrypt(self._nonce(), ciphertext, aad)
        except InvalidTag:
            raise OpenError("a chunk does not authenticate") from None
        self._sequence += 1
        return plaintext


@dataclass(frozen=True, kw_only=True)
class Suite:
    """KEM, KDF and AEAD identifiers; constructing an unknown combination raises MalformedError."""

    kem_id: int
    kdf_id: int
    aead_id: int

    def __post_init__(self) -> None:
        kem(self.kem_id)
        if self.kdf_id != KDF_HKDF_SHA256:
            raise MalformedError("HPKE: unknown KDF")
        aead_key_size(self.aead_id)

    @property
    def suite_id(self) -> bytes:
        """The label prefix of RFC 9180 section 5.1."""
        return b"HPKE" + b"".join(value.to_bytes(2, "big") for value in (self.kem_id, self.kdf_id, self.aead_id))


class Context(AeadSequence):
    """A sender's or recipient's context: `seal` or `open` in sequence, and `export`."""

    __slots__ = ("_exporter", "_suite_id")

    def __init__(self, suite: Suite, shared_secret: bytes, info: bytes) -> None:
        suite_id = suite.suite_id
        psk_id_hash = _labeled_extract(suite_id, b"", b"psk_id_hash", b"")
        info_hash = _labeled_extract(suite_id, b"", b"info_hash", info)
        schedule = b"\x00" + psk_id_hash + info_hash
        secret = _labeled_extract(suite_id, shared_secret, b"secret", b"")
        key = _labeled_expand(suite_id, secret, b"key", schedule, aead_key_size(suite.aead_id))
        base = _labeled_expand(suite_id, secret, b"base_nonce", schedule, NONCE_SIZE)
        super().__init__(suite.aead_id, key, base)
        self._suite_id = suite_id
        self._exporter = _labeled_expand(suite_id, secret, b"exp", schedule, _HASH_SIZE)

    def export(self, label: bytes, length: int) -> bytes:
        """A secret of `length` bytes that only both ends of this context know (RFC 9180 section 5.3)."""
        return _labeled_expand(self._suite_id, self._exporter, b"sec", label, length)


def setup_sender(suite: Suite, public: bytes, info: bytes) -> tuple[bytes, Context]:
    """SetupBaseS: the encapsulation to send, and the sender's context."""
    secret, enc = kem(suite.kem_id).encap(public)
    return enc, Context(suite, secret, info)


def setup_recipient(suite: Suite, private: PrivateKey, enc: bytes, info: bytes) -> Context:
    """SetupBaseR: the recipient's context; raises MalformedError for an impossible encapsulation."""
    return Context(suite, private.decap(enc), info)
