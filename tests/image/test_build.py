"""Whole builds: the same inputs give the same bytes anywhere, another input gives other registers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1
from tests.image.test_eif import issue

from cloister.errors import RefusedError, UsageError
from cloister.image import build, built, config, eif
from cloister.platforms.qemu_nitro import lab

needs_toolchain = pytest.mark.skipif(not lab.ready(), reason="the lab is not prepared (make lab): no image is built")
MINIMAL = '[image]\nname = "notes"\n'


def written(folder: Path, text: str) -> config.ImageConfig:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cloister.toml").write_text(text)
    return config.load(folder / "cloister.toml")


@needs_toolchain
@pytest.mark.timeout(300)
def test_two_builds_on_two_paths_are_identical(tmp_path: Path) -> None:
    key, certificate = issue(SECP384R1())
    text = MINIMAL + '[model]\nid = "m"\n[nitro]\nsigning_key = "k.pem"\ncertificate = "c.pem"\n'
    outs = []
    for name in ("one", "a/longer/path"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "k.pem").write_bytes(key)
        (folder / "c.pem").write_bytes(certificate)
        outs.append(build.build(written(folder, text), folder / "out"))
    first, second = (
        {
            path.relative_to(made.image.parent): path.read_bytes()
            for path in made.image.parent.rglob("*")
            if path.is_file()
        }
        for made in outs
    )
    assert first == second
    assert outs[0].size < 80_000_000
    read = eif.parse(outs[0].image.read_bytes())
    read.check_signature()
    document = json.loads(outs[0].measurements.read_text())
    assert document["measurements"] == {f"PCR{index}": value.hex() for index, value in read.measurements().items()}
    assert set(document["measurements"]) == {"PCR0", "PCR1", "PCR2", "PCR8"}
    bill = json.loads((outs[0].image.parent / "sbom.cdx.json").read_text())
    assert {"libc6", "xllamacpp", "cloister"} <= {component["name"] for component in bill["components"]}
    statement = json.loads((outs[0].image.parent / "provenance.json").read_text())
    assert statement["subject"][0]["digest"]["sha256"] == document["image"]["sha256"]
    # Read back on another machine: only with its own configuration.
    assert built.read(outs[0].image.parent, written(tmp_path / "one", text)) == outs[0]
    assert outs[0].kernel == document["parts"]["kernel"] == "small"
    # One number of the configuration, and the application's register is another.
    other = build.build(written(tmp_path / "one", text + "[engine]\ncontext = 512\n"), tmp_path / "other")
    assert other.registers[1] == outs[0].registers[1], "PCR1 is of kernel and init alone"
    assert other.registers[2] != outs[0].registers[2]
    assert other.registers[0] != outs[0].registers[0]
    with pytest.raises(RefusedError, match="another cloister.toml"):
        built.read(outs[0].image.parent, written(tmp_path / "one", text + "[engine]\ncontext = 512\n"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "image is missing"),
        ("[image\n", "not TOML"),
        ('[image]\nname = "Notes"\n', "lower-case"),
        ('[image]\nname = "../x"\n', "lower-case"),
        ('[image]\nname = "n"\nmore = 1\n', "unknown in cloister.toml: image.more"),
        (MINIMAL + "[extra]\n", "unknown in cloister.toml: extra"),
        (MINIMAL + "[engine]\ncontexts = 1\n", "unknown in cloister.toml: engine.contexts"),
        (MINIMAL + '[engine]\ncontext = "1"\n', "engine.context must be a int"),
        (MINIMAL + "[nitro]\ncpus = true\n", "nitro.cpus must be a int"),
        (MINIMAL + '[egress]\nallow = ["Host:443"]\n', "host:port"),
        (MINIMAL + '[egress]\nallow = ["*:443"]\n', "host:port"),
        (MINIMAL + '[model]\nsealed = "m"\nowner = "none.pem"\n', "cannot read"),
        (MINIMAL + '[model]\nsealed = "m"\nowner = "cloister.toml"\n', "Ed25519"),
        (MINIMAL + '[release]\nservice = "kbs"\nhost = "b.test"\n', "release.roots is missing"),
        (MINIMAL + '[release]\nservice = "kbs"\nhost = "B.test"\nroots = "cloister.toml"\n', "release.host"),
        (MINIMAL + '[release]\nservice = "kbs"\nhost = "b"\nport = 70000\nroots = "cloister.toml"\n', "TCP port"),
        (MINIMAL + '[release]\nservice = "kbs"\nhost = "b"\nroots = "cloister.toml"\n', "certificates in PEM"),
        (MINIMAL + '[release]\nservice = "other"\n', "aws-kms or kbs"),
        (MINIMAL + '[release]\nservice = "aws-kms"\nregion = "r"\n', "release.key is missing"),
        (MINIMAL + '[nitro]\nsigning_key = "k"\n', "go together"),
    ],
)
def test_configurations_that_are_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("[", "\\[").replace("*", "\\*")):
        written(tmp_path, text)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        config.load(tmp_path / "cloister.toml")
