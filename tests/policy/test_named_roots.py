"""Roots that are not built in, named by a policy: what they let in, and what they cannot."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from tests.policy.samples import MINIMAL
from tests.tee import documents as nitro
from tests.tee.google import signer as s
from tests.tee.snp import signer as snp

from cloister.errors import NotGenuineError, PolicyDocumentError, UndecidedError
from cloister.policy.appraise import Expected, appraise_evidence
from cloister.policy.document import Policy
from cloister.policy.explain import explain
from cloister.policy.survey import survey
from cloister.policy.verdict import Verdict
from cloister.tee import FORMATS, registry
from cloister.tee.evidence import Offers
from cloister.tee.google import roots
from cloister.trust.collateral import Collateral, Item

GENOA = b"\x22" * 48
REST = MINIMAL[MINIMAL.index("[freshness]") :]
SPACE = f"""[google-space]
audience = ["https://client.example"]
hwmodel = ["GCP_INTEL_TDX"]
swname = ["CONFIDENTIAL_SPACE"]
image_digest = ["sha256:{s.DIGEST}"]
"""
_PCRS = s.registers(s.boot(technology=4))
VTPM = f"""[[google-vtpm.measurement]]
pcr4 = "{_PCRS[4].hex()}"
pcr8 = "{_PCRS[8].hex()}"
[google-vtpm]
technology = ["AMD_SEV_SNP"]
"""


def pem(authority: s.Authority) -> str:
    return authority.certificate.public_bytes(Encoding.PEM).decode()


def document(tee: str, tables: str, *, key: str = "", root: str | None = None, inside: str = "") -> bytes:
    """A policy for one format that waives what it can; `root` under `key` in the format's table."""
    used = [tee, *([inside] if inside else [])]
    waived = [f"{name}.{rule.name}" for name in used for rule in registry.get(name).rules if rule.waivable]
    head = f'schema = "cloister-policy/1"\nname = "roots"\n[tee]\naccept = ["{tee}"]\n'
    head += f'inside = ["{inside}"]\n' if inside else ""
    named = f'{key} = """\n{root}"""\n' if root is not None else ""
    entries = "".join(f'[[waive]]\nrule = "{name}"\nreason = "not what this is about"\n' for name in waived)
    inner = f'[snp]\nmeasurement = ["{GENOA.hex()}"]\nproducts = ["Genoa"]\n' if inside else ""
    entries = entries.replace('[[waive]]\nrule = "snp.products"\nreason = "not what this is about"\n', "")
    return (head + tables + named + inner + REST + entries).encode()


def space(root: str | None, key: str = "pki_root_pem") -> Policy:
    return Policy.from_toml(document("google-space", SPACE, key=key, root=root))


@pytest.fixture
def documented(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the fingerprint in Google's documentation were that of the tests' root: Google's own is not at hand."""
    digest = hashlib.sha1(s.PKI_ROOT.der, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(roots, "PKI_ROOT_SHA1", digest)


def appraise(tee: str, evidence: bytes, policy: Policy, *items: Item) -> Verdict:
    form = registry.get(tee)
    offers = Offers.one(form.media_type, evidence, role=form.role)
    expected = Expected(unbound="only its root is of interest")
    return appraise_evidence(offers, expected, policy, now=s.NOW, collateral=Collateral(items))


@pytest.mark.usefixtures("documented")
def test_a_token_with_certificates_under_a_named_root() -> None:
    policy = space(pem(s.PKI_ROOT))
    assert set(policy.anchors) == {"google-space"}
    verdict = appraise("google-space", s.pki_token(s.space()), policy)
    assert verdict.accepted
    assert not verdict.simulated
    (key,) = [check for check in verdict.checks if check.id == "google-space.key"]
    assert "root: named by the policy" in key.detail
    assert verdict.facts["root_sha256"] == s.PKI_ROOT.anchor.sha256
    with pytest.raises(UndecidedError, match="no root"):
        appraise("google-space", s.pki_token(s.space()), space(None))
    other = s.issue("another PKI root", None, ca=True)
    leaf = s.issue("another PKI leaf", other, ca=False)
    with pytest.raises(NotGenuineError):
        appraise("google-space", s.pki_token(s.space(), (leaf, other)), policy)


@pytest.mark.usefixtures("documented")
def test_it_is_part_of_the_document_and_of_what_explains_it() -> None:
    data = document("google-space", SPACE, key="pki_root_pem", root=pem(s.PKI_ROOT))
    policy = Policy.from_toml(data)
    again = Policy.from_toml(policy.to_toml().encode())
    assert replace(again, sha256=policy.sha256) == policy
    assert survey(data).complete
    assert not survey(data).problems
    (told,) = [each for each in explain(data).demands if each.rule == "google-space.pki_root_pem"]
    assert told.value == s.PKI_ROOT.anchor.sha256
    assert not [each for each in explain(document("google-space", SPACE)).demands if "root_pem" in each.rule]


def test_the_root_of_tokens_has_googles_documented_fingerprint() -> None:
    with pytest.raises(PolicyDocumentError, match=r"google-space\.pki_root_pem: .*documents"):
        space(pem(s.PKI_ROOT))


@pytest.mark.usefixtures("documented")
@pytest.mark.parametrize(
    "root",
    [
        "", "junk", pem(s.PKI_ROOT) * 2, "words\n" + pem(s.PKI_ROOT), pem(s.PKI_CA), pem(s.PKI_LEAF),
        pem(s.TCB_ROOT), nitro.ROOT.pem, pem(s.PKI_ROOT).replace("M", "N", 1), pem(s.PKI_ROOT).replace("CERT", "CÉRT"),
    ],
)  # fmt: skip
def test_what_is_no_root_of_tokens(root: str) -> None:
    with pytest.raises(PolicyDocumentError, match=r"google-space\.pki_root_pem"):
        space(root)


def _inside() -> bytes:
    report = snp.report("Genoa", 5, report_data=s.BINDING.ljust(64, b"\0"), measurement=GENOA)
    message = s.snp_message(report, vcek=snp.endorsement("Genoa"), ask=snp.intermediate("Genoa"))
    return s.attestation(s.boot(technology=4), snp=message)


def test_an_endorsement_under_a_named_root() -> None:
    tables = VTPM + "launch_endorsement = { minimum_svn = 1 }\n"
    data = document("google-vtpm", tables, key="endorsement_root_pem", root=pem(s.TCB_ROOT), inside="snp")
    data = data.replace(b'[[waive]]\nrule = "google-vtpm.launch_endorsement"\nreason = "not what this is about"\n', b"")
    policy = Policy.from_toml(data)
    assert set(policy.anchors) == {"google-endorsement"}
    # The vendors' own roots of the quote and of the processor are not the tests'.
    theirs = {"google-vtpm": (s.AK_ROOT.anchor,), "snp": (snp.root("Genoa"),)}
    item = Item("google-endorsement", s.endorse(snp=[(4, GENOA)], svn=3))

    named = replace(policy, anchors={**policy.anchors, **theirs})
    verdict = appraise("google-vtpm", _inside(), named, item)
    assert verdict.accepted
    (endorsed,) = [check for check in verdict.checks if check.id == "google-vtpm.endorsement"]
    assert endorsed.detail.endswith("root: named by the policy")
    with pytest.raises(UndecidedError, match="endorsement"):
        appraise("google-vtpm", _inside(), replace(policy, anchors=theirs), item)
    forged = s.issue("another GCE-cc-tcb-root_1", None, ca=True, pss=True)
    wrong = replace(policy, anchors={**theirs, "google-endorsement": (forged.anchor,)})
    with pytest.raises(NotGenuineError, match="root that is not trusted here"):
        appraise("google-vtpm", _inside(), wrong, item)
    # The named root is no root of anything else: a quote under the tests' own is not Google's.
    with pytest.raises(UndecidedError, match="its root is not known here"):
        appraise("google-vtpm", _inside(), policy, item)


@pytest.mark.parametrize("root", ["", pem(s.TCB_KEY), pem(s.issue("SIMULATED GCE-cc-tcb-root_1", None, ca=True))])
def test_what_is_no_root_of_endorsements(root: str) -> None:
    with pytest.raises(PolicyDocumentError, match=r"google-vtpm\.endorsement_root_pem"):
        Policy.from_toml(document("google-vtpm", VTPM, key="endorsement_root_pem", root=root, inside="snp"))


def test_no_other_format_takes_a_root() -> None:
    for key in ("pki_root_pem", "root_pem", "endorsement_root_pem"):
        with pytest.raises(PolicyDocumentError, match="unknown key"):
            Policy.from_toml(MINIMAL.replace("[freshness]", f'[nitro]\n{key} = "x"\n[freshness]').encode())
    with pytest.raises(PolicyDocumentError, match="unknown key"):
        space(pem(s.PKI_ROOT), key="endorsement_root_pem")
    problems = survey(document("google-space", SPACE, key="pki_root_pen", root=pem(s.PKI_ROOT))).problems
    assert any("is it pki_root_pem?" in problem for problem in problems)


def test_a_named_root_takes_no_built_in_ones_place() -> None:
    forms = [registry.get(name) for name in FORMATS]
    built_in = {form.name for form in forms if form.anchors} | {"nvidia-rim"}
    names = [root.anchors for form in forms for root in form.roots]
    assert len(set(names)) == len(names) == 2
    assert not set(names) & built_in
    for form in forms:
        assert not {root.key for root in form.roots} & {rule.name for rule in form.rules}
        # Under its own format's name, or under one that is no format's.
        assert all(root.anchors in {form.name} | ({root.anchors} - set(FORMATS)) for root in form.roots)
