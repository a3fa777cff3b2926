"""Seal with the broker, carry by the blind agent, open by what an image's first code does: all but the guest itself."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.broker import lab as labs
from tests.broker.lab import HOST, PCR0

from cloister.broker import store
from cloister.enclave import boot, net
from cloister.errors import ReleaseDeniedError, UndecidedError
from cloister.image import config
from cloister.platforms import lab_tls as tls
from cloister.platforms.qemu_nitro import nsm
from cloister.tee.nitro.attest import NitroSecurityModule
from cloister.tee.sim.attest import SimulatedNitro
from cloister.tee.sim.root import SimulatedRoot
from cloister.wire import ports


class Module(NitroSecurityModule):
    """Asks a security module in this process instead of /dev/nsm: the same requests and answers, byte for byte."""

    def __init__(self, root: SimulatedRoot, pcr0: str) -> None:
        super().__init__()
        registers = nsm.boot_registers({0: bytes.fromhex(pcr0)})
        self._module = nsm.SecurityModule(SimulatedNitro(root, registers), registers)

    def _exchange(self, request: bytes) -> bytes:
        return self._module.handle(request)


def cli(*words: object) -> str:
    command = [sys.executable, "-m", "cloister", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Place:
    """Everything on one machine: the owner's files, the broker, the parent's agent."""

    def __init__(self, folder: Path, sockets: Path) -> None:
        self.folder, self.sockets = folder, sockets
        self.root = SimulatedRoot.create()
        self.plain = os.urandom(3 << 20)
        (folder / "store").mkdir()
        (folder / "model.gguf").write_bytes(self.plain)
        (folder / "root.pem").write_text(self.root.pem)
        (folder / "measurements.json").write_text(json.dumps({"measurements": {"PCR0": PCR0}}))
        tls.make(folder / "tls", [HOST])
        cli("owner", folder / "owner.pem")
        cli("broker", "init", folder / "broker")
        cli(
            "broker", "grant", folder / "broker", "--model", "notes", "--minimum-version", 7, "--label", "release 1",
            "--measurements", folder / "measurements.json", "--simulated-root", folder / "root.pem",
        )  # fmt: skip
        self.seal(7)
        (folder / "cloister.toml").write_text(
            '[image]\nname = "notes"\n[model]\nsealed = "notes"\nowner = "owner.pub.pem"\nminimum_version = 6\n'
            f'[release]\nservice = "kbs"\nhost = "{HOST}"\nroots = "tls/ca.pem"\n'
        )
        self.image = config.load(folder / "cloister.toml")
        self.measured = boot.read(self.image.replica())

    def seal(self, version: int) -> None:
        cli(
            "seal", self.folder / "model.gguf", "--name", "notes", "--version", version,
            "--owner", self.folder / "owner.pem", "--broker", self.folder / "broker",
            "--out", self.folder / "store" / "notes.sealed",
        )  # fmt: skip

    def open(self, pcr0: str = PCR0) -> bytes:
        sealed = self.measured.model
        assert isinstance(sealed, boot.Sealed)
        opened = boot.open_sealed(self.measured, sealed, net.hybrid(self.sockets / "v"), Module(self.root, pcr0))
        try:
            return os.pread(opened.descriptor, len(self.plain) + 1, 0)
        finally:
            os.close(opened.descriptor)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    # Short, for unix sockets.
    with tempfile.TemporaryDirectory(prefix="clo-") as sockets:
        there = Place(tmp_path, Path(sockets))
        release = there.image.release
        assert isinstance(release, config.BrokerSettings)
        (tmp_path / "roots.pem").write_bytes(release.roots)
        monkeypatch.setattr(boot, "ROOTS", tmp_path / "roots.pem")
        broker, line = labs.start(tmp_path)
        assert line, (tmp_path / "broker.log").read_text()
        port = json.loads(line)["url"].rpartition(":")[2]
        egress = json.dumps(list(there.image.egress))
        (tmp_path / "host.toml").write_text(
            f'listen = "127.0.0.1:0"\nuds = "{sockets}/v"\nstore = "{tmp_path}/store"\negress = {egress}\n'
            f'capture = "{tmp_path}/capture"\n[resolve]\n"{HOST}:443" = "127.0.0.1:{port}"\n'
        )
        agent = subprocess.Popen(
            [sys.executable, "-m", "cloister.host.agent", "--config", str(tmp_path / "host.toml")],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert agent.stdout is not None
            assert agent.stdout.readline().startswith("listening")
            yield there
        finally:
            labs.stop(agent)
            labs.stop(broker)


def test_sealed_weights_open_in_the_image_that_was_granted_and_in_no_other(place: Place) -> None:
    assert place.open() == place.plain
    key = store.KeyStore(place.folder / "broker").get(labs.kbs.Resource(model="notes", version=7))
    assert key is not None
    # What the parent carried, and could keep.
    carried = b"".join(path.read_bytes() for path in (place.folder / "capture").rglob("*") if path.is_file())
    assert len(carried) > 10_000
    carried += (place.folder / "store" / "notes.sealed").read_bytes()
    for secret in (key, place.plain[:64], base64.urlsafe_b64encode(key)[:40]):
        assert secret not in carried
    with pytest.raises(ReleaseDeniedError, match="no grant names this image"):
        place.open("b2" * 48)
    with pytest.raises(ReleaseDeniedError, match="debug"):
        place.open("00" * 48)
    # A newer version has a key of its own.
    place.seal(8)
    assert place.open() == place.plain
    # An older one the image would take, and the broker does not give.
    place.seal(6)
    with pytest.raises(ReleaseDeniedError, match="minimum"):
        place.open()
    # One that was given up.
    cli("broker", "remove", place.folder / "broker", "--model", "notes", "--version", 8)
    place.folder.joinpath("model.gguf").write_bytes(secrets.token_bytes(1000))
    entries, digest = cli("broker", "ledger", "verify", place.folder / "broker").split()
    lines = (place.folder / "broker" / store.LEDGER).read_text().splitlines()
    assert int(entries) == len(lines)
    assert json.loads(cli("broker", "ledger", "verify", place.folder / "broker", "--contains", digest, "--json")) == {
        "schema": "cloister-ledger/1", "entries": len(lines), "digest": digest,
    }  # fmt: skip
    events = [(entry["event"], entry.get("outcome"), entry.get("resource")) for entry in map(json.loads, lines)]
    seven, eight, six = (f"notes/data-key/{version}" for version in (7, 8, 6))
    assert events == [
        ("deposit", None, seven), ("start", None, None),
        ("appraisal", "accepted", None), ("release", "released", seven),
        ("appraisal", "refused", None), ("appraisal", "refused", None),
        ("deposit", None, eight), ("appraisal", "accepted", None), ("release", "released", eight),
        ("deposit", None, six), ("appraisal", "accepted", None), ("release", "refused", six),
        ("removal", None, eight),
    ]  # fmt: skip


def test_a_broker_that_is_not_on_the_list_cannot_be_reached(place: Place) -> None:
    assert place.image.egress == (f"{HOST}:443",)
    dial = net.hybrid(place.sockets / "v")
    with pytest.raises(UndecidedError, match="allow-list"):
        net.egress(dial, HOST, 444)
    assert ports.EGRESS == 5003
