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
from cloister.errors import UndecidedError
from cloister.image import build, config
from cloister.platforms.platform import Launch
from cloister.platforms.qemu_nitro import lab
from cloister.platforms.qemu_nitro.kms import tls
from cloister.platforms.qemu_nitro.platform import QemuNitro
from cloister.policy import release

pytestmark = [
    pytest.mark.skipif(not lab.ready(), reason="the lab is not prepared (make lab): no enclave image is booted"),
    pytest.mark.timeout(600),
]
BOOT_SECONDS = 200.0


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Short paths: unix sockets have 108 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="clo-"))
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "s"))
    yield folder
    shutil.rmtree(folder)


def cli(*words: object) -> str:
    command = [sys.executable, "-m", "cloister", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
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
    built = build.build(config.load(home / "cloister.toml"), home / "image")
    broker, line = brokers.start(home)
    state = machine.uds("k").parent
    state.mkdir(parents=True)
    (home / "host.toml").write_text(
        f'listen = "127.0.0.1:0"\nuds = "{machine.uds("k")}"\nheartbeat = true\nstore = "{home}/store"\n'
        f'egress = ["{brokers.HOST}:443"]\n[resolve]\n"{brokers.HOST}:443" = '
        f'"127.0.0.1:{json.loads(line)["url"].rpartition(":")[2]}"\n'
    )
    agent = subprocess.Popen(
        [sys.executable, "-m", "cloister.host.agent", "--config", str(home / "host.toml")],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    launch = Launch(name="k", image=built.image, memory_mib=1024, cpus=1, debug=False)
    try:
        assert agent.stdout is not None
        assert agent.stdout.readline().startswith("listening")
        machine.start(launch)
        with pytest.raises(UndecidedError, match="the enclave ended"):
            machine.wait("k", BOOT_SECONDS, "cloister: serving ")
        assert any("the key broker refused the key: no grant names this image" in said for said in machine.console("k"))
        machine.stop("k")
        cli(
            "broker", "grant", home / "broker", "--model", "notes", "--minimum-version", 3,
            "--measurements", built.measurements,
        )  # fmt: skip
        machine.start(launch)
        machine.wait("k", BOOT_SECONDS, "cloister: serving ")
        assert any("opened sealed weights notes version 3" in said for said in machine.console("k"))
    finally:
        machine.stop("k")
        brokers.stop(agent)
        brokers.stop(broker)
    entries = [json.loads(each) for each in (home / "broker" / store.LEDGER).read_text().splitlines()]
    assert [(entry["event"], entry.get("outcome")) for entry in entries] == [
        ("deposit", None), ("start", None), ("appraisal", "refused"), ("appraisal", "accepted"), ("release", "released"),
    ]  # fmt: skip
    assert entries[-1]["measurements"]["pcr0"] == built.registers[0].hex()
