"""`cloister up --supervise` with a real image under QEMU: the machine is killed, another serves, and telemetry says so."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.platforms.qemu_nitro import lab
from cloister.wire import telemetry

pytestmark = [
    pytest.mark.skipif(not lab.ready(), reason="the lab is not prepared (make lab): no enclave image is booted"),
    pytest.mark.timeout(600),
]
CONFIG = """
[image]
name = "kept"
version = "1"
[engine]
context = 256
slots = 1
[nitro]
memory_mib = 512
cpus = 1
"""
SECONDS = 240.0


def until(what: Callable[[], object], why: str) -> object:
    limit = time.monotonic() + SECONDS
    while time.monotonic() < limit:
        if value := what():
            return value
        time.sleep(0.2)
    raise AssertionError(why)


def test_a_killed_machine_is_started_again() -> None:
    with tempfile.TemporaryDirectory(prefix="clo-") as name:
        folder = Path(name)
        (folder / "cloister.toml").write_text(CONFIG)
        env = {**os.environ, "XDG_STATE_HOME": str(folder / "state")}
        home = folder / "state" / "cloister" / "kept"

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "cloister", *words],
                cwd=folder,
                env=env,
                capture_output=True,
                text=True,
                check=False,
            )

        def supervisor() -> dict:
            with contextlib.suppress(OSError):
                return json.loads((home / "supervisor.json").read_text())
            return {}

        up = run("up", "--supervise", "--json")
        try:
            assert up.returncode == 0, up.stderr
            ready = json.loads(up.stdout)
            until(lambda: supervisor().get("state") == "running", "the supervisor does not see it run")
            ask = ("chat", ready["url"], "--policy", ready["policy"], "--max-tokens", "8", "Redact: Anna, SSN 1.")
            before = run(*ask)
            assert before.returncode == 0, before.stderr
            machine = int((home / "qemu.pid").read_text().split()[0])
            os.kill(machine, signal.SIGKILL)
            until(lambda: supervisor()["restarts"] == 1 and supervisor()["state"] == "running", "no other machine came")
            assert int((home / "qemu.pid").read_text().split()[0]) != machine
            # Another boot has other keys: the same policy verifies it, and the same address leads to it.
            after = run(*ask)
            assert after.returncode == 0, after.stderr
            status = json.loads(run("status", "--json").stdout)["enclaves"]
            assert [(each["name"], each["agent"], each["supervisor"]) for each in status] == [("kept", True, "running")]
        finally:
            down = run("down", "kept")
        assert down.returncode == 0, down.stderr
        assert supervisor()["state"] == "stopped"
        lines = [line for line in (home / "agent.log").read_text().splitlines() if line.startswith("{")]
        events = [json.loads(line)["event"] for line in lines]
        assert events.count("ready") == 2
        assert set(events) <= {*telemetry.EVENTS, "traffic", "supervisor"} | {
            f"supervisor_{state}" for state in ("starting", "running", "draining", "stopped")
        }
