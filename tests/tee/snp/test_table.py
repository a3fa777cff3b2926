"""The certificate table that a guest gets beside its report."""

from __future__ import annotations

import struct
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tee.snp import signer as s

from cloister.errors import MalformedError
from cloister.tee.snp.certificates import from_table

VCEK, VLEK = "63da758d-e664-4564-adc5-f4b93be8accd", "a8074bc2-a25a-483e-aae6-39c045a0b8a1"
ASK, ARK = "4ab7b379-bbac-4fe4-a02f-05aef327c782", "c0b406a4-a803-4952-9743-3fb6014cd0ae"
CRL = "92f81bc3-5811-4d3d-97ff-d19f88dc67ea"
OTHER = "00000000-0000-4000-8000-000000000001"


def table(*entries: tuple[str, bytes], gap: int = 0, pad: int = 0) -> bytes:
    """As a host lays it out: header, items one after the other, zeros up to the page."""
    head, body = b"", b""
    start = 24 * (len(entries) + 1)
    for guid, data in entries:
        body += bytes(gap)
        head += UUID(guid).bytes + struct.pack("<II", start + len(body), len(data))
        body += data
    return head + bytes(24) + body + bytes(pad)


def test_a_report_verifies_with_what_its_table_brings() -> None:
    raw = table(
        (ARK, b"ignored: the ARK is built in"), (VCEK, s.endorsement("Genoa")), (ASK, s.intermediate("Genoa")),
        (OTHER, b"a vendor's own"), (CRL, s.revocations("Genoa")), gap=3, pad=4096,
    )  # fmt: skip
    items = from_table(raw)
    assert [item.kind for item in items] == ["amd-vcek", "amd-ask", "amd-crl"]
    claims = s.Setting(items=items, anchors=(s.root("Genoa"),)).verify(s.report())
    assert claims.facts["product"] == "Genoa"


def test_a_vlek_is_an_endorsement_key_too() -> None:
    (item,) = from_table(table((VLEK, b"der")))
    assert (item.kind, item.data) == ("amd-vcek", b"der")


def test_an_empty_table_brings_nothing() -> None:
    assert from_table(bytes(24)) == ()
    assert from_table(bytes(4096)) == ()


GOOD = table((VCEK, b"first"), (ASK, b"second"))


def _with(offset: int, value: int) -> bytes:
    changed = bytearray(GOOD)
    changed[offset : offset + 4] = struct.pack("<I", value)
    return bytes(changed)


@pytest.mark.parametrize(
    "raw",
    [
        b"", bytes(23), GOOD[:24], GOOD[:-1], GOOD + b"\x01", GOOD[:72] + b"\x01" + GOOD[72:],
        table((VCEK, b"a"), (VCEK, b"b")), table((VCEK, b"")), b"\x00" * 16 + struct.pack("<II", 24, 1) + bytes(25),
        _with(16, 0), _with(16, 71), _with(16, 74), _with(16, 0xFFFFFFFF), _with(20, 6), _with(20, 0xFFFFFFFF),
        _with(40, 72), _with(44, 7), table((VCEK, b"a"), pad=300 * 1024),
    ],
)  # fmt: skip
def test_strictness(raw: bytes) -> None:
    with pytest.raises(MalformedError):
        from_table(raw)


@given(st.binary(max_size=200))
def test_arbitrary_bytes(raw: bytes) -> None:
    try:
        items = from_table(raw)
    except MalformedError:
        return
    assert all(item.data in raw for item in items)
