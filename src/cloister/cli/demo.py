"""`cloister demo`: the main job from end to end on this machine, and what the relay in between saw of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.rule import Rule
from rich.text import Text

from cloister.cli import show
from cloister.cli.chat import stream_chat
from cloister.client.transport import SealedTransport
from cloister.errors import ReceiptError, UsageError

PROMPT = (
    "Redact this note: Patient Maria Holden, DOB 12 March 1961, MRN 4471902. 64-year-old woman with "
    "atrial fibrillation. Seen on 2025-11-03 by Dr Pettersson. Started apixaban 5 mg twice daily. "
    "Plan: refer to cardiology."
)
#: What must never be seen on the way.
SECRETS = ("Maria", "Holden", "4471902", "apixaban", "cardiology", "[NAME]")
ROUNDS = 7


@contextlib.contextmanager
def _process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A child process and the first line it prints; it is ended with the block."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own modules
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise UsageError("a part of the demo did not start", hint="Its reason is above.")
        yield process, line
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


@show.guarded
def demo(
    model: Annotated[Path | None, typer.Option(help="A GGUF file instead of the bundled demo model.")] = None,
    prompt: Annotated[str, typer.Argument(help="What to ask.")] = PROMPT,
    platform: Annotated[str, typer.Option(help="Where the replica runs: local.")] = "local",
    via: Annotated[str | None, typer.Option(help="Who looks at the evidence first: ita, a SIMULATED one.")] = None,
) -> None:
    """Start a replica and a blind relay, verify, ask, stream, and show what the relay saw."""
    if platform != "local":
        raise UsageError("the demo runs on the platform local", hint="For another: cloister up --platform NAME.")
    if via not in (None, "ita"):
        raise UsageError("the demo has no such verification service", hint="--via ita, or nothing.")
    try:
        import xllamacpp as _installed  # noqa: F401 - only to say so early
    except ImportError:
        raise UsageError("the engine is not installed", hint="pip install 'cloister[serve]'") from None
    with tempfile.TemporaryDirectory(prefix="cloister-demo-") as folder, contextlib.ExitStack() as stack:
        scratch = Path(folder)
        policy_file, seen = scratch / "policy.toml", scratch / "seen"
        chosen = ["--model", str(model)] if model is not None else []
        if via is not None:
            _title("0. A SIMULATED Intel Trust Authority starts")
            authority = scratch / "trust-authority"
            module = "cloister.platforms.local.trust_authority"
            _, line = stack.enter_context(_process("-m", module, "--state", str(authority)))
            show.stdout.print(f"{json.loads(line)['simulated']}; at {json.loads(line)['url']}")
            chosen += ["--evidence", via, "--trust-authority", str(authority)]
        _title("1. A replica starts: gateway, and llama.cpp in a process of its own")
        began = time.perf_counter()
        _, line = stack.enter_context(
            _process(
                "-m",
                "cloister",
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--json",
                "--write-policy",
                str(policy_file),
                *chosen,
            )
        )
        ready = json.loads(line)
        show.stdout.print(f"{ready['model']} at {ready['url']} after {time.perf_counter() - began:.1f} s")
        show.stdout.print(f"model file SHA-256 {ready['model_sha256']}")

        _title("2. A blind relay stands between client and replica")
        _, line = stack.enter_context(
            _process("-m", "cloister.host.relay", "--to", ready["url"].removeprefix("http://"), "--capture", str(seen))
        )
        _, host, port = line.split()
        address = f"http://{host}:{port}"
        show.stdout.print(f"at {address}; it keeps every byte that passes")

        evidence = "evidence" if via is None else "token, which the Trust Authority signed over its TDX quote"
        _title(f"3. The client verifies the replica's {evidence}, before anything is sent")
        transport = SealedTransport(address, show.load_policy(policy_file))
        began = time.perf_counter()
        verdict = transport.verify()
        verified_in = time.perf_counter() - began
        show.show_verdict(verdict)

        _title("4. The prompt is sealed to the attested key, the answer streams back")
        show.stdout.print(Text(f"> {prompt}", style="bold"))
        began = time.perf_counter()
        first = 0.0
        for piece in stream_chat(transport, [{"role": "user", "content": prompt}], temperature=0, max_tokens=400):
            first = first or time.perf_counter() - began
            sys.stdout.write(piece)
            sys.stdout.flush()
        took = time.perf_counter() - began
        print()
        if transport.last is None:
            raise ReceiptError("no receipt was checked")
        receipt = transport.last.receipt
        show.stdout.print(
            Text(f"receipt {receipt.number} under key {receipt.kid}: whole, in order, for this request", style="green")
        )

        _title("5. What it cost")
        show.stdout.print(f"verification           {verified_in * 1000:8.1f} ms (fetch, signature, chain, policy)")
        show.stdout.print(f"this first answer      {took * 1000:8.1f} ms, its first token after {first * 1000:.1f} ms")
        _added(model, transport, prompt, receipt.usage.get("completion_tokens", 0))

        _title("6. What the relay saw")
        stack.close()
        _glimpse(seen, prompt)
        transport.close()
    _title("Done")
    show.simulated_banner(show.stdout)
    show.stdout.print("The same verifier, policy and channel run against real evidence; only who signs it differs.")


def _title(text: str) -> None:
    show.stdout.print()
    show.stdout.print(Rule(Text(text, style="bold"), align="left"))


def _added(model: Path | None, transport: SealedTransport, prompt: str, tokens: int) -> None:
    """The same question to the sealed path and straight to an engine of the same model, in turns; medians."""
    (direct_first, direct_all), (sealed_first, sealed_all) = asyncio.run(_direct_and_sealed(model, transport, prompt))
    show.stdout.print(f"time to first token    {sealed_first * 1000:8.1f} ms (median of {ROUNDS} further answers)")
    rate = (tokens - 1) / (sealed_all - sealed_first)
    show.stdout.print(f"tokens per second      {rate:8.0f}    ({tokens} tokens)")
    show.stdout.print(f"the sealed path added  {(sealed_first - direct_first) * 1000:8.1f} ms to the first token")
    show.stdout.print(
        f"                       {(sealed_all - direct_all) * 1000:8.1f} ms to the whole answer"
        f" ({direct_all * 1000:.1f} ms without; medians of {ROUNDS} pairs in turn)"
    )


async def _direct_and_sealed(
    model: Path | None, transport: SealedTransport, prompt: str
) -> tuple[tuple[float, float], tuple[float, float]]:
    from cloister.api.requests import parse_chat
    from cloister.enclave.engine.config import BUNDLED_MODEL, EngineConfig
    from cloister.enclave.engine.supervisor import LlamaEngine

    messages = [{"role": "user", "content": prompt}]
    body = json.dumps({"messages": messages, "stream": True, "temperature": 0, "max_tokens": 400}).encode()
    engine = LlamaEngine(EngineConfig(model=model or BUNDLED_MODEL))
    await engine.start()

    async def direct() -> tuple[float, float]:
        began, first = time.perf_counter(), 0.0
        async for _ in engine.stream(parse_chat(body)):
            first = first or time.perf_counter() - began
        return first, time.perf_counter() - began

    def sealed() -> tuple[float, float]:
        began, first = time.perf_counter(), 0.0
        for _ in stream_chat(transport, messages, temperature=0, max_tokens=400):
            first = first or time.perf_counter() - began
        return first, time.perf_counter() - began

    try:
        pairs = [(await direct(), await asyncio.to_thread(sealed)) for _ in range(ROUNDS)]
    finally:
        await engine.stop()
    return (
        (statistics.median(d[0] for d, _ in pairs), statistics.median(d[1] for d, _ in pairs)),
        (statistics.median(s[0] for _, s in pairs), statistics.median(s[1] for _, s in pairs)),
    )


def _glimpse(seen: Path, prompt: str) -> None:
    files = sorted(seen.iterdir())
    everything = b"".join(file.read_bytes() for file in files)
    words = [word for word in (*SECRETS, prompt) if word.encode() in everything]
    show.stdout.print(f"{len(everything)} bytes in {len(files)} captured files; a glimpse of the question on its way:")
    up = next(file.read_bytes() for file in files if b"message/ohttp-chunked-req" in file.read_bytes())
    start = up.index(b"POST /.well-known/ohttp-gateway")
    head, _, body = up[start:].partition(b"\r\n\r\n")
    for text in head.decode("latin-1").split("\r\n"):
        show.stdout.print(Text(f"  {text}", style="dim"))
    for at in range(0, 96, 16):
        piece = body[1160 + at : 1176 + at]
        show.stdout.print(Text(f"  {1160 + at:06x}  {piece.hex(' ')}", style="cyan"))
    if words:
        raise ReceiptError(f"the relay saw {len(words)} of the words it must not see", hint="This is a bug: report it.")
    show.stdout.print(f"searched for {len(SECRETS)} words of question and answer: found none")
