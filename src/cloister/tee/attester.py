"""The one thing a replica needs from its TEE: evidence over 32 bytes (RFC 9334: the Attester)."""

from __future__ import annotations

from typing import Protocol

from cloister.tee.evidence import Offers


class Attester(Protocol):
    """Asks the TEE for evidence; blocking, call it off the event loop."""

    def offer(self, user_data: bytes, nonce: bytes | None) -> Offers:
        """What binds `user_data` (32 bytes) and, where given, answers `nonce` (32 bytes), with its endorsements.

        Raises UndecidedError when the device or a service does not answer.
        """
        ...
