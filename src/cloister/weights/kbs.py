"""What broker and replica agree on: the Key Broker Service attestation protocol of Confidential Containers, 0.4.0.

Source: confidential-containers/trustee, kbs/docs/kbs_attestation_protocol.md. docs/broker.md says where we differ.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from cloister.errors import MalformedError
from cloister.weights import manifest

SERVICE = "kbs"
VERSION = "0.4.0"
#: Ours: the protocol's list of TEEs has no name for Nitro enclaves.
TEE = "nitro"
AUTH, ATTEST, RESOURCE = "/kbs/v0/auth", "/kbs/v0/attest", "/kbs/v0/resource"
COOKIE = "kbs-session-id"
NONCE_BYTES = 32
#: Before the code in an error's `type`.
ERRORS = "urn:cloister:kbs:"
#: The type of every resource that we keep.
TYPE = "data-key"

_PATH = re.compile(rf"({manifest.NAME.pattern})/{TYPE}/(0|[1-9][0-9]{{0,14}})", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Resource:
    """The data key of one version of a model: `repository/type/tag` is `model/data-key/version`."""

    model: str
    version: int

    @classmethod
    def parse(cls, path: str) -> Resource:
        """Read `model/data-key/version`; raises MalformedError."""
        match = _PATH.fullmatch(path)
        if match is None:
            raise MalformedError("KBS: not the path of a data key", hint=f"It is MODEL/{TYPE}/VERSION.")
        return cls(model=match[1], version=int(match[2]))

    @classmethod
    def of(cls, context: Mapping[str, str]) -> Resource:
        """The one that a manifest's key context names; raises MalformedError."""
        return cls.parse(f"{context.get('cloister:model', '')}/{TYPE}/{context.get('cloister:version', '')}")

    def __str__(self) -> str:
        return f"{self.model}/{TYPE}/{self.version}"

    @property
    def context(self) -> dict[str, str]:
        """What is bound to the key."""
        return manifest.context(self.model, self.version)


def runtime_digest(nonce: str, tee_pubkey: Mapping[str, str]) -> bytes:
    """What the evidence must hold (48 bytes): SHA-384 over the runtime data as canonical JSON (RFC 8785).

    `nonce` is the challenge as it was sent, `tee_pubkey` the JWK; all of it is ASCII, and there are no numbers.
    """
    data = {"additional-evidence": "", "nonce": nonce, "tee-pubkey": dict(tee_pubkey)}
    return hashlib.sha384(json.dumps(data, sort_keys=True, separators=(",", ":")).encode("ascii")).digest()
