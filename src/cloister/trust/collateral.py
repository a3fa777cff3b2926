"""Endorsements and revocation data beside evidence (RFC 9334: Endorsements), as values: a verifier never fetches.

Whoever brought an item, a verifier checks its own signature and dates again. What carries no signature of its own
(`jwks`: the keys of a token's issuer) is worth what its bringer is worth, so a replica's bundle must not bring it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cloister.errors import MalformedError, UsageError

#: Every kind of item, and the media type of its bytes.
KINDS: Mapping[str, str] = {
    # A chip's or cloud's endorsement key (VCEK, VLEK); an intermediate newer than the built-in ones (ASK, ASVK); what
    # the ARK of one product line has revoked.
    "amd-vcek": "application/pkix-cert",
    "amd-ask": "application/pkix-cert",
    "amd-crl": "application/pkix-crl",
    # TCB info, QE identity, PCK and root CRLs with their chains, as dcap-qvl names them.
    "intel-collateral": "application/json",
    # TCG PC Client event log (crypto agile) or its variant for confidential computing.
    "tcg-event-log": "application/vnd.cloister.tcg-event-log",
    # An attestation key's certificate and intermediates under a cloud's vTPM root.
    "azure-ak": "application/pkix-cert",
    "google-ak": "application/pkix-cert",
    # VMLaunchEndorsement of Google's firmware.
    "google-endorsement": "application/vnd.cloister.google-endorsement",
    # A signed Reference Integrity Manifest of a driver or VBIOS; whether a certificate was revoked.
    "nvidia-rim": "application/xml",
    "nvidia-ocsp": "application/ocsp-response",
    # Intel Trust Authority's key set, whose keys have chains to its root; what its CAs have revoked.
    "ita-certs": "application/jwk-set+json",
    "ita-crl": "application/pkix-crl",
    # {issuer, keys}: the keys of one token issuer (RFC 7517), unsigned.
    "jwks": "application/jwk-set+json",
}
#: Kinds that prove nothing by themselves.
UNSIGNED = frozenset({"jwks"})
MAX_ITEM = 1024 * 1024
MAX_ITEMS = 128
_PEM = re.compile(rb"-----BEGIN (CERTIFICATE|X509 CRL)-----\s+([A-Za-z0-9+/=\s]+?)-----END \1-----")
_X509 = ("application/pkix-cert", "application/pkix-crl")


@dataclass(frozen=True)
class Item:
    """One piece of collateral: a kind of KINDS and its bytes."""

    kind: str
    data: bytes


@dataclass(frozen=True)
class Collateral:
    """Items in order; the same kind may occur many times.

    Raises MalformedError for an unknown kind and beyond MAX_ITEMS or MAX_ITEM bytes.
    """

    items: tuple[Item, ...] = ()

    def __post_init__(self) -> None:
        if len(self.items) > MAX_ITEMS:
            raise MalformedError(f"collateral: more than {MAX_ITEMS} items")
        for item in self.items:
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

    @classmethod
    def from_folder(cls, folder: Path) -> Collateral:
        """The files of a folder by name: `KIND` or `KIND.anything` (`amd-crl.genoa.der`); certificates also as PEM.

        Files of other names are errors, because a misspelt kind would be collateral that nobody looks at. Raises
        UsageError or MalformedError.
        """
        items = list[Item]()
        try:
            for file in sorted(folder.iterdir()):
                kind = file.name.partition(".")[0]
                if kind not in KINDS:
                    raise UsageError(f"{file} is no kind of collateral", hint=f"Name it KIND.*: {', '.join(KINDS)}.")
                if file.stat().st_size > MAX_ITEM:
                    raise MalformedError(f"collateral: {kind} has more than {MAX_ITEM} bytes")
                items += [Item(kind, data) for data in _decoded(kind, file.read_bytes())]
        except OSError as error:
            raise UsageError(f"cannot read collateral in {folder}: {error.strerror}") from None
        return cls(tuple(items))

    def of(self, kind: str) -> tuple[bytes, ...]:
        """Every item of a kind, in order."""
        if kind not in KINDS:
            raise ValueError(kind)
        return tuple(item.data for item in self.items if item.kind == kind)

    def __add__(self, other: Collateral) -> Collateral:
        """Both, these first."""
        return Collateral((*self.items, *other.items))


def _decoded(kind: str, data: bytes) -> list[bytes]:
    """DER as it is; every block of a PEM file."""
    blocks = [body for _, body in _PEM.findall(data)] if KINDS[kind] in _X509 else []
    if not blocks:
        return [data]
    try:
        return [base64.b64decode(b"".join(block.split()), validate=True) for block in blocks]
    except binascii.Error:
        raise MalformedError(f"collateral: {kind} is not PEM") from None
