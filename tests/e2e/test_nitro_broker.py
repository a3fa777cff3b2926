"""A real image in a real virtual machine asks the owner's key broker: refused, granted, opened.

Runs where `make lab` was run; the evidence is SIMULATED, everything else is what runs on EC2.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.broker import lab as brokers

from cloister.broker import store
from cloister.enclave.engine.config import BUNDLED_MODEL
from cloister.platforms import lab_tls as tls
from cloister.platforms.qemu_nitro import lab
from cloister.platforms.qemu_nitro.platform import QemuNitro
from cloister.policy import release

pytestmark = [
    pytest.mark.skipif(not lab.ready(), reason="the lab is not prepared (make lab): no enclave image is booted"),
    pytest.mark.timeout(600),
]


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Short paths: unix sockets have 108 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="clo-"))
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "s"))
    yield folder
    shutil.rmtree(folder)


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cloister", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)


def cli(*words: object) -> str:
    done = run(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_image_opens_its_weights_once_it_is_granted(home: Path) -> None:
    machine = QemuNitro()
    (home / "store").mkdir()
    tls.make(home / "tls", [brokers.HOST])
    cli("owner", home / "owner.pem")
    cli("broker", "init", home / "broker")
    cli(
        "seal", BUNDLED_MODEL, "--name", "notes", "--version", 3, "--owner", home / "owner.pem",
        "--broker", home / "broker", "--out", home / "store" / "notes.sealed",
    )  # fmt: skip
    policy = home / "broker" / store.POLICY
    # It knows the root and grants nothing yet.
    policy.write_text(release.beginning("guest", machine.root_pem()))
    (home / "cloister.toml").write_text(
        '[image]\nname = "k"\n[model]\nsealed = "notes"\nowner = "owner.pub.pem"\nminimum_version = 3\n'
        f'[release]\nservice = "kbs"\nhost = "{brokers.HOST}"\nroots = "tls/ca.pem"\n[nitro]\ncpus = 1\n'
    )
    built = cli("build", "--config", home / "cloister.toml", "--out", home / "image", "--json")
    pcr0 = json.loads(built)["measurements"]["PCR0"]
    broker, line = brokers.start(home)
    led = f"{brokers.HOST}:443=127.0.0.1:{json.loads(line)['url'].rpartition(':')[2]}"
    up = ("up", "--config", home / "cloister.toml", "--image", home / "image", "--resolve", led, "--json")
    try:
        refused = run(*up)
        assert refused.returncode == 6, refused.stdout
        assert "the key broker refused the key: no grant names this image" in " ".join(refused.stderr.split())
        cli(
            "broker", "grant", home / "broker", "--model", "notes", "--minimum-version", 3,
            "--measurements", home / "image" / "measurements.json",
        )  # fmt: skip
        said = json.loads(cli(*up))
        assert any("opened sealed weights notes version 3" in line for line in cli("logs", "k").splitlines())
        cli("verify", said["url"], "-p", said["policy"], "--measurements", said["measurements"])
    finally:
        cli("down", "k")
        brokers.stop(broker)
    entries = [json.loads(each) for each in (home / "broker" / store.LEDGER).read_text().splitlines()]
    assert [(entry["event"], entry.get("outcome")) for entry in entries] == [
        ("deposit", None), ("start", None), ("appraisal", "refused"), ("appraisal", "accepted"), ("release", "released"),
    ]  # fmt: skip
    assert entries[-1]["measurements"]["pcr0"] == pcr0
