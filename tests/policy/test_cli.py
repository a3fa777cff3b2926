"""`cloister policy init`, `check`, `explain` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.policy.filled import document
from tests.policy.samples import MINIMAL, TEXT
from typer.testing import CliRunner, Result

from cloister.cli import main, show
from cloister.errors import PolicyDocumentError
from cloister.policy import profiles
from cloister.policy.document import Policy
from cloister.policy.survey import State, survey


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    for console in (show.stdout, show.stderr):
        monkeypatch.setattr(console, "_width", 300)
        # Rich looks the streams up at each print, so the runner's are used.
        monkeypatch.setattr(console, "_file", None)


def run(*words: object) -> Result:
    return CliRunner().invoke(main.app, ["policy", *map(str, words)])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(MINIMAL)
    return path


def test_init_lists_and_prints_profiles(tmp_path: Path) -> None:
    listed = run("init", "--list")
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(profiles.names())
    for name in profiles.names():
        assert run("init", name).stdout == profiles.text(name)
    out = tmp_path / "mine.toml"
    assert run("init", "sgx", "--out", out).exit_code == 0
    assert out.read_text() == profiles.text("sgx")
    again = run("init", "tdx-strict", "--out", out)
    assert (again.exit_code, out.read_text()) == (2, profiles.text("sgx"))
    for words in (("init",), ("init", "nothing")):
        refused = run(*words)
        assert refused.exit_code == 2
        assert "snp-strict" in refused.stderr


@pytest.mark.parametrize("name", profiles.names())
def test_a_fresh_profile_fails_the_check_with_every_place_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    run("init", name, "--out", path)
    found = run("check", path)
    assert found.exit_code == 2
    with pytest.raises(PolicyDocumentError) as caught:
        Policy.from_toml(path.read_bytes())
    for place in caught.value.message.partition(": ")[2].split(", "):
        assert place in found.stderr
    assert not any(row.state in (State.MISSING, State.WRONG) for row in survey(path.read_bytes()).rows)
    path.write_bytes(document(name))
    done = run("check", path)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].strip() == "complete"


def test_check_shows_each_rule_and_its_state(file: Path) -> None:
    file.write_text(
        MINIMAL.replace('[config]\nsha256 = ["' + "0b" * 32 + '"]\n', "")
        .replace("reverify_after_seconds = 3600\n", "")
        .replace("max_age_seconds = 300", "max_age_seconds = 0")
        .replace('name = "minimal"', 'name = "FILL IN"')
        + '[[waive]]\nrule = "config.sha256"\nreason = "changes every day"\n'
    )
    found = run("check", file, "--json")
    assert found.exit_code == 2
    told = json.loads(found.stdout)
    assert (told["schema"], told["complete"], told["problems"]) == ("cloister-policy-check/1", False, [])
    states = {row["rule"]: row["state"] for row in told["rules"]}
    assert states == {
        "name": "to fill in",
        "tee.accept": "stated",
        "nitro.measurement": "stated",
        "freshness.max_age_seconds": "wrong",
        "freshness.max_clock_skew_seconds": "stated",
        "freshness.reverify_after_seconds": "missing",
        "freshness.challenge": "stated",
        "model.sha256": "stated",
        "config.sha256": "waived",
        "key.scope": "stated",
    }
    for rule in (
        "name (to fill in)",
        "freshness.max_age_seconds (wrong)",
        "freshness.reverify_after_seconds (missing)",
    ):
        assert rule in found.stderr
    text = run("check", file).stdout
    assert "changes every day" in text
    assert "[freshness] reverify_after_seconds = 3600" in text


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("max_age_seconds", "max_age_second", "unknown key freshness.max_age_second: is it max_age_seconds?"),
        ("[model]", "[modle]", "unknown key modle: is it model?"),
        ("pcr0", "pcr00", "unknown key nitro.measurement[0].pcr00"),
        ('accept = ["nitro"]', 'accept = ["nitr0"]', "tee.accept names a TEE that this version cannot verify"),
        ('accept = ["nitro"]', 'accept = ["nitro"]\ngpus = ["nvidia-gpu"]', "unknown key tee.gpus: is it gpu?"),
        ('accept = ["nitro"]', 'accept = ["nitro"]\ngpu = ["nvidia-gpu"]', "nvidia-gpu.measurements (missing)"),
        ("[key]", "[snp]\nvmpl = 0\n[key]", "snp: the policy does not accept that format"),
        ("cloister-policy/1", "cloister-policy/9", 'must begin with schema = "cloister-policy/1"'),
        ("[key]", '[[waive]]\nrule = "policy.debug"\nreason = "a long reason"\n[key]', "nothing that can be waived"),
        ("[key]", '[[waive]]\nrule = "model.sha256"\nreason = "a long reason"\n[key]', "model.sha256 (wrong)"),
        ("[key]", '[[waive]]\nrule = "name"\nreason = "FILL IN"\n[key]', "waive[0].reason is to be filled in"),
        ("[freshness]", "[[freshness]]", "freshness must be a table"),
        ("[key]", "waive = 3\n[key]", "unknown key config.waive"),
        ('schema = "cloister-policy/1"', 'schema = "cloister-policy/1', "not TOML"),
    ],
)  # fmt: skip
def test_check_names_what_is_wrong(file: Path, old: str, new: str, told: str) -> None:
    assert old in MINIMAL
    file.write_text(MINIMAL.replace(old, new, 1))
    found = run("check", file)
    assert found.exit_code == 2
    assert told in found.stderr + found.stdout


def test_check_agrees_with_the_reader_about_every_line(file: Path) -> None:
    lines = TEXT.splitlines()
    for at in range(len(lines)):
        for changed in (lines[:at] + lines[at + 1 :], [*lines[:at], f"{lines[at]}x", *lines[at + 1 :]]):
            data = "\n".join(changed).encode()
            try:
                Policy.from_toml(data)
                good = True
            except PolicyDocumentError:
                good = False
            try:
                found = survey(data)
            except PolicyDocumentError:
                assert not good
                continue
            assert found.complete is good
            told = found.problems or [row for row in found.rows if row.state not in (State.STATED, State.WAIVED)]
            assert bool(told) is not good


def test_explain_says_what_is_demanded_waived_and_attacked(file: Path) -> None:
    file.write_bytes(document("snp-nvidia"))
    text = run("explain", file)
    assert text.exit_code == 0
    assert "demands Genoa or Turin" in text.stdout
    assert "waived: only VCEKs are accepted" in text.stdout
    assert 'weakened: snp.platform_info (wanted: smt = "forbidden")' in text.stdout
    assert "no verifier sees that the host watches which pages" in text.stdout
    told = json.loads(run("explain", file, "--json").stdout)
    assert told["schema"] == "cloister-policy-explained/1"
    assert told["simulated_allowed"] is False
    assert told["assumes"] in text.stdout.replace("\n", " ")
    assert next(each["effect"] for each in told["attacks"] if each["id"] == "milan") == "covered"
    assert {each["rule"]: each["waived"] for each in told["rules"]}["snp.host_data"] is True


def test_explain_of_a_simulated_policy_begins_with_that(file: Path) -> None:
    file.write_text(TEXT)
    assert "SIMULATED" in run("explain", file).stdout.splitlines()[0]


def test_explain_of_an_incomplete_policy_points_to_check(file: Path) -> None:
    file.write_text(profiles.text("nitro"))
    found = run("explain", file)
    assert found.exit_code == 2
    assert "policy check" in found.stderr


@pytest.mark.parametrize("verb", ["check", "explain"])
def test_a_file_that_is_not_there(verb: str, tmp_path: Path) -> None:
    found = run(verb, tmp_path / "nothing")
    assert found.exit_code == 2
    assert "cannot read the policy" in found.stderr
