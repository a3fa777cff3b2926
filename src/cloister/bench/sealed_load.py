"""How fast sealed weights arrive and open, against the bare pipe in the same run; and how much memory that takes.

    python -m cloister.bench.sealed_load --model FILE.gguf

The store is the real parent agent in a process of its own, over unix sockets; the key is one of this run.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.api.requests import CompletionRequest, Sampling
from cloister.enclave import model, net
from cloister.enclave.engine.config import EngineConfig
from cloister.enclave.engine.supervisor import LlamaEngine
from cloister.weights.keys import KEY_BYTES, WrappedKey
from cloister.weights.seal import seal
from cloister.wire.ports import STORE

NAME = "bench"
CONTEXT = 256
SAMPLE_SECONDS = 0.01


class OwnKey:
    """Wraps and releases one key without a service."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(KEY_BYTES)

    def generate(self, context: Mapping[str, str]) -> tuple[bytes, WrappedKey]:
        """The key."""
        return self._key, WrappedKey(service="none", key_id="none", ciphertext=b"", context=dict(context))

    def release(self, wrapped: WrappedKey) -> bytes:
        """The key."""
        del wrapped
        return self._key


@contextmanager
def agent(folder: Path, store: Path) -> Iterator[net.Dial]:
    """The parent agent with a model store; ends with the block."""
    config = folder / "host.toml"
    config.write_text(f'listen = "127.0.0.1:0"\nuds = "{folder / "v"}"\nstore = "{store}"\n')
    process = subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", "cloister.host.agent", "--config", str(config)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        process.stdout.readline()
        yield net.hybrid(folder / "v")
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def pipe(dial: net.Dial, file: str) -> int:
    """Fetch the whole file into one small buffer; its bytes."""
    connection, buffer, size = http.client.HTTPConnection("parent"), bytearray(1 << 20), 0
    connection.sock = dial(STORE)
    try:
        connection.request("GET", f"/models/{file}")
        answer = connection.getresponse()
        while got := answer.readinto(buffer):
            size += got
    finally:
        connection.close()
    return size


class Memory:
    """The largest sum, while the block runs, of the processes' private memory and of the memory files of weights."""

    def __init__(self, processes: Callable[[], list[int]]) -> None:
        self._processes = processes
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.peak = 0

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()

    def now(self) -> int:
        """Bytes at this moment."""
        return sum(map(_private, self._processes())) + _memory_files()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, self.now())


def _private(pid: int) -> int:
    """RssAnon of a process in bytes (proc(5))."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def _memory_files() -> int:
    """Bytes in this process's memory files (memfd_create(2)) of weights, mapped or not, each counted once."""
    sizes: dict[int, int] = {}
    for link in Path("/proc/self/fd").iterdir():
        try:
            if str(link.readlink()).startswith("/memfd:weights"):
                status = link.stat()
                sizes[status.st_ino] = status.st_blocks * 512
        except OSError:
            continue
    return sum(sizes.values())


def run(source: Path, rounds: int) -> dict[str, float]:
    """MB/s and MB (10^6 bytes)."""
    size, key, owner = source.stat().st_size, OwnKey(), Ed25519PrivateKey.generate()

    def rate(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        return size / 1e6 / (time.perf_counter() - began)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "store").mkdir()
        target = folder / "store" / f"{NAME}.sealed"
        sealing = rate(lambda: seal(source, target, model=NAME, version=1, owner=owner, wrapper=key))
        with agent(folder, folder / "store") as dial:

            def load() -> model.Opened:
                return model.fetch(
                    dial, target.name, model=NAME, owner=owner.public_key(), minimum_version=1, release=key
                )

            bare, sealed = [], []
            for _ in range(rounds):
                bare.append(rate(lambda: pipe(dial, target.name)))
                sealed.append(rate(lambda: os.close(load().descriptor)))
            peak, steady = asyncio.run(_serve(load))
    return {
        "weights_mb": size / 1e6,
        "seal_mb_s": sealing,
        "pipe_mb_s": statistics.median(bare),
        "sealed_load_mb_s": statistics.median(sealed),
        "ratio": statistics.median(one / other for one, other in zip(sealed, bare, strict=True)),
        "peak_mb": peak / 1e6,
        "steady_mb": steady / 1e6,
    }


async def _serve(load: Callable[[], model.Opened]) -> tuple[int, int]:
    """Peak and final bytes over loading, starting the engine on the result and one answer."""
    engines: list[LlamaEngine] = []

    def processes() -> list[int]:
        return [os.getpid(), *(engine.pid for engine in engines if engine.pid is not None)]

    with Memory(processes) as memory:
        opened = await asyncio.to_thread(load)
        config = EngineConfig(
            model=Path(opened.path), model_sha256=opened.manifest.sha256, one_copy=True, context=CONTEXT, slots=1
        )
        engines.append(LlamaEngine(config))
        await engines[0].start()
        try:
            sampling = Sampling(max_tokens=8)
            await engines[0].call(
                CompletionRequest(model=None, prompt="a", sampling=sampling, stream=False, include_usage=False)
            )
            steady = memory.now()
        finally:
            await engines[0].stop()
            os.close(opened.descriptor)
    return memory.peak, steady


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m cloister.bench.sealed_load")
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    result = {"schema": "cloister-bench-load/1", "model": options.model.name}
    figures = {name: round(value, 3) for name, value in run(options.model, options.rounds).items()}
    print(json.dumps(result | figures))  # noqa: T201 - this is the output


if __name__ == "__main__":
    main()
