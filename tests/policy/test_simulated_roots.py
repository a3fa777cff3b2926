"""`tee.simulated_roots`: roots of simulated formats beside Nitro's, each for its own format and for nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from tests.platforms.local.lab import CONFIG, MODEL, REGISTERS
from tests.tee import documents as d

from cloister.errors import PolicyDocumentError
from cloister.platforms.local.authority import Authority
from cloister.platforms.local.replica import ITA_WAIVERS, ita_rules
from cloister.policy.document import Policy
from cloister.policy.draft import draft_simulated
from cloister.policy.roots import anchors_for
from cloister.tee.ita.roots import ANCHORS

ROOT = Authority.issue("cloister SIMULATED root of tokens", None, ca=True, start=datetime(2026, 1, 1, tzinfo=UTC))
TEXT = draft_simulated(
    name="simulated", form="ita", rules=ita_rules(REGISTERS), waivers=ITA_WAIVERS, root_pem=ROOT.pem,
    model_sha256=MODEL, config_sha256=CONFIG,
)  # fmt: skip
GIVEN = f'simulated_roots.ita = """\n{ROOT.pem}"""'


def test_the_root_stands_beside_the_vendors_and_for_its_format_alone() -> None:
    policy = Policy.from_toml(TEXT.encode())
    assert GIVEN in TEXT
    assert set(policy.anchors) == {"ita"}
    assert policy.anchors["ita"][:-1] == ANCHORS
    assert [anchor.genuine for anchor in policy.anchors["ita"]] == [True, False]
    assert Policy.from_toml(policy.to_toml().encode()).anchors == policy.anchors


def test_both_forms_together() -> None:
    nitro = f'simulated_root_pem = """\n{d.ROOT.pem}"""\n'
    measurement = f'[[nitro.measurement]]\npcr0 = "{"01" * 48}"\n'
    text = TEXT.replace('["ita"]', '["ita", "nitro"]').replace(GIVEN, nitro + GIVEN) + measurement
    policy = Policy.from_toml(text.encode())
    assert {form: anchors[-1].genuine for form, anchors in policy.anchors.items()} == {"ita": False, "nitro": False}
    assert Policy.from_toml(policy.to_toml().encode()).anchors == policy.anchors


def _leaf() -> str:
    return d.CHAIN[0].certificate.public_bytes(Encoding.PEM).decode()


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("allow_simulated = true", "allow_simulated = false", "simulated_roots is given but"),
        ("allow_simulated = true", "", "simulated_roots is given but"),
        (GIVEN, "", "allow_simulated needs"),
        ("simulated_roots.ita", "simulated_roots.tdx", "of a format that the policy does not accept"),
        ("simulated_roots.ita", "simulated_roots.nitro", "unknown key tee.simulated_roots.nitro"),
        ("simulated_roots.ita", "simulated_roots.snp", "unknown key tee.simulated_roots.snp"),
        (GIVEN, "simulated_roots.ita = 1", "must be a string"),
        (GIVEN, 'simulated_roots = "x"', "must be a table"),
        (ROOT.pem, "x\n", r"tee\.simulated_roots\.ita must hold one PEM"),
        (ROOT.pem, ROOT.pem * 2, r"tee\.simulated_roots\.ita must hold one PEM"),
        (ROOT.pem, _leaf(), r"tee\.simulated_roots\.ita: .*self-signed"),
    ],
)
def test_what_is_refused(old: str, new: str, why: str) -> None:
    assert old in TEXT
    with pytest.raises(PolicyDocumentError, match=why):
        Policy.from_toml(TEXT.replace(old, new).encode())


def test_a_root_that_does_not_call_itself_simulated() -> None:
    plain = Authority.issue("a root", None, ca=True, start=datetime(2026, 1, 1, tzinfo=UTC))
    with pytest.raises(PolicyDocumentError, match="does not call itself SIMULATED"):
        anchors_for(None, {"ita": plain.pem})


def test_a_vendors_root_is_not_a_simulated_one(vectors: Path) -> None:
    with pytest.raises(PolicyDocumentError, match=r"tee\.simulated_roots\.tdx"):
        anchors_for(None, {"tdx": (vectors / "tdx" / "intel_sgx_root_ca.pem").read_text()})
