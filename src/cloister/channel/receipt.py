"""Receipts: the replica signs what it received and what it answered, with a key that its evidence binds.

A receipt is base64url(P) "." base64url(sig), sig = Ed25519("cloister-receipt-v1" 00 || P), in the encrypted trailer
`cloister-receipt`. P is JSON: v, kid, B, n (per-key counter), req and resp (transcripts of the sealed request and of
the non-final response chunks), commit, model, usage, t (the replica's clock: untrusted).
commit = SHA-256(Export("cloister receipt", 32) || SHA-256(response content)) ties the receipt to the plaintext,
because AES-GCM does not commit to its key.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cloister.errors import MalformedError, ReceiptError
from cloister.wire import strict_json
from cloister.wire.strict_json import decode_base64url, encode_base64url

VERSION = "cloister-receipt/1"
TRAILER = "cloister-receipt"
EXPORT_LABEL = b"cloister receipt"
EXPORT_LENGTH = 32
MAX_RECEIPT = 8 * 1024
_LABEL = b"cloister-receipt-v1\x00"


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What the replica signs; `request`, `response` and `commitment` are 32 bytes each."""

    kid: str
    binding: bytes
    number: int
    request: bytes
    response: bytes
    commitment: bytes
    model: str
    time: int
    usage: Mapping[str, int] = field(default_factory=dict)

    def sign(self, key: Ed25519PrivateKey) -> str:
        """The receipt as the trailer's value."""
        payload = json.dumps(
            {
                "v": VERSION,
                "kid": self.kid,
                "B": encode_base64url(self.binding),
                "n": self.number,
                "req": encode_base64url(self.request),
                "resp": encode_base64url(self.response),
                "commit": encode_base64url(self.commitment),
                "model": self.model,
                "usage": dict(self.usage),
                "t": self.time,
            },
            separators=(",", ":"),
        ).encode("utf-8")
        return encode_base64url(payload) + "." + encode_base64url(key.sign(_LABEL + payload))

    @classmethod
    def verify(cls, text: str, public_key: bytes) -> Receipt:
        """Check the signature with the statement's receipt key (32 bytes), then read; raises ReceiptError."""
        try:
            if len(text) > MAX_RECEIPT:
                raise MalformedError("receipt: too long")
            body, dot, mark = text.partition(".")
            if not dot:
                raise MalformedError("receipt: not two parts")
            payload = decode_base64url(body, "receipt", limit=MAX_RECEIPT)
            signature = decode_base64url(mark, "receipt signature", size=64)
            Ed25519PublicKey.from_public_bytes(public_key).verify(signature, _LABEL + payload)
            return cls._parse(payload)
        except InvalidSignature:
            raise ReceiptError("the receipt's signature does not verify under the attested receipt key") from None
        except MalformedError as error:
            raise ReceiptError(error.message) from None

    @classmethod
    def _parse(cls, payload: bytes) -> Receipt:
        fields = strict_json.Fields(strict_json.loads(payload, "receipt", limit=MAX_RECEIPT), "receipt")
        if fields.text("v") != VERSION:
            raise MalformedError("receipt: unknown version")
        usage_fields = fields.member("usage")
        receipt = cls(
            kid=fields.text("kid", limit=64),
            binding=fields.octets("B", size=32),
            number=fields.integer("n"),
            request=fields.octets("req", size=32),
            response=fields.octets("resp", size=32),
            commitment=fields.octets("commit", size=32),
            model=fields.text("model", limit=256),
            usage={name: usage_fields.integer(name) for name in sorted(usage_fields.names())},
            time=fields.integer("t"),
        )
        fields.done()
        return receipt

    def check(self, *, kid: str, binding: bytes, request: bytes, response: bytes, commitment: bytes) -> None:
        """Require that the receipt is about exactly this exchange; raises ReceiptError naming what differs."""
        for what, mine, theirs in (
            ("key", kid.encode(), self.kid.encode()),
            ("binding", binding, self.binding),
            ("request", request, self.request),
            ("response", response, self.response),
            ("content commitment", commitment, self.commitment),
        ):
            if not hmac.compare_digest(mine, theirs):
                raise ReceiptError(f"the receipt is for another {what}")


def commitment(exported: bytes, content_sha256: bytes) -> bytes:
    """commit: SHA-256 of the context's exported secret (32 bytes) and the SHA-256 of the plaintext content."""
    return hashlib.sha256(exported + content_sha256).digest()
