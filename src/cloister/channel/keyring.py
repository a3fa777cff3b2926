"""The keys of one replica over time: made, published, used, kept for a grace period, forgotten.

A key serves for `serve` seconds, decrypts for `grace` more, and its successor is published `early` seconds before it
ends. The set of seen encapsulations lives and dies with its key, so replay needs no clock (section "Replay" of
docs/protocol.md): a restart loses both, and what was sealed to the lost key cannot be opened again.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.channel import hpke
from cloister.channel.keyconfig import KeyConfig, encode_key_configs
from cloister.channel.ohttp import KeyMaterial, RequestHeader
from cloister.channel.statement import KeyStatement, binding
from cloister.errors import KeyRejectedError, ReplayError, UsageError

#: What new keys offer, best first.
SUITES = ((hpke.KDF_HKDF_SHA256, hpke.AEAD_AES_256_GCM), (hpke.KDF_HKDF_SHA256, hpke.AEAD_CHACHA20_POLY1305))


@dataclass(frozen=True, kw_only=True)
class KeySchedule:
    """Seconds of each part of a key's life, and the most requests it may open."""

    serve: int = 3600
    grace: int = 600
    early: int = 300
    capacity: int = 1 << 17

    def __post_init__(self) -> None:
        if not 0 < self.early < self.serve or self.grace < 0 or self.capacity < 1:
            raise UsageError("key schedule: 0 < early < serve, grace >= 0 and capacity >= 1 must hold")


@dataclass(frozen=True, kw_only=True)
class ReplicaFacts:
    """What every statement of this replica says besides its key; a change needs a restart, so a new key."""

    boot_id: bytes
    model_id: str
    model_sha256: str
    config_sha256: str
    scope: str = "replica"
    tls_spki_sha256: tuple[bytes, ...] = ()


@dataclass(eq=False, kw_only=True)
class ReplicaKey:
    """One HPKE key with its statement, receipt key and replay set; private parts never leave it."""

    config: KeyConfig
    private_key: hpke.PrivateKey
    receipt_key: Ed25519PrivateKey
    statement: KeyStatement
    statement_bytes: bytes
    seen: set[bytes] = field(default_factory=set)
    receipts: int = 0

    @property
    def kid(self) -> str:
        """The key's name."""
        return self.statement.kid

    @property
    def statement_binding(self) -> bytes:
        """B without a challenge: names the statement in receipts and in `cloister-expect`."""
        return binding(self.statement_bytes, None)

    def next_receipt(self) -> int:
        """The per-key counter of receipts, from 1."""
        self.receipts += 1
        return self.receipts


def make_key(
    facts: ReplicaFacts,
    schedule: KeySchedule,
    *,
    epoch: int,
    now: int,
    key_id: int,
    kem: int = hpke.KEM_MLKEM768_X25519,
) -> ReplicaKey:
    """A new key pair whose statement runs from `now` (seconds since 1970) for `schedule.serve`."""
    private_key = hpke.kem(kem).generate()
    config = KeyConfig(key_id=key_id, kem_id=kem, public_key=private_key.public_bytes(), suites=SUITES)
    receipt_key = Ed25519PrivateKey.generate()
    statement = KeyStatement(
        scope=facts.scope,
        key_config=config.encode(),
        receipt_key=receipt_key.public_key().public_bytes_raw(),
        tls_spki_sha256=facts.tls_spki_sha256,
        boot_id=facts.boot_id,
        epoch=epoch,
        not_before=now,
        not_after=now + schedule.serve,
        model_id=facts.model_id,
        model_sha256=facts.model_sha256,
        config_sha256=facts.config_sha256,
    )
    return ReplicaKey(
        config=config,
        private_key=private_key,
        receipt_key=receipt_key,
        statement=statement,
        statement_bytes=statement.to_bytes(),
    )


class Keyring:
    """The live keys of a replica; times are seconds since 1970, given by the caller."""

    def __init__(self, schedule: KeySchedule) -> None:
        self.schedule = schedule
        self._keys: list[ReplicaKey] = []

    def add(self, key: ReplicaKey) -> None:
        """Publish a key (its evidence is ready): it becomes the current one."""
        if any(held.config.key_id == key.config.key_id for held in self._keys):
            raise ValueError("two live keys share a key_id")
        self._keys.append(key)

    def free_key_id(self) -> int:
        """A key_id (0..255) that no live key has."""
        taken = {key.config.key_id for key in self._keys}
        return secrets.choice([key_id for key_id in range(256) if key_id not in taken])

    def current(self) -> ReplicaKey:
        """The newest key; raises KeyRejectedError when there is none."""
        if not self._keys:
            raise KeyRejectedError("the replica holds no key yet")
        return self._keys[-1]

    def find(self, kid: str) -> ReplicaKey:
        """The live key of that name; raises KeyRejectedError."""
        for key in self._keys:
            if key.kid == kid:
                return key
        raise KeyRejectedError("the replica holds no key of that name")

    def published(self) -> bytes:
        """The newest key's configuration as `application/ohttp-keys`."""
        return encode_key_configs([self.current().config])

    def due(self, now: int) -> bool:
        """Is it time for the next key?"""
        if not self._keys:
            return True
        key = self._keys[-1]
        return now >= key.statement.not_after - self.schedule.early or len(key.seen) >= self.schedule.capacity

    def forget(self, now: int) -> list[str]:
        """Drop keys whose grace is over, private part and replay set with them; returns their names."""
        over = [key for key in self._keys if now >= key.statement.not_after + self.schedule.grace]
        self._keys = [key for key in self._keys if key not in over]
        return [key.kid for key in over]

    def lookup(self, header: RequestHeader) -> KeyMaterial:
        """The private key that a request header asks for; every mismatch is the same KeyRejectedError."""
        for key in self._keys:
            if (
                key.config.key_id == header.key_id
                and key.config.kem_id == header.kem_id
                and (header.kdf_id, header.aead_id) in key.config.suites
            ):
                return KeyMaterial(private_key=key.private_key, owner=key)
        raise KeyRejectedError("no such key")

    def admit(self, key: ReplicaKey, enc: bytes) -> None:
        """Record an authenticated encapsulation; raises ReplayError when this key has opened it before.

        Call after the first chunk authenticated and before anything acts on it. A key at its capacity opens nothing
        more: forgetting old entries would let them in again.
        """
        mark = hashlib.sha256(enc).digest()[:16]
        if mark in key.seen:
            raise ReplayError("this request was already received")
        if len(key.seen) >= 2 * self.schedule.capacity:
            raise KeyRejectedError("the key has opened as many requests as it may")
        key.seen.add(mark)
