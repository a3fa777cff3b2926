"""Telemetry: one table for both ends, nothing that is not on it gets out, and the replica never pays for it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import math
import random
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.host.test_agent import running

from cloister.enclave import net
from cloister.enclave.telemetry import GROUP, Counters
from cloister.enclave.telemetry import Telemetry as Sender
from cloister.errors import EngineError, MalformedError, ModelLoadError, RefusedError, ReleaseDeniedError
from cloister.host import telemetry as door
from cloister.host.log import Log
from cloister.wire import ports, telemetry

CANARY = "zanzibarquokka"
USAGE = telemetry.encode("usage", {"requests": 20, "prompt_tokens": 5000, "completion_tokens": 1000})


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="clo-") as name:
        yield Path(name)


def every_line() -> Iterator[bytes]:
    for name, fields in telemetry.EVENTS.items():
        for values in itertools.product(*(field.values() for field in fields.values())):
            yield telemetry.encode(name, dict(zip(fields, values, strict=True)))


def test_the_lines_are_few_and_each_decodes_to_itself() -> None:
    lines = set(every_line())
    assert len(lines) == telemetry.symbols()
    for line in random.Random(1).sample(sorted(lines), 500):
        event = telemetry.decode(line[:-1])
        assert telemetry.encode(event.name, event.values) == line
        assert len(line) <= telemetry.MAX_LINE + 1
    # The bound that LIMITS.md and docs/parent.md name.
    assert math.log2(len(lines)) < 13


def test_numbers_are_rounded_down_to_the_series() -> None:
    event = telemetry.decode(
        telemetry.encode("usage", {"requests": 19, "prompt_tokens": 4999.7, "completion_tokens": 10**9})[:-1]
    )
    assert event.values == {"requests": 10, "prompt_tokens": 2000, "completion_tokens": 10_000_000}


HOSTILE = [
    b'{"event":"usage","requests":20,"prompt_tokens":5000,"completion_tokens":1000,"note":"%s"}' % CANARY.encode(),
    b'{"event":"usage","requests":21,"prompt_tokens":5000,"completion_tokens":1000}',
    b'{"event":"usage","requests":20,"prompt_tokens":5000}',
    b'{"event":"usage","prompt_tokens":5000,"requests":20,"completion_tokens":1000}',
    b'{"event": "usage","requests":20,"prompt_tokens":5000,"completion_tokens":1000}',
    b'{"event":"usage","requests":20.0,"prompt_tokens":5000,"completion_tokens":1000}',
    b'{"event":"usage","requests":2e1,"prompt_tokens":5000,"completion_tokens":1000}',
    b'{"event":"usage","requests":"20","prompt_tokens":5000,"completion_tokens":1000}',
    b'{"event":"usage","requests":true,"prompt_tokens":5000,"completion_tokens":1000}',
    b'{"event":"usage","requests":-1,"prompt_tokens":5000,"completion_tokens":1000}',
    b'{"event":"usage","requests":20000000000000000000000000000,"prompt_tokens":5000,"completion_tokens":1000}',
    b'{"event":"usage","requests":[20],"prompt_tokens":{},"completion_tokens":null}',
    b'{"event":"us\\u0061ge","requests":20,"prompt_tokens":5000,"completion_tokens":1000}',
    b'{"event":"usage","event":"usage","requests":20,"prompt_tokens":5000,"completion_tokens":1000}',
    b'{"event":"%s"}' % CANARY.encode(),
    b'{"event":["%s"]}' % CANARY.encode(),
    b'{"event":"failed","kind":"%s"}' % CANARY.encode(),
    '{"event":"failed","kind":"ｏther"}'.encode(),
    b'{"event":"failed","kind":"other"} ',
    b'{"event":"failed","kind":"other"}\r',
    b'{"event":"ready","seconds":NaN}',
    b'{"event":"stopping"}{"event":"stopping"}',
    b"[]", b"", b"null", b"\xff\xfe", CANARY.encode(), b'{"event":"stopping"' + b" " * 300 + b"}",
]  # fmt: skip


@pytest.mark.parametrize("line", HOSTILE)
def test_what_is_not_on_the_list_is_refused_without_a_word_of_it(line: bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        telemetry.decode(line)
    assert CANARY not in str(caught.value)


@given(
    st.binary(max_size=220)
    | st.sampled_from(HOSTILE)
    | st.text(max_size=150).map(lambda text: json.dumps({"event": text}).encode())
)
def test_any_line(data: bytes) -> None:
    try:
        event = telemetry.decode(data)
    except MalformedError:
        return
    assert telemetry.encode(event.name, event.values) == data + b"\n"


def check_emf(line: dict) -> None:
    """The rules of the embedded metric format's specification (Amazon CloudWatch User Guide)."""
    assert set(line["_aws"]) == {"Timestamp", "CloudWatchMetrics"}
    assert isinstance(line["_aws"]["Timestamp"], int)
    assert abs(line["_aws"]["Timestamp"] / 1000 - time.time()) < 3600
    assert len(json.dumps(line)) < 256 * 1024
    for directive in line["_aws"]["CloudWatchMetrics"]:
        assert set(directive) == {"Namespace", "Dimensions", "Metrics"}
        assert 1 <= len(directive["Namespace"]) <= 255
        assert not directive["Namespace"].startswith("AWS/")
        assert directive["Dimensions"]
        for dimensions in directive["Dimensions"]:
            assert len(dimensions) <= 30
            for name in dimensions:
                assert isinstance(line[name], str)
                assert 1 <= len(line[name]) <= 1024
                assert line[name].isascii()
        assert 1 <= len(directive["Metrics"]) <= 100
        for metric in directive["Metrics"]:
            assert set(metric) == {"Name", "Unit"}
            assert metric["Unit"] in ("Count", "Seconds", "Bytes")
            assert 1 <= len(metric["Name"]) <= 255
            value = line[metric["Name"]]
            assert isinstance(value, int | float)
            assert not isinstance(value, bool)
            assert math.isfinite(value)


async def test_lines_become_metrics_and_everything_else_a_count(folder: Path) -> None:
    refused = telemetry.encode("refused", {"kind": "busy", "count": 5})
    async with running(
        folder, telemetry=True, log=str(folder / "log" / "parent.log"), name="notes", capture=folder / "seen"
    ):
        reader, writer = await asyncio.open_unix_connection(f"{folder}/v_{ports.TELEMETRY}")
        writer.write(USAGE + b"".join(line + b"\n" for line in HOSTILE[:-1] if b"\n" not in line) + refused)
        writer.write(CANARY.encode() * 100)
        await writer.drain()
        # A line without end ends the connection.
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
    text = (folder / "log" / "parent.log").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["event"] for line in lines] == ["usage", "refused", "traffic"]
    for line in lines:
        check_emf(line)
        assert line["name"] == "notes"
    usage, busy, traffic = lines
    assert (usage["enclave_usage_requests"], usage["enclave_usage_prompt_tokens"]) == (20, 5000)
    assert busy["_aws"]["CloudWatchMetrics"][0]["Dimensions"] == [["name"], ["name", "kind"]]
    assert (busy["kind"], busy["enclave_refused_count"]) == ("busy", 5)
    assert traffic["telemetry_accepted"] == 2
    assert traffic["telemetry_malformed"] + traffic["telemetry_over_rate"] == len(HOSTILE) - 1 + 1
    everywhere = text.encode() + b"".join(path.read_bytes() for path in (folder / "seen").iterdir())
    assert CANARY.encode() not in everywhere


def quiet(stream: io.StringIO) -> Log:
    log = Log("test", "stderr", size=1, files=1)
    log._handler.setStream(stream)
    return log


def test_the_rate_is_bounded() -> None:
    now, out = 0.0, io.StringIO()
    taken = door.Telemetry(quiet(out), clock=lambda: now)
    for _ in range(1000):
        taken.take(USAGE[:-1])
    assert (taken.accepted, taken.over_rate) == (telemetry.BURST, 1000 - telemetry.BURST)
    # An hour of trying every second: the burst again and what a minute allows.
    for _ in range(3600):
        now += 1
        taken.take(USAGE[:-1])
    assert taken.accepted <= 2 * telemetry.BURST + 60 * telemetry.PER_MINUTE
    assert len(out.getvalue().splitlines()) == taken.accepted


def test_malformed_lines_count_against_the_rate() -> None:
    taken = door.Telemetry(quiet(io.StringIO()), clock=lambda: 0.0)
    for _ in range(100):
        taken.take(b"junk")
    assert (taken.malformed, taken.over_rate) == (telemetry.BURST, 100 - telemetry.BURST)


def test_a_log_is_rotated_and_bounded(folder: Path) -> None:
    log = Log("test", str(folder / "parent.log"), size=2000, files=2)
    for _ in range(200):
        log.write("stopping")
    log.close()
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["parent.log", "parent.log.1", "parent.log.2"]
    assert all((folder / name).stat().st_size <= 2000 for name in files)
    assert all(json.loads(line)["event"] == "stopping" for line in (folder / "parent.log").read_text().splitlines())


def test_usage_is_told_in_groups_and_sums_stay_right() -> None:
    counters, told = Counters(), {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0}
    for number in range(1, GROUP):
        counters.answered(200, {"prompt_tokens": 37, "completion_tokens": 11})
        assert counters.take() == [], number
    total = GROUP - 1
    for _ in range(500):
        counters.answered(200, {"prompt_tokens": 37, "completion_tokens": 11})
        total += 1
        for line in counters.take():
            for name, value in telemetry.decode(line[:-1]).values.items():
                told[name] += int(value)
    assert total - GROUP - 5 <= told["requests"] <= total
    assert told["prompt_tokens"] <= total * 37
    assert told["prompt_tokens"] > total * 37 * 0.9


@pytest.mark.parametrize("told", [CANARY, -5, 10**40, math.nan, 1e300, None, [1], {CANARY: 1}, CANARY.encode()])
def test_an_engine_that_lies_gets_nothing_out_and_breaks_nothing(told: object) -> None:
    counters = Counters()
    for _ in range(GROUP):
        counters.answered(200, {"prompt_tokens": told, "completion_tokens": told, CANARY: 7})
    (line,) = counters.take()
    assert telemetry.decode(line[:-1]).values == {"requests": 5, "prompt_tokens": 0, "completion_tokens": 0}


def test_errors_are_told_by_kind_and_once() -> None:
    counters = Counters()
    for status in (429, 400, 404, 503, 500):
        counters.answered(status, {})
    for status in (200, 400, 409, 413, 422, 426, 500, 503, 599):
        counters.outer(status)
    lines = [telemetry.decode(line[:-1]).values for line in counters.take()]
    assert {line["kind"]: line["count"] for line in lines} == {
        "busy": 2, "invalid": 2, "engine": 2, "malformed": 1, "replay": 1, "too_large": 1, "key_rejected": 1,
        "plaintext": 1, "internal": 2,
    }  # fmt: skip
    assert counters.take() == []


class Engine:
    """What telemetry looks at."""

    def __init__(self) -> None:
        self.restarts, self.state = 0, "ready"


async def test_from_the_enclave_to_the_log(folder: Path) -> None:
    sender, engine = Sender(net.hybrid(folder / "v"), every=0.05), Engine()
    async with running(folder, telemetry=True, log=str(folder / "log")):
        sender.event("ready", {"seconds": 12.3})
        looking = asyncio.create_task(sender.run(engine))
        sender.counters.outer(422)
        await asyncio.sleep(0)
        engine.restarts, engine.state = 2, "failed"

        def written() -> list[dict]:
            return [json.loads(line) for line in (folder / "log").read_text().splitlines()]

        async with asyncio.timeout(20):
            while len(written()) < 4:
                await asyncio.sleep(0.05)
        looking.cancel()
        lines = {line["event"]: line for line in written()}
    assert lines["ready"]["enclave_ready_seconds"] == 10
    assert lines["engine_restarted"]["enclave_engine_restarted_count"] == 2
    assert lines["engine_failed"]["enclave_engine_failed"] == 1
    assert (lines["refused"]["kind"], lines["refused"]["enclave_refused_count"]) == ("key_rejected", 1)
    # The agent is gone and comes back: lines reach it again.
    async with running(folder, telemetry=True, log=str(folder / "log2")):
        async with asyncio.timeout(20):
            while not (folder / "log2").read_text():
                sender.event("stopping")
                await asyncio.sleep(0.05)
        await asyncio.to_thread(sender.close)


def test_why_a_replica_does_not_serve(folder: Path) -> None:
    for error, kind in (
        (ReleaseDeniedError(CANARY), "release_denied"), (ModelLoadError(CANARY), "model"), (EngineError(CANARY), "engine"),
        (MalformedError(CANARY), "malformed"), (RefusedError(CANARY), "other"),
    ):  # fmt: skip
        sent: list[bytes] = []
        ours, theirs = socket.socketpair()
        sender = Sender(lambda _port, end=theirs: end)
        sender.failed(error)
        sender.close()
        sent.append(ours.recv(4096))
        ours.close()
        assert telemetry.decode(sent[0][:-1]).values == {"kind": kind}


def test_a_parent_that_stalls_costs_the_replica_nothing() -> None:
    held = threading.Event()

    def stalls(_port: int) -> socket.socket:
        held.wait(30)
        raise OSError

    sender = Sender(stalls)
    began = time.monotonic()
    for _ in range(10_000):
        sender.event("stopping")
    assert time.monotonic() - began < 2
    # Waiting lines are bounded, whatever happens.
    assert sender._queue.qsize() <= 64
    sender.close()
    assert time.monotonic() - began < 5
    held.set()
