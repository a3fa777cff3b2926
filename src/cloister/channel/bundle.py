"""The attestation bundle: key statement, freshness and evidence in one JSON document.

Evidence travels as a CMW collection (draft-ietf-rats-msg-wrap): records of [media type, base64url value, indicator].
Indicator bits: 1 reference values, 2 endorsements, 4 evidence, 8 attestation results.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from cloister.channel import challenge
from cloister.channel.statement import MAX_STATEMENT, KeyStatement, binding
from cloister.errors import MalformedError
from cloister.wire import strict_json
from cloister.wire.strict_json import decode_base64url, encode_base64url

MEDIA_TYPE = "application/json"
MAX_BUNDLE = 256 * 1024
MAX_EVIDENCE = 64 * 1024
COLLECTION_TYPE = "tag:cloister,2026:cloister"
EVIDENCE = 4


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A received or made bundle.

    `statement_bytes` are the signed-over bytes, `statement` their meaning. `nonce` and `path` are present together,
    when the evidence answers a challenge. `evidence` is the CPU TEE's, of `media_type`.
    """

    statement_bytes: bytes
    statement: KeyStatement
    nonce: bytes | None
    path: tuple[challenge.Step, ...]
    media_type: str
    evidence: bytes

    @property
    def challenge(self) -> bytes | None:
        """F: the 32-byte challenge root, or None."""
        return None if self.nonce is None else challenge.root_from(self.nonce, self.path)

    @property
    def binding(self) -> bytes:
        """B: the 32 bytes that the evidence must carry."""
        return binding(self.statement_bytes, self.challenge)

    def to_bytes(self) -> bytes:
        """The bundle as JSON."""
        document: dict[str, object] = {"statement": encode_base64url(self.statement_bytes)}
        if self.nonce is not None:
            document["fresh"] = {"nonce": encode_base64url(self.nonce), "path": challenge.encode_path(self.path)}
        document["cmw"] = {
            "__cmwc_t": COLLECTION_TYPE,
            "cpu": [self.media_type, encode_base64url(self.evidence), EVIDENCE],
        }
        return json.dumps(document, separators=(",", ":")).encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes) -> Bundle:
        """Parse a received bundle; raises MalformedError. Nothing in it is trusted yet."""
        fields = strict_json.Fields(strict_json.loads(data, "bundle", limit=MAX_BUNDLE), "bundle")
        statement_bytes = fields.octets("statement", limit=MAX_STATEMENT)
        nonce: bytes | None = None
        path: tuple[challenge.Step, ...] = ()
        if fields.has("fresh"):
            fresh = fields.member("fresh")
            nonce = challenge.check_nonce(fresh.octets("nonce", limit=challenge.MAX_NONCE))
            path = challenge.decode_path(fresh.array("path", limit=challenge.MAX_PATH))
            fresh.done()
        collection = fields.member("cmw")
        if collection.text("__cmwc_t") != COLLECTION_TYPE:
            raise MalformedError("bundle: unknown collection type")
        media_type, evidence = _record(collection.array("cpu", limit=3))
        # A record nobody checks must not look as if it had been: what this client cannot verify, it refuses.
        collection.done()
        fields.done()
        return cls(
            statement_bytes=statement_bytes,
            statement=KeyStatement.from_bytes(statement_bytes),
            nonce=nonce,
            path=path,
            media_type=media_type,
            evidence=evidence,
        )


def _record(items: list[object]) -> tuple[str, bytes]:
    match items:
        case [str(media_type), str(value), int(indicator)] if indicator == EVIDENCE and not isinstance(indicator, bool):
            if len(media_type) > 128 or not media_type.isascii() or not media_type.isprintable():
                raise MalformedError("bundle: bad media type")
            return media_type, decode_base64url(value, "bundle: evidence", limit=MAX_EVIDENCE)
    raise MalformedError("bundle: cmw.cpu must be [media type, evidence, 4]")
