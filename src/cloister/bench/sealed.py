"""The sealed path against llama.cpp's own HTTP server: same model file, threads, slots and prompts, in turns."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2

from cloister.client.transport import AsyncSealedTransport
from cloister.enclave.engine.config import EngineConfig
from cloister.enclave.engine.gguf import read_header
from cloister.errors import UsageError
from cloister.policy.document import Policy

#: A connection for each request, on both sides: llama.cpp's server drops kept connections as it likes.
ONE_REQUEST = httpx2.Limits(max_keepalive_connections=0)


@dataclass(frozen=True, kw_only=True)
class Round:
    """One run of some streams: tokens per second over all, seconds to the first token (median over the streams)."""

    rate: float
    first: float


@contextlib.contextmanager
def _started(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(  # noqa: S603 - our own modules
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise UsageError("a server of the benchmark did not start")
        yield process, line
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


@contextlib.contextmanager
def servers(model: Path, threads: int) -> Iterator[tuple[str, AsyncSealedTransport, subprocess.Popen[str]]]:
    """The plain server's address, a transport to a replica of the same model, and the replica's process."""
    with model.open("rb") as file:
        resolved = EngineConfig(model=model, threads=threads).resolve(read_header(file, model.stat().st_size))
    config = {name: getattr(resolved, name) for name in ("model_id", "context", "slots", "threads", "batch")}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        policy = Path(folder) / "policy.toml"
        _, line = stack.enter_context(_started("-m", "cloister.bench.plain", json.dumps(config), str(model), str(port)))
        plain = line.strip()
        process, line = stack.enter_context(
            _started(
                "-m", "cloister", "serve", "--model", str(model), "--threads", str(threads), "--listen", "127.0.0.1:0",
                "--json", "--write-policy", str(policy),
            )
        )  # fmt: skip
        transport = AsyncSealedTransport(
            json.loads(line)["url"],
            Policy.from_toml(policy.read_bytes()),
            inner=httpx2.AsyncHTTPTransport(limits=ONE_REQUEST),
        )
        yield plain, transport, process


async def _stream(client: httpx2.AsyncClient, url: str, number: int, tokens: int) -> tuple[int, float]:
    """Chunks with content, and seconds to the first."""
    body = {
        "messages": [{"role": "user", "content": f"question {number} of the benchmark"}],
        "stream": True, "max_tokens": tokens, "temperature": 1, "seed": number, "cache_prompt": False,
    }  # fmt: skip
    if client._transport.__class__ is AsyncSealedTransport:
        # The replica forces it off itself and refuses the field.
        del body["cache_prompt"]
    began, first, count = time.perf_counter(), 0.0, 0
    async with client.stream("POST", url, json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {") and '"content":' in line:
                first = first or time.perf_counter() - began
                count += 1
    return count, first


async def _round(client: httpx2.AsyncClient, url: str, streams: int, tokens: int) -> Round:
    began = time.perf_counter()
    results = await asyncio.gather(*(_stream(client, url, number, tokens) for number in range(streams)))
    took = time.perf_counter() - began
    return Round(rate=sum(count for count, _ in results) / took, first=statistics.median(first for _, first in results))


async def compare(model: Path, threads: int, *, rounds: int, tokens: int) -> list[dict[str, float]]:
    """One row for each number of streams; ratios are medians of the pairs' ratios."""
    rows = []
    with servers(model, threads) as (plain_url, transport, process):
        plain_client = httpx2.AsyncClient(timeout=600, trust_env=False, limits=ONE_REQUEST)
        sealed_client = httpx2.AsyncClient(transport=transport, timeout=600, trust_env=False)
        sealed_url = str(transport.address.join("/v1/chat/completions"))
        plain_url = f"{plain_url.rstrip('/')}/v1/chat/completions"
        async with plain_client, sealed_client:
            for streams in (1, 4, 16):
                await _round(plain_client, plain_url, streams, 8)
                await _round(sealed_client, sealed_url, streams, 8)
                pairs = []
                for number in range(rounds):
                    # Who goes first alternates, so that a drift of the machine favours nobody.
                    if number % 2:
                        sealed = await _round(sealed_client, sealed_url, streams, tokens)
                        plain = await _round(plain_client, plain_url, streams, tokens)
                    else:
                        plain = await _round(plain_client, plain_url, streams, tokens)
                        sealed = await _round(sealed_client, sealed_url, streams, tokens)
                    pairs.append((plain, sealed))
                rows.append(
                    {
                        "streams": streams,
                        "plain_tokens_per_s": statistics.median(plain.rate for plain, _ in pairs),
                        "sealed_tokens_per_s": statistics.median(sealed.rate for _, sealed in pairs),
                        "ratio": statistics.median(sealed.rate / plain.rate for plain, sealed in pairs),
                        "plain_first_ms": 1000 * statistics.median(plain.first for plain, _ in pairs),
                        "sealed_first_ms": 1000 * statistics.median(sealed.first for _, sealed in pairs),
                        "added_first_ms": 1000 * statistics.median(s.first - p.first for p, s in pairs),
                    }
                )
            rows.append({"gateway_rss_mb": _rss(process.pid)})
    return rows


def _rss(pid: int) -> float:
    """Resident memory of a process in MB, its children not counted."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1000
