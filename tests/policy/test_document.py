"""Policy documents: strict to read, complete by construction, and written back as they were meant."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from tests.policy.samples import MINIMAL, POLICY, TEXT
from tests.tee import documents as d

from cloister.errors import PolicyDocumentError
from cloister.policy import checks, document
from cloister.policy.document import Policy
from cloister.policy.draft import draft
from cloister.wire.toml import quote

IMAGE = {"pcr0": "01" * 48}
SIMULATED = 'accept = ["nitro"]\nallow_simulated = true\nsimulated_root_pem = """\n%s"""'


def _refused(text: str) -> PolicyDocumentError:
    with pytest.raises(PolicyDocumentError) as caught:
        Policy.from_toml(text.encode())
    return caught.value


def _draft(**changes: object) -> str:
    arguments = {"name": "x", "measurements": IMAGE, "model_sha256": "0a" * 32, "config_sha256": "0b" * 32}
    return draft(**{**arguments, "simulated_root_pem": None, **changes})


def test_every_rule_has_a_hole_to_name_and_only_some_can_be_waived() -> None:
    error = _refused('schema = "cloister-policy/1"')
    assert "nitro.measurement" not in error.message
    without = re.sub(r"\[\[nitro.measurement\]\]\n.*\n", "", MINIMAL)
    assert "nitro.measurement ([[nitro.measurement]]" in _refused(without).message
    for rule, shared in document.RULES.items():
        assert f"{rule} ({shared.example})" in error.message
    assert all(rule in error.hint for rule in checks.WAIVABLE)
    assert set(checks.WAIVABLE) < set(document.RULES)
    assert set(checks.WAIVABLE.values()) < checks.REQUIRED["key"]
    assert "cannot be waived" in _refused(MINIMAL.replace('name = "minimal"', "")).hint


@pytest.mark.parametrize("rule", sorted(set(document.RULES) - set(checks.WAIVABLE)))
def test_what_cannot_be_waived(rule: str) -> None:
    error = _refused(MINIMAL + f'[[waive]]\nrule = "{rule}"\nreason = "nobody needs it here"\n')
    assert error.message == "waive[0].rule names a rule that must be stated"


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ('pcr0 = "01', 'pcr0 = "0', r"nitro\.measurement\[0\]: pcr0"),
        ('pcr0 = "01', 'pcrO = "01', r"nitro\.measurement\[0\]\.pcrO"),
        ("01" * 48, "00" * 48, r"nitro\.measurement\[0\]: pcr0 is all zero"),
        ('["0a', '["0A', r"model\.sha256\[0\]"),
        ("= 3600", "= 3601", r"freshness\.reverify_after_seconds"),
        ("= 300\n", "= 300.0\n", r"freshness\.max_age_seconds"),
        ("[tee]", "[tea]\n[tee]", "unknown key tea"),
        ("[tee]", '"\\u001b[2J" = 1\n[tee]', r'unknown key "\\u001b\[2J"'),
        ("[tee]", "tee = 1\n[tee2]", "tee must be a table"),
        ("[[nitro.measurement]]", "[nitro]\nmeasurement = [1]\n[other]", r"nitro\.measurement must be"),
        ('"minimal"', '"a\\nb"', "name must be one line"),
        ('"minimal"', '"a\\u001b[2Jb"', "name must be one line"),
        ('"minimal"', '"a\\u202eb"', "name must be one line"),
        ('"minimal"', f'"{"a" * 301}"', "name must be one line"),
        ('accept = ["nitro"]', (SIMULATED % d.ROOT.pem).replace("allow_simulated = true", ""), "is not true"),
        ('accept = ["nitro"]', (SIMULATED % d.ROOT.pem).replace("= true", "= false"), "is not true"),
        ('accept = ["nitro"]', SIMULATED % "x", r"tee\.simulated_root_pem must hold one PEM"),
        ('accept = ["nitro"]', SIMULATED % (d.ROOT.pem * 2), r"tee\.simulated_root_pem must hold one PEM"),
        ('accept = ["nitro"]', SIMULATED % ("note\n" + d.ROOT.pem), r"tee\.simulated_root_pem must hold one PEM"),
        (
            'accept = ["nitro"]',
            SIMULATED % d.CHAIN[0].certificate.public_bytes(Encoding.PEM).decode(),
            r"tee\.simulated_root_pem: .*self-signed",
        ),
    ],
)
def test_messages_name_the_path(old: str, new: str, path: str) -> None:
    assert old in MINIMAL
    error = _refused(MINIMAL.replace(old, new, 1))
    assert re.search(path, error.message), error.message
    assert error.hint


def test_two_contradictions_are_named_together() -> None:
    waivers = "".join(
        f'[[waive]]\nrule = "{rule}"\nreason = "not needed here"\n' for rule in ("model.sha256", "config.sha256")
    )
    assert _refused(MINIMAL + waivers).message == "both stated and waived: model.sha256, config.sha256"
    assert "twice" in _refused(MINIMAL + waivers + waivers).message


def test_the_vendors_root_is_not_a_simulated_one(vectors: Path) -> None:
    pem = (vectors / "nitro" / "aws_nitro_root_g1.pem").read_text()
    assert "simulated_root_pem" in _refused(MINIMAL.replace('accept = ["nitro"]', SIMULATED % pem)).message


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('schema = "cloister-policy/1"\nname = "a secret\n', "(at line 2, column 17)"),
        ("x = secret", "(at line 1, column 5)"),
        ('x = "secret', "(at end of document)"),
        ("x = " + "9" * 5000, ""),  # a bare ValueError of int(), not TOMLDecodeError
        ("x = " + "[" * 60_000, ""),
        ("x = 2021-13-01", "(at line 1, column 9)"),
    ],
)
def test_what_is_not_toml_is_told_by_place_alone(text: str, where: str) -> None:
    assert _refused(text).message == f"the policy is not TOML {where}".rstrip()


def test_size_limit() -> None:
    padding = b"#" * (document.MAX_POLICY - len(MINIMAL))
    Policy.from_toml(MINIMAL.encode() + padding)
    with pytest.raises(PolicyDocumentError, match="larger"):
        Policy.from_toml(MINIMAL.encode() + padding + b"#")


LINES = [line for line in TEXT.splitlines() if not line.startswith("#")]
VALUES = st.one_of(
    st.integers(),
    st.booleans(),
    st.floats().map(repr),
    st.text(max_size=20).map(lambda text: quote(text.encode("utf-8", "replace").decode())),
    st.sampled_from(["[]", "[[]]", "{}", '{a="b"}', "1979-05-27", '["x"]', "9" * 4301]),
)


@given(st.lists(st.tuples(st.integers(0, len(LINES) - 1), VALUES), min_size=1, max_size=4))
def test_only_our_error_leaves_a_document_with_odd_values(changes: list[tuple[int, object]]) -> None:
    lines = list(LINES)
    for at, value in changes:
        if " = " in lines[at]:
            shown = str(value).lower() if isinstance(value, bool) else str(value)
            lines[at] = f"{lines[at].partition(' = ')[0]} = {shown}"
    with contextlib.suppress(PolicyDocumentError):
        Policy.from_toml("\n".join(lines).encode())


# --- Writing ----------------------------------------------------------------------------------------------------------


def _same(policy: Policy) -> bool:
    return replace(Policy.from_toml(policy.to_toml().encode()), sha256=policy.sha256) == policy


def test_round_trip() -> None:
    waived = MINIMAL.replace('challenge = "required"\n', "")
    waived += '[[waive]]\nrule = "freshness.challenge"\nreason = "stored evidence, \\"read\\" later"\n'
    waived += f'[[nitro.measurement]]\nlabel = "signed \\\\ by us ✓"\npcr8 = "{"08" * 48}"\npcr3 = "{"03" * 48}"\n'
    for text in (TEXT, MINIMAL, waived):
        policy = Policy.from_toml(text.encode())
        assert _same(policy)
        assert Policy.from_toml(policy.to_toml().encode()).to_toml() == policy.to_toml()


@given(st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=40))
def test_any_printable_name_survives(name: str) -> None:
    assert _same(replace(POLICY, name=name))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "two\nlines"},
        {"name": ""},
        {"max_age": timedelta(milliseconds=1500)},
        {"demands": {}},
        {"tables": {}},
        {"tees": ("sim",)},
        {"allow_simulated": False},
        {"anchors": {}},
        {"model_sha256": None},
        {"scopes": ()},
        {"waivers": {"policy.debug": "nobody needs it"}},
    ],
)
def test_what_no_document_can_say_is_not_written(changes: dict) -> None:
    with pytest.raises(ValueError, match="document"):
        replace(POLICY, **changes).to_toml()


def test_a_draft_says_that_it_is_trust_on_first_use() -> None:
    text = _draft(name='a "b" \\ 😀', simulated_root_pem=d.ROOT.pem)
    assert "trust on first use" in text.splitlines()[0]
    assert "# SIMULATED" in text
    assert "SIMULATED" not in _draft()
    policy = Policy.from_toml(text.encode())
    assert policy.name == 'a "b" \\ 😀'
    assert not policy.waivers
    assert [anchor.genuine for anchor in policy.anchors["nitro"]] == [True, False]


def test_a_draft_takes_only_what_names_the_image() -> None:
    policy = Policy.from_toml(_draft(measurements={**IMAGE, "pcr4": "04" * 48, "pcr15": "00" * 48}).encode())
    assert policy.demands["nitro"]["measurement"][0].stated() == IMAGE


def test_no_draft_for_a_debug_enclave_or_none() -> None:
    for measurements in ({}, {"pcr0": "00" * 48}, {"pcr1": "01" * 48}):
        with pytest.raises(PolicyDocumentError):
            _draft(measurements=measurements)
    with pytest.raises(PolicyDocumentError):
        _draft(model_sha256='"]\n[x]')


def test_places_to_fill_in_are_found_wherever_they_stand() -> None:
    deep = "a." * 3_000 + 'a = "FILL IN"\n'
    error = _refused(MINIMAL.replace('name = "minimal"', f'{deep}name = "FILL IN: later"', 1))
    assert error.message.startswith("the policy has places to fill in: a.a.a.")
    assert error.message.endswith(".a, name")
    # Not a place: the words stand inside.
    Policy.from_toml(MINIMAL.replace('"minimal"', '"do not FILL IN"').encode())
