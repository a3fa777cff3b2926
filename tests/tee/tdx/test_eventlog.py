"""Event logs: real ones replay to signed registers; changed ones count for nothing or do not parse."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tee.dcap.signer import World, claims, td_report

from cloister.errors import MalformedError, RefusedError
from cloister.tee.tdx import eventlog, measure, rules
from cloister.tee.tdx.evidence import TdQuote
from cloister.trust.collateral import Item
from cloister.wire import toml

D1, D2 = b"\x01" * 48, b"\x02" * 48


def ccel(*events: tuple[int, bytes], algorithms: tuple[tuple[int, int], ...] = ((0x0C, 48),), tail: bytes = b"\xff" * 64,
         kind: int = 4) -> bytes:  # fmt: skip
    """A binary log; registers count from 1, as in a CCEL."""
    spec = b"Spec ID Event03\x00" + bytes(4) + bytes([0, 2, 0, 2]) + struct.pack("<I", len(algorithms))
    spec += b"".join(struct.pack("<HH", *each) for each in algorithms) + b"\x00"
    out = struct.pack("<II", 1, 3) + bytes(20) + struct.pack("<I", len(spec)) + spec
    for register, digest in events:
        out += (
            struct.pack("<III", register, kind, 1) + struct.pack("<H", 0x0C) + digest + struct.pack("<I", 4) + b"data"
        )
    return out + tail


def runtime(*events: tuple[str, bytes], register: int = 3) -> list[dict]:
    """Events in dstack's form."""
    return [
        {"imr": register, "event_type": measure.RUNTIME_EVENT, "digest": measure.runtime_digest(name, payload).hex(),
         "event": name, "event_payload": payload.hex()}
        for name, payload in events
    ]  # fmt: skip


def world(log: list[dict], **rtmrs: bytes) -> World:
    """A TD whose RTMR3 is what the log says."""
    third = measure.replay(bytes.fromhex(event["digest"]) for event in log if event["imr"] == 3)
    return World(tdx=True, body=td_report(rtmrs=(b"\xa0" * 48, b"\xa1" * 48, b"\xa2" * 48, third)))


def demand(text: str) -> object:
    """The measurement rule's value for extra lines of one measurement."""
    base = f'[[tdx.measurement]]\nmrtd = "{"0d" * 48}"\nrtmr1 = "{"a1" * 48}"\nrtmr2 = "{"a2" * 48}"\n'
    return rules.RULES[0].read(toml.parse((base + text).encode(), limit=100000).table("tdx"))


def check(log: list[dict], text: str, of: World | None = None) -> str:
    item = Item("tcg-event-log", json.dumps(log).encode())
    return rules.RULES[0].check(claims(of or world(log), item), demand(text))


GOOD = runtime(("app-id", b"\xab"), ("compose-hash", b"\xcd" * 32), ("system-ready", b""))
EVENT = f'[[tdx.measurement.event]]\nrtmr = 3\nname = "compose-hash"\npayload = "{"cd" * 32}"\n'


def test_dstacks_log_replays_to_all_four_registers(vectors: Path) -> None:
    quote = bytes.fromhex((vectors / "tdx" / "nearai_dstack_quote.hex").read_text().strip())
    report = TdQuote.parse(quote).report
    events = eventlog.parse((vectors / "tdx" / "nearai_dstack_event_log.json").read_bytes())
    for index, value in enumerate(report.rtmrs):
        assert eventlog.of_register(events, index, value)
    runtime_events = [event for event in events if event.register == 3]
    assert len(runtime_events) == 9
    assert all(event.honest for event in runtime_events)
    for name in ("dstack_quote-report.json", "dstack_tdx-lite-getquote.json"):
        both = json.loads((vectors / "tdx" / name).read_bytes())
        report = TdQuote.parse(bytes.fromhex(both["quote"])).report
        events = eventlog.parse(both["event_log"].encode())
        assert all(eventlog.of_register(events, index, value) for index, value in enumerate(report.rtmrs)), name


def test_the_firmwares_log_replays_to_its_quote(vectors: Path) -> None:
    events = eventlog.parse((vectors / "tdx" / "go-tdx-guest_ccel_data.dat").read_bytes())
    report = TdQuote.parse((vectors / "tdx" / "go-tdx-guest_cos-113-tdx-quote.dat").read_bytes()).report
    assert all(eventlog.of_register(events, index, report.rtmrs[index]) for index in (0, 1, 2))


def test_a_named_event_that_was_measured() -> None:
    assert "compose-hash" in check(GOOD, EVENT)


def test_a_runtime_event_may_come_without_its_digest() -> None:
    bare = [event | {"digest": ""} for event in GOOD]
    assert "compose-hash" in check(bare, EVENT, of=world(GOOD))
    with pytest.raises(MalformedError):
        eventlog.parse(json.dumps([GOOD[0] | {"digest": "", "event": ""}]).encode())


@pytest.mark.parametrize(
    "log",
    [
        runtime(("app-id", b"\xab"), ("compose-hash", b"\xce" * 32)),
        runtime(("app-id", b"\xab")),
        # Twice: which of them counts?
        runtime(("compose-hash", b"\xce" * 32), ("compose-hash", b"\xcd" * 32)),
        runtime(("compose-hash", b"\xcd" * 32), ("compose-hash", b"\xcd" * 32)),
        # The first one hides under another name: its digest is not that of its text.
        [runtime(("compose-hash", b"\xce" * 32))[0] | {"event": "harmless"}, *runtime(("compose-hash", b"\xcd" * 32))],
        [runtime(("compose-hash", b"\xce" * 32))[0] | {"event": ""}, *runtime(("compose-hash", b"\xcd" * 32))],
        # The text alone says what the policy wants.
        [runtime(("compose-hash", b"\xce" * 32))[0] | {"event_payload": "cd" * 32}],
    ],
)
def test_an_event_that_was_not_measured_so(log: list[dict]) -> None:
    with pytest.raises(RefusedError, match="compose-hash"):
        check(log, EVENT)


def test_a_log_that_does_not_replay_counts_for_nothing() -> None:
    for log in (GOOD[:-1], GOOD[::-1], [*GOOD, *GOOD]):
        with pytest.raises(RefusedError, match="compose-hash"):
            check(log, EVENT, of=world(GOOD))
    with pytest.raises(RefusedError, match="compose-hash"):
        rules.RULES[0].check(claims(world(GOOD)), demand(EVENT))


def test_what_was_measured_first() -> None:
    body = td_report(rtmrs=(bytes(48), measure.replay([D1, D2]), b"\xa2" * 48, bytes(48)))
    found = claims(World(tdx=True, body=body), Item("tcg-event-log", ccel((2, D1), (2, D2))))
    base = f'[[tdx.measurement]]\nmrtd = "{"0d" * 48}"\nrtmr2 = "{"a2" * 48}"\n'

    def first(*digests: bytes) -> str:
        listed = ", ".join(f'"{digest.hex()}"' for digest in digests)
        table = toml.parse(f"{base}rtmr1_first = [{listed}]".encode(), limit=10000).table("tdx")
        return rules.RULES[0].check(found, rules.RULES[0].read(table))

    assert "rtmr1_first" in first(D1)
    assert "rtmr1_first" in first(D1, D2)
    for wrong in ((D2,), (D2, D1), (D1, D1), (D1, D2, D2)):
        with pytest.raises(RefusedError, match="rtmr1_first"):
            first(*wrong)


def test_a_binary_log_in_its_details() -> None:
    events = eventlog.parse(ccel((1, D1), (4, D2), (0, D1)))
    assert [(event.register, event.digest) for event in events] == [(0, D1), (3, D2)]
    assert eventlog.parse(ccel((1, D1), tail=bytes(32))) == eventlog.parse(ccel((1, D1), tail=b""))
    assert eventlog.parse(ccel((1, D1), kind=3)) == ()
    assert eventlog.parse(ccel(algorithms=((0x0B, 32),))) == ()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[",
        b"[1]",
        b"[{}]",
        b'[{"imr":4,"event_type":1,"digest":"00","event":"","event_payload":""}]',
        b'[],"log":[]',
        b'[]}{"a":1',
        json.dumps([GOOD[0] | {"surplus": 1}]).encode(),
        json.dumps([GOOD[0] | {"digest": "00" * 47}]).encode(),
        json.dumps([GOOD[0] | {"digest": "AA" * 48}]).encode(),
        json.dumps([GOOD[0] | {"imr": -1}]).encode(),
        ccel((1, D1))[:-70],
        ccel((1, D1), tail=b"\xff" * 31 + b"\x00"),
        ccel((1, D1), algorithms=((0x0C, 32),)),
        ccel((1, D1), algorithms=((0x99, 48),)),
        ccel((1, D1), algorithms=((0x0B, 32),)),
        ccel((1, D1))[32:],
        bytes(2 * 1024 * 1024),
        ccel(*[(0, D1)] * 16385, kind=3),
        ccel(tail=bytes(16) * 20000 + b"\x01"),
    ],
)  # fmt: skip
def test_what_is_not_a_log_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedError):
        eventlog.parse(data)


@given(st.lists(st.tuples(st.integers(0, 3), st.binary(min_size=48, max_size=48)), max_size=12))
def test_both_forms_say_the_same(measured: list[tuple[int, bytes]]) -> None:
    binary = eventlog.parse(ccel(*((register + 1, digest) for register, digest in measured)))
    text = eventlog.parse(json.dumps([
        {"imr": register, "event_type": 4, "digest": digest.hex(), "event": "", "event_payload": b"data".hex()}
        for register, digest in measured
    ]).encode())  # fmt: skip
    assert binary == text
    for index in range(4):
        value = measure.replay(digest for register, digest in measured if register == index)
        assert eventlog.of_register(binary, index, value) is not None
        assert eventlog.of_register(binary, index, b"\x33" * 48) is None
