"""Endorsements and revocation data beside evidence (RFC 9334: Endorsements), as values: a verifier never fetches.

Whoever brought an item, a verifier checks its own signature and dates again. What carries no signature of its own
(`jwks`: the keys of a token's issuer) is worth what its bringer is worth, so a replica's bundle must not bring it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from cloister.errors import MalformedError

#: Every kind of item, and what its bytes are.
KINDS: Mapping[str, str] = {
    "amd-vcek": "X.509, DER: a chip's or cloud's endorsement key (VCEK, VLEK)",
    "amd-ask": "X.509, DER: an intermediate (ASK, ASVK) newer than the built-in ones",
    "amd-crl": "X.509 CRL, DER: what the ARK of one product line has revoked",
    "intel-collateral": "JSON: TCB info, QE identity, PCK and root CRLs with their chains, as dcap-qvl names them",
    "tcg-event-log": "TCG PC Client event log (crypto agile) or its CC variant",
    "azure-ak": "X.509, DER: an attestation key's certificate and intermediates under Azure's vTPM root",
    "google-ak": "X.509, DER: an attestation key's certificate and intermediates under Google's EK/AK root",
    "google-endorsement": "protobuf VMLaunchEndorsement of Google's firmware",
    "nvidia-rim": "XML: a signed Reference Integrity Manifest of a driver or VBIOS",
    "nvidia-ocsp": "OCSP response, DER",
    "intel-ita-crl": "X.509 CRL, DER: of Intel Trust Authority's CAs",
    "jwks": "JSON {issuer, keys}: RFC 7517 keys of one token issuer, unsigned",
}
#: Kinds that prove nothing by themselves.
UNSIGNED = frozenset({"jwks"})
MAX_ITEM = 1024 * 1024
MAX_ITEMS = 128


@dataclass(frozen=True)
class Item:
    """One piece of collateral: a kind of KINDS and its bytes."""

    kind: str
    data: bytes


class Collateral:
    """An immutable collection of items; the same kind may occur many times."""

    def __init__(self, items: Iterable[Item] = ()) -> None:
        """Raises MalformedError for an unknown kind and beyond MAX_ITEMS or MAX_ITEM bytes."""
        self._items = tuple(items)
        if len(self._items) > MAX_ITEMS:
            raise MalformedError(f"collateral: more than {MAX_ITEMS} items")
        for item in self._items:
            if item.kind not in KINDS:
                raise MalformedError("collateral: an item of unknown kind")
            if len(item.data) > MAX_ITEM:
                raise MalformedError(f"collateral: {item.kind} has more than {MAX_ITEM} bytes")

    @classmethod
    def carried(cls, items: Iterable[Item]) -> Collateral:
        """What came with the evidence itself; raises MalformedError if it holds a kind that proves nothing."""
        kept = tuple(items)
        if any(item.kind in UNSIGNED for item in kept):
            raise MalformedError("collateral: a bundle cannot vouch for unsigned keys")
        return cls(kept)

    def of(self, kind: str) -> tuple[bytes, ...]:
        """Every item of a kind, in order."""
        if kind not in KINDS:
            raise ValueError(kind)
        return tuple(item.data for item in self._items if item.kind == kind)

    def __add__(self, other: Collateral) -> Collateral:
        """Both, these first."""
        return Collateral((*self._items, *other))

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)
