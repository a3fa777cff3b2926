"""Quotes, signatures and public areas of TPMs, and the firmware's event log: exactly one, of exactly that shape."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from tests.tee.google import signer as s

from cloister.errors import MalformedError
from cloister.wire.tcg_log import EV_SEPARATOR, EventLog
from cloister.wire.tpm import Bank, EccKey, PublicArea, Quote, RsaKey, Scheme, Selection, Signature

PCRS = s.registers(s.boot())
QUOTE = s.attest(PCRS)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def test_a_quote() -> None:
    quote = Quote.parse(QUOTE)
    assert (quote.extra_data, quote.clock, quote.reset_count, quote.restart_count, quote.safe) == (
        s.BINDING,
        1000,
        10,
        0,
        True,
    )
    assert quote.selections == (Selection(bank=Bank.SHA256, indices=tuple(range(24))),)
    assert len(quote.pcr_digest) == 32


def test_a_real_quote_of_another_cloud(vectors: Path) -> None:
    quote = Quote.parse((vectors / "azure" / "trustee_snp_tpm-quote.msg").read_bytes())
    assert quote.extra_data == b"challenge"
    assert quote.selections == (Selection(bank=Bank.SHA256, indices=(0, 1, 2, 3, 4, 5, 6, 7, 14)),)


@pytest.mark.parametrize(
    "data",
    [
        b"", QUOTE[:-1], QUOTE + b"\x00", b"\xfe" + QUOTE[1:], QUOTE.replace(b"\x80\x18", b"\x80\x17"),
        s.attest(PCRS, b"e" * 67), QUOTE.replace(b"\x01\x20\x16", b"\x02\x20\x16"),
        QUOTE.replace(b"\x00\x0b\x03\xff", b"\x00\x0b\x05\xff"), QUOTE.replace(b"\x00\x0b\x03\xff", b"\x12\x34\x03\xff"),
        QUOTE.replace(b"\x00\x00\x00\x01\x00\x0b\x03", b"\x00\x00\x00\x11\x00\x0b\x03"), bytes(2049),
    ],
)  # fmt: skip
def test_quotes_that_are_none(data: bytes) -> None:
    with pytest.raises(MalformedError):
        Quote.parse(data)


def test_signatures() -> None:
    rsa = Signature.parse(s.signature(QUOTE))
    assert (rsa.scheme, rsa.bank, len(rsa.value)) == (Scheme.RSASSA, Bank.SHA256, 256)
    assert Signature.parse(s.signature(QUOTE, scheme=0x16)).scheme is Scheme.RSAPSS
    short = b"\x00\x18\x00\x0b" + s.sized(b"\x01" * 31) + s.sized(b"\x02" * 32)
    assert Signature.parse(short).value == b"\x00" + b"\x01" * 31 + b"\x02" * 32
    good = s.signature(QUOTE)
    for wrong in (
        b"",
        good[:-1],
        good + b"\x00",
        b"\x00\x10" + good[2:],
        good[:2] + b"\x00\x99" + good[4:],
        bytes(2049),
    ):
        with pytest.raises(MalformedError):
            Signature.parse(wrong)


def test_public_areas() -> None:
    area = PublicArea.parse(s.public_area(s.AK.key.public_key()))
    numbers = s.AK.key.public_key().public_numbers()
    assert area.key == RsaKey(modulus=numbers.n, exponent=65537)
    assert area.restricted_signing
    assert (len(area.name), area.name[:2]) == (34, b"\x00\x0b")
    assert not PublicArea.parse(s.public_area(s.AK.key.public_key(), 0x40072)).restricted_signing
    point = EC_KEY.public_key().public_numbers()
    assert PublicArea.parse(s.public_area(EC_KEY.public_key())).key == EccKey(curve=3, x=point.x, y=point.y)
    storage = struct.pack(">HHI", 1, 11, 0) + s.sized(b"") + struct.pack(">HHHHHI", 6, 128, 0x43, 0x10, 2048, 3)
    modulus = numbers.n.to_bytes(256, "big")
    assert PublicArea.parse(storage + s.sized(modulus)).key == RsaKey(modulus=numbers.n, exponent=3)
    good = area.raw
    for wrong in (
        b"", good[:-1], good + b"\x00", b"\x00\x08" + good[2:], good[:2] + b"\x00\x99" + good[4:],
        storage + s.sized(modulus[1:]), storage + s.sized(b"\x00" + modulus[1:]), bytes(2049),
    ):  # fmt: skip
        with pytest.raises(MalformedError):
            PublicArea.parse(wrong)


LOG = s.log(s.boot())


def test_a_log() -> None:
    log = EventLog.parse(LOG)
    assert log.banks == (Bank.SHA1, Bank.SHA256, Bank.SHA384)
    assert (len(log.events), log.locality) == (len(s.boot()), 0)
    assert [event.event_type for event in log.of(4)][-1] == s.EV_APPLICATION
    assert all(
        event.honest(bank)
        for event in log.events
        for bank in Bank
        if event.event_type == EV_SEPARATOR and bank in log.banks
    )
    assert not log.of(4)[-1].honest(Bank.SHA256)
    assert EventLog.parse(LOG + b"\xff" * 100).events == log.events
    assert EventLog.parse(LOG + bytes(100)).events == log.events


def test_where_register_0_starts() -> None:
    def locality(data: bytes, index: int = 0) -> s.Event:
        return s.Event(index, 3, b"StartupLocality\x00" + data)

    assert EventLog.parse(s.log([locality(b"\x03"), *s.boot()])).locality == 3
    assert EventLog.parse(s.log([s.Event(0, 3, b"something else"), *s.boot()])).locality == 0
    for wrong in ([locality(b"\x05")], [locality(b"")], [*s.boot(), locality(b"\x03")], [locality(b"\x03")] * 2):
        with pytest.raises(MalformedError):
            EventLog.parse(s.log(wrong))


def _patched(at: int, value: bytes) -> bytes:
    return LOG[:at] + value + LOG[at + len(value) :]


FIRST = LOG.index(b"Spec ID Event03") + 24 + 4 + 12 + 1


@pytest.mark.parametrize(
    "data",
    [
        b"", LOG[:40], LOG[:-1], LOG + b"\x01", _patched(4, b"\x08"), _patched(10, b"\x01"), _patched(28, b"\xff\xff"),
        _patched(32, b"Spec ID Event00\x00"), s.log(s.boot(), {"sha256": 11, "sha384": 11}),
        s.log(s.boot(), {"sha256": 12}), s.log(s.boot(), {"sha256": 0x99}), _patched(FIRST + 8, b"\x04"),
        _patched(FIRST + 8, b"\x02"), _patched(FIRST + 12, b"\x0b"), _patched(FIRST + 8 + 4 + 2 + 20 + 2 + 32 + 2 + 48, b"\xff" * 4),
        bytes(1024 * 1024 + 1),
    ],
)  # fmt: skip
def test_logs_that_are_none(data: bytes) -> None:
    with pytest.raises(MalformedError):
        EventLog.parse(data)


@given(st.binary(max_size=200))
def test_arbitrary_bytes(data: bytes) -> None:
    for decode in (Quote.parse, Signature.parse, PublicArea.parse, EventLog.parse):
        for prefix in (b"", b"\xffTCG\x80\x18", LOG[:FIRST]):
            with contextlib.suppress(MalformedError):
                decode(prefix + data)
