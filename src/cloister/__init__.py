"""Cloister: ask a language model in a trusted execution environment, verified and sealed.

import cloister, openai
policy = cloister.Policy.from_toml(open("policy.toml", "rb").read())
http_client = cloister.http_client("https://replica.example", policy=policy)   # verifies, or raises
client = openai.OpenAI(base_url="https://replica.example/v1", api_key="none", http_client=http_client)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from cloister.errors import (
    ApiError,
    ChannelError,
    CloisterError,
    EngineCrashed,
    EngineError,
    GatewayRefusedError,
    KeyRejectedError,
    MalformedError,
    ModelLoadError,
    NotGenuineError,
    OverLimitError,
    PolicyDocumentError,
    ReceiptError,
    RefusedError,
    ReleaseDeniedError,
    ReplayError,
    TruncatedResponse,
    UndecidedError,
    UsageError,
)

if TYPE_CHECKING:
    from cloister.client.appraisal import VerifiedKey, verify_bundle
    from cloister.client.transport import AsyncSealedTransport, SealedTransport, async_http_client, http_client
    from cloister.policy.document import Policy
    from cloister.policy.verdict import Verdict
    from cloister.trust.collateral import Collateral

__version__ = "0.1.0"

__all__ = [
    "ApiError",
    "AsyncSealedTransport",
    "ChannelError",
    "CloisterError",
    "Collateral",
    "EngineCrashed",
    "EngineError",
    "GatewayRefusedError",
    "KeyRejectedError",
    "MalformedError",
    "ModelLoadError",
    "NotGenuineError",
    "OverLimitError",
    "Policy",
    "PolicyDocumentError",
    "ReceiptError",
    "RefusedError",
    "ReleaseDeniedError",
    "ReplayError",
    "SealedTransport",
    "TruncatedResponse",
    "UndecidedError",
    "UsageError",
    "Verdict",
    "VerifiedKey",
    "async_http_client",
    "http_client",
    "verify_bundle",
]

# Loaded on first use: `import cloister` stays cheap, and the errors can be caught without any cryptography.
_LAZY = {
    "AsyncSealedTransport": "cloister.client.transport",
    "Collateral": "cloister.trust.collateral",
    "Policy": "cloister.policy.document",
    "SealedTransport": "cloister.client.transport",
    "Verdict": "cloister.policy.verdict",
    "VerifiedKey": "cloister.client.appraisal",
    "async_http_client": "cloister.client.transport",
    "http_client": "cloister.client.transport",
    "verify_bundle": "cloister.client.appraisal",
}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'cloister' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
