"""Each rule about a TD: what it accepts, what it refuses, what a policy may not say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.tee.dcap.signer import PPID, World, claims, td_report

from cloister.errors import PolicyDocumentError, RefusedError
from cloister.tee import registry
from cloister.tee.claims import Claims
from cloister.tee.tdx import verify
from cloister.wire import toml

RULES = {rule.name: rule for rule in registry.get("tdx").rules}
M, R1, R2, R3 = "0d" * 48, "a1" * 48, "a2" * 48, "00" * 48
WHOLE = f'[[tdx.measurement]]\nmrtd = "{M}"\nrtmr1 = "{R1}"\nrtmr2 = "{R2}"\n'


@pytest.fixture(scope="module")
def td() -> Claims:
    return claims(World(tdx=True, version=5, advisories=("INTEL-SA-00001",), status="OutOfDate"))


def state(name: str, text: str) -> object:
    """The rule's value in a document; every key must be one that the rule knows."""
    table = toml.parse(text.encode(), limit=100000).table("tdx")
    value = RULES[name].read(table)
    table.done()
    return value


CASES = [
    ("measurement", WHOLE, WHOLE.replace(M, R1)),
    ("measurement", WHOLE, WHOLE.replace(R1, R3)),
    ("measurement", WHOLE, WHOLE.replace(R2, R3)),
    ("measurement", WHOLE + f'rtmr0 = "{"a0" * 48}"\nrtmr3 = "{R3}"', WHOLE + f'rtmr3 = "{R1}"'),
    ("measurement", WHOLE.replace(M, R1) + WHOLE, WHOLE.replace(M, R1) + WHOLE.replace(M, R2)),
    ("attributes", '[tdx]\nattributes = ["SEPT_VE_DISABLE", "PKS"]', '[tdx]\nattributes = ["PKS"]'),
    ("xfam", '[tdx]\nxfam = ["ff00000000000000", "e702060000000000"]', '[tdx]\nxfam = ["e702020000000000"]'),
    ("mrseam", f'[tdx]\nmrseam = ["{"5e" * 48}"]', f'[tdx]\nmrseam = ["{R1}", "{R2}"]'),
    ("mrsignerseam", f'[tdx]\nmrsignerseam = ["{R3}"]', f'[tdx]\nmrsignerseam = ["{R1}"]'),
    ("seamattributes", f'[tdx]\nseamattributes = ["{"00" * 8}"]', f'[tdx]\nseamattributes = ["{"01" * 8}"]'),
    ("mrservicetd", f'[tdx]\nmrservicetd = ["{R3}"]', f'[tdx]\nmrservicetd = ["{R1}"]'),
    ("mrconfigid", f'[tdx]\nmrconfigid = ["{R3}"]', f'[tdx]\nmrconfigid = ["{R1}"]'),
    ("mrowner", f'[tdx]\nmrowner = ["{R3}"]', f'[tdx]\nmrowner = ["{R1}"]'),
    ("mrownerconfig", f'[tdx]\nmrownerconfig = ["{R3}"]', f'[tdx]\nmrownerconfig = ["{R1}"]'),
    ("tee_tcb_svn_min", f'[tdx]\ntee_tcb_svn_min = ["0501{"00" * 14}"]', f'[tdx]\ntee_tcb_svn_min = ["0402{"00" * 14}"]'),
    ("tcb_status", '[tdx]\ntcb_status = ["UpToDate", "OutOfDate"]', '[tdx]\ntcb_status = ["UpToDate"]'),
    ("advisories_refused", '[tdx]\nadvisories_refused = ["INTEL-SA-00002"]', '[tdx]\nadvisories_refused = ["INTEL-SA-00002", "INTEL-SA-00001"]'),
    ("tcb_evaluation_min", "[tdx]\ntcb_evaluation_min = 17", "[tdx]\ntcb_evaluation_min = 18"),
    ("ppid", f'[tdx]\nppid = ["{PPID.hex()}"]', f'[tdx]\nppid = ["{"00" * 16}"]'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "accepted", "refused"), CASES)
def test_a_rule_accepts_and_refuses(td: Claims, name: str, accepted: str, refused: str) -> None:
    assert isinstance(RULES[name].check(td, state(name, accepted)), str)
    with pytest.raises(RefusedError):
        RULES[name].check(td, state(name, refused))


def test_sept_ve_disable(td: Claims) -> None:
    assert RULES["sept_ve_disable"].check(td, state("sept_ve_disable", "[tdx]\nsept_ve_disable = true"))
    # Such a TD never comes so far; the rule holds by itself all the same.
    report = td.details.report
    without = type(report)(
        **{name: getattr(report, name) for name in report.__dataclass_fields__} | {"td_attributes": bytes(8)}
    )
    details = verify.Details(verified=td.details.verified, report=without, events={})
    bare = Claims(
        tee="tdx",
        genuine=True,
        debug=False,
        measurements={},
        user_data=None,
        nonce=None,
        signed_at=None,
        details=details,
    )
    with pytest.raises(RefusedError):
        RULES["sept_ve_disable"].check(bare, True)


def test_every_rule_has_a_case_and_reads_nothing_from_an_empty_table(td: Claims) -> None:
    assert {name for name, _, _ in CASES} | {"sept_ve_disable"} == set(RULES)
    for name, rule in RULES.items():
        assert state(name, "") is None
        assert rule.waivable is (name != "measurement")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("measurement", f'[[tdx.measurement]]\nmrtd = "{M}"'),
        ("measurement", f'[[tdx.measurement]]\nmrtd = "{M}"\nrtmr3 = "{R3}"\nrtmr2 = "{R2}"'),
        ("measurement", f'[[tdx.measurement]]\nmrtd = "{M}"\nrtmr1 = "{R1}"'),
        ("measurement", f'[[tdx.measurement]]\nrtmr1 = "{R1}"\nrtmr2 = "{R2}"'),
        ("measurement", WHOLE.replace(M, M.upper())),
        ("measurement", WHOLE.replace(M, M[:-2])),
        ("measurement", WHOLE + 'surplus = "x"'),
        ("measurement", WHOLE + '[[tdx.measurement.event]]\nrtmr = 1\nname = "x"\npayload = ""'),
        ("measurement", WHOLE + '[[tdx.measurement.event]]\nrtmr = 3\nname = "x"'),
        ("measurement", WHOLE + '[[tdx.measurement.event]]\nrtmr = 3\nname = "x"\npayload = "xyz0"'),
        ("attributes", '[tdx]\nattributes = ["DEBUG"]'),
        ("attributes", "[tdx]\nattributes = []"),
        ("sept_ve_disable", "[tdx]\nsept_ve_disable = false"),
        ("xfam", '[tdx]\nxfam = ["e7"]'),
        ("mrseam", '[tdx]\nmrseam = ["e7"]'),
        ("tcb_status", '[tdx]\ntcb_status = ["Revoked"]'),
        ("tcb_status", '[tdx]\ntcb_status = "UpToDate"'),
        ("advisories_refused", '[tdx]\nadvisories_refused = ["intel sa"]'),
        ("tcb_evaluation_min", "[tdx]\ntcb_evaluation_min = 0"),
        ("ppid", '[tdx]\nppid = ["00"]'),
    ],
)
def test_what_a_policy_may_not_say(name: str, text: str) -> None:
    with pytest.raises(PolicyDocumentError):
        state(name, text)


def test_both_svns_of_a_newer_report_count() -> None:
    low, high, least = (bytes([n, 1, 2]) + bytes(13) for n in (5, 7, 6))
    for svn, svn2, fits in ((high, high, True), (high, low, False), (low, high, False)):
        found = claims(World(tdx=True, version=5, body=td_report(newer=True, tcb_svn=svn, svn2=svn2)))
        if fits:
            assert RULES["tee_tcb_svn_min"].check(found, (least.hex(),))
        else:
            with pytest.raises(RefusedError):
                RULES["tee_tcb_svn_min"].check(found, (least.hex(),))


def test_the_readme_numbers_the_checks_as_the_code_does() -> None:
    text = Path(verify.__file__).with_name("README.md").read_text()
    listed = [int(number) for number in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)]
    titles = [title for _, title in verify.CHECKS] + [rule.title for rule in RULES.values()]
    assert listed == list(range(1, listed[-1] + 1))
    for title in titles:
        number = title.partition(".")[0]
        assert re.search(rf"^\| {number} \| {re.escape(title.partition('. ')[2])} \|", text, re.MULTILINE), title
