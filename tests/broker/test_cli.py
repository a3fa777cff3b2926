"""The verbs: what they write, and what they refuse."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cloister.broker import store
from cloister.cli.main import app
from cloister.policy.release import ReleasePolicy
from cloister.tee.sim.root import SimulatedRoot


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, done.output


def measurements(path: Path, **registers: str) -> Path:
    path.write_text(json.dumps({"measurements": registers}))
    return path


def test_grants_gather_in_one_policy(tmp_path: Path) -> None:
    folder, root = tmp_path / "b", tmp_path / "root.pem"
    root.write_text(SimulatedRoot.create().pem)
    assert run("broker", "init", folder)[0] == 0
    assert run("broker", "init", folder)[0] == 2
    assert stat.S_IMODE((folder / store.KEY).stat().st_mode) == 0o600
    one = measurements(tmp_path / "one.json", PCR0="a1" * 48, PCR8="b2" * 48)
    words = ("broker", "grant", folder, "--model", "notes", "--minimum-version", 3, "--measurements", one)
    assert run(*words, "--simulated-root", root)[0] == 0
    text = (folder / store.POLICY).read_text()
    assert run(*words, "--signer-pcr8", "--label", 'the "second"')[0] == 0
    assert (folder / store.POLICY).read_text().startswith(text.rstrip())
    policy = ReleasePolicy.from_toml((folder / store.POLICY).read_bytes())
    assert policy.allow_simulated
    first, second = policy.grants
    assert first.measurements[0].stated() == {"pcr0": "a1" * 48}
    assert second.measurements[0].stated() == {"pcr0": "a1" * 48, "pcr8": "b2" * 48}
    assert second.measurements[0].label == 'the "second"'
    assert (second.model, second.minimum_version) == ("notes", 3)


@pytest.mark.parametrize(
    ("changes", "registers", "said"),
    [
        ({"--model": "No Name"}, {"PCR0": "a1" * 48}, "model's name"),
        ({"--minimum-version": -1}, {"PCR0": "a1" * 48}, "from 0"),
        ({}, {"PCR0": "00" * 48}, "all zero"),
        ({}, {"PCR0": "a1"}, "96"),
        ({}, {}, "no PCR0"),
        ({"--simulated-root": "/dev/null"}, {"PCR0": "a1" * 48}, "PEM"),
    ],
)
def test_grants_that_are_refused_leave_the_policy_alone(
    tmp_path: Path, changes: dict[str, object], registers: dict[str, str], said: str
) -> None:
    run("broker", "init", tmp_path / "b")
    file = measurements(tmp_path / "m.json", **registers)
    options = {"--model": "notes", "--minimum-version": 3, "--measurements": file, **changes}
    code, output = run("broker", "grant", tmp_path / "b", *(word for pair in options.items() for word in pair))
    assert code == 2
    assert said in " ".join(output.split())
    assert not (tmp_path / "b" / store.POLICY).exists()


def test_a_root_is_not_added_to_a_policy_in_passing(tmp_path: Path) -> None:
    root = tmp_path / "root.pem"
    root.write_text(SimulatedRoot.create().pem)
    run("broker", "init", tmp_path / "b")
    file = measurements(tmp_path / "m.json", PCR0="a1" * 48)
    words = ("broker", "grant", tmp_path / "b", "--model", "notes", "--minimum-version", 3, "--measurements", file)
    assert run(*words)[0] == 0
    before = (tmp_path / "b" / store.POLICY).read_text()
    assert run(*words, "--simulated-root", root)[0] == 2
    assert (tmp_path / "b" / store.POLICY).read_text() == before
    assert not ReleasePolicy.from_toml(before.encode()).allow_simulated


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "either --kms-key or --broker"),
        (("--kms-key", "arn", "--broker", "b"), "either --kms-key or --broker"),
        (("--kms-key", "arn", "--broker-key", "k"), "goes with --broker"),
        (("--broker", "b", "--endpoint", "x:1"), "go with --kms-key"),
        (("--broker", "missing"), "cannot read the broker's key"),
    ],
)
def test_sealing_names_one_keeper(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    run("owner", tmp_path / "o.pem")
    (tmp_path / "m.gguf").write_bytes(b"m")
    code, output = run(
        "seal", tmp_path / "m.gguf", "--name", "n", "--version", 1, "--owner", tmp_path / "o.pem",
        "--out", tmp_path / "n.sealed", *words,
    )  # fmt: skip
    assert code == 2
    assert said in " ".join(output.split())
    assert not (tmp_path / "n.sealed").exists()


def test_removing_what_is_not_there(tmp_path: Path) -> None:
    run("broker", "init", tmp_path / "b")
    assert run("broker", "remove", tmp_path / "b", "--model", "notes", "--version", 1)[0] == 2
    assert run("broker", "remove", tmp_path / "b", "--model", "../x", "--version", 1)[0] == 3
