"""A real image in a real virtual machine: built, booted, its key released, its model opened, asked, broken.

Runs where `make lab` was run; the evidence is SIMULATED, everything else is what runs on EC2.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import cloister
from cloister.errors import CloisterError
from cloister.image import eif
from cloister.platforms.platform import Launch
from cloister.platforms.qemu_nitro import lab
from cloister.policy.document import Policy

PROMPT = "Redact: Zebulon Quixworth, SSN 987-65-4321, seen today."
CANARIES = (b"Quixworth", b"987-65-4321")
pytestmark = [
    pytest.mark.skipif(not lab.ready(), reason="the lab is not prepared (make lab): no enclave image is booted"),
    pytest.mark.timeout(300),
]


@dataclass
class Enclave:
    """What `cloister up` said, and where things lie."""

    up: dict
    home: Path
    project: Path
    capture: Path
    env: dict[str, str]

    @property
    def url(self) -> str:
        return self.up["url"]

    @property
    def state(self) -> Path:
        return Path(self.up["policy"]).parent

    @property
    def policy(self) -> Policy:
        return Policy.from_toml(Path(self.up["policy"]).read_bytes())

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return _run(words, self.env, self.project)

    def pid(self, name: str) -> int:
        return int((self.state / f"{name}.pid").read_text().split()[0])


def _run(words: tuple[str, ...], env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cloister", *words], env=env, cwd=cwd, capture_output=True, text=True, timeout=250
    )


@pytest.fixture(scope="module")
def enclave() -> Iterator[Enclave]:
    """A sealed model under a key of the SIMULATED KMS, in a booted image. Short paths: unix sockets have 108 bytes."""
    home = Path(tempfile.mkdtemp(prefix="clo-"))
    env = {**os.environ, "XDG_STATE_HOME": str(home / "s"), "PYTHONPATH": str(Path(cloister.__file__).parents[1])}
    project, capture = home / "project", home / "capture"
    try:
        made = _run(("lab", "project", str(project)), env, home)
        assert made.returncode == 0, made.stderr
        done = _run(("up", "--json", "--capture", str(capture)), env, project)
        assert done.returncode == 0, done.stderr + _logs(home)
        yield Enclave(json.loads(done.stdout), home, project, capture, env)
    finally:
        _run(("down", "sealed-notes"), env, home)
        shutil.rmtree(home)


def _logs(home: Path) -> str:
    return "\n".join(f"== {path}\n{path.read_text(errors='replace')[-2000:]}" for path in home.glob("s/**/*.log"))


def test_verified_by_predicted_measurements(enclave: Enclave) -> None:
    done = enclave.run(
        "verify", enclave.url, "--policy", enclave.up["policy"], "--measurements", enclave.up["measurements"], "--json"
    )
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    predicted = json.loads(Path(enclave.up["measurements"]).read_text())["measurements"]
    assert {name.upper(): value for name, value in verdict["measurements"].items()}.items() >= predicted.items()
    # PCR4 is the parent's and is there too: what the security module says, not what we sent it.
    assert int(verdict["measurements"]["pcr4"], 16)
    assert verdict["simulated"] is True


def test_other_measurements_are_refused(enclave: Enclave, tmp_path: Path) -> None:
    document = json.loads(Path(enclave.up["measurements"]).read_text())
    pcr2 = document["measurements"]["PCR2"]
    document["measurements"]["PCR2"] = f"{int(pcr2, 16) ^ 1:096x}"
    file = tmp_path / "measurements.json"
    file.write_text(json.dumps(document))
    done = enclave.run("verify", enclave.url, "--policy", enclave.up["policy"], "--measurements", str(file))
    assert done.returncode == 5
    assert "PCR2" in done.stderr


def test_a_policy_one_bit_away_refuses(enclave: Enclave, tmp_path: Path) -> None:
    pcr0 = json.loads(Path(enclave.up["measurements"]).read_text())["measurements"]["PCR0"]
    text = Path(enclave.up["policy"]).read_text()
    assert pcr0 in text
    file = tmp_path / "policy.toml"
    file.write_text(text.replace(pcr0, f"{int(pcr0, 16) ^ (1 << 200):096x}"))
    done = enclave.run("chat", enclave.url, "--policy", str(file), PROMPT)
    assert done.returncode == 5, done.stdout
    assert not done.stdout


def test_sealed_streamed_chat_leaves_no_trace_at_the_parent(enclave: Enclave) -> None:
    done = enclave.run("chat", enclave.url, "--policy", enclave.up["policy"], PROMPT)
    assert done.returncode == 0, done.stderr
    answer = done.stdout.strip().encode()
    assert len(answer) > 20
    agent = Path(f"/proc/{enclave.pid('agent')}")
    seen = {path: path.read_bytes() for path in enclave.home.rglob("*") if path.is_file() and "image" not in path.parts}
    seen[agent / "mem"] = _memory(agent)
    carried = [path for path in seen if path.parent == enclave.capture and path.name.startswith("ingress")]
    assert sum(len(seen[path]) for path in carried) > 5000
    # The model in clear would hold its own vocabulary; the sealed file in the store must not.
    weights = (Path(cloister.__file__).parent / "enclave/engine/bundled/cloister-notes-q8_0.gguf").read_bytes()
    slices = [weights[at : at + 64] for at in range(4096, len(weights) - 64, len(weights) // 50)]
    slices = [piece for piece in slices if len(set(piece)) > 32]
    assert len(slices) > 20
    for path, data in seen.items():
        for canary in (*CANARIES, answer[:40]):
            assert canary not in data, f"{canary!r} in {path}"
        for piece in slices:
            assert piece not in data, f"weights in {path}"


def _memory(process: Path) -> bytes:
    found = []
    with (process / "mem").open("rb", buffering=0) as memory:
        for line in (process / "maps").read_text().splitlines():
            span, rights = line.split()[:2]
            start, end = (int(part, 16) for part in span.split("-"))
            if rights.startswith("rw") and "[v" not in line:
                with contextlib.suppress(OSError, ValueError):
                    memory.seek(start)
                    found.append(memory.read(end - start))
    assert sum(map(len, found)) > 1_000_000
    return b"".join(found)


def test_the_parent_agent_may_die_and_come_back(enclave: Enclave) -> None:
    os.kill(enclave.pid("agent"), signal.SIGKILL)
    gone = enclave.run("verify", enclave.url, "--policy", enclave.up["policy"])
    assert gone.returncode == 6, gone.stdout
    status = json.loads(enclave.run("status", "--json").stdout)["enclaves"]
    assert [(row["name"], row["agent"]) for row in status] == [("sealed-notes", False)]
    words = [sys.executable, "-m", "cloister.host.agent", "--config", str(enclave.state / "host.toml")]
    with subprocess.Popen(words, env=enclave.env, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        _, host, port = agent.stdout.readline().split()
        again = enclave.run("chat", f"http://{host}:{port}", "--policy", enclave.up["policy"], PROMPT)
        agent.terminate()
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip()


def test_the_enclave_may_die(enclave: Enclave) -> None:
    os.kill(enclave.pid("qemu"), signal.SIGKILL)
    limit = time.monotonic() + 10
    while enclave.run("status").stdout and time.monotonic() < limit:
        time.sleep(0.1)
    assert enclave.run("status").stdout == ""
    with pytest.raises(CloisterError), cloister.http_client(enclave.url, policy=enclave.policy) as client:
        client.get("/v1/models")


def test_launch_is_checked_before_anything_starts(enclave: Enclave) -> None:
    from cloister.platforms.qemu_nitro.platform import QemuNitro

    image = enclave.state / "image" / "sealed-notes.eif"
    with pytest.raises(CloisterError) as refused:
        QemuNitro().preflight(Launch(name="x", image=image, memory_mib=64, cpus=99, cid=2, debug=True, weights=1))
    for word in ("memory_mib", "cpus", "cid", "debug"):
        assert word in refused.value.message


def test_one_changed_bit_changes_the_registers(enclave: Enclave) -> None:
    built = eif.parse((enclave.state / "image" / "sealed-notes.eif").read_bytes())
    predicted = json.loads(Path(enclave.up["measurements"]).read_text())["measurements"]
    assert {f"PCR{index}": value.hex() for index, value in built.measurements().items()} == predicted
