"""Each rule about an enclave: what it accepts, what it refuses, what a policy may not say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.tee.dcap.signer import PPID, World, claims, enclave_report

from cloister.errors import PolicyDocumentError, RefusedError
from cloister.tee import registry
from cloister.tee.claims import Claims
from cloister.tee.sgx import verify
from cloister.wire import toml

RULES = {rule.name: rule for rule in registry.get("sgx").rules}
ENCLAVE, SIGNER, OTHER = "0e" * 32, "05" * 32, "11" * 32


@pytest.fixture(scope="module")
def enclave() -> Claims:
    body = enclave_report(configid=b"\x0c" * 64, configsvn=3, prodid=7, svn=8, attributes=0x85)
    return claims(World(tdx=False, version=3, body=body, advisories=("INTEL-SA-00001",), status="SWHardeningNeeded"))


def state(name: str, text: str) -> object:
    """The rule's value in a document; every key must be one that the rule knows."""
    table = toml.parse(text.encode(), limit=100000).table("sgx")
    value = RULES[name].read(table)
    table.done()
    return value


def product(signer: str = SIGNER, prodid: int = 7, svn: int = 8) -> str:
    return f'[[sgx.measurement]]\nmrsigner = "{signer}"\nisvprodid = {prodid}\nisvsvn = {svn}\n'


CASES = [
    ("measurement", f'[[sgx.measurement]]\nmrenclave = "{ENCLAVE}"', f'[[sgx.measurement]]\nmrenclave = "{OTHER}"'),
    ("measurement", product(), product(signer=OTHER)),
    ("measurement", product(svn=7), product(svn=9)),
    ("measurement", product(), product(prodid=8)),
    ("measurement", product() + f'mrenclave = "{ENCLAVE}"', product() + f'mrenclave = "{OTHER}"'),
    ("measurement", product(prodid=1) + product(), product(prodid=1) + product(prodid=2)),
    ("attributes", '[sgx]\nattributes = ["INIT", "MODE64BIT", "KSS"]', '[sgx]\nattributes = ["INIT", "MODE64BIT"]'),
    ("xfrm", '[sgx]\nxfrm = ["e700000000000000"]', '[sgx]\nxfrm = ["0700000000000000"]'),
    ("miscselect", '[sgx]\nmiscselect = ["00000000"]', None),
    ("configid", f'[sgx]\nconfigid = ["{"00" * 64}", "{"0c" * 64}"]', f'[sgx]\nconfigid = ["{"00" * 64}"]'),
    ("configsvn_min", "[sgx]\nconfigsvn_min = 3", "[sgx]\nconfigsvn_min = 4"),
    ("tcb_status", '[sgx]\ntcb_status = ["SWHardeningNeeded"]', '[sgx]\ntcb_status = ["UpToDate"]'),
    ("advisories_refused", '[sgx]\nadvisories_refused = ["INTEL-SA-00002"]', '[sgx]\nadvisories_refused = ["INTEL-SA-00001"]'),
    ("tcb_evaluation_min", "[sgx]\ntcb_evaluation_min = 17", "[sgx]\ntcb_evaluation_min = 18"),
    ("ppid", f'[sgx]\nppid = ["{PPID.hex()}"]', f'[sgx]\nppid = ["{"00" * 16}"]'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "accepted", "refused"), CASES)
def test_a_rule_accepts_and_refuses(enclave: Claims, name: str, accepted: str, refused: str | None) -> None:
    assert isinstance(RULES[name].check(enclave, state(name, accepted)), str)
    if refused is not None:
        with pytest.raises(RefusedError):
            RULES[name].check(enclave, state(name, refused))


def test_miscselect_outside_the_mask() -> None:
    found = claims(World(tdx=False, version=3, body=enclave_report(misc=1)))
    assert RULES["miscselect"].check(found, ("01000000",))
    with pytest.raises(RefusedError):
        RULES["miscselect"].check(found, ("00000000",))


def test_an_attribute_without_a_name_is_refused() -> None:
    found = claims(World(tdx=False, version=3, body=enclave_report(attributes=0x05 | 1 << 20)))
    with pytest.raises(RefusedError, match="without a name"):
        RULES["attributes"].check(found, ("INIT", "MODE64BIT"))


def test_every_rule_has_a_case_and_reads_nothing_from_an_empty_table() -> None:
    assert {name for name, _, _ in CASES} == set(RULES)
    for name, rule in RULES.items():
        assert state(name, "") is None
        assert rule.waivable is (name != "measurement")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("measurement", "[[sgx.measurement]]"),
        ("measurement", f'[[sgx.measurement]]\nmrsigner = "{SIGNER}"'),
        ("measurement", f'[[sgx.measurement]]\nmrsigner = "{SIGNER}"\nisvprodid = 7'),
        ("measurement", f'[[sgx.measurement]]\nmrsigner = "{SIGNER}"\nisvsvn = 7'),
        ("measurement", "[[sgx.measurement]]\nisvprodid = 7\nisvsvn = 7"),
        ("measurement", f'[[sgx.measurement]]\nmrenclave = "{ENCLAVE[:-2]}"'),
        ("measurement", product(svn=70000)),
        ("measurement", product() + "surplus = 1"),
        ("attributes", '[sgx]\nattributes = ["DEBUG"]'),
        ("xfrm", '[sgx]\nxfrm = ["e7"]'),
        ("configsvn_min", "[sgx]\nconfigsvn_min = -1"),
    ],
)
def test_what_a_policy_may_not_say(name: str, text: str) -> None:
    with pytest.raises(PolicyDocumentError):
        state(name, text)


def test_the_readme_numbers_the_checks_as_the_code_does() -> None:
    text = Path(verify.__file__).with_name("README.md").read_text()
    listed = [int(number) for number in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)]
    assert listed == list(range(1, listed[-1] + 1))
    for title in [title for _, title in verify.CHECKS] + [rule.title for rule in RULES.values()]:
        number = title.partition(".")[0]
        assert re.search(rf"^\| {number} \| {re.escape(title.partition('. ')[2])} \|", text, re.MULTILINE), title
