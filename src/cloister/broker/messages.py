"""What callers send, read strictly (KBS attestation protocol, "Payloads").

    Request      {"version", "tee", "extra-params"}
    Attestation  {"runtime-data": {"nonce", "tee-pubkey"},
                  "tee-evidence": {"primary_evidence": {"document"}, "additional_evidence": ""}}

`document` is ours: base64url of the COSE_Sign1. Init data, which no register of a Nitro enclave covers, and additional
evidence are refused: nothing is taken that nobody checks.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from cloister.errors import MalformedError
from cloister.tee.nitro.evidence import MAX_DOCUMENT
from cloister.weights import jwe
from cloister.wire import strict_json

MAX_REQUEST = 16 * 1024
MAX_ATTESTATION = 32 * 1024


@dataclass(frozen=True, kw_only=True)
class Request:
    """The first message."""

    version: str
    tee: str

    @classmethod
    def parse(cls, data: bytes) -> Request:
        """Raises MalformedError. `extra-params` are for other TEEs and not looked at."""
        fields = strict_json.Fields(strict_json.loads(data, "Request", limit=MAX_REQUEST), "Request")
        request = cls(version=fields.text("version", limit=32), tee=fields.text("tee", limit=32))
        if not fields.has("extra-params"):
            raise MalformedError("Request: extra-params is missing")
        fields.done()
        return request


@dataclass(frozen=True, kw_only=True)
class Attestation:
    """The answer to a challenge: the nonce as it was sent, the caller's key, and the evidence that binds both."""

    nonce: str
    key: ec.EllipticCurvePublicKey
    document: bytes

    @classmethod
    def parse(cls, data: bytes) -> Attestation:
        """Raises MalformedError."""
        fields = strict_json.Fields(strict_json.loads(data, "Attestation", limit=MAX_ATTESTATION), "Attestation")
        if fields.has("init-data") and not fields.is_null("init-data"):
            raise MalformedError("Attestation: init-data, which this broker cannot check")
        runtime, evidence = fields.member("runtime-data"), fields.member("tee-evidence")
        if evidence.text("additional_evidence"):
            raise MalformedError("Attestation: additional evidence, which this broker cannot check")
        primary = evidence.member("primary_evidence")
        attestation = cls(
            nonce=runtime.text("nonce", limit=64),
            key=jwe.read_jwk(runtime.member("tee-pubkey")),
            document=primary.octets("document", limit=MAX_DOCUMENT),
        )
        for part in (primary, evidence, runtime, fields):
            part.done()
        return attestation
