"""The key statement of a replica and the 32 bytes that bind it to hardware evidence.

A replica describes its HPKE key, receipt key, model and configuration in one JSON text, the *statement*. Evidence signs
B = SHA-256("cloister-binding-v1" 00 || u32be(len S) || S || u32be(len F) || F), where S is the statement's bytes as
sent and F is empty or the 32-byte challenge root. Verifiers hash the bytes they received; nobody re-canonicalises.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

from cloister.errors import MalformedError
from cloister.wire import strict_json
from cloister.wire.strict_json import encode_base64url

VERSION = "cloister-keys/1"
MAX_STATEMENT = 16 * 1024
SCOPES = ("replica", "fleet")

_HEX_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, kw_only=True)
class KeyStatement:
    """What one key of a replica is for.

    Times are seconds since 1970 by the replica's clock; digests are lower-case hex SHA-256; `boot_id` is 16 bytes
    drawn when the replica started; `epoch` counts its keys.
    """

    scope: str
    key_config: bytes
    receipt_key: bytes
    tls_spki_sha256: tuple[bytes, ...]
    boot_id: bytes
    epoch: int
    not_before: int
    not_after: int
    model_id: str
    model_sha256: str
    config_sha256: str

    @property
    def kid(self) -> str:
        """The key's name: base64url of the first 16 bytes of SHA-256(key_config)."""
        return key_identifier(self.key_config)

    def to_bytes(self) -> bytes:
        """The statement as UTF-8 JSON, the form that evidence binds."""
        return json.dumps(
            {
                "v": VERSION,
                "scope": self.scope,
                "key_config": encode_base64url(self.key_config),
                "receipt_key": {"alg": "Ed25519", "pub": encode_base64url(self.receipt_key)},
                "tls_spki_sha256": [encode_base64url(digest) for digest in self.tls_spki_sha256],
                "boot_id": encode_base64url(self.boot_id),
                "epoch": self.epoch,
                "not_before": self.not_before,
                "not_after": self.not_after,
                "model": {"id": self.model_id, "sha256": self.model_sha256},
                "config_sha256": self.config_sha256,
            },
            separators=(",", ":"),
        ).encode("utf-8")

    @classmethod
    def from_bytes(cls, data: bytes) -> KeyStatement:
        """Parse a received statement; unknown members are refused because they may change its meaning."""
        fields = strict_json.Fields(strict_json.loads(data, "key statement", limit=MAX_STATEMENT), "key statement")
        version = fields.text("v")
        if version != VERSION:
            raise MalformedError("key statement: unknown version", hint="This replica needs a newer client.")
        scope = fields.text("scope")
        if scope not in SCOPES:
            raise MalformedError("key statement: unknown scope")
        receipt = fields.member("receipt_key")
        if receipt.text("alg") != "Ed25519":
            raise MalformedError("key statement: receipt key is not Ed25519")
        model = fields.member("model")
        spki = []
        for digest in fields.array("tls_spki_sha256", limit=8):
            if not isinstance(digest, str):
                raise MalformedError("key statement: tls_spki_sha256 must hold strings")
            spki.append(strict_json.decode_base64url(digest, "key statement: tls_spki_sha256", size=32))
        statement = cls(
            scope=scope,
            key_config=fields.octets("key_config", limit=4096),
            receipt_key=receipt.octets("pub", size=32),
            tls_spki_sha256=tuple(spki),
            boot_id=fields.octets("boot_id", size=16),
            epoch=fields.integer("epoch"),
            not_before=fields.integer("not_before"),
            not_after=fields.integer("not_after"),
            model_id=model.text("id", limit=256),
            model_sha256=_digest(model.text("sha256"), "model.sha256"),
            config_sha256=_digest(fields.text("config_sha256"), "config_sha256"),
        )
        for part in (fields, receipt, model):
            part.done()
        if statement.not_after <= statement.not_before:
            raise MalformedError("key statement: not_after is not later than not_before")
        if not statement.model_id.isprintable():
            raise MalformedError("key statement: model.id is not printable")
        return statement


def _digest(text: str, field: str) -> str:
    if not _HEX_SHA256.match(text):
        raise MalformedError(f"key statement: {field} is not a lower-case hex SHA-256")
    return text


def key_identifier(key_config: bytes) -> str:
    """kid of an encoded key configuration: base64url(SHA-256(key_config)[:16]), 22 characters."""
    return encode_base64url(hashlib.sha256(key_config).digest()[:16])


def binding(statement: bytes, challenge: bytes | None, *, label: bytes = b"cloister-binding-v1") -> bytes:
    """B: the 32 bytes that evidence must carry for these statement bytes and this challenge root (32 bytes or None)."""
    root = challenge or b""
    return hashlib.sha256(
        label + b"\x00" + len(statement).to_bytes(4, "big") + statement + len(root).to_bytes(4, "big") + root
    ).digest()
