"""The engine with the real llama.cpp in a real worker process."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from cloister.api import requests
from cloister.enclave.engine.config import BUNDLED_MODEL, EngineConfig
from cloister.enclave.engine.protocol import Progress
from cloister.enclave.engine.supervisor import LlamaEngine
from cloister.errors import ApiError, EngineCrashed, EngineError, ModelLoadError, UsageError
from tools import random_gguf

CANARY = "zanzibarquokka"
STRIPPED = (
    b"timings",
    b"cached_tokens",
    b"prompt_tokens_details",
    b"system_fingerprint",
    b"prompt_progress",
    b"__verbose",
)


def chat(text: str = "hello", **options: object) -> requests.ChatRequest:
    body = {"messages": [{"role": "user", "content": text}], "temperature": 0, **options}
    return requests.parse_chat(json.dumps(body).encode())


@pytest.fixture
async def engine() -> AsyncIterator[LlamaEngine]:
    running = LlamaEngine(EngineConfig(model=BUNDLED_MODEL, slots=2, queue=2))
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
async def slow(gpt2: Path) -> AsyncIterator[LlamaEngine]:
    running = LlamaEngine(EngineConfig(model=gpt2, slots=1, threads=1, queue=1))
    await running.start()
    yield running
    await running.stop()


async def test_start_reports_progress_and_says_what_was_loaded() -> None:
    import hashlib

    seen: list[Progress] = []
    engine = LlamaEngine(EngineConfig(model=BUNDLED_MODEL, model_id="notes"))
    assert engine.state == "stopped"
    with pytest.raises(EngineError):
        _ = engine.info
    await engine.start(seen.append)
    assert [progress.stage for progress in seen][-2:] == ["loading", "warming"]
    assert any(progress.stage == "hashing" and progress.done == 1 for progress in seen)
    info = engine.info
    assert info.model_sha256 == hashlib.sha256(BUNDLED_MODEL.read_bytes()).hexdigest()
    assert (info.model_id, info.architecture, info.parameters) == ("notes", "llama", 1_435_040)
    assert engine.state == "ready"
    worker = psutil.Process(engine.pid)
    await engine.stop()
    assert engine.state == "stopped"
    assert not worker.is_running()
    assert engine._process is not None
    assert engine._process.returncode == 0  # it ended by itself, told to


async def test_streams_and_calls_agree_and_carry_only_the_apis_fields(engine: LlamaEngine) -> None:
    chunks = [chunk async for batch in engine.stream(chat(stream=True)) for chunk in batch]
    parsed = [json.loads(chunk) for chunk in chunks]
    text = "".join(choice["delta"].get("content") or "" for chunk in parsed for choice in chunk["choices"])
    assert parsed[0]["choices"][0]["delta"]["role"] == "assistant"
    assert parsed[-1]["choices"] == []
    assert parsed[-1]["usage"]["completion_tokens"] > 5
    assert {chunk["model"] for chunk in parsed} == {"cloister-notes"}
    whole = await engine.call(chat())
    answer = json.loads(whole)
    assert answer["choices"][0]["message"]["content"] == text
    assert answer["usage"] == parsed[-1]["usage"]
    completion = json.loads(await engine.call(requests.parse_completion(b'{"prompt":"Patient","max_tokens":3}')))
    assert completion["object"] == "text_completion"
    vectors = json.loads(await engine.call(requests.parse_embedding(b'{"input":["a","b"]}')))
    assert [item["index"] for item in vectors["data"]] == [0, 1]
    for field in STRIPPED:
        assert field not in b"".join([*chunks, whole])


async def test_json_mode_gives_json(engine: LlamaEngine) -> None:
    answer = json.loads(
        await engine.call(chat("hello", response_format={"type": "json_object"}, max_tokens=60, seed=1))
    )
    assert answer["choices"][0]["message"]["content"].lstrip().startswith("{")


async def test_another_tenants_prompt_leaves_no_trace_in_usage(engine: LlamaEngine) -> None:
    prompt = "Redact this note: Patient Anna Linden, MRN 5512093. 47-year-old woman with asthma."
    first = json.loads(await engine.call(chat(prompt, max_tokens=2)))
    again = json.loads(await engine.call(chat(prompt, max_tokens=2)))
    assert first["usage"] == again["usage"]
    assert set(first["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens"}


async def test_errors_are_fixed_texts(engine: LlamaEngine) -> None:
    with pytest.raises(ApiError) as caught:
        await engine.call(chat(f"{CANARY} " * 2000))
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(ApiError) as caught:
        await engine.call(requests.parse_embedding(json.dumps({"input": f"{CANARY} " * 600}).encode()))
    assert caught.value.code == "input_too_long"
    assert CANARY not in str(caught.value)
    assert json.loads(await engine.call(chat()))["choices"]


async def test_too_many_waiting_requests_are_turned_away(slow: LlamaEngine) -> None:
    running = slow.stream(chat(max_tokens=400, stream=True))
    await anext(running)
    waiting = asyncio.create_task(slow.call(chat(max_tokens=1)))
    await asyncio.sleep(0)
    with pytest.raises(ApiError) as caught:
        await slow.call(chat(max_tokens=1))
    assert (caught.value.status, caught.value.code) == (429, "overloaded")
    await running.aclose()
    assert json.loads(await waiting)["usage"]["completion_tokens"] == 1


async def test_cancelling_frees_the_slot_within_a_second(slow: LlamaEngine) -> None:
    loop = asyncio.get_running_loop()
    long_prompt, many_tokens = chat("x" * 900, max_tokens=5), chat(max_tokens=900)
    for request, patience in ((many_tokens, 0.3), (long_prompt, 0.15)):
        task = asyncio.create_task(slow.call(request))
        await asyncio.wait((task,), timeout=patience)
        assert not task.done()
        task.cancel()
        began = loop.time()
        await asyncio.gather(task, return_exceptions=True)
        await slow.call(chat(max_tokens=1))
        assert loop.time() - began < 1.5
    worker = psutil.Process(slow.pid)
    before = sum(worker.cpu_times()[:2])
    await asyncio.sleep(0.5)
    assert sum(worker.cpu_times()[:2]) - before < 0.2  # idle: nothing goes on for nobody


async def test_a_killed_worker_fails_its_requests_and_is_replaced(engine: LlamaEngine) -> None:
    first = engine.pid
    assert first is not None
    stream = engine.stream(chat("hello", temperature=2, max_tokens=900, stream=True))
    await anext(stream)
    os.kill(first, 9)
    with pytest.raises(EngineCrashed):
        async for _ in stream:
            pass
    assert json.loads(await engine.call(chat()))["choices"]
    assert engine.pid != first


def _gguf(version: int = 3, tensors: int = 1) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, 0)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not GGUF"),
        (b"hello world", "not GGUF"),
        (_gguf(1), "version"),
        (_gguf(), "cut short"),
        (_gguf(tensors=0), "no tensors"),
        (_gguf(tensors=1 << 60), "impossible"),
        (BUNDLED_MODEL.read_bytes()[:-100], "cut short"),
        (BUNDLED_MODEL.read_bytes()[:1000], "cut short"),
        (BUNDLED_MODEL.read_bytes().replace(b"llama.block_count", b"llama.block_counT"), "cannot load"),
    ],
)
async def test_files_that_are_no_model(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    engine = LlamaEngine(EngineConfig(model=path))
    with pytest.raises(ModelLoadError, match=reason):
        await engine.start()
    assert engine.state == "failed"


async def test_a_missing_file() -> None:
    with pytest.raises(ModelLoadError, match="open"):
        await LlamaEngine(EngineConfig(model=Path("/nonexistent/model.gguf"))).start()


@pytest.mark.parametrize(
    "options",
    [{"slots": 0}, {"batch": 0}, {"threads": 0}, {"context": -1}, {"queue": -1}, {"model_id": ""}, {"model_id": "a\n"}],
)
def test_parameters_that_would_abort_the_worker_never_reach_it(options: dict) -> None:
    with pytest.raises(UsageError):
        EngineConfig(model=BUNDLED_MODEL, **options)


async def test_a_context_beyond_the_models_is_refused() -> None:
    with pytest.raises(UsageError, match="1024"):
        await LlamaEngine(EngineConfig(model=BUNDLED_MODEL, context=4096)).start()


async def test_nobody_can_reach_the_workers_listener_or_see_its_prompts(engine: LlamaEngine, tmp_path: Path) -> None:
    await engine.call(chat(f"Redact this note: Patient {CANARY}.", max_tokens=20))
    worker = psutil.Process(engine.pid)
    assert worker.net_connections("inet") == []
    for connection in worker.net_connections("unix"):
        if connection.laddr:
            # Bound to a name that is gone: connecting fails.
            with socket.socket(socket.AF_UNIX) as probe, pytest.raises(OSError, match="No such file|refused"):
                probe.connect(connection.laddr)
    assert CANARY not in " ".join(worker.cmdline())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look into a process that forbids it")
async def test_the_worker_has_no_environment_no_standard_streams_and_no_core_dumps(engine: LlamaEngine) -> None:
    worker = psutil.Process(engine.pid)
    assert set(worker.environ()) <= {"LANG", "OMP_WAIT_POLICY", "LC_CTYPE"}
    targets = {os.readlink(f"/proc/{engine.pid}/fd/{fd}") for fd in (0, 1, 2)}
    assert targets == {"/dev/null"}
    limits = Path(f"/proc/{engine.pid}/limits").read_text()
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]


async def test_a_random_model_of_another_architecture(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    random_gguf.write("gpt2-tiny", path)
    engine = LlamaEngine(EngineConfig(model=path, context=256))
    await engine.start()
    assert (engine.info.architecture, engine.info.context) == ("gpt2", 256)
    answer = json.loads(await engine.call(chat(max_tokens=4)))
    assert answer["usage"]["completion_tokens"] == 4
    await engine.stop()
