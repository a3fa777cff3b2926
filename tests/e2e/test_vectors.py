"""Every collected piece of evidence through `cloister verify` and `cloister inspect`, online and without a network."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e import vector_runs as v
from tests.e2e import verdict_table

from cloister.policy.checks import rule_check
from cloister.tee import FORMATS, registry

Done = dict[str, tuple[v.Case, v.Seen]]
CLOISTER = (sys.executable, "-m", "cloister")
#: Its claims have a shape from before the service's release. A verdict ends earlier, for want of the key.
OLD_SHAPE = "ita/amber_2022_sgx_token_nokey.jwt"


@pytest.fixture(scope="module")
def done(vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """All runs, in this process."""
    return {case.id: (case, seen) for case, seen in verdict_table.run_all(vectors, tmp_path_factory.mktemp("runs"))}


def test_no_entry_and_no_expected_text_is_left_out(vectors: Path, done: Done) -> None:
    listed = json.loads((vectors / "vectors.json").read_bytes())["vectors"]
    assert {case.number for case, _ in done.values()} == set(range(len(listed)))
    assert {entry["expected"] for entry in listed} == set(v.MEANINGS)
    assert {entry["platform"] for entry in listed} == set(v.PLATFORMS)
    # Every way of every text was taken, but by formats that are not here yet.
    waiting = {case.expected for case, _ in done.values() if case.run.tee not in FORMATS}
    taken = {(case.expected, case.run.way) for case, _ in done.values()}
    assert {(text, way) for text in set(v.MEANINGS) - waiting for way in v.MEANINGS[text]} <= taken


def test_formats_without_a_folder_are_named(done: Done) -> None:
    """Remove from NOT_YET what has become a format: its runs are then made like all others."""
    missing = {case.run.tee for case, _ in done.values()} - set(FORMATS)
    assert missing == v.NOT_YET | v.NEVER
    assert not v.NOT_YET & v.NEVER
    assert set(FORMATS) <= {case.run.tee for case, _ in done.values()}


def test_every_verdict_is_the_expected_one(done: Done) -> None:
    expected = {name: (case.exit_code, case.check) for name, (case, _) in done.items()}
    assert {name: (seen.exit_code, seen.check) for name, (_, seen) in done.items()} == expected
    for _, seen in done.values():
        assert (seen.verdict is None) == (seen.exit_code == 2)
        if seen.verdict is None:
            continue
        assert seen.verdict["exit_code"] == seen.exit_code
        assert seen.verdict["subject"] == "evidence"
        assert not seen.verdict["simulated"]
        # Only proven words are shown: nothing of evidence that did not prove genuine.
        genuine = seen.status("policy.genuine") == "passed"
        assert bool(seen.verdict["tee"]) == genuine
        assert bool(seen.verdict["facts"]) == genuine
        if seen.exit_code == 0:
            assert {each["status"] for each in seen.verdict["checks"]} <= {"passed", "waived"}


def test_rules_that_name_the_code_are_never_waived(done: Done) -> None:
    for case, seen in done.values():
        if seen.exit_code == 0:
            for name in (case.run.tee, *case.run.inside):
                for rule in registry.get(name).rules:
                    status = seen.status(rule_check(registry.get(name), rule.name))
                    stated = rule.name in case.run.tables[name]
                    assert status == ("passed" if stated else "waived")
                    assert stated or rule.waivable


def test_a_gpu_is_accepted_with_its_manifests_and_undecided_without(done: Done) -> None:
    """What "accept (report signature + chain)" means here: see docs/verdicts.md."""
    ways = {"without manifests": 0, "with manifests": 0}
    for case, seen in done.values():
        if case.expected == "accept (report signature + chain)":
            ways[case.run.way] += 1
            form = registry.get(case.run.tee)
            assert {seen.status(check) for check, _ in form.checks} == {"passed"}
            if case.run.way == "without manifests":
                # The rules are checked in order: none before it stands against the device.
                rules = [seen.status(rule_check(form, rule.name)) for rule in form.rules]
                at = [rule.name for rule in form.rules].index("measurements")
                assert set(rules[:at]) <= {"passed", "waived"}
                assert rules[at] == "failed"
                assert set(rules[at + 1 :]) == {"not-reached"}
    assert ways["without manifests"] > ways["with manifests"] > 1


def test_the_page_is_of_this_version(done: Done) -> None:
    assert verdict_table.PAGE.read_text() == verdict_table.page(list(done.values())), "run: make verdicts"


def _first(done: Done, *, accepted: bool) -> list[v.Case]:
    """For each format, a case that was accepted, or one that was not."""
    found: dict[str, v.Case] = {}
    for case, _ in done.values():
        if case.run.tee in FORMATS and (case.exit_code == 0) == accepted:
            found.setdefault(case.run.tee, case)
    return list(found.values())


def _sample(done: Done) -> list[v.Case]:
    return [*_first(done, accepted=True), *_first(done, accepted=False)]


def test_the_same_from_a_process_of_its_own(done: Done, tmp_path: Path) -> None:
    for case in _first(done, accepted=True):
        words = [*CLOISTER, *v.arguments(case, tmp_path)]
        found = subprocess.run(words, capture_output=True, text=True, check=False)
        assert v.read(found.returncode, found.stdout) == done[case.id][1]


def _without_network() -> list[str]:
    """Words that start a command in an empty network namespace, or none where that is not permitted."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    words = [shutil.which("unshare") or "", *user, "--net", "--"]
    permitted = words[0] and subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0
    return words if permitted else []


#: Not even loopback is up in a new namespace.
_CONNECT = "import socket; print(*(socket.socket().connect_ex((host, 9)) for host in ('127.0.0.1', '192.0.2.1')))"


def test_without_a_network_every_verdict_is_the_same(done: Done, tmp_path: Path) -> None:
    isolated = _without_network()
    if not isolated:
        pytest.skip("no network namespace may be made here (unshare --net)")
    seen = subprocess.run(
        [*isolated, sys.executable, "-c", _CONNECT], capture_output=True, text=True, check=True
    ).stdout
    assert [int(code) for code in seen.split()] == [errno.ENETUNREACH] * 2
    for case in _sample(done):
        words = [*isolated, *CLOISTER, *v.arguments(case, tmp_path)]
        found = subprocess.run(words, capture_output=True, text=True, check=False)
        assert v.read(found.returncode, found.stdout) == done[case.id][1], case.id


def test_inspect_decodes_or_says_malformed(done: Done, vectors: Path, tmp_path: Path) -> None:
    """What a verdict calls malformed cannot be read, everything else has fields; no file at all makes it fall over."""
    for case, _ in done.values():
        file = tmp_path / "evidence"
        file.write_bytes(case.run.evidence)
        code, text = v.invoke(["inspect", str(file), "--json"])
        readings = [each["format"] for each in json.loads(text)["readings"]] if code == 0 else []
        if case.run.tee not in FORMATS:
            assert code in (0, 3)
            continue
        malformed = case.exit_code == 3 or case.file == OLD_SHAPE
        assert (code, case.run.tee in readings) == ((3, False) if malformed else (0, True)), case.id
        if code == 0:
            text = v.invoke(["inspect", str(file), "--tee", case.run.tee])[1]
            assert text.startswith(f"format: {case.run.tee}\nfields.")
            assert text.replace("\n", "").isprintable()
    for at, path in enumerate(sorted(path for path in vectors.rglob("*") if path.is_file())):
        assert v.invoke(["inspect", str(path), *(("--json",) if at % 2 else ())])[0] in (0, 3), path
