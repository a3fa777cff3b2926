"""An emulated enclave for tests: as `cloister up` runs it, or part by part, so that a test can break one of them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import cloister
from cloister.channel.bundle import MAX_BUNDLE
from cloister.cli import up
from cloister.client.fetch import challenge
from cloister.image import build
from cloister.image import config as settings
from cloister.platforms.platform import Launch
from cloister.platforms.qemu_nitro import lab
from cloister.platforms.qemu_nitro.platform import QemuNitro
from cloister.platforms.qemu_nitro.project import HOST, Project
from cloister.platforms.state import Processes, folder
from cloister.policy.document import Policy

NAME = "sealed-notes"
#: Seconds for anything inside a guest: TCG on a shared machine is slow.
PATIENCE = 900.0
marks = [
    pytest.mark.skipif(not lab.ready(), reason="the lab is not prepared (make lab): no enclave image is booted"),
    pytest.mark.timeout(2 * PATIENCE),
]


@contextlib.contextmanager
def home() -> Iterator[Path]:
    """A folder with all state of this user's enclaves. Its path is short: unix sockets have 108 bytes."""
    path = Path(tempfile.mkdtemp(prefix="clo-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(path / "s"))
        try:
            yield path
        finally:
            shutil.rmtree(path)


def run(*words: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The command line, from source."""
    path = {"PYTHONPATH": str(Path(cloister.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-m", "cloister", *words], env={**os.environ, **path, **(env or {})}, cwd=cwd,
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip


def until(happened: Callable[[], object], seconds: float = PATIENCE, every: float = 0.05) -> None:
    """Wait for it; the time limit is a failure."""
    limit = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(every)


def free_port() -> int:
    """A port of loopback for a process that has to come back at the same place."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def written(pid: int) -> int:
    """Bytes that a process has written to anything (proc(5))."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("wchar")).split()[1])


def processor_seconds(pid: int) -> float:
    """What a process has used of processors so far (proc(5)): the load of a shared machine does not change it much."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Enclave:
    """A project whose enclave `cloister up` started."""

    home: Path
    project: Path
    capture: Path
    up: dict = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.up["url"]

    @property
    def state(self) -> Path:
        return folder(NAME)

    @property
    def policy_file(self) -> Path:
        return Path(self.up["policy"])

    @property
    def policy(self) -> Policy:
        return Policy.from_toml(self.policy_file.read_bytes())

    def run(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return run(*words, cwd=self.project, env=env)

    def pid(self, name: str) -> int:
        return int((self.state / f"{name}.pid").read_text().split()[0])

    def start(self, *options: str) -> None:
        done = self.run("up", "--json", "--capture", str(self.capture), *options)
        assert done.returncode == 0, done.stderr + logs(self.home)
        self.up = json.loads(done.stdout)


def logs(home: Path) -> str:
    """The ends of all logs, for a failure's report."""
    return "\n".join(f"== {path}\n{path.read_text(errors='replace')[-2000:]}" for path in home.glob("s/**/*.log"))


@contextlib.contextmanager
def project(name: str = NAME, *options: str) -> Iterator[Enclave]:
    """A sealed model under a key of the SIMULATED KMS; whatever runs at the end is ended."""
    with home() as base:
        made = run("lab", "project", str(base / "project"), "--name", name, *options, cwd=base)
        assert made.returncode == 0, made.stderr
        try:
            yield Enclave(base, base / "project", base / "capture")
        finally:
            run("down", name, cwd=base)


class Parts:
    """The same enclave part by part: KMS, agent and machine are started, stopped and lied through by a test."""

    def __init__(self, enclave: Enclave) -> None:
        self.enclave = enclave
        self.config = settings.load(enclave.project / "cloister.toml")
        self.name = self.config.name
        self.state = folder(self.name)
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.processes, self.machine = Processes(self.state), QemuNitro()
        self.project = Project(enclave.project)
        self.store = enclave.project / "store"
        self.sealed = self.store / f"{self.name}.sealed"
        self.built = build.build(self.config, self.state / "image")
        self.kms_port = self.project.start_kms(self.processes)
        self.port = free_port()
        self.allow(self.built.registers[0].hex())

    @property
    def key(self) -> str:
        assert isinstance(self.config.release, settings.KmsSettings)
        return self.config.release.key

    def allow(self, pcr0: str) -> None:
        """Let the key policy release to that image."""
        self.project.allow(self.kms_port, self.key, pcr0)

    def agent(self, kms_port: int | None = None) -> int:
        """Start the parent agent, always at the same address; its process."""
        (self.state / "host.toml").write_text(
            f'listen = "127.0.0.1:{self.port}"\nuds = "{self.machine.uds(self.name)}"\nheartbeat = true\n'
            f'store = "{self.store}"\ncredentials = "{self.project.write_credentials()}"\n'
            f'capture = "{self.enclave.capture}"\n'
            f'egress = {json.dumps(list(self.config.egress))}\n[resolve]\n'
            f'"{HOST}:443" = "127.0.0.1:{kms_port or self.kms_port}"\n'
        )  # fmt: skip
        words = [sys.executable, "-m", "cloister.host.agent", "--config", str(self.state / "host.toml")]
        self.processes.start("agent", words, ready=30)
        return int((self.state / "agent.pid").read_text().split()[0])

    def boot(self, image: Path | None = None, memory_mib: int | None = None) -> None:
        """Start the machine."""
        memory = memory_mib or self.config.memory_mib
        self.machine.start(Launch(name=self.name, image=image or self.built.image, memory_mib=memory, cpus=1))

    def console(self) -> str:
        """What the guest said so far; QEMU makes the file a moment after its start."""
        return "\n".join(self.machine.console(self.name)) if (self.state / "console").exists() else ""

    def says(self, words: str) -> None:
        """Wait until the guest's console has those words; the guest's end is a failure, with its last lines."""

        def said() -> bool:
            alive = self.machine.find(self.name) is not None
            if words in self.console():
                return True
            assert alive, self.console()[-1500:]
            return False

        until(said)

    def refuses(self) -> str:
        """Wait until the machine has ended by itself; what the enclave said last, and never that it serves."""
        until(lambda: self.machine.find(self.name) is None)
        console = self.console()
        assert "cloister: serving" not in console
        said = [line for line in console.splitlines() if line.startswith(("init: ", "cloister: "))]
        return "\n".join(said[-2:])

    def stop(self) -> None:
        """End machine, devices and agent; KMS stays."""
        self.processes.stop("agent", "qemu", "vsock", "nsm")

    def policy(self, measurements: dict[str, str]) -> Policy:
        """What `cloister up` writes for what serves here, if it has those registers; raises what the verifier raises."""
        root = self.machine.root_pem()
        first = up._first(self.name, measurements, root)
        evidence = (*challenge(f"http://127.0.0.1:{self.port}", first, limit=MAX_BUNDLE), first)
        return Policy.from_toml(up._policy(self.name, evidence, measurements, root)[0].encode())


@contextlib.contextmanager
def parts(enclave: Enclave) -> Iterator[Parts]:
    """Parts, all ended with the block."""
    made = Parts(enclave)
    try:
        yield made
    finally:
        made.stop()
        made.processes.stop("kms")
