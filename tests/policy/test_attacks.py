"""Attacks as data: they name what exists, the pages are those of the code, and each answer follows from the policy."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.policy.filled import document, members
from tests.policy.samples import MINIMAL

from cloister.errors import PolicyDocumentError
from cloister.policy import checks, profiles
from cloister.policy.attacks import ATTACKS, BY_ID
from cloister.policy.document import RULES
from cloister.policy.explain import Answer, Effect, explain, plain, words
from cloister.tee import FORMATS, registry
from tools import policy_docs

PAGES = Path(__file__).parents[2] / "docs" / "attacks"
KNOWN = {*RULES, *(checks.rule_name(form, rule.name) for form in map(registry.get, FORMATS) for rule in form.rules)}


def test_attacks_name_formats_rules_checks_and_pages_that_exist() -> None:
    assert len(BY_ID) == len(ATTACKS)
    for attack in ATTACKS:
        assert set(attack.hits) <= set(FORMATS)
        assert {defence.rule for defence in attack.defences} <= KNOWN
        assert set(attack.always) <= checks.REQUIRED["key"]
        assert not any(map(checks.may_be_waived, attack.always))
        assert set(attack.cured) <= set(attack.hits)
        for defence in attack.defences:
            assert defence.rule in RULES or defence.rule.partition(".")[0] in attack.hits
        for form, where in attack.only.items():
            assert form in attack.hits
            assert where.rule in KNOWN
            assert where.rule.startswith(f"{form}.")
    assert {path.name for path in PAGES.glob("*.md")} == {attack.page for attack in ATTACKS}


def test_every_format_has_attacks_of_its_own_kind() -> None:
    """Without them an explanation would call the hardware's attacks absent: add a new format to the `hits` it shares."""
    everybody = {"diversion", "whisper-leak", "shared-cache"}
    assert {form for attack in ATTACKS if attack.id not in everybody for form in attack.hits} == set(FORMATS)


@pytest.mark.parametrize("page", sorted({attack.page for attack in ATTACKS}))
def test_a_page_says_what_the_code_says(page: str) -> None:
    text = (PAGES / page).read_text()
    for part in ("**What it", "need", "**What our profiles demand.**", "**What no verifier can see.**", "**Sources.**"):
        assert part in text or (part == "**What it" and "**What they are.**" in text)
    for attack in (each for each in ATTACKS if each.page == page):
        for rule in {defence.rule for defence in attack.defences} | set(attack.always):
            table, _, key = rule.partition(".")
            assert f"`{rule}" in text or key in text or table in {"ita", "nvidia-nras"}, rule
        if attack.uncertain:
            assert re.search(r"\*\*Not sure\.\*\*|uncertain", text)
    for rule in re.findall(r"`([a-z-]+\.[a-z_]+)[` ]", text):
        assert rule in KNOWN | {check for check, _ in checks.RULES} | {"enclave.engine"}, rule


@pytest.mark.parametrize("page", policy_docs.TABLES)
def test_the_tables_of_the_pages_are_those_of_the_code(page: str) -> None:
    text = (policy_docs.DOCS / page).read_text()
    assert policy_docs.written(page, text) == text, "run tools/policy_docs.py"
    stale = text.replace("| yes |", "| no |", 1).replace("| 2025 |", "| 2024 |", 1)
    assert stale != text
    assert policy_docs.written(page, stale) == text


def test_a_page_without_a_place_for_a_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="exactly one place"):
        policy_docs.written("attacks.md", "nothing")


def answers(name: str, change: Callable[[dict], object] | None = None) -> dict[str, Answer]:
    return {each.attack.id: each for each in explain(document(name, change)).answers}


EFFECTS = {
    "nitro": {"nitro-parent": "narrowed", "diversion": "narrowed", "whisper-leak": "unseen", "shared-cache": "narrowed"},
    "snp-strict": {
        "tee-fail": "narrowed", "battering-ram": "narrowed", "badram": "covered", "entrysign": "covered",
        "cachewarp": "covered", "stackwarp": "covered", "heracles": "narrowed", "rmpocalypse": "narrowed",
        "milan": "covered", "snpeek": "unseen", "diversion": "narrowed", "whisper-leak": "unseen",
        "shared-cache": "narrowed",
    },
    "tdx-strict": {
        "tee-fail": "narrowed", "tdx-module": "covered", "tdxray": "unseen", "diversion": "narrowed",
        "whisper-leak": "unseen", "shared-cache": "narrowed",
    },
    "gcp-tdx": {
        "tee-fail": "weakened", "tdx-module": "covered", "tdxray": "unseen", "diversion": "weakened",
        "whisper-leak": "unseen", "shared-cache": "narrowed",
    },
    "sgx": {
        "tee-fail": "narrowed", "wiretap": "narrowed", "battering-ram": "narrowed", "diversion": "narrowed",
        "whisper-leak": "unseen", "shared-cache": "narrowed",
    },
    "ita-tdx": {
        "tee-fail": "unseen", "tdx-module": "narrowed", "tdxray": "unseen", "verification-service": "narrowed",
        "diversion": "narrowed", "whisper-leak": "unseen", "shared-cache": "narrowed",
    },
    "azure-snp": {
        "tee-fail": "weakened", "battering-ram": "weakened", "badram": "weakened", "entrysign": "weakened",
        "cachewarp": "weakened", "stackwarp": "weakened", "heracles": "weakened", "rmpocalypse": "weakened",
        "milan": "covered", "snpeek": "unseen", "cloud-vtpm": "narrowed", "diversion": "weakened",
        "whisper-leak": "unseen", "shared-cache": "narrowed",
    },
    "azure-tdx": {
        "tee-fail": "weakened", "tdx-module": "covered", "tdxray": "unseen", "cloud-vtpm": "narrowed",
        "diversion": "weakened", "whisper-leak": "unseen", "shared-cache": "narrowed",
    },
    "azure-maa": {
        "tee-fail": "unseen", "tdx-module": "narrowed", "tdxray": "unseen", "cloud-vtpm": "narrowed",
        "verification-service": "narrowed", "diversion": "narrowed", "whisper-leak": "unseen", "shared-cache": "narrowed",
    },
    "gcp-space": {
        "tee-fail": "narrowed", "tdx-module": "narrowed", "tdxray": "unseen", "cloud-vtpm": "narrowed",
        "verification-service": "unseen", "diversion": "narrowed", "whisper-leak": "unseen", "shared-cache": "narrowed",
    },
}  # fmt: skip
EFFECTS["azure-snp-nvidia"] = EFFECTS["azure-snp"] | {"gpu-memory": "narrowed"}
EFFECTS["gcp-vtpm-tdx"] = EFFECTS["azure-tdx"]
EFFECTS["gcp-snp"] = EFFECTS["azure-snp"] | {
    "badram": "covered",
    "entrysign": "covered",
    "cachewarp": "covered",
    "rmpocalypse": "narrowed",
}
EFFECTS["tdx-nvidia"] = EFFECTS["tdx-strict"] | {"gpu-memory": "narrowed"}
EFFECTS["tdx-nras"] = EFFECTS["tdx-nvidia"] | {"verification-service": "unseen"}
EFFECTS["snp-nvidia"] = EFFECTS["snp-strict"] | {
    "gpu-memory": "narrowed",
    "stackwarp": "weakened",
    "heracles": "weakened",
}


@pytest.mark.parametrize("name", profiles.names())
def test_what_each_profile_does_about_each_attack(name: str) -> None:
    found = {key: str(answer.effect) for key, answer in answers(name).items() if answer.effect is not Effect.ABSENT}
    assert found == EFFECTS[name]


def waive(rule: str) -> Callable[[dict], object]:
    table, _, key = rule.partition(".")

    def change(found: dict) -> None:
        del found[table][key]
        if not found[table]:
            del found[table]
        found.setdefault("waive", []).append({"rule": rule, "reason": "for this test"})

    return change


@pytest.mark.parametrize(
    ("profile", "attack", "rule"),
    [
        (name, attack.id, defence.rule)
        for name, hit in (
            ("snp-strict", "snp"),
            ("tdx-strict", "tdx"),
            ("sgx", "sgx"),
            ("tdx-nvidia", "nvidia-gpu"),
            ("tdx-nras", "nvidia-nras"),
            ("azure-snp", "azure-vtpm"),
            ("azure-maa", "azure-maa"),
            ("gcp-snp", "google-vtpm"),
            ("gcp-space", "google-space"),
        )
        for attack in ATTACKS
        if hit in attack.hits and attack.id in EFFECTS[name]
        for defence in attack.defences
        if defence.rule.startswith(f"{hit}.")
        and not defence.rule.endswith((".products", ".measurement", ".technology", ".hwmodel"))
    ],
)
def test_waiving_a_rule_weakens_what_it_answers(profile: str, attack: str, rule: str) -> None:
    answer = answers(profile, waive(rule))[attack]
    assert answer.effect is Effect.WEAKENED
    assert answer.gaps[rule] == "waived: for this test"
    assert rule not in answer.by


def set_(table: str, key: str, value: object, inner: str | None = None) -> Callable[[dict], object]:
    def change(found: dict) -> None:
        (found[table] if inner is None else found[table][inner])[key] = value

    return change


@pytest.mark.parametrize(
    ("profile", "attack", "change", "gap"),
    [
        ("snp-strict", "milan", set_("snp", "products", ["Milan", "Genoa"]), "wanted: does not name Milan"),
        ("snp-strict", "badram", set_("snp", "alias_check", "any", "platform_info"), 'alias_check = "required"'),
        ("snp-strict", "stackwarp", set_("snp", "smt", "any", "platform_info"), 'smt = "forbidden"'),
        ("snp-strict", "entrysign", set_("snp", "provisional_firmware", "allowed"), '= "forbidden"'),
        ("tdx-strict", "tdx-module", set_("tdx", "tcb_status", ["UpToDate", "OutOfDate"]), "names only UpToDate"),
        ("tdx-strict", "tdx-module", set_("tdx", "attributes", ["PERFMON"]), "does not name MIGRATABLE, PERFMON"),
        ("tdx-strict", "tdx-module", set_("tdx", "mrservicetd", ["01" * 48]), "is zero"),
        ("tdx-nvidia", "gpu-memory", set_("nvidia-gpu", "mode", ["spt", "ppcie"]), "does not name ppcie"),
        ("nitro", "diversion", lambda found: found["nitro"]["measurement"][0].pop("pcr3"), "states pcr3 or pcr4"),
    ],
)  # fmt: skip
def test_stating_less_weakens_too(profile: str, attack: str, change: Callable[[dict], object], gap: str) -> None:
    answer = answers(profile, change)[attack]
    assert answer.effect is Effect.WEAKENED
    assert any(gap in each for each in answer.gaps.values()), answer.gaps


@pytest.mark.parametrize("attack", ["badram", "milan", "snpeek"])
def test_a_token_is_hit_by_what_hits_the_hardware_that_it_may_be_about(attack: str) -> None:
    def of_both(found: dict) -> None:
        found["azure-maa"]["isolation"].append("sevsnpvm")

    def named(found: dict) -> None:
        found["google-space"]["hwmodel"].append("GCP_AMD_SEV_SNP")

    assert answers("azure-maa")[attack].effect is answers("gcp-space")[attack].effect is Effect.ABSENT
    # No rule tells Milan, or whether aliases were looked for: a minimum narrows the one and not the other.
    expected = Effect.NARROWED if attack == "badram" else Effect.UNSEEN
    assert answers("azure-maa", of_both)[attack].effect is expected
    assert answers("gcp-space", named)[attack].effect is Effect.UNSEEN


def test_plain_sev_beside_snp_makes_the_rules_of_snp_worthless() -> None:
    def plain_too(found: dict) -> None:
        found["google-vtpm"]["technology"].append("AMD_SEV")

    found = answers("gcp-snp", plain_too)
    assert (found["badram"].effect, found["badram"].bare) == (Effect.UNSEEN, ("google-vtpm",))
    assert found["cloud-vtpm"].effect is Effect.WEAKENED


@pytest.mark.parametrize(("profile", "rule"), [("ita-tdx", "ita"), ("gcp-space", "google-space")])
def test_a_token_that_speaks_of_gpus_is_hit_by_what_hits_them(profile: str, rule: str) -> None:
    def with_gpus(found: dict) -> None:
        found[rule]["gpu"] = {"ita": "required", "google-space": "ON"}[rule]

    assert answers(profile)["gpu-memory"].effect is Effect.ABSENT
    assert answers(profile, with_gpus)["gpu-memory"].effect is Effect.UNSEEN


def test_a_second_format_without_the_rules_makes_it_unseen() -> None:
    def both(found: dict) -> None:
        found["tee"]["accept"].append("ita")
        found["ita"] = dict(ita["ita"])
        found["waive"] += ita["waive"]

    ita, _ = members("ita-tdx")
    found = answers("tdx-strict", both)
    assert (found["tee-fail"].effect, found["tee-fail"].bare) == (Effect.UNSEEN, ("ita",))
    assert found["tdx-module"].effect is Effect.NARROWED


def test_without_a_challenge_everything_that_rests_on_it_is_weakened() -> None:
    found = answers("nitro", waive("freshness.challenge"))
    assert found["nitro-parent"].effect is found["diversion"].effect is Effect.WEAKENED


def test_an_explanation_of_an_incomplete_policy_is_refused() -> None:
    with pytest.raises(PolicyDocumentError, match="holes"):
        explain(MINIMAL.replace('name = "minimal"', "").encode())


def test_every_rule_is_explained_with_what_it_demands() -> None:
    found = explain(document("snp-strict"))
    names = [each.rule for each in found.demands]
    assert len(set(names)) == len(names)
    assert set(names) == {*RULES, *(f"snp.{rule.name}" for rule in registry.get("snp").rules)}
    told = {each.rule: each.words() for each in found.demands}
    assert told["snp.products"] == "demands Genoa or Turin"
    assert told["snp.measurement"] == f"demands {'22' * 8}…"
    assert told["snp.csp_id"].startswith("waived: only VCEKs")
    assert "alias_check required" in told["snp.platform_info"]
    assert told["freshness.max_age_seconds"] == "demands 300"
    assert words([{"label": "release 1", "pcr0": "01" * 48}, True]) == "release 1 or yes"
    assert words(["550\x1b[2J"]) == "550�[2J"
    assert (plain("12-13. Two"), plain("e.g. no number")) == ("Two", "e.g. no number")
