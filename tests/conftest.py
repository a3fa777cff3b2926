"""Fixtures shared by all tests."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from cloister.policy.document import Policy
from tools import random_gguf

VECTORS = Path(os.environ.get("CLOISTER_VECTORS", Path(__file__).parents[1].parent / "shared" / "vectors"))


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The folder of published and collected test vectors; they are not part of the project."""
    if not VECTORS.is_dir():
        pytest.skip(f"no vectors at {VECTORS} (set CLOISTER_VECTORS)")
    return VECTORS


# A shared machine may be slow: neither time per example nor slow generation is a failure.
settings.register_profile("cloister", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("cloister")

# Output must reach a pipe by itself, as it has to on a machine that does not set this.
os.environ.pop("PYTHONUNBUFFERED", None)


@dataclass
class Replica:
    """A real `cloister serve` process."""

    process: subprocess.Popen[str]
    url: str
    policy_file: Path
    log: Path
    ready: dict

    @property
    def policy(self) -> Policy:
        """The policy that it wrote for itself."""
        return Policy.from_toml(self.policy_file.read_bytes())

    @property
    def port(self) -> int:
        """Where it listens on loopback."""
        return int(self.url.rpartition(":")[2])


@contextlib.contextmanager
def run_replica(folder: Path, *options: str, env: dict[str, str] | None = None) -> Iterator[Replica]:
    """Start a replica, wait until it serves, end it with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    policy, log = folder / "policy.toml", folder / "replica.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "cloister", "serve", "--listen", "127.0.0.1:0", "--json",
                "--write-policy", str(policy), *options,
            ],
            stdout=subprocess.PIPE, stderr=stderr, text=True, env=env,
        )  # fmt: skip
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, log.read_text()
        ready = json.loads(line)
        yield Replica(process, ready["url"], policy, log, ready)
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


@pytest.fixture(scope="session")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    """A replica with the bundled model, shared by tests that do not harm it."""
    with run_replica(tmp_path_factory.mktemp("replica")) as running:
        yield running


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight GGUF of GPT-2 124M's true shape: not the project's own model, and slow enough to stop."""
    path = tmp_path_factory.mktemp("models") / "gpt2-124m.gguf"
    random_gguf.write("gpt2-124m", path)
    return path


@pytest.fixture(scope="session")
def slow_replica(tmp_path_factory: pytest.TempPathFactory, gpt2: Path) -> Iterator[Replica]:
    """A one-slot replica of the GPT-2 shape."""
    with run_replica(
        tmp_path_factory.mktemp("slow"), "--model", str(gpt2), "--slots", "1", "--threads", "1"
    ) as running:
        yield running
