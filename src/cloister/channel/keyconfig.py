"""Key configurations (RFC 9458 section 3) and their list, `application/ohttp-keys`."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.channel import hpke
from cloister.errors import MalformedError
from cloister.wire.reader import Reader

MEDIA_TYPE = "application/ohttp-keys"
MAX_CONFIGS = 16


@dataclass(frozen=True, kw_only=True)
class KeyConfig:
    """A public key and the (KDF, AEAD) pairs that may be used with it, best first."""

    key_id: int
    kem_id: int
    public_key: bytes
    suites: tuple[tuple[int, int], ...]

    def encode(self) -> bytes:
        """key_id(1) kem_id(2) public_key length(2) {kdf(2) aead(2)}*."""
        pairs = b"".join(kdf.to_bytes(2, "big") + aead.to_bytes(2, "big") for kdf, aead in self.suites)
        return (
            self.key_id.to_bytes(1, "big")
            + self.kem_id.to_bytes(2, "big")
            + self.public_key
            + len(pairs).to_bytes(2, "big")
            + pairs
        )

    @classmethod
    def decode(cls, data: bytes) -> KeyConfig:
        """Parse one configuration; raises MalformedError, also for a KEM this side does not have."""
        reader = Reader(data, "key configuration")
        key_id = reader.uint(1, "key_id")
        kem = hpke.kem(reader.uint(2, "kem_id"))
        public_key = reader.take(kem.public_size, "public key")
        size = reader.uint(2, "algorithms length")
        if not size or size % 4:
            raise MalformedError("key configuration: algorithms are pairs of 2 + 2 bytes")
        pairs = Reader(reader.take(size, "algorithms"), "key configuration")
        suites = []
        while pairs.remaining:
            suites.append((pairs.uint(2, "kdf"), pairs.uint(2, "aead")))
        reader.end()
        return cls(key_id=key_id, kem_id=kem.id, public_key=public_key, suites=tuple(suites))

    def choose(self) -> hpke.Suite:
        """The suite to seal with: the first of AES-256-GCM, ChaCha20-Poly1305 that the key offers."""
        for aead in (hpke.AEAD_AES_256_GCM, hpke.AEAD_CHACHA20_POLY1305):
            if (hpke.KDF_HKDF_SHA256, aead) in self.suites:
                return hpke.Suite(kem_id=self.kem_id, kdf_id=hpke.KDF_HKDF_SHA256, aead_id=aead)
        raise MalformedError("key configuration: no algorithm that this client accepts")


def encode_key_configs(configs: list[KeyConfig]) -> bytes:
    """`application/ohttp-keys`: each configuration behind its 2-byte length."""
    encoded = [config.encode() for config in configs]
    return b"".join(len(item).to_bytes(2, "big") + item for item in encoded)


def decode_key_configs(data: bytes) -> list[KeyConfig]:
    """Parse a list; configurations with an unknown KEM are left out, as RFC 9458 section 3.2 allows."""
    reader = Reader(data, "key configurations")
    configs: list[KeyConfig] = []
    count = 0
    while reader.remaining:
        count += 1
        if count > MAX_CONFIGS:
            raise MalformedError("key configurations: too many")
        item = reader.take(reader.uint(2, "length"), "configuration")
        if len(item) >= 3 and int.from_bytes(item[1:3], "big") not in hpke.KEMS:
            continue
        configs.append(KeyConfig.decode(item))
    return configs
