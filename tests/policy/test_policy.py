"""Policies: complete or refused; appraisals: one check after the other; verdicts: never more than the checks say."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policy.samples import BINDING, BOUND, CHALLENGE, MINIMAL, TEXT
from tests.policy.samples import run as _appraise
from tests.tee import documents as d

from cloister.client import appraisal
from cloister.errors import CloisterError, MalformedError, NotGenuineError, PolicyDocumentError, RefusedError
from cloister.policy import checks, document
from cloister.policy.appraise import plan
from cloister.policy.document import Policy
from cloister.policy.verdict import Outcome, outcome_of
from cloister.tee.checks import Check, Checklist, Status


def test_accepted_and_loudly_simulated() -> None:
    verdict = _appraise()
    assert verdict.accepted
    assert verdict.simulated
    assert {check.status for check in verdict.checks} == {Status.PASSED}
    assert verdict.summary().startswith("SIMULATED")
    document = json.loads(json.dumps(verdict.to_json()))
    assert (document["schema"], document["simulated"], document["exit_code"]) == ("cloister-verdict/1", True, 0)


def test_a_policy_that_allows_no_simulation_refuses_the_root() -> None:
    with pytest.raises(NotGenuineError) as caught:
        _appraise(policy=Policy.from_toml(MINIMAL.encode()))
    verdict = caught.value.verdict
    assert verdict is not None
    assert not verdict.accepted
    assert not verdict.simulated
    by_id = {check.id: check.status for check in verdict.checks}
    assert by_id["nitro.document"] is Status.PASSED
    assert by_id["nitro.chain"] is Status.FAILED
    assert by_id["nitro.signature"] is by_id["policy.model"] is Status.NOT_REACHED


REFUSALS = {
    "policy.tee": ({"media_type": "application/eat+jwt"}, RefusedError),
    "nitro.cose": ({"evidence": b"junk"}, MalformedError),
    "nitro.freshness": ({"now": d.NOW + timedelta(minutes=6)}, NotGenuineError),
    "policy.debug": (
        {"evidence": d.attester({3: b"\x01" * 48}).attest(BINDING, CHALLENGE)},
        RefusedError,
    ),
    "policy.binding": ({"bound": replace(BOUND, binding=b"C" * 32)}, NotGenuineError),
    "policy.challenge": ({"bound": replace(BOUND, fresh=False)}, NotGenuineError),
    "policy.nitro.measurement": (
        {"evidence": d.attester({**d.PCRS, 2: b"\x09" * 48}).attest(BINDING, CHALLENGE)},
        RefusedError,
    ),
    "policy.validity": ({"bound": replace(BOUND, not_after=d.NOW - timedelta(seconds=1))}, RefusedError),
    "policy.scope": ({"bound": replace(BOUND, scope="fleet")}, RefusedError),
    "policy.model": ({"bound": replace(BOUND, model_sha256="0c" * 32)}, RefusedError),
    "policy.config": ({"bound": replace(BOUND, config_sha256="0c" * 32)}, RefusedError),
}


@pytest.mark.parametrize("check", REFUSALS)
def test_each_check_can_refuse(check: str) -> None:
    changes, kind = REFUSALS[check]
    with pytest.raises(kind) as caught:
        _appraise(**changes)
    verdict = caught.value.verdict
    assert verdict is not None
    failed = [item.id for item in verdict.checks if item.status is Status.FAILED]
    assert failed == [check]
    order = [item.id for item in verdict.checks]
    later = verdict.checks[order.index(check) + 1 :]
    assert all(item.status is Status.NOT_REACHED for item in later)
    assert verdict.outcome.exit_code == caught.value.exit_code
    assert check in verdict.summary()


def test_a_wrong_challenge_fails_the_binding_check() -> None:
    with pytest.raises(NotGenuineError, match="challenge"):
        _appraise(bound=replace(BOUND, challenge=b"G" * 32))


def test_waived_rules_show_as_waived_with_their_reason() -> None:
    reason = "development, the model changes daily"
    text = re.sub(r"\[model\]\nsha256 = .*\n", "", TEXT) + f'[[waive]]\nrule = "model.sha256"\nreason = "{reason}"\n'
    verdict = _appraise(policy=Policy.from_toml(text.encode()), bound=replace(BOUND, model_sha256="ff" * 32))
    check = next(check for check in verdict.checks if check.id == "policy.model")
    assert (check.status, check.detail) == (Status.WAIVED, reason)
    assert "1 waived" in verdict.summary()


def test_an_accepted_verdict_needs_every_check() -> None:
    for status in (Status.FAILED, Status.NOT_REACHED):
        with pytest.raises(ValueError, match="every check"):
            replace(_appraise(), checks=(Check(id="x", title="x", status=status),))
    with pytest.raises(ValueError, match="every check"):
        replace(_appraise(), checks=())


def test_outcomes_and_exit_codes_agree_for_every_error() -> None:
    def tree(kind: type) -> list[type]:
        return [kind, *(below for sub in kind.__subclasses__() for below in tree(sub))]

    for kind in tree(CloisterError):
        error = kind.__new__(kind)
        outcome = outcome_of(error)
        assert outcome is not Outcome.ACCEPTED
        assert outcome is Outcome.UNDECIDED or outcome.exit_code == kind.exit_code


# --- The document -----------------------------------------------------------------------------------------------------


def test_the_minimal_policy_and_its_digest() -> None:
    import hashlib

    policy = Policy.from_toml(MINIMAL.encode())
    assert not policy.allow_simulated
    assert policy.anchors == {}
    assert policy.sha256 == hashlib.sha256(MINIMAL.encode()).hexdigest()


HOLES = {
    "name": 'name = "minimal"\n',
    "tee.accept": 'accept = ["nitro"]\n',
    "nitro.measurement": '[[nitro.measurement]]\npcr0 = "%s"\n' % ("01" * 48),
    "freshness.max_age_seconds": "max_age_seconds = 300\n",
    "freshness.max_clock_skew_seconds": "max_clock_skew_seconds = 60\n",
    "freshness.reverify_after_seconds": "reverify_after_seconds = 3600\n",
    "freshness.challenge": 'challenge = "required"\n',
    "model.sha256": '[model]\nsha256 = ["%s"]\n' % ("0a" * 32),
    "config.sha256": '[config]\nsha256 = ["%s"]\n' % ("0b" * 32),
    "key.scope": '[key]\nscope = ["replica"]\n',
}


@pytest.mark.parametrize("rule", HOLES)
def test_every_hole_is_named(rule: str) -> None:
    assert HOLES[rule] in MINIMAL
    with pytest.raises(PolicyDocumentError, match=re.escape(rule)):
        Policy.from_toml(MINIMAL.replace(HOLES[rule], "").encode())


def test_all_holes_are_named_at_once() -> None:
    with pytest.raises(PolicyDocumentError) as caught:
        Policy.from_toml(b'schema = "cloister-policy/1"')
    assert all(rule in caught.value.message for rule in HOLES if rule != "nitro.measurement")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('schema = "cloister-policy/1"', 'schema = "cloister-policy/2"'),
        ('schema = "cloister-policy/1"', ""),
        ("[key]", "[kex]"),
        ("max_age_seconds", "max_age_second"),
        ("max_age_seconds = 300", "max_age_seconds = 0"),
        ("max_age_seconds = 300", "max_age_seconds = true"),
        ("max_age_seconds = 300", 'max_age_seconds = "300"'),
        ("reverify_after_seconds = 3600", "reverify_after_seconds = 3601"),
        ('challenge = "required"', 'challenge = "optional"'),
        ('accept = ["nitro"]', 'accept = ["sim"]'),
        ('accept = ["nitro"]', "accept = []"),
        ('accept = ["nitro"]', 'accept = ["nitro"]\nallow_simulated = true'),
        ('accept = ["nitro"]', 'accept = ["nitro"]\nsimulated_root_pem = "x"'),
        ('accept = ["nitro"]', 'accept = ["nitro"]\nallow_simulated = true\nsimulated_root_pem = "x"'),
        ('scope = ["replica"]', 'scope = ["everyone"]'),
        ('sha256 = ["0a', 'sha256 = ["0A'),
        ('pcr0 = "01', 'pcr0 = "0'),
        ("pcr0", "pcr3"),
        ("pcr0", "pcr5"),
        ("[key]", '[[waive]]\nrule = "config.sha256"\nreason = "not needed here"\n[key]'),  # stated and waived
        ("[key]", '[[waive]]\nrule = "policy.debug"\nreason = "not needed here"\n[key]'),
        ("[key]", '[[waive]]\nrule = "nitro.signature"\nreason = "not needed here"\n[key]'),
        ("[key]", '[[waive]]\nrule = "policy.binding"\nreason = "not needed here"\n[key]'),
    ],
)
def test_refused_documents(old: str, new: str) -> None:
    assert old in MINIMAL
    with pytest.raises(PolicyDocumentError):
        Policy.from_toml(MINIMAL.replace(old, new).encode())


@pytest.mark.parametrize("reason", ["", "   ", "no"])
def test_a_waiver_without_a_reason(reason: str) -> None:
    text = MINIMAL.replace(HOLES["config.sha256"], "") + f'[[waive]]\nrule = "config.sha256"\nreason = "{reason}"\n'
    with pytest.raises(PolicyDocumentError, match="reason"):
        Policy.from_toml(text.encode())


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_nothing_but_our_error_escapes(data: bytes) -> None:
    with contextlib.suppress(PolicyDocumentError):
        Policy.from_toml(data)


def test_errors_do_not_quote_the_document() -> None:
    with pytest.raises(PolicyDocumentError) as caught:
        Policy.from_toml(b'name = "a secret word\n')
    assert "secret" not in caught.value.message


PAGE = (Path(__file__).parents[2] / "docs" / "policy.md").read_text()


def test_the_page_holds_policies_that_load() -> None:
    policies = [Policy.from_toml(block.encode()) for block in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)]
    assert [policy.allow_simulated for policy in policies] == [False, True]
    assert [set(policy.waivers) for policy in policies] == [{"config.sha256"}, set()]


def test_the_page_lists_the_checks_the_keys_and_the_outcomes_of_the_program() -> None:
    waived_by = {check: rule for rule, check in checks.WAIVABLE.items()}
    checklist = Checklist()
    checklist.plan(appraisal.CHECKS)
    plan(checklist, Policy.from_toml(MINIMAL.encode()))
    planned = [(check.id, check.title) for check in checklist.results()]
    rows = re.findall(r"^\| `([a-z.-]+\.[a-z-]+)` \| (.*) \| ([3-6, ]+) \| (.*)\|$", PAGE, re.MULTILINE)
    assert [(check, title) for check, title, _, _ in rows] == planned
    assert {check: rule.strip(" `") for check, _, _, rule in rows if rule.strip()} == waived_by
    for check, (_, kind) in REFUSALS.items():
        codes = next(codes for name, _, codes, _ in rows if name == check)
        assert str(kind.exit_code) in codes.split(", ")
    for rule in (*document.RULES, "nitro.measurement"):
        assert f"`{rule}`" in PAGE or f"`[[{rule}]]`" in PAGE
    for outcome in Outcome:
        assert re.search(rf"^\| {outcome.exit_code} \| .*{str(outcome).replace('-', ' ')}", PAGE, re.MULTILINE)


def test_the_page_shows_a_message_as_it_is() -> None:
    text = MINIMAL.replace(HOLES["model.sha256"], "").replace(HOLES["key.scope"], "")
    with pytest.raises(PolicyDocumentError) as caught:
        Policy.from_toml(text.encode())
    assert f"error: policy.toml: {caught.value.message}\n  {caught.value.hint}\n" in PAGE


def test_real_documents_fail_at_the_binding(vectors: Path) -> None:
    """A genuine AWS document for somebody else's key passes every check up to the binding, and there it ends."""
    entries = json.loads((vectors / "vectors.json").read_bytes())["vectors"]
    entry = next(item for item in entries if item["file"] == "nitro/dstack_nsm_qvl_bfmap.bin")
    data = (vectors / entry["file"]).read_bytes()
    policy = Policy.from_toml(MINIMAL.replace("01" * 48, entry["pcrs"]["0"]).encode())
    now = datetime.fromisoformat(entry["verify_at"].replace("Z", "+00:00")).astimezone(UTC)
    with pytest.raises(NotGenuineError) as caught:
        _appraise(evidence=data, policy=policy, now=now, bound=replace(BOUND, challenge=None, fresh=False))
    verdict = caught.value.verdict
    assert verdict is not None
    assert not verdict.simulated
    assert next(check.id for check in verdict.checks if check.status is Status.FAILED) == "policy.binding"
