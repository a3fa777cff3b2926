"""Data keys and who wraps them: the seam between the sealed container and the services that release its key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

#: Bytes of a data key (AES-256).
KEY_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class WrappedKey:
    """A data key that only its service can unwrap; public, and part of the signed manifest."""

    #: `aws-kms` or `kbs`.
    service: str
    #: The key's name at the service: a KMS key ARN, or the `repository/type/tag` of a KBS resource.
    key_id: str
    #: What the service needs back (a KMS CiphertextBlob); empty where the service keeps the key itself.
    ciphertext: bytes
    #: Bound by the service to the key (a KMS encryption context): at least `cloister:model` and `cloister:version`.
    context: Mapping[str, str]


class KeyWrapper(Protocol):
    """The owner's side: makes a data key and its wrapped form."""

    def generate(self, context: Mapping[str, str]) -> tuple[bytes, WrappedKey]:
        """A fresh data key (32 bytes) and its wrapped form; raises ReleaseDeniedError or UndecidedError."""
        ...


class KeyRelease(Protocol):
    """The replica's side: gets the data key back by showing evidence; blocking."""

    def release(self, wrapped: WrappedKey) -> bytes:
        """The data key (32 bytes); raises ReleaseDeniedError (with the service's reason) or UndecidedError."""
        ...
