"""Verdicts: what they show when, what cannot be constructed, and reports that are read back."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policy.samples import BINDING, BOUND, CHALLENGE, EVIDENCE, MINIMAL, POLICY, TEXT, run
from tests.tee import documents as d

from cloister.errors import CloisterError, MalformedError, NotGenuineError, RefusedError
from cloister.policy import checks
from cloister.policy.appraise import appraise, plan
from cloister.policy.document import Policy
from cloister.policy.verdict import Outcome, Verdict
from cloister.tee.checks import Checklist, Status
from cloister.tee.evidence import Offers
from cloister.tee.nitro import MEDIA_TYPE

CHAIN_OF_REFUSALS = ("policy.validity", "policy.scope", "policy.model", "policy.config")


def _failed(error: CloisterError) -> str:
    assert error.verdict is not None
    (failed,) = (check.id for check in error.verdict.checks if check.status is Status.FAILED)
    return failed


def _refusal(**changes: object) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        run(**changes)
    assert caught.value.verdict is not None
    assert not caught.value.verdict.accepted
    return caught.value


# --- The appraisal ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"binding": b""},
        {"binding": b"B" * 31},
        {"challenge": b""},
        {"challenge": b"F" * 33},
        {"challenge": None},  # while fresh says that it answers a nonce
        {"model_sha256": "0A" * 32},
        {"config_sha256": "é" * 64},
        {"not_after": datetime(2026, 6, 1)},  # noqa: DTZ001 - that is the point
    ],
)
def test_what_can_be_bound_has_one_shape(changes: dict) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each case has its own words
        replace(BOUND, **changes)


def test_simulated_evidence_ends_at_the_rule_even_if_its_root_were_offered() -> None:
    """No document can say this; the rule stands on its own all the same."""
    error = _refusal(policy=replace(POLICY, allow_simulated=False))
    assert isinstance(error, NotGenuineError)
    assert _failed(error) == "policy.genuine"
    assert error.verdict.simulated


def test_a_verifier_runs_only_for_a_tee_that_the_policy_accepts() -> None:
    error = _refusal(policy=replace(POLICY, tees=()), evidence=b"junk")
    assert isinstance(error, RefusedError)
    assert _failed(error) == "policy.tee"


def test_evidence_without_a_challenge_needs_a_waiver() -> None:
    evidence, bound = d.attester().attest(BINDING, None), replace(BOUND, challenge=None, fresh=False)
    assert _failed(_refusal(evidence=evidence, bound=bound)) == "policy.challenge"
    text = TEXT.replace('challenge = "required"\n', "")
    text += '[[waive]]\nrule = "freshness.challenge"\nreason = "stored evidence is read"\n'
    verdict = run(evidence=evidence, bound=bound, policy=Policy.from_toml(text.encode()))
    assert verdict.accepted
    assert "1 waived" in verdict.summary()


def test_a_challenge_that_nobody_expects_fails_the_binding() -> None:
    bound = replace(BOUND, challenge=None, fresh=False)
    assert _failed(_refusal(bound=bound)) == "policy.binding"


def test_evidence_that_binds_nothing_is_refused() -> None:
    assert _failed(_refusal(evidence=d.attester().attest(b"", CHALLENGE))) == "policy.binding"
    assert _failed(_refusal(evidence=d.attester().attest(BINDING + b"\0", CHALLENGE))) == "policy.binding"


def test_any_of_several_measurements_may_match() -> None:
    other = f'[[nitro.measurement]]\nlabel = "next release"\npcr0 = "{"09" * 48}"\n'
    policy = Policy.from_toml((TEXT + other).encode())
    assert run(policy=policy).accepted
    evidence = d.attester({**d.PCRS, 0: b"\x09" * 48}).attest(BINDING, CHALLENGE)
    check = next(
        check for check in run(evidence=evidence, policy=policy).checks if check.id == "policy.nitro.measurement"
    )
    assert check.detail == "next release"


@pytest.mark.parametrize(("seconds", "accepted"), [(-121, False), (-120, True), (0, True), (3600, True), (3601, False)])
def test_validity_at_its_ends(seconds: int, accepted: bool) -> None:
    """The statement is in use from a minute before NOW to an hour after it; the policy allows a minute of skew."""
    now = d.NOW + timedelta(seconds=seconds)
    policy = replace(POLICY, max_age=timedelta(hours=2), max_clock_skew=timedelta(seconds=60))
    evidence = d.signed(d.payload(timestamp=int(now.timestamp() * 1000), user_data=BINDING, nonce=CHALLENGE))
    if accepted:
        assert run(evidence=evidence, policy=policy, now=now).accepted
    else:
        assert _failed(_refusal(evidence=evidence, policy=policy, now=now)) == "policy.validity"


def test_the_first_of_many_failures_is_told() -> None:
    bound = replace(
        BOUND, not_after=d.NOW - timedelta(seconds=1), scope="fleet", model_sha256="0c" * 32, config_sha256="0d" * 32
    )
    for check, fix in zip(CHAIN_OF_REFUSALS, ("not_after", "scope", "model_sha256", "config_sha256"), strict=True):
        assert _failed(_refusal(bound=bound)) == check
        bound = replace(bound, **{fix: getattr(BOUND, fix)})
    assert run(bound=bound).accepted


def test_the_callers_own_checks_come_first_and_must_have_passed() -> None:
    for finished in (True, False):
        checklist = Checklist()
        checklist.plan((("bundle.format", "The bundle is well formed"),))
        plan(checklist, POLICY)
        if finished:
            with checklist.step("bundle.format"):
                pass
            verdict = appraise(Offers.one(MEDIA_TYPE, EVIDENCE), BOUND, POLICY, now=d.NOW, checklist=checklist)
            assert verdict.checks[0].id == "bundle.format"
        else:
            with pytest.raises(ValueError, match="every check"):
                appraise(Offers.one(MEDIA_TYPE, EVIDENCE), BOUND, POLICY, now=d.NOW, checklist=checklist)


# --- What a verdict shows ---------------------------------------------------------------------------------------------


def test_a_refused_verdict_shows_what_was_established() -> None:
    """Claims once genuine, the statement once bound: before that they are a stranger's words."""
    for error, claims, statement in (
        (_refusal(evidence=b"junk"), False, False),
        (_refusal(now=d.NOW + timedelta(days=1)), False, False),
        (_refusal(bound=replace(BOUND, binding=b"C" * 32)), True, False),
        (_refusal(bound=replace(BOUND, model_sha256="0c" * 32)), True, True),
    ):
        verdict = error.verdict
        assert verdict is not None
        assert (verdict.tee == "nitro") is claims
        assert (verdict.measurements.get("pcr0") == "01" * 48) is claims
        assert (len(verdict.chain) == 5) is claims
        assert (verdict.statement == {**BOUND.summary(), "model_sha256": "0c" * 32}) is statement
        assert bool(verdict.statement) is statement
    assert "0c" * 32 in error.message


def test_simulated_is_loud_until_excluded() -> None:
    assert _refusal(evidence=b"junk").verdict.simulated
    assert _refusal(bound=replace(BOUND, scope="fleet")).verdict.summary().startswith("SIMULATED")
    assert not _refusal(evidence=b"junk", policy=Policy.from_toml(MINIMAL.encode())).verdict.simulated


@pytest.mark.parametrize("check", sorted(checks.REQUIRED["key"] | checks.required_of(["nitro"])))
def test_accepted_is_impossible_without(check: str) -> None:
    verdict = run()
    with pytest.raises(ValueError, match="lacks"):
        replace(verdict, checks=tuple(item for item in verdict.checks if item.id != check))
    waived = tuple(replace(item, status=Status.WAIVED) if item.id == check else item for item in verdict.checks)
    if check in checks.WAIVABLE.values():
        assert replace(verdict, checks=waived).accepted
    else:
        with pytest.raises(ValueError, match="waive"):
            replace(verdict, checks=waived)


def test_the_tees_own_checks_cannot_be_waived_either() -> None:
    verdict = run()
    for check in ("nitro.chain", "nitro.signature", "nitro.freshness"):
        waived = tuple(replace(item, status=Status.WAIVED) if item.id == check else item for item in verdict.checks)
        with pytest.raises(ValueError, match="waive"):
            replace(verdict, checks=waived)


def test_other_contradictions() -> None:
    verdict = run()
    with pytest.raises(ValueError, match="twice"):
        replace(verdict, checks=(*verdict.checks, verdict.checks[0]))
    with pytest.raises(ValueError, match="time zone"):
        replace(verdict, appraised_at=datetime(2026, 6, 1))  # noqa: DTZ001 - that is the point


# --- Reports ----------------------------------------------------------------------------------------------------------


def _report(verdict: Verdict) -> dict:
    return json.loads(json.dumps(verdict.to_json()))


def _read(report: object) -> Verdict:
    return Verdict.from_json(json.dumps(report).encode())


def test_a_report_reads_back() -> None:
    for verdict in (run(), _refusal(bound=replace(BOUND, scope="fleet")).verdict, _refusal(evidence=b"x").verdict):
        assert _read(_report(verdict)) == verdict


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": "cloister-verdict/2"},
        {"outcome": "fine"},
        {"outcome": "refused"},  # while the exit code says accepted
        {"exit_code": 1},
        {"simulated": None},
        {"simulated": 0},
        {"checks": []},
        {"checks": [1]},
        {"checks": {}},
        {"policy": {"name": "x"}},
        {"policy": {"name": "x", "sha256": "y", "more": ""}},
        {"appraised_at": "yesterday"},
        {"appraised_at": "2026-06-01T12:00:00"},
        {"facts": {"a": 1}},
        {"facts": {str(at): "" for at in range(257)}},
        {"chain": [1]},
        {"chain": None},
        {"more": 1},
    ],
)
def test_a_report_that_was_changed(changes: dict) -> None:
    with pytest.raises(MalformedError):
        _read({**_report(run()), **changes})


@pytest.mark.parametrize("member", list(run().to_json()))
def test_a_report_that_lacks_a_member(member: str) -> None:
    report = _report(run())
    del report[member]
    with pytest.raises(MalformedError):
        _read(report)


@pytest.mark.parametrize("status", ["failed", "not-reached", "waived", "perfect"])
def test_a_report_does_not_accept_more_than_its_checks(status: str) -> None:
    report = _report(run())
    report["checks"][5]["status"] = status
    with pytest.raises(MalformedError):
        _read(report)


def test_a_report_cannot_move_the_cursor() -> None:
    for field in ("id", "title", "detail"):
        report = _report(_refusal(evidence=b"x").verdict)
        report["checks"][-1][field] = "\x1b[2J accepted"
        with pytest.raises(MalformedError, match="printable"):
            _read(report)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(run().to_json())), JSON)
def test_only_our_error_leaves_a_report_with_an_odd_member(member: str, value: object) -> None:
    try:
        verdict = _read({**_report(run()), member: value})
    except MalformedError:
        return
    assert verdict.outcome is Outcome.ACCEPTED


# --- Real documents ---------------------------------------------------------------------------------------------------


def test_every_real_document_ends_where_it_must(vectors: Path) -> None:
    """Genuine AWS evidence under a policy that names its image: debug enclaves end there, the rest at the binding."""
    entries = json.loads((vectors / "vectors.json").read_bytes())["vectors"]
    entries = [entry for entry in entries if entry["file"].startswith("nitro/") and entry.get("cose") == "OK"]
    assert entries
    for entry in entries:
        if not entry["file"].endswith(".bin"):
            continue
        pcr0 = entry["pcrs"].get("0", "01" * 48)
        policy = Policy.from_toml(MINIMAL.replace("01" * 48, pcr0).encode())
        error = _refusal(
            evidence=(vectors / entry["file"]).read_bytes(),
            policy=policy,
            now=datetime.fromisoformat(entry["verify_at"].replace("Z", "+00:00")),
            bound=replace(BOUND, challenge=None, fresh=False),
        )
        kind, check = (RefusedError, "policy.debug") if entry["debug"] else (NotGenuineError, "policy.binding")
        assert type(error) is kind, entry["file"]
        assert _failed(error) == check
        assert not error.verdict.simulated
        assert error.verdict.facts["module_id"] == entry["module_id"]
