"""COSE_Sign1 (RFC 9052 section 4.2): parse and rebuild what was signed. No cryptography here."""

from __future__ import annotations

from dataclasses import dataclass

import cbor2

from cloister.errors import MalformedError
from cloister.wire import cbor

ALG = 1
CRIT = 2
_TAG_SIGN1 = 0xD2  # major type 6, tag 18


@dataclass(frozen=True, kw_only=True)
class Sign1:
    """One signed message: `protected` as sent, `protected_header` its meaning, `payload` and `signature` as sent."""

    protected: bytes
    protected_header: dict[int | str, cbor.Value]
    unprotected: dict[int | str, cbor.Value]
    payload: bytes
    signature: bytes

    def to_be_signed(self) -> bytes:
        """Sig_structure (section 4.4) without external data: the bytes that the signature covers."""
        return cbor2.dumps(["Signature1", self.protected, b"", self.payload])

    @classmethod
    def parse(cls, data: bytes, what: str, *, limit: int) -> Sign1:
        """Parse a tagged or untagged COSE_Sign1 of at most `limit` bytes; raises MalformedError.

        Refused: critical headers (none is understood here), an algorithm or critical header outside protection, a
        label in both headers, a detached payload.
        """
        body = data[1:] if data[:1] == bytes([_TAG_SIGN1]) else data
        match cbor.loads(body, what, limit=limit):
            case [bytes(protected), dict(unprotected), bytes(payload), bytes(signature)]:
                pass
            case _:
                raise MalformedError(f"{what}: not a COSE_Sign1")
        header = cbor.loads(protected, f"{what}: protected header", limit=limit) if protected else {}
        if not isinstance(header, dict):
            raise MalformedError(f"{what}: protected header is not a map")
        if CRIT in header or CRIT in unprotected or ALG in unprotected or header.keys() & unprotected.keys():
            raise MalformedError(f"{what}: header parameters that are not allowed here")
        return cls(
            protected=protected,
            protected_header=header,
            unprotected=unprotected,
            payload=payload,
            signature=signature,
        )
