"""Sealing files: whole or not at all, never over the model, in little memory."""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.weights.samples import FIRST, FULL, MIB, OWNER, Service, make, open_all, sha256, tink_decrypt

from cloister.errors import UndecidedError, UsageError
from cloister.weights import manifest
from cloister.weights.seal import seal


@pytest.mark.parametrize("size", [1, FIRST, FIRST + FULL + 1])
def test_sealed_and_opened(tmp_path: Path, size: int) -> None:
    sample = make(tmp_path, os.urandom(size))
    described = sample.head.manifest
    assert (described.model, described.version, described.size) == ("notes", 7, size)
    assert described.sha256 == sha256(sample.plain)
    assert described.key.context == {"cloister:model": "notes", "cloister:version": "7"}
    assert open_all(sample.stream, sample.key, sample.head.associated, size) == sample.plain
    # Without our code: SHA-256 of the payload in the file is Tink's associated data.
    payload = described.payload()
    assert sample.sealed[12 : 12 + int.from_bytes(sample.sealed[8:12])].startswith(b"{")
    assert tink_decrypt(sample.stream, sample.key, hashlib.sha256(payload).digest()) == sample.plain
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.sealed", "plain.gguf"]


def test_nothing_of_the_model_or_key_shows(tmp_path: Path) -> None:
    sample = make(tmp_path, b"CANARY-PLAINTEXT" * 200_000)
    assert b"CANARY-PLAINTEXT" not in sample.sealed
    assert sample.key not in sample.sealed


@pytest.mark.parametrize("name", ["", "Notes", "../x", "a b", "a\n", "-a", "n" * 64])
def test_names_that_no_image_could_ask_for(tmp_path: Path, name: str) -> None:
    (tmp_path / "m").write_bytes(b"x")
    with pytest.raises(UsageError):
        seal(tmp_path / "m", tmp_path / "out", model=name, version=1, owner=OWNER, wrapper=Service())
    assert not (tmp_path / "out").exists()


def test_usage(tmp_path: Path) -> None:
    model, empty, link = tmp_path / "m", tmp_path / "empty", tmp_path / "link"
    model.write_bytes(b"weights")
    empty.touch()
    link.symlink_to(model)
    for source, target, version in (
        (tmp_path / "missing", tmp_path / "out", 1), (empty, tmp_path / "out", 1), (model, model, 1), (link, model, 1),
        (model, tmp_path / "no" / "out", 1), (tmp_path, tmp_path / "out", 1), (model, tmp_path / "out", -1),
    ):  # fmt: skip
        with pytest.raises(UsageError):
            seal(source, target, model="m", version=version, owner=OWNER, wrapper=Service())
    assert model.read_bytes() == b"weights"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "link", "m"]


def test_a_service_out_of_reach_leaves_the_old_file(tmp_path: Path) -> None:
    class Away(Service):
        def generate(self, context: object) -> object:
            raise UndecidedError("out of reach")

    old = make(tmp_path, b"old").sealed
    with pytest.raises(UndecidedError):
        seal(tmp_path / "plain.gguf", tmp_path / "notes.sealed", model="notes", version=8, owner=OWNER, wrapper=Away())
    assert (tmp_path / "notes.sealed").read_bytes() == old


@pytest.mark.parametrize("after", [b"b" * 100, b"a" * 99, b"a" * 101, b""], ids=["changed", "cut", "longer", "empty"])
def test_a_model_that_changes_meanwhile(tmp_path: Path, after: bytes) -> None:
    source = tmp_path / "m"
    source.write_bytes(b"a" * 100)

    class Meanwhile(Service):
        def generate(self, context: dict) -> tuple:
            source.write_bytes(after)
            return super().generate(context)

    with pytest.raises(UsageError, match="changed"):
        seal(source, tmp_path / "out", model="m", version=1, owner=OWNER, wrapper=Meanwhile())
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(bytes(3 * MIB))
    code = (
        "import resource, signal, sys; from pathlib import Path; from tests.weights.samples import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20))\n"
        "from cloister.errors import UsageError\n"
        f"f = Path({str(tmp_path)!r})\n"
        "try: seal(f / 'm', f / 'out', model='m', version=1, owner=OWNER, wrapper=Service())\n"
        "except UsageError as error: print(error.message)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("cannot seal")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    with (tmp_path / "m").open("wb") as file:
        file.truncate(256 * MIB)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seal(tmp_path / "m", tmp_path / "out", model="m", version=1, owner=Ed25519PrivateKey.generate(), wrapper=Service())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024  # KiB
    assert manifest.read((tmp_path / "out").read_bytes()[:65536], None).manifest.size == 256 * MIB
