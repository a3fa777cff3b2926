"""The attestation document's payload (AWS "attestation process" guide; aws-nitro-enclaves-nsm-api)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloister.errors import MalformedError
from cloister.wire import cbor

MAX_DOCUMENT = 16 * 1024
PCR_SIZE = 48
MAX_PCR = 31
#: The end of the calendar (the year 10000) in milliseconds: what a datetime can hold.
MAX_TIMESTAMP = 253_402_300_800_000


@dataclass(frozen=True, kw_only=True)
class AttestationDocument:
    """The payload as parsed; nothing in it is trusted before the signature is checked.

    `timestamp` is in milliseconds since 1970, `pcrs` maps an index (0..31) to 48 bytes, certificates are DER,
    `cabundle` is root first.
    """

    module_id: str
    timestamp: int
    pcrs: Mapping[int, bytes]
    certificate: bytes
    cabundle: tuple[bytes, ...]
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None

    @classmethod
    def parse(cls, payload: bytes) -> AttestationDocument:
        """Parse and check types and sizes; members that AWS may add are ignored, duplicates are not."""
        fields = cbor.loads(payload, "attestation document", limit=MAX_DOCUMENT)
        if not isinstance(fields, dict):
            raise _malformed("payload is not a map")
        module_id, timestamp = fields.get("module_id"), fields.get("timestamp")
        if not isinstance(module_id, str) or not 0 < len(module_id) <= 256:
            raise _malformed("module_id")
        if fields.get("digest") != "SHA384":
            raise _malformed("digest is not SHA384")
        if isinstance(timestamp, bool) or not isinstance(timestamp, int) or not 0 < timestamp < MAX_TIMESTAMP:
            raise _malformed("timestamp")
        cabundle = fields.get("cabundle")
        if not isinstance(cabundle, list) or not 0 < len(cabundle) <= 8:
            raise _malformed("cabundle")
        return cls(
            module_id=module_id,
            timestamp=timestamp,
            pcrs=_pcrs(fields.get("pcrs")),
            certificate=_octets(fields.get("certificate"), "certificate", 1, 1024),
            cabundle=tuple(_octets(item, "cabundle", 1, 1024) for item in cabundle),
            public_key=_optional(fields.get("public_key"), "public_key", 1, 1024),
            user_data=_optional(fields.get("user_data"), "user_data", 0, 512),
            nonce=_optional(fields.get("nonce"), "nonce", 0, 512),
        )


def _malformed(what: str) -> MalformedError:
    return MalformedError(f"attestation document: {what}")


def _pcrs(value: cbor.Value) -> dict[int, bytes]:
    if not isinstance(value, dict) or not value:
        raise _malformed("pcrs")
    pcrs: dict[int, bytes] = {}
    for index, digest in value.items():
        if not isinstance(index, int) or not 0 <= index <= MAX_PCR:
            raise _malformed("PCR index")
        if not isinstance(digest, bytes) or len(digest) != PCR_SIZE:
            raise _malformed("a PCR is not 48 bytes")
        pcrs[index] = digest
    return pcrs


def _octets(value: cbor.Value, name: str, smallest: int, largest: int) -> bytes:
    if not isinstance(value, bytes) or not smallest <= len(value) <= largest:
        raise _malformed(name)
    return value


def _optional(value: cbor.Value, name: str, smallest: int, largest: int) -> bytes | None:
    return None if value is None else _octets(value, name, smallest, largest)
