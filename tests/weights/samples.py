"""A sealed model in memory, and an independent few-line reading of Tink's streaming format."""

from __future__ import annotations

import hashlib
import io
import secrets
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from cloister.errors import ReleaseDeniedError
from cloister.weights import manifest
from cloister.weights.keys import WrappedKey
from cloister.weights.seal import seal
from cloister.weights.stream import HEADER, Opener

OWNER = Ed25519PrivateKey.generate()
MIB = 1 << 20
#: Plaintext of the first segment, and of every other full one.
FIRST, FULL = MIB - 40 - 16, MIB - 16


@dataclass
class Service:
    """Wraps data keys by keeping them; `calls` counts releases."""

    keys: dict[str, bytes] = field(default_factory=dict)
    calls: int = 0

    def generate(self, context: Mapping[str, str]) -> tuple[bytes, WrappedKey]:
        key, name = secrets.token_bytes(32), secrets.token_hex(8)
        self.keys[name] = key
        return key, WrappedKey(service="test", key_id=name, ciphertext=b"wrapped", context=dict(context))

    def release(self, wrapped: WrappedKey) -> bytes:
        self.calls += 1
        if wrapped.key_id not in self.keys:
            raise ReleaseDeniedError("no such key")
        return self.keys[wrapped.key_id]


@dataclass(frozen=True)
class Sample:
    """One sealed file and all that belongs to it."""

    plain: bytes
    sealed: bytes
    key: bytes
    head: manifest.Head

    @property
    def stream(self) -> bytes:
        return self.sealed[self.head.stream_at :]


def make(
    folder: Path, plain: bytes, *, model: str = "notes", version: int = 7, service: Service | None = None
) -> Sample:
    service = service or Service()
    source, target = folder / "plain.gguf", folder / f"{model}.sealed"
    source.write_bytes(plain)
    made = seal(source, target, model=model, version=version, owner=OWNER, wrapper=service)
    sealed = target.read_bytes()
    return Sample(plain, sealed, service.keys[made.key.key_id], manifest.read(sealed, OWNER.public_key()))


def open_all(stream: bytes, key: bytes, associated: bytes, size: int) -> bytes:
    """Open with the code under test."""
    opener = Opener(key, stream[:HEADER], associated, size)
    plain = bytearray(size)
    for index in range(opener.layout.segments):
        sealed, place = slice(*opener.layout.sealed(index)), slice(*opener.layout.plain(index))
        opener.open_into(index, memoryview(stream)[sealed], memoryview(plain)[place])
    return bytes(plain)


def tink_decrypt(stream: bytes, key: bytes, associated: bytes, segment: int = MIB) -> bytes:
    """Written from developers.google.com/tink/streaming-aead/aes_gcm_hkdf_streaming and RFC 5869, not from our code."""
    file = io.BytesIO(stream)
    assert file.read(1) == bytes([40])
    salt, prefix = file.read(32), file.read(7)
    extract = HMAC(salt, SHA256())
    extract.update(key)
    expand = HMAC(extract.finalize(), SHA256())
    expand.update(associated + b"\x01")
    cipher, plain = AESGCM(expand.finalize()), b""
    piece, counter = file.read(segment - 40), 0
    while True:
        following = file.read(segment)
        plain += cipher.decrypt(prefix + struct.pack(">IB", counter, not following), piece, None)
        if not following:
            return plain
        piece, counter = following, counter + 1


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
