"""Intel Trust Authority: real tokens, tokens of an authority of our own, every check and rule refusing once."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from tests.tee.ita import signer as s

from cloister.errors import (
    CloisterError,
    MalformedError,
    NotGenuineError,
    PolicyDocumentError,
    RefusedError,
    UndecidedError,
)
from cloister.tee import ita as folder
from cloister.tee.ita import rules, verify
from cloister.tee.ita.roots import ITA_ROOT
from cloister.trust.collateral import Collateral
from cloister.wire import toml

NAMES = [rule.name for rule in rules.RULES]


@pytest.fixture(scope="module")
def entries(vectors: Path) -> dict[str, dict]:
    listed = json.loads((vectors / "vectors.json").read_bytes())["vectors"]
    return {entry["file"]: entry for entry in listed if entry["platform"] == "intel-trust-authority"}


@pytest.fixture
def real_keys(vectors: Path) -> Collateral:
    return s.collateral(("ita-certs", (vectors / "ita" / "ita_prod_2023_jwks.json").read_bytes()))


def _real(vectors: Path, entry: dict) -> tuple[bytes, datetime]:
    return (vectors / entry["file"]).read_bytes().strip(), datetime.fromisoformat(entry["verify_at"])


def test_real_tokens(vectors: Path, entries: dict, real_keys: Collateral) -> None:
    verdicts = {}
    for file, entry in entries.items():
        if "verify_at" not in entry:
            with pytest.raises(UndecidedError):  # nobody kept its key
                s.verify((vectors / file).read_bytes().strip(), own=real_keys, root=None)
            continue
        data, now = _real(vectors, entry)
        claims = s.verify(data, now=now, own=real_keys, root=None)
        assert claims.genuine
        verdicts[file] = (claims.debug, claims.facts["tcb_status"], claims.facts["attester"])
        for late in (timedelta(minutes=10), timedelta(days=-1)):
            with pytest.raises(NotGenuineError):
                s.verify(data, now=now + late, own=real_keys, root=None)
        for at in (len(data) // 2, len(data) - 3, 10):
            changed = bytearray(data)
            changed[at] = ord("A") if changed[at] != ord("A") else ord("B")
            with pytest.raises((NotGenuineError, MalformedError, UndecidedError)):
                s.verify(bytes(changed), now=now, own=real_keys, root=None)
    assert verdicts == {
        "ita/ita_prod_2024_sgx_debug_rs256.jwt": (True, "OutOfDateConfigurationNeeded", "SGX"),
        "ita/ita_prod_kbs_6_PS384_TDX.jwt": (False, "OutOfDate", "TDX"),
    }


def test_the_anchor_is_the_published_certificate(vectors: Path) -> None:
    keys = json.loads((vectors / "ita" / "ita_prod_2023_jwks.json").read_bytes())["keys"]
    der = base64.b64decode(keys[0]["x5c"][-1])
    root = x509.load_der_x509_certificate(der)
    assert hashlib.sha256(der).hexdigest() == ITA_ROOT.sha256
    assert root.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == ITA_ROOT.spki
    assert root.subject.rfc4514_string() == ITA_ROOT.subject
    assert (root.not_valid_before_utc, root.not_valid_after_utc) == (ITA_ROOT.not_before, ITA_ROOT.not_after)


@pytest.mark.parametrize(
    "claims", [s.tdx(), s.sgx(), s.nested(s.tdx()), s.nested(s.sgx())], ids=["tdx", "sgx", "tdx v2", "sgx v2"]
)
def test_good_tokens(claims: dict) -> None:
    for alg in verify.ALGORITHMS:
        got = s.verify(s.token(claims, alg=alg))
        assert (got.user_data, got.debug, got.nonce) == (s.HELD, False, None)
        assert got.details.algorithm == alg


HOUR = timedelta(hours=1)
OTHER = s.issue("other", None, ca=True)
FOREIGN_LEAF = s.issue("test token signing", OTHER, ca=False)
OLD_LEAF = s.issue("test token signing", s.CA, ca=False, start=s.NOW - timedelta(days=400))
BAD = {
    "alg none": (s.token(s.tdx(), alg="none"), None, NotGenuineError),
    "alg ES384": (s.token(s.tdx(), alg="ES384"), None, NotGenuineError),
    "another algorithm than it says": (
        s.token(s.tdx(), alg="RS256").replace(*(x.split(b".")[0] for x in (s.token({}, alg="RS256"), s.token({})))),
        None,
        NotGenuineError,
    ),
    "claims changed": (
        b".".join((s.token(s.tdx()).split(b".")[0], *s.token(s.tdx(tdx_mrtd="02" * 48)).split(b".")[1:2],
                   s.token(s.tdx()).split(b".")[2])),
        None,
        NotGenuineError,
    ),
    "unknown kid": (s.token(s.tdx(), kid="00"), None, UndecidedError),
    "no key set": (s.token(s.tdx()), s.collateral(), UndecidedError),
    "key set without keys": (
        s.token(s.tdx()), s.collateral(("ita-certs", json.dumps({"keys": []}).encode())), UndecidedError,
    ),
    "foreign root": (
        s.token(s.tdx(), FOREIGN_LEAF),
        s.collateral(("ita-certs", s.key_set(FOREIGN_LEAF, (OTHER,)))),
        NotGenuineError,
    ),
    "foreign leaf under our root": (
        s.token(s.tdx(), FOREIGN_LEAF),
        s.collateral(("ita-certs", s.key_set(FOREIGN_LEAF))),
        NotGenuineError,
    ),
    "expired leaf": (
        s.token(s.tdx(), OLD_LEAF), s.collateral(("ita-certs", s.key_set(OLD_LEAF))), NotGenuineError,
    ),
    "revoked leaf": (
        s.token(s.tdx()), s.collateral(("ita-certs", s.key_set()), ("ita-crl", s.crl(s.CA, s.LEAF))), NotGenuineError,
    ),
    "revoked CA": (
        s.token(s.tdx()), s.collateral(("ita-certs", s.key_set()), ("ita-crl", s.crl(s.ROOT, s.CA))), NotGenuineError,
    ),
    "stale list": (
        s.token(s.tdx()),
        s.collateral(("ita-certs", s.key_set()), ("ita-crl", s.crl(s.CA, start=s.NOW - timedelta(days=9), days=3))),
        NotGenuineError,
    ),
    "list of somebody else": (
        s.token(s.tdx()), s.collateral(("ita-certs", s.key_set()), ("ita-crl", s.crl(OTHER))), NotGenuineError,
    ),
    "no list": (
        s.token(s.tdx()), s.collateral(("ita-certs", s.key_set()), ("ita-crl", b"junk")), MalformedError,
    ),
    "another issuer": (s.token(s.tdx(iss="https://portal.trustauthority.intel.com/")), None, NotGenuineError),
    "expired": (s.token(s.tdx(exp=int(s.NOW.timestamp()) - 60)), None, NotGenuineError),
    "from the future": (s.token(s.tdx(iat=int(s.NOW.timestamp()) + 200)), None, NotGenuineError),
    "no time": (s.token(s.tdx(iat=...)), None, MalformedError),
    "too old": (
        s.token(s.tdx(iat=int((s.NOW - HOUR).timestamp()), nbf=int((s.NOW - HOUR).timestamp()))), None, NotGenuineError,
    ),
    "other held data": (
        s.token(s.tdx(attester_held_data=base64.b64encode(b"C" * 32).decode())), None, NotGenuineError,
    ),
    "SGX report data with a tail": (
        s.token(s.sgx(sgx_report_data=hashlib.sha256(s.HELD).hexdigest() + "01" * 32)), None, NotGenuineError,
    ),
    "version 3": (s.token(s.tdx(ver="3.0.0")), None, MalformedError),
    "a TEE that is not known": (s.token(s.tdx(attester_type="SEVSNP")), None, MalformedError),
    "short register": (s.token(s.tdx(tdx_mrtd="01" * 47)), None, MalformedError),
    "upper-case register": (s.token(s.tdx(tdx_mrtd="AA" * 48)), None, MalformedError),
    "missing register": (s.token(s.tdx(tdx_rtmr2=...)), None, MalformedError),
    "debug flag as text": (s.token(s.tdx(tdx_is_debuggable="false")), None, MalformedError),
    "version 2 with two TEEs": (s.token(s.nested(s.tdx(), sgx={})), None, MalformedError),
    "version 2 with none": (s.token({**s.tdx(), "ver": "2.0.0"}), None, MalformedError),
    "cut": (s.token(s.tdx())[:-1], None, (NotGenuineError, MalformedError)),
    "a line end": (s.token(s.tdx()) + b"\n", None, MalformedError),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_must_fail(name: str) -> None:
    data, own, kind = BAD[name]
    with pytest.raises(kind):
        s.verify(data, own=own)


@pytest.mark.parametrize(
    "changes",
    [
        {"dbgstat": "enabled"},
        {"dbgstat": "disabled-since-boot"},
        {"tdx_is_debuggable": True},
        {"tdx_td_attributes_debug": True},
        {"tdx_is_debuggable": ..., "tdx_td_attributes_debug": ...},
    ],
)
def test_anything_but_a_clear_no_is_debug(changes: dict) -> None:
    assert s.verify(s.token(s.tdx(**changes))).debug
    assert s.verify(s.token(s.nested(s.tdx(**changes)))).debug


POLICY = f"""
tcb_status = ["UpToDate"]
refused_advisories = ["INTEL-SA-1"]
algorithm = ["PS384"]
issuer = ["https://portal.trustauthority.intel.com"]
policies = ["aa-1"]
revocation = "required"
gpu = "none"
[[measurement]]
mrtd = "{"01" * 48}"
rtmr1 = "{"11" * 48}"
"""
LISTS = s.collateral(("ita-certs", s.key_set()), ("ita-crl", s.crl(s.CA)), ("ita-crl", s.crl(s.ROOT)))


def _rule(name: str, claims: dict, *, text: str = POLICY, own: Collateral = LISTS, **header: object) -> str:
    rule = next(rule for rule in rules.RULES if rule.name == name)
    value = rule.read(toml.Table(toml.parse(text.encode(), limit=10_000).members, "ita"))
    assert value is not None
    return rule.check(s.verify(s.token(claims, **header), own=own), value)


@pytest.mark.parametrize("name", NAMES)
def test_rules_pass(name: str) -> None:
    assert _rule(name, s.tdx())


def test_rules_refuse() -> None:
    cases: list[tuple[str, dict, dict, type[CloisterError]]] = [
        ("measurement", s.tdx(tdx_mrtd="09" * 48), {}, RefusedError),
        ("measurement", s.tdx(tdx_rtmr1="09" * 48), {}, RefusedError),
        ("measurement", s.sgx(), {}, RefusedError),
        ("tcb_status", s.tdx(attester_tcb_status="OutOfDate"), {}, RefusedError),
        ("tcb_status", s.tdx(attester_tcb_status="uptodate"), {}, RefusedError),
        ("refused_advisories", s.tdx(attester_advisory_ids=["INTEL-SA-2", "INTEL-SA-1"]), {}, RefusedError),
        ("algorithm", s.tdx(), {"alg": "RS256"}, RefusedError),
        ("issuer", s.tdx(iss="Intel Trust Authority"), {}, RefusedError),
        ("policies", s.tdx(policy_ids_matched=None), {}, RefusedError),
        ("policies", s.tdx(policy_ids_unmatched=[{"id": "bb"}]), {}, RefusedError),
        ("gpu", s.nested(s.tdx(), nvgpu={"x-nvidia-overall-att-result": False}), {}, RefusedError),
    ]
    for name, claims, header, kind in cases:
        with pytest.raises(kind):
            _rule(name, claims, **header)
    for own in (s.collateral(("ita-certs", s.key_set())), LISTS.__class__(LISTS.items[:2])):
        with pytest.raises(UndecidedError):
            _rule("revocation", s.tdx(), own=own)
    required = POLICY.replace('gpu = "none"', 'gpu = "required"')
    assert _rule("gpu", s.nested(s.tdx(), nvgpu={"x-nvidia-overall-att-result": True}), text=required) == "verified"
    with pytest.raises(RefusedError):
        _rule("gpu", s.tdx(), text=required)


@pytest.mark.parametrize(
    ("measurement", "accepted"),
    [
        ('mrenclave = "%s"' % ("05" * 32), True),
        ('mrsigner = "%s"\nisvprodid = 7\nisvsvn = 3' % ("06" * 32), True),
        ('mrsigner = "%s"\nisvprodid = 7\nisvsvn = 4' % ("06" * 32), False),
        ('mrsigner = "%s"\nisvprodid = 8\nisvsvn = 1' % ("06" * 32), False),
        ('mrenclave = "%s"' % ("07" * 32), False),
    ],
)
def test_enclaves(measurement: str, accepted: bool) -> None:
    text = f"[[measurement]]\n{measurement}\n"
    if accepted:
        assert _rule("measurement", s.sgx(), text=text)
    else:
        with pytest.raises(RefusedError):
            _rule("measurement", s.sgx(), text=text)


@pytest.mark.parametrize(
    "text",
    [
        f'[[measurement]]\nmrtd = "{"01" * 48}"',
        f'[[measurement]]\nmrsigner = "{"01" * 32}"',
        f'[[measurement]]\nmrenclave = "{"00" * 32}"',
        f'[[measurement]]\nmrenclave = "{"01" * 31}"',
        f'[[measurement]]\nmrenclave = "{"01" * 32}"\nother = 1',
        'algorithm = ["none"]',
        'issuer = ["https://evil.example"]',
        'tcb_status = ["Fine"]',
        'revocation = "no"',
    ],
)
def test_demands_that_are_none(text: str) -> None:
    with pytest.raises(PolicyDocumentError):
        for rule in rules.RULES:
            rule.read(toml.parse(text.encode(), limit=10_000))


@given(
    st.dictionaries(st.sampled_from(sorted(s.nested(s.tdx())) + sorted(s.tdx())), st.none() | st.booleans() | st.text())
)
def test_only_our_errors_leave(changes: dict) -> None:
    with contextlib.suppress(CloisterError):
        s.verify(s.token({**s.tdx(), **changes}))


def test_the_page_numbers_what_the_code_numbers() -> None:
    page = (Path(folder.__file__).parent / "README.md").read_text()
    numbered = re.findall(r"^\| (\d+) \|", page, re.MULTILINE)
    titles = [title for _, title in verify.CHECKS] + [rule.title for rule in rules.RULES]
    assert numbered == [title.partition(".")[0] for title in titles]
