"""Targets for SEV-SNP: the report, an endorsement key's certificate, the certificate table."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache
from itertools import chain
from uuid import UUID

from tests.tee.snp import signer

from cloister.tee.snp.certificates import Endorsement, from_table


def _table() -> bytes:
    data = signer.intermediate("Genoa")
    head = UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782").bytes + struct.pack("<II", 48, len(data))
    return head + bytes(24) + data


def _reports() -> list[bytes]:
    return [signer.report(product, version) for product in ("Milan", "Genoa", "Turin") for version in (2, 5)]


def _keys() -> list[bytes]:
    return [signer.endorsement("Genoa"), signer.endorsement("Turin"), signer.endorsement("Milan", vlek=True)]


_PRODUCTS = ("Milan", "Genoa", "Turin")


@cache
def _setting() -> signer.Setting:
    """The certificates of every product at hand, so that each report of the corpus verifies."""
    parts = [signer.setting(product, crl=signer.revocations(product)).items for product in _PRODUCTS]
    return signer.Setting(items=tuple(chain(*parts)), anchors=tuple(map(signer.root, _PRODUCTS)))


#: Name, corpus, decoder.
TARGETS: tuple[tuple[str, Callable[[], list[bytes]], Callable[[bytes], object]], ...] = (
    ("snp-report", _reports, lambda data: _setting().verify(data)),
    ("snp-certificate", _keys, Endorsement.parse),
    ("snp-table", lambda: [_table()], from_table),
)
