"""The one thing a replica needs from its TEE: sign evidence over 32 bytes (RFC 9334: the Attester)."""

from __future__ import annotations

from typing import Protocol


class Attester(Protocol):
    """Asks the TEE for evidence; blocking, call it off the event loop."""

    #: The media type of what `attest` returns.
    media_type: str

    def attest(self, user_data: bytes, nonce: bytes | None) -> bytes:
        """Evidence that binds `user_data` (32 bytes) and, where given, `nonce` (32 bytes).

        Raises UndecidedError when the device does not answer.
        """
        ...
