"""Nonces of the SIMULATED Trust Authority: signed, good once, and not for long."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384

from cloister.platforms.local.trust_authority.errors import ServiceError
from cloister.platforms.local.trust_authority.requests import Nonce

#: How long the service's nonces live is not published; that they are good once neither. Both are assumptions.
LIFE = timedelta(minutes=2)
FORMAT = "%Y-%m-%d %H:%M:%S +0000 UTC"
RANDOM = 64


class Nonces:
    """Makes nonces and takes each back at most once; `clock` gives aware times."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._key = ec.generate_private_key(ec.SECP384R1())
        self._lock = threading.Lock()
        self._used: dict[bytes, datetime] = {}

    def make(self) -> dict[str, str]:
        """The members of the service's answer: `val`, `iat` and `signature` in base64.

        As the service has them, `val` is base64 text itself and `iat` the time in Go's spelling.
        """
        val = base64.b64encode(os.urandom(RANDOM))
        iat = self._clock().astimezone(UTC).strftime(FORMAT).encode("ascii")
        parts = {"val": val, "iat": iat, "signature": self._key.sign(val + iat, ec.ECDSA(SHA384()))}
        return {name: base64.b64encode(data).decode("ascii") for name, data in parts.items()}

    def redeem(self, nonce: Nonce) -> None:
        """Use a nonce up; raises ServiceError for one that is foreign, over, or used."""
        try:
            self._key.public_key().verify(nonce.signature, nonce.val + nonce.iat, ec.ECDSA(SHA384()))
            made = datetime.strptime(nonce.iat.decode("ascii"), FORMAT).replace(tzinfo=UTC)
        except (InvalidSignature, ValueError):
            raise ServiceError("verifier nonce: not of this service") from None
        now = self._clock()
        if now - made > LIFE:
            raise ServiceError("verifier nonce: expired")
        with self._lock:
            self._used = {val: until for val, until in self._used.items() if until >= now}
            if nonce.val in self._used:
                raise ServiceError("verifier nonce: used before")
            self._used[nonce.val] = made + LIFE
