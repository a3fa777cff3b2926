"""What goes wrong on the way or in the replica: typed errors, no part taken for the whole, the next request works."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import openai
import psutil
import pytest
from tests.conftest import Replica, run_replica

import cloister
from cloister.api import sse
from cloister.cli.chat import stream_chat
from cloister.client.proxy import Proxy
from cloister.client.session import ATTESTATION_PATH, Session
from cloister.client.transport import AsyncSealedTransport, SealedTransport
from cloister.errors import (
    ApiError,
    CloisterError,
    KeyRejectedError,
    NotGenuineError,
    ReceiptError,
    TruncatedResponse,
    UndecidedError,
)
from cloister.wire import bhttp

HELLO = [{"role": "user", "content": "hello"}]
CHAT = bhttp.Request(
    method="POST",
    path="/v1/chat/completions",
    headers=(("content-type", "application/json"),),
    content=json.dumps({"messages": HELLO, "stream": True, "temperature": 0, "max_tokens": 12}).encode(),
)


def _now() -> datetime:
    return datetime.now(UTC)


def _attested(replica: Replica) -> Session:
    session = Session(replica.policy)
    request = session.challenge()
    with httpx2.Client() as client:
        answer = client.post(replica.url + request.path, content=request.body, headers=dict(request.headers))
    session.accept(answer.status_code, answer.content, nonce=request.nonce, now=_now())
    return session


@contextlib.asynccontextmanager
async def cutting_relay(port: int, after: int) -> AsyncIterator[str]:
    """A relay that breaks every connection off after so many bytes of answer; gives its address."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)

        async def up() -> None:
            while data := await reader.read(65536):
                far_writer.write(data)

        upward = asyncio.create_task(up())
        left = after
        while left and (data := await far_reader.read(min(left, 65536))):
            left -= len(data)
            writer.write(data)
            await writer.drain()
        upward.cancel()
        for end in (writer, far_writer):
            end.close()
            with contextlib.suppress(ConnectionError):
                await end.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


def _outer_answer(replica: Replica) -> tuple[Session, object, bytes]:
    session = _attested(replica)
    exchange = session.seal(CHAT, _now())
    with httpx2.Client() as client:
        answer = client.post(
            replica.url + exchange.request.path, content=exchange.request.body, headers=dict(exchange.request.headers)
        )
    exchange.head(answer.status_code, answer.headers["content-type"])
    return session, exchange, answer.content


def test_an_answer_cut_after_any_byte_is_truncated(replica: Replica) -> None:
    """Every frame boundary and every byte between: the client never takes the part for the whole."""
    _, exchange, body = _outer_answer(replica)
    frames = len(body) // 512
    assert frames >= 3
    for end in range(len(body)):
        opener, decoder = exchange._sealer.response_opener(), bhttp.ResponseDecoder()
        with pytest.raises(CloisterError) as caught:
            for plaintext in opener.push(body[:end]):
                decoder.push(plaintext)
            opener.finish()
        assert isinstance(caught.value, TruncatedResponse), end
    exchange.feed(body)
    _, completed = exchange.finish()
    assert completed.receipt.usage["completion_tokens"] > 0


@pytest.mark.parametrize("frames", range(7))
async def test_a_relay_that_cuts_a_live_stream_after_each_frame(replica: Replica, frames: int) -> None:
    # Outer head, response nonce, and then frames of 512 bytes with their tag and length.
    async with cutting_relay(replica.port, 260 + frames * 530) as url:
        transport = SealedTransport(url, replica.policy)
        transport.session = _attested(replica)
        pieces: list[str] = []

        def ask() -> None:
            pieces.extend(stream_chat(transport, HELLO, temperature=0, max_tokens=60))

        with pytest.raises(TruncatedResponse):
            await asyncio.to_thread(ask)
        assert transport.last is None
        transport.close()


async def test_the_proxy_ends_a_cut_stream_with_an_error_and_never_with_done(replica: Replica) -> None:
    body = {"messages": HELLO, "temperature": 0, "max_tokens": 60}
    async with cutting_relay(replica.port, 260 + 4 * 530) as url:
        transport = AsyncSealedTransport(url, replica.policy)
        transport.session = _attested(replica)
        local = httpx2.ASGITransport(Proxy(transport).app())
        async with httpx2.AsyncClient(transport=local, base_url="http://127.0.0.1") as client:
            answer = await client.post("/v1/chat/completions", json={**body, "stream": True})
            events = sse.Decoder().push(answer.content)
            assert events[-1][0] == "error", answer.text[-600:]
            assert "[DONE]" not in answer.text
        await transport.aclose()
    async with cutting_relay(replica.port, 700) as url:
        transport = AsyncSealedTransport(url, replica.policy)
        transport.session = _attested(replica)
        local = httpx2.ASGITransport(Proxy(transport).app())
        async with httpx2.AsyncClient(transport=local, base_url="http://127.0.0.1") as client:
            whole = await client.post("/v1/chat/completions", json=body)
            assert whole.status_code == 502
            assert "choices" not in whole.json()
        await transport.aclose()


def test_a_flipped_byte_anywhere_in_an_answer_is_refused(replica: Replica) -> None:
    _, exchange, body = _outer_answer(replica)
    for at in range(0, len(body), 3):
        opener, decoder = exchange._sealer.response_opener(), bhttp.ResponseDecoder()
        changed = body[:at] + bytes([body[at] ^ 0x10]) + body[at + 1 :]
        with pytest.raises(CloisterError):
            for plaintext in opener.push(changed):
                decoder.push(plaintext)
            opener.finish()


def test_a_receipt_must_be_there_and_fit(replica: Replica) -> None:
    session, exchange, body = _outer_answer(replica)
    other = session.seal(CHAT, _now())
    # The right bytes for another exchange do not even open.
    with pytest.raises(TruncatedResponse):
        other.feed(body)
        other.finish()
    exchange.feed(body)
    exchange._content.update(b"one byte more")
    with pytest.raises(ReceiptError):
        exchange.finish()


# A changed certificate may also make the parser warn; what counts is that it is refused.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_a_bundle_with_any_changed_byte_is_refused(replica: Replica) -> None:
    session = Session(replica.policy)
    request = session.challenge()
    with httpx2.Client() as client:
        body = client.post(replica.url + ATTESTATION_PATH, content=request.body).content
    session.accept(200, body, nonce=request.nonce, now=_now())
    for at in range(0, len(body), 7):
        changed = body[:at] + bytes([body[at] ^ 0x01]) + body[at + 1 :]
        with pytest.raises(CloisterError) as caught:
            session.accept(200, changed, nonce=request.nonce, now=_now())
        assert caught.value.verdict is not None
        assert session.key(_now()) is None
    with pytest.raises(CloisterError):
        session.accept(200, body, nonce=b"another nonce of 32 bytes.......", now=_now())
    with pytest.raises(UndecidedError):
        session.accept(503, body, nonce=request.nonce, now=_now())
    with pytest.raises(UndecidedError):
        session.seal(CHAT, _now())


def test_another_replicas_evidence_does_not_help_a_thief(replica: Replica, tmp_path: Path) -> None:
    """A policy made for one simulated root refuses a replica under another, though it runs the same code and model."""
    with run_replica(tmp_path / "other") as other:
        thief = SealedTransport(other.url, replica.policy)
        with pytest.raises(NotGenuineError):
            thief.verify()
        thief.close()
        # Sealed to the first replica's key, the request cannot be opened by the second.
        session = _attested(replica)
        exchange = session.seal(CHAT, _now())
        with httpx2.Client() as client:
            answer = client.post(other.url + exchange.request.path, content=exchange.request.body,
                                 headers=dict(exchange.request.headers))  # fmt: skip
        with pytest.raises(KeyRejectedError):
            exchange.head(answer.status_code, answer.headers["content-type"])


def test_keys_rotate_and_clients_follow(tmp_path: Path) -> None:
    with run_replica(tmp_path / "rotating", "--key-life", "3", "--key-grace", "1") as replica:
        transport = SealedTransport(replica.url, replica.policy)
        transport.verify()
        seen = set()
        end = time.monotonic() + 9
        while time.monotonic() < end:
            assert "".join(stream_chat(transport, HELLO, temperature=0, max_tokens=5))
            assert transport.last is not None
            seen.add(transport.last.receipt.kid)
            time.sleep(0.05)
        assert len(seen) >= 3
        # A key that its replica has forgotten: fetched anew, sealed anew, answered.
        stale = transport.session.key(_now())
        while stale is not None and _now().timestamp() < stale.bundle.statement.not_after + 3:
            time.sleep(0.2)
        transport.session._key = stale
        object.__setattr__(stale, "usable_until", datetime.max.replace(tzinfo=UTC))
        assert "".join(stream_chat(transport, HELLO, temperature=0, max_tokens=5))
        transport.close()


def _worker(replica: Replica) -> psutil.Process:
    children = psutil.Process(replica.process.pid).children()
    return next(child for child in children if "worker" in " ".join(child.cmdline()))


def test_the_engine_killed_in_mid_stream(tmp_path: Path, gpt2: Path) -> None:
    with run_replica(tmp_path / "killed", "--model", str(gpt2), "--slots", "2") as replica:
        transport = SealedTransport(replica.url, replica.policy)
        transport.verify()
        stream = stream_chat(transport, HELLO, max_tokens=900)
        next(stream)
        first = _worker(replica)
        first.kill()
        with pytest.raises(ApiError) as caught:
            list(stream)
        assert caught.value.code == "engine_restarted"
        assert "".join(stream_chat(transport, HELLO, max_tokens=5))
        assert _worker(replica).pid != first.pid
        transport.close()


def test_the_gateway_stopped_in_mid_stream(tmp_path: Path, gpt2: Path) -> None:
    with run_replica(tmp_path / "stopped", "--model", str(gpt2)) as replica:
        transport = SealedTransport(replica.url, replica.policy)
        transport.verify()
        stream = stream_chat(transport, HELLO, max_tokens=900)
        next(stream)
        worker = _worker(replica)
        replica.process.send_signal(signal.SIGKILL)
        with pytest.raises(TruncatedResponse):
            list(stream)
        assert transport.last is None
        # The engine does not outlive the process that holds the keys.
        worker.wait(5)
        with pytest.raises(UndecidedError):
            list(stream_chat(transport, HELLO))
        transport.close()


def _timed(transport: SealedTransport) -> float:
    began = time.monotonic()
    next(stream_chat(transport, HELLO, max_tokens=2))
    return time.monotonic() - began


@pytest.fixture
def slow(slow_replica: Replica) -> Iterator[SealedTransport]:
    transport = SealedTransport(slow_replica.url, slow_replica.policy)
    transport.verify()
    yield transport
    transport.close()


def test_a_client_that_goes_away_frees_the_slot(slow: SealedTransport) -> None:
    """On one slot: without cancellation the next request would wait for some 900 tokens."""
    usual = _timed(slow)
    stream = stream_chat(slow, HELLO, max_tokens=900)
    for _ in range(3):
        next(stream)
    stream.close()
    assert _timed(slow) < usual + 1.0


def test_a_client_that_goes_away_during_the_prompt_frees_the_slot(slow: SealedTransport, slow_replica: Replica) -> None:
    usual = _timed(slow)
    session = _attested(slow_replica)
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 900}], "max_tokens": 2}).encode()
    exchange = session.seal(bhttp.Request(method="POST", path="/v1/chat/completions", content=body), _now())
    with httpx2.Client() as client, pytest.raises(httpx2.ReadTimeout):
        client.post(slow_replica.url + exchange.request.path, content=exchange.request.body,
                    headers=dict(exchange.request.headers), timeout=0.2)  # fmt: skip
    assert _timed(slow) < usual + 1.0


def test_a_stopped_openai_stream_frees_the_slot_too(slow_replica: Replica, slow: SealedTransport) -> None:
    usual = _timed(slow)
    with cloister.http_client(slow_replica.url, policy=slow_replica.policy) as http:
        client = openai.OpenAI(base_url=f"{slow_replica.url}/v1", api_key="none", http_client=http)
        stream = client.chat.completions.create(model="gpt2-124m", messages=HELLO, max_tokens=900, stream=True)
        next(iter(stream))
        stream.close()
    assert _timed(slow) < usual + 1.0


def test_concurrent_streams_do_not_mix(replica: Replica) -> None:
    transport = SealedTransport(replica.url, replica.policy)
    transport.verify()

    def ask(number: int) -> str:
        asked = [
            {"role": "user", "content": f"Summarise: Patient Anna Linden, MRN 55{number:05}. {20 + number} years."}
        ]
        return "".join(stream_chat(transport, asked, temperature=0, max_tokens=40))

    alone = [ask(number) for number in range(16)]
    assert len(set(alone)) > 8
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(16))) == alone
    transport.close()


def test_the_replica_leaves_no_core_dump(replica: Replica) -> None:
    limits = Path(f"/proc/{replica.process.pid}/limits").read_text()
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]


def test_the_replica_ends_cleanly(tmp_path: Path) -> None:
    with run_replica(tmp_path / "clean") as replica:
        worker = _worker(replica)
        replica.process.terminate()
        assert replica.process.wait(15) == 0
        worker.wait(5)
        assert "Traceback" not in replica.log.read_text()
        assert not os.path.exists(f"/proc/{worker.pid}") or not worker.is_running()
