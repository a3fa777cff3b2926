"""`cloister up`, `status`, `logs`, `down` with `--platform aws-nitro` against a stand-in for nitro-cli.

nitro-cli itself has never run here. The stand-in's enclave is a replica with SIMULATED evidence, so `up` must refuse it,
which is as far as honesty goes without Nitro hardware; in debug mode nothing is verified and everything else is walked.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.platforms.aws_nitro.machine import Tree

from cloister.image import config, eif
from cloister.image.built import MEASUREMENTS_SCHEMA
from cloister.weights import manifest
from cloister.weights.keys import WrappedKey

STANDIN = Path(__file__).parent / "standin"
MIB = 1 << 20
IMAGE = eif.Image(kernel=b"k" * 1000, cmdline=b"c", ramdisks=(b"boot", b"a" * 9 * MIB))
CONFIG = '[image]\nname = "notes"\n[nitro]\nmemory_mib = 64\ncpus = 2\nkernel = "aws"\n'
ARN = "arn:aws:kms:eu-west-1:111122223333:key/k"


@dataclass
class Instance:
    """A machine laid out as files, with the stand-in on PATH."""

    home: Path
    env: dict[str, str]

    @property
    def state(self) -> Path:
        return self.home / "s" / "cloister" / "notes"

    def cloister(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cloister", *words],
            env=self.env,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=100,
        )

    def up(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.cloister("up", "--platform", "aws-nitro", "--image", "built", *words)

    def enclaves(self) -> list[dict]:
        done = self.cloister("status", "--json", "--platform", "aws-nitro")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["enclaves"]

    def free_pages(self) -> int:
        return int(
            (self.home / "root/sys/devices/system/node/node0/hugepages/hugepages-2048kB/free_hugepages").read_text()
        )

    def describe(self, text: str) -> None:
        """Write `cloister.toml` and what a build of it would have written."""
        (self.home / "cloister.toml").write_text(text)
        chosen = config.load(self.home / "cloister.toml")
        folder = self.home / "built"
        folder.mkdir(exist_ok=True)
        (folder / "notes.eif").write_bytes(eif.write(IMAGE))
        document = {
            "schema": MEASUREMENTS_SCHEMA,
            "measurements": {f"PCR{index}": value.hex() for index, value in IMAGE.measurements().items()},
            "parts": {"kernel": chosen.kernel, "replica_sha256": hashlib.sha256(chosen.replica()).hexdigest()},
        }
        (folder / "measurements.json").write_text(json.dumps(document))


@pytest.fixture
def instance(vectors: Path) -> Iterator[Instance]:
    """Short paths: unix sockets have 108 bytes."""
    home = Path(tempfile.mkdtemp(prefix="clo-"))
    (home / "bin").mkdir()
    (home / "n").mkdir()
    program = home / "bin" / "nitro-cli"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {STANDIN / "nitro_cli.py"} "$@"\n')
    program.chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(STANDIN),
        "XDG_STATE_HOME": str(home / "s"),
        "STANDIN": str(home / "n"),
        "STANDIN_ROOT": str(Tree().write(home / "root")),
        "STANDIN_SHAPE": str(vectors / "nitro" / "ephemeralml_enclave_describe.json"),
    }
    made = Instance(home, env)
    made.describe(CONFIG)
    try:
        yield made
    finally:
        for row in made.enclaves():
            made.cloister("down", row["name"], "--platform", "aws-nitro")
        shutil.rmtree(home)


def test_simulated_evidence_is_refused_and_nothing_stays(instance: Instance) -> None:
    """All steps as on EC2 up to the one that no machine here can pass: evidence under AWS's root."""
    done = instance.up()
    assert done.returncode == 4, done.stderr
    assert done.stdout == ""
    assert "SIMULATED, NOT A TEE" not in done.stderr
    assert instance.enclaves() == []
    assert instance.free_pages() == 512
    assert not (instance.state / "policy.toml").exists()
    assert tomllib.loads((instance.state / "host.toml").read_text()) == {
        "listen": "127.0.0.1:0", "cid": 16, "name": "notes", "telemetry": True, "drain_seconds": 3.0,
    }  # fmt: skip
    # It came that far: nitro-cli reported the enclave, and its evidence reached us through the agent.
    assert "Started enclave with enclave-cid: 16" in (instance.state / "nitro-cli.log").read_text()


def test_up_status_logs_down_in_debug_mode(instance: Instance) -> None:
    done = instance.up("--debug", "--json")
    assert done.returncode == 0, done.stderr
    assert "nothing in this enclave is confidential" in done.stderr
    said = json.loads(done.stdout)
    assert (said["platform"], said["policy"], said["debug"], said["simulated"]) == ("aws-nitro", None, True, False)
    assert instance.free_pages() == 512 - 32
    (row,) = instance.enclaves()
    assert (row["name"], row["state"], row["cid"], row["cpus"], row["memory_mib"]) == ("notes", "RUNNING", 16, 2, 64)
    assert (row["agent"], row["simulated"]) == (True, False)
    assert row["measurements"]["PCR0"] == IMAGE.measurements()[0].hex()
    assert instance.cloister("status").stdout.startswith("notes RUNNING cid 16 64 MiB agent runs aws-nitro\n")
    shown = instance.cloister("logs", "notes")
    assert shown.returncode == 0, shown.stderr
    assert "cloister: serving" in shown.stdout
    again = instance.up()
    assert again.returncode == 2
    assert "cloister down notes" in again.stderr
    down = instance.cloister("down", "notes", "--forget")
    assert down.returncode == 0, down.stderr
    assert instance.enclaves() == []
    assert instance.free_pages() == 512
    assert not instance.state.exists()
    assert instance.cloister("down", "notes", "--platform", "aws-nitro").returncode == 0


def test_no_console_outside_debug_mode(instance: Instance) -> None:
    words = [
        "run-enclave",
        "--eif-path",
        "built/notes.eif",
        "--memory",
        "64",
        "--cpu-count",
        "2",
        "--enclave-name",
        "notes",
    ]
    subprocess.run(["nitro-cli", *words], env=instance.env, cwd=instance.home, check=True, capture_output=True)
    # Started by hand: status finds it all the same, and says that nobody can reach it.
    (row,) = instance.enclaves()
    assert row["agent"] is False
    assert "agent is DOWN" in instance.cloister("status").stdout
    shown = instance.cloister("logs", "notes")
    assert shown.returncode == 2
    assert "debug mode only" in shown.stderr
    assert instance.cloister("down", "notes").returncode == 0
    assert instance.enclaves() == []


def test_broken_rules_stop_it_before_anything_starts(instance: Instance) -> None:
    instance.describe(CONFIG.replace('"aws"', '"small"').replace("64", "10"))
    done = instance.up("--cid", "3")
    assert done.returncode == 2
    for word in ("3 rule(s)", "kernel: ", "memory.ratio: ", "cid: "):
        assert word in done.stderr
    assert not (instance.state / "agent.log").exists()
    assert not (instance.state / "nitro-cli.log").exists()


def test_a_refusal_of_nitro_cli_itself(instance: Instance) -> None:
    """What preflight cannot see: here an enclave that appears between preflight and start."""
    program = instance.home / "bin" / "nitro-cli"
    program.write_text(program.read_text().replace("exec", '[ "$1" = run-enclave ] && set -- "$@" --memory 20\nexec'))
    done = instance.up()
    assert done.returncode == 2, done.stderr
    assert "E26" in done.stderr
    assert "nitro-cli.log" in done.stderr.replace("\n", "")
    assert instance.enclaves() == []
    assert not (instance.state / "agent.pid").exists()


def test_an_image_of_another_configuration_or_with_other_measurements(instance: Instance) -> None:
    (instance.home / "cloister.toml").write_text(CONFIG + "[engine]\nslots = 3\n")
    other = instance.up()
    assert other.returncode == 5
    assert "another cloister.toml" in other.stderr
    instance.describe(CONFIG)
    file = instance.home / "built" / "measurements.json"
    pcr0 = IMAGE.measurements()[0].hex()
    file.write_text(file.read_text().replace(pcr0, f"{int(pcr0, 16) ^ 1:096x}"))
    changed = instance.up()
    assert changed.returncode == 5
    assert "measurements.json" in changed.stderr


def test_a_sealed_model_gets_store_egress_and_the_instance_s_credentials(instance: Instance) -> None:
    owner = Ed25519PrivateKey.generate()
    (instance.home / "owner.pub.pem").write_bytes(
        owner.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    text = CONFIG.replace("64", "1024") + (
        f'[model]\nsealed = "m"\nowner = "owner.pub.pem"\n[release]\nservice = "aws-kms"\nregion = "eu-west-1"\nkey = "{ARN}"\n'
    )
    instance.describe(text)
    missing = instance.up()
    assert missing.returncode == 2
    assert "m.sealed" in missing.stderr
    key = WrappedKey(service="aws-kms", key_id=ARN, ciphertext=b"w", context=manifest.context("m", 1))
    store = instance.home / "store"
    store.mkdir()

    def put(size: int, signer: Ed25519PrivateKey) -> None:
        made = manifest.Manifest(model="m", version=1, size=size, sha256="0" * 64, key=key)
        (store / "m.sealed").write_bytes(manifest.sign(made, signer))

    put(10, Ed25519PrivateKey.generate())
    stranger = instance.up()
    assert stranger.returncode == 4, stranger.stderr
    put(2000 * MIB, owner)
    large = instance.up()
    assert large.returncode == 2
    assert "memory.weights" in large.stderr
    put(10, owner)
    assert instance.up().returncode == 4
    assert tomllib.loads((instance.state / "host.toml").read_text()) == {
        "listen": "127.0.0.1:0", "cid": 16, "store": str(store), "credentials": "instance",
        "egress": ["kms.eu-west-1.amazonaws.com:443"], "name": "notes", "telemetry": True, "drain_seconds": 3.0,
    }  # fmt: skip


def test_unknown_platforms_are_named(instance: Instance) -> None:
    for words in (("up", "--platform", "x"), ("status", "--platform", "x"), ("down", "notes", "--platform", "x")):
        done = instance.cloister(*words)
        assert done.returncode == 2
        assert "aws-nitro, qemu-nitro" in done.stderr


def test_an_instance_that_is_not_set_up_is_told_everything_at_once(instance: Instance) -> None:
    """nitro-cli is there and its allocator never ran: the first failure must not hide the others."""
    program = instance.home / "bin" / "nitro-cli"
    program.write_text("#!/bin/sh\necho '[ E07 ] Read from disk failure.' >&2\nexit 7\n")
    (instance.home / "root/dev/nitro_enclaves").unlink()
    (instance.home / "root/sys/module/nitro_enclaves/parameters/ne_cpus").write_text("\n")
    done = instance.up()
    assert done.returncode == 2
    for name in ("answers: ", "device: ", "cpus.pool: "):
        assert name in done.stderr
    program.unlink()
    assert "program: nitro-cli is not installed" in instance.up().stderr


def test_an_enclave_under_another_name_is_ended(instance: Instance) -> None:
    program = instance.home / "bin" / "nitro-cli"
    program.write_text(
        program.read_text().replace("exec", '[ "$1" = run-enclave ] && set -- "$@" --enclave-name x\nexec')
    )
    done = instance.up()
    assert done.returncode == 6, done.stderr
    assert "another cid or name" in done.stderr
    assert instance.enclaves() == []
