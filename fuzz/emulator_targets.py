"""Targets for the Trust Authority's client, and for the SIMULATED services: requests of strangers, answers to ours."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

from cloister.platforms.local.azure_attestation.requests import AttestRequest as AzureRequest
from cloister.platforms.local.trust_authority.requests import AttestRequest
from cloister.tee.ita.client import SignedNonce, token_of
from cloister.wire.strict_json import encode_base64url


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


NONCE = {"val": _text(b"v" * 88), "iat": _text(b"2026-01-01 00:00:00 +0000 UTC"), "signature": _text(b"s" * 100)}
PART = {"quote": _text(b"q" * 64), "runtime_data": _text(b"B" * 32), "verifier_nonce": NONCE, "event_log": None}
REST = {
    "policy_ids": ["11111111-0000-4000-8000-000000000000"], "token_signing_alg": "PS384", "policy_must_match": True,
}  # fmt: skip
PEM = b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n" * 3
REPORT = {"SnpReport": encode_base64url(b"r" * 64), "VcekCertChain": encode_base64url(PEM)}
RUNTIME = {"runtimeData": {"data": encode_base64url(b'{"a":1}'), "dataType": "JSON"}, "nonce": "1"}


def _json(*values: object) -> Callable[[], list[bytes]]:
    return lambda: [json.dumps(value).encode() for value in values]


#: Name, corpus, decoder.
TARGETS: tuple[tuple[str, Callable[[], list[bytes]], Callable[[bytes], object]], ...] = (
    ("ita-nonce", _json(NONCE), SignedNonce.parse),
    ("ita-answer", _json({"token": "a.b.c"}), token_of),
    ("ita-request-2", _json({"tdx": PART, **REST}), lambda data: AttestRequest.parse(data, version=2)),
    ("ita-request-1", _json({**PART, **REST}), lambda data: AttestRequest.parse(data, version=1)),
    (
        "maa-request-tdx",
        _json({"quote": encode_base64url(b"q" * 64), **RUNTIME}),
        lambda data: AzureRequest.parse(data, tdx=True),
    ),
    (
        "maa-request-snp",
        _json({"report": encode_base64url(json.dumps(REPORT).encode()), **RUNTIME}),
        lambda data: AzureRequest.parse(data, tdx=False),
    ),
)
