"""`cloister verify` and `cloister inspect` on files: bundles, evidence by itself, collateral."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.policy.samples import BINDING, CHALLENGE, EVIDENCE, TEXT
from tests.tee import documents as d
from typer.testing import CliRunner, Result

from cloister.cli.main import app
from cloister.errors import MalformedError, UsageError
from cloister.trust.collateral import KINDS, Collateral, Item

AT = ("--at", d.NOW.isoformat())


def _run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    evidence, policy = tmp_path / "evidence", tmp_path / "policy.toml"
    evidence.write_bytes(EVIDENCE)
    policy.write_text(TEXT)
    return evidence, policy


def _verify(files: tuple[Path, Path], *more: object) -> Result:
    return _run("verify", files[0], "-p", files[1], "--tee", "nitro", *AT, "--json", *more)


def test_evidence_by_itself(files: tuple[Path, Path]) -> None:
    done = _verify(files, "--user-data", BINDING.hex(), "--nonce", CHALLENGE.hex())
    verdict = json.loads(done.stdout)
    assert (done.exit_code, verdict["subject"], verdict["outcome"]) == (0, "evidence", "accepted")
    assert verdict["simulated"] is True
    ids = [check["id"] for check in verdict["checks"]]
    assert "evidence.binding" in ids
    assert "policy.nitro.measurement" in ids
    assert not {"policy.binding", "policy.model"} & set(ids)


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (("--user-data", BINDING.hex()), 4),
        (("--user-data", "00" * 32, "--nonce", CHALLENGE.hex()), 4),
        (("--user-data", BINDING.hex() + "00", "--nonce", CHALLENGE.hex()), 4),
        (("--unbound", "looked at for its own sake"), 0),
        (("--unbound", "short"), 2),
        ((), 2),
        (("--unbound", "looked at for its own sake", "--nonce", "00"), 2),
        (("--user-data", "no hex"), 2),
    ],
)
def test_what_must_be_bound(files: tuple[Path, Path], more: tuple[str, ...], code: int) -> None:
    done = _verify(files, *more)
    assert done.exit_code == code, done.output
    if code == 0:
        binding = next(check for check in json.loads(done.stdout)["checks"] if check["id"] == "evidence.binding")
        assert (binding["status"], binding["detail"]) == ("waived", more[1])


def test_the_caller_says_which_format(files: tuple[Path, Path]) -> None:
    assert _run("verify", files[0], "-p", files[1], "--unbound", "looked at for its own sake").exit_code == 2
    assert _run("verify", files[0], "-p", files[1], *AT).exit_code == 3  # not a bundle
    assert _verify(files, "--tee", "sim", "--unbound", "looked at for its own sake").exit_code == 2


def test_inspect_decodes_and_does_not_judge(files: tuple[Path, Path]) -> None:
    files[0].write_bytes(EVIDENCE[:-1] + bytes([EVIDENCE[-1] ^ 1]))
    done = _run("inspect", files[0], "--json")
    [reading] = json.loads(done.stdout)["readings"]
    assert (reading["format"], reading["fields"]["nonce"]) == ("nitro", CHALLENGE.hex())
    assert json.loads(done.stdout)["verified"] is False
    shown = _run("inspect", files[0])
    assert "fields.user_data: " + BINDING.hex() in shown.stdout
    files[0].write_bytes(b"junk")
    assert _run("inspect", files[0]).exit_code == 3
    assert _run("inspect", files[0], "--tee", "nitro").exit_code == 3


def test_a_folder_of_collateral(files: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "collateral"
    folder.mkdir()
    (folder / "amd-crl.milan.der").write_bytes(b"\x30\x00")
    (folder / "amd-vcek.pem").write_text(d.ROOT.pem + d.ROOT.pem)
    found = Collateral.from_folder(folder)
    assert found.of("amd-crl") == (b"\x30\x00",)
    assert found.of("amd-vcek") == (d.ROOT.issued.der, d.ROOT.issued.der)
    assert _verify(files, "--unbound", "looked at for its own sake", "--collateral", folder).exit_code == 0
    (folder / "amd-crI.der").write_bytes(b"")
    with pytest.raises(UsageError, match="no kind"):
        Collateral.from_folder(folder)
    assert _verify(files, "--unbound", "looked at for its own sake", "--collateral", folder).exit_code == 2


def test_collateral_limits() -> None:
    with pytest.raises(MalformedError):
        Collateral((Item("else", b""),))
    with pytest.raises(MalformedError):
        Collateral((Item("jwks", b""),) * 129)
    with pytest.raises(MalformedError, match="vouch"):
        Collateral.carried([Item("jwks", b"{}")])
    assert all(Collateral((Item(kind, b"x"),)).of(kind) == (b"x",) for kind in KINDS)
