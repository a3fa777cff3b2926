"""The supervisor with real processes: agent, a process that stands for the enclave, and clients over TCP."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from cloister.errors import UndecidedError
from cloister.host.supervise import FIRST_WAIT, LONGEST_WAIT, Budget

FAKE = Path(__file__).with_name("fake_enclave.py")
SECONDS = 40.0


@dataclass
class Parent:
    """A supervisor process and what it keeps."""

    process: subprocess.Popen[str]
    folder: Path
    port: int

    def status(self) -> dict:
        with contextlib.suppress(OSError):
            return json.loads((self.folder / "status.json").read_text())
        return {}

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS)

    def pid(self) -> int | None:
        """The enclave that answers; None while none does."""
        with contextlib.suppress(OSError), self.connect() as stream:
            stream.settimeout(3)
            stream.sendall(b"GET / HTTP/1.1\r\n\r\n")
            head, _, body = stream.recv(4096).partition(b"\r\n\r\n")
            return int(body) if head else None
        return None

    def errors(self) -> str:
        return (self.folder / "errors").read_text()

    def log(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "log" / "parent.supervisor.log").read_text().splitlines()]


def until(what: Callable[[], object], why: str) -> object:
    """The first value that is true."""
    limit = time.monotonic() + SECONDS
    while time.monotonic() < limit:
        if value := what():
            return value
        time.sleep(0.05)
    raise AssertionError(why)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="clo-") as name:
        yield Path(name)


def write(folder: Path, start: list[str], stop: list[str] | None = None, **settings: float) -> Path:
    table = {"boot_seconds": 20, "check_seconds": 0.2, "answer_seconds": 1, "misses": 2, **settings}
    lines = [
        'listen = "127.0.0.1:0"', f'uds = "{folder}/v"', 'name = "test"', f'log = "{folder}/log/parent.log"',
        "drain_seconds = 5", "[enclave]", f"start = {json.dumps(start)}", f"stop = {json.dumps(stop or [])}",
        f'status = "{folder}/status.json"', *(f"{name} = {value}" for name, value in table.items()),
    ]  # fmt: skip
    (folder / "host.toml").write_text("\n".join(lines) + "\n")
    return folder / "host.toml"


@contextlib.contextmanager
def supervised(config: Path) -> Iterator[Parent]:
    words = [sys.executable, "-m", "cloister.host.supervise", "--config", str(config)]
    # A file, not a pipe: an enclave that outlives its supervisor holds it open.
    with (config.parent / "errors").open("ab") as errors:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True)
    family: list[psutil.Process] = []
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening 127.0.0.1 "), (config.parent / "errors").read_text()
        yield Parent(process, config.parent, int(line.split()[2]))
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    finally:
        process.terminate()
        try:
            process.wait(SECONDS)
        finally:
            process.kill()
            process.stdout.close()
    # Whatever it started ends with it.
    assert psutil.wait_procs(family, timeout=SECONDS)[1] == []


def fake(folder: Path, *options: str) -> list[str]:
    return [sys.executable, str(FAKE), str(folder / "v"), *options]


def running(parent: Parent) -> bool:
    return parent.status().get("state") == "running"


def test_a_killed_enclave_is_followed_by_another(folder: Path) -> None:
    with supervised(write(folder, fake(folder))) as parent:
        until(lambda: running(parent), "it never ran")
        first = parent.pid()
        assert first
        with parent.connect() as old:
            old.sendall(b"GET /slow HTTP/1.1\r\n\r\n")
            assert old.recv(4096)
            os.kill(first, signal.SIGKILL)
            # Not a hang: the old stream ends, broken off in the middle of its body.
            with contextlib.suppress(ConnectionResetError):
                while piece := old.recv(4096):
                    assert not piece.endswith(b"ow\r\n")
        second = until(lambda: running(parent) and parent.status()["restarts"] and parent.pid(), "no other came")
        assert second != first
        assert parent.status()["restarts"] == 1
    assert parent.status()["state"] == "stopped"
    events = [(line["event"], line.get("reason")) for line in parent.log() if line["event"] != "supervisor"]
    assert events == [
        ("supervisor_starting", "none"), ("supervisor_running", "none"), ("supervisor_starting", "ended"),
        ("supervisor_running", "none"), ("supervisor_draining", "none"), ("supervisor_stopped", "none"),
    ]  # fmt: skip


def test_an_enclave_that_stops_answering_is_replaced(folder: Path) -> None:
    silent = folder / "silent"
    with supervised(write(folder, fake(folder, "--silent-after", str(silent)))) as parent:
        until(lambda: running(parent), "it never ran")
        first = parent.pid()
        silent.touch()
        until(lambda: parent.status().get("reason") == "silent", "its silence went unnoticed")
        silent.unlink()
        second = until(lambda: running(parent) and parent.pid(), "no other came")
        assert second != first
        assert not psutil.pid_exists(first)


def test_a_killed_agent_comes_back_on_the_same_port_and_leaves_the_enclave_alone(folder: Path) -> None:
    with supervised(write(folder, fake(folder))) as parent:
        until(lambda: running(parent), "it never ran")
        enclave, agent = parent.pid(), parent.status()["agent_pid"]
        os.kill(agent, signal.SIGKILL)
        until(lambda: parent.status()["agent_pid"] not in (agent, None), "no other agent came")
        assert until(parent.pid, "no client got through") == enclave
        assert running(parent)


def test_too_many_starts_are_given_up(folder: Path) -> None:
    with supervised(write(folder, fake(folder, "--fail"), restarts=2, window_seconds=60)) as parent:
        assert parent.process.wait(SECONDS) == UndecidedError.exit_code
        assert "does not stay up" in parent.errors()
        assert (parent.status()["state"], parent.status()["reason"]) == ("failed", "ended")
        with pytest.raises(ConnectionRefusedError):
            parent.connect()


def test_a_command_that_does_not_exist(folder: Path) -> None:
    with supervised(write(folder, [str(folder / "nothing")])) as parent:
        assert parent.process.wait(SECONDS) == 2
        assert "cannot run" in parent.errors()


def test_the_end_drains(folder: Path) -> None:
    with supervised(write(folder, fake(folder))) as parent:
        until(lambda: running(parent), "it never ran")
        with parent.connect() as stream:
            stream.sendall(b"GET /slow HTTP/1.1\r\n\r\n")
            assert stream.recv(4096).startswith(b"HTTP/1.1 200")
            parent.process.terminate()
            until(lambda: parent.status()["state"] == "draining", "it does not drain")

            def refused() -> bool:
                try:
                    parent.connect().close()
                except ConnectionRefusedError:
                    return True
                return False

            until(refused, "it still accepts")
            # The stream in progress gets its end.
            stream.sendall(b".")
            got = b""
            while not got.endswith(b"ow\r\n"):
                piece = stream.recv(4096)
                assert piece, got
                got += piece
        assert parent.process.wait(SECONDS) == 0
    assert parent.status()["state"] == "stopped"


def test_a_drain_is_bounded(folder: Path) -> None:
    config = write(folder, fake(folder))
    config.write_text(config.read_text().replace("drain_seconds = 5", "drain_seconds = 0.3"))
    with supervised(config) as parent:
        until(lambda: running(parent), "it never ran")
        with parent.connect() as stream:
            stream.sendall(b"GET /slow HTTP/1.1\r\n\r\n")
            assert stream.recv(4096)
            parent.process.terminate()
            assert parent.process.wait(SECONDS) == 0


def test_an_enclave_that_outlives_its_command(folder: Path) -> None:
    """As with nitro-cli: `start` returns, `stop` ends it; a supervisor that comes back finds it and keeps it."""
    number = folder / "pid"
    stop = ["/bin/sh", "-c", f'test -e {number} && kill -9 "$(cat {number})" && rm {number}']
    config = write(folder, fake(folder, "--detach", str(number)), stop)
    try:
        with supervised(config) as parent:
            until(lambda: running(parent), "it never ran")
            first = parent.pid()
            assert first == int(number.read_text())
            os.kill(first, signal.SIGKILL)
            second = until(lambda: running(parent) and parent.status()["restarts"] and parent.pid(), "no other came")
            assert second not in (None, first)
            agent = parent.status()["agent_pid"]
            parent.process.kill()
            parent.process.wait(SECONDS)
            # Nobody is left to keep the agent: it ends by itself.
            until(lambda: not psutil.pid_exists(agent), "the agent stayed")
        assert psutil.pid_exists(second)
        with supervised(config) as parent:
            until(lambda: running(parent), "it never ran")
            assert parent.pid() == second
            assert parent.status()["restarts"] == 0
        until(lambda: not psutil.pid_exists(second), "the enclave stayed")
    finally:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(number.read_text()), signal.SIGKILL)


def test_an_enclave_of_somebody_else_is_not_touched(folder: Path) -> None:
    with subprocess.Popen(fake(folder)) as other:
        until(lambda: (folder / "v").exists(), "it does not listen")
        with supervised(write(folder, fake(folder))) as parent:
            assert parent.process.wait(SECONDS) == 2
            assert "answers already" in parent.errors()
        assert other.poll() is None
        other.kill()


def test_the_budget() -> None:
    now = 0.0
    budget = Budget(8, 100.0, clock=lambda: now)
    waits = [budget.spend() for _ in range(8)]
    assert (
        waits == [FIRST_WAIT * 2**number for number in range(6)] + [16.0 * 2 if LONGEST_WAIT > 32 else LONGEST_WAIT] * 2
    )
    with pytest.raises(UndecidedError):
        budget.spend()
    now = 101.0
    assert budget.spend() == FIRST_WAIT
