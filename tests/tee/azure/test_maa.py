"""Tokens of an instance of our own: every claim that decides."""

from __future__ import annotations

import base64
import contextlib
import json
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tee.azure import common
from tests.tee.azure import signer as s

from cloister.errors import (
    CloisterError,
    MalformedError,
    NotGenuineError,
    PolicyDocumentError,
    RefusedError,
    UndecidedError,
)
from cloister.tee import registry
from cloister.tee.azure import maa, maa_rules
from cloister.wire import toml
from cloister.wire.strict_json import encode_base64url

FORMAT = registry.get("azure-maa")
NONCE = encode_base64url(s.BINDING)
GOOD = {
    "guest-snp": s.guest(nonce=NONCE),
    "guest-tdx": s.guest(s.TDX_CLAIMS, nonce=NONCE),
    "platform-snp": s.platform(),
    "platform-tdx": s.platform(s.TDX_CLAIMS),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_tokens(name: str) -> None:
    claims = s.verify_token(s.token(GOOD[name]))
    assert (claims.genuine, claims.debug, claims.signed_at) == (True, False, s.NOW)
    hardware = "sevsnpvm" if name.endswith("snp") else "tdxvm"
    assert claims.facts["hardware"] == hardware
    assert claims.facts["kind"] == ("azurevm" if name.startswith("guest") else hardware)


# Binding: which token carries B where


def _binds(claims: dict) -> bool:
    try:
        FORMAT.bind(s.verify_token(s.token(claims)), s.BINDING, None)
    except NotGenuineError:
        return False
    return True


@pytest.mark.parametrize(
    ("nonce", "good"),
    [
        (NONCE, True),
        (base64.b64encode(NONCE.encode()).decode(), True),
        (base64.b64encode(s.BINDING).decode(), False),
        (NONCE + "A", False),
        (NONCE[:-1], False),
        (s.BINDING.hex(), False),
        (encode_base64url(b"C" * 32), False),
        ("", False),
        (None, False),
    ],
)
def test_the_nonce_of_the_guest_attestation_client(nonce: str | None, good: bool) -> None:
    assert _binds(s.guest(nonce=nonce)) is good


@pytest.mark.parametrize(
    ("part", "claim"), [(s.SNP_CLAIMS, "x-ms-sevsnpvm-reportdata"), (s.TDX_CLAIMS, "tdx_report_data")]
)
def test_report_data_and_user_data(part: dict, claim: str) -> None:
    bound, half = s.BINDING.hex() + "00" * 32, s.BINDING.hex() + "00" * 31 + "01"
    assert _binds(s.platform({**part, claim: bound}))
    assert not _binds(s.platform({**part, claim: half}))
    # Under a paravisor the guest's bytes are in the runtime data; report data is then its hash and binds nothing.
    assert _binds(s.platform(part, **{"x-ms-runtime": {"user-data": bound}}))
    assert not _binds(s.platform({**part, claim: bound}, **{"x-ms-runtime": {"user-data": "00" * 64}}))
    assert not _binds(s.guest({**part, claim: bound}))
    inside = {**part, "x-ms-attestation-type": part["x-ms-attestation-type"], "x-ms-runtime": {"user-data": bound}}
    assert _binds(s.guest(**{"x-ms-isolation-tee": inside}))
    assert not _binds(s.guest(part, **{"x-ms-runtime": {"user-data": bound}}))


# Keys and times


def test_keys_come_from_the_issuer_alone() -> None:
    good = s.token(GOOD["guest-snp"])
    for item in (s.key_set("https://other.eus.attest.azure.net"), s.key_set(s.ISSUER + "/")):
        with pytest.raises(UndecidedError, match="not at hand"):
            s.verify_token(good, item)
    for item in (s.key_set(name="another"),):
        with pytest.raises(NotGenuineError, match="signature"):
            s.verify_token(good, item)
    with pytest.raises(UndecidedError, match="not in its issuer's key set"):
        s.verify_token(s.token(GOOD["guest-snp"], kid="rotated"))
    # What the token says of keys is not looked at.
    own = {"jwk": s.jwk(s.key("evil"), "maa"), "jku": "https://evil.example"}
    with pytest.raises(NotGenuineError, match="signature"):
        s.verify_token(s.token(GOOD["guest-snp"], by="evil", **own))
    with pytest.raises(NotGenuineError, match="RS256"):
        s.verify_token(good, s.key_set(alg="PS384"))


@pytest.mark.parametrize("alg", ["none", "HS256", "PS384", "ES256", "RS384", "rs256"])
def test_algorithms(alg: str) -> None:
    with pytest.raises(NotGenuineError, match="RS256"):
        s.verify_token(s.token(GOOD["guest-snp"], alg=alg))


@pytest.mark.parametrize(
    "issuer",
    ["http://ours.eus.attest.azure.net", "https://attest.azure.net", "https://ours.attest.azure.net.evil.example",
     "https://ours.eus.attest.azure.net/", "https://ours.eus.attest.azure.net:443", "https://a@b.attest.azure.net",
     "https://OURS.attest.azure.net", "https://ours.attest.azure.net\n", "https://ours..attest.azure.net", ""],
)  # fmt: skip
def test_issuers_that_are_none(issuer: str) -> None:
    with pytest.raises(NotGenuineError, match="no instance"):
        s.verify_token(s.token(s.guest(iss=issuer)), s.key_set(issuer))


def test_times() -> None:
    good = s.token(GOOD["guest-snp"])
    for delta, age, word in ((28_861, 10, "expired"), (-61, 1, "future"), (3601, 1, "old")):
        with pytest.raises(NotGenuineError, match=word):
            s.verify_token(good, now=s.NOW + timedelta(seconds=delta), max_age=timedelta(hours=age))
    for changes in ({"exp": ...}, {"iat": ...}, {"exp": "1"}, {"nbf": None}):
        with pytest.raises(MalformedError):
            s.verify_token(s.token(s.guest(**changes)))


# Claims


def _changed(name: str, **changes: object) -> dict:
    """A good token with claims about the hardware changed."""
    claims = dict(GOOD[name])
    if name.startswith("guest"):
        claims["x-ms-isolation-tee"] = s.but(claims["x-ms-isolation-tee"], changes)
        return claims
    return s.but(claims, changes)


@pytest.mark.parametrize("name", GOOD)
def test_claims_that_must_be_there(name: str) -> None:
    part = s.SNP_CLAIMS if name.endswith("snp") else s.TDX_CLAIMS
    may_lack = {"x-ms-compliance-status", "dbgstat", "tdx_td_attributes_debug", "x-ms-sevsnpvm-is-debuggable"}
    for claim, value in part.items():
        wrong: list = [None, [], {"a": 1}] if claim in may_lack else [..., None, [], {"a": 1}]
        if isinstance(value, str) and len(value) >= 32:
            wrong += [value[:-1], value + "0", value.upper() if value.upper() != value else "zz" * (len(value) // 2)]
        if isinstance(value, bool):
            wrong += [0, "false"]
        elif isinstance(value, int):
            wrong += [-1, True, "4", 1.5]
        for each in wrong:
            with pytest.raises(MalformedError):
                s.verify_token(s.token(_changed(name, **{claim: each})))


@pytest.mark.parametrize(
    "changes",
    [{"x-ms-attestation-type": "sgx"}, {"x-ms-attestation-type": ...}, {"x-ms-isolation-tee": ...}, {"x-ms-isolation-tee": "x"},
     {"x-ms-runtime": []}, {"x-ms-runtime": {"client-payload": "x"}}, {"x-ms-runtime": {"client-payload": {"nonce": 1}}},
     {"secureboot": "true"}, {"x-ms-azurevm-kerneldebug-enabled": 0}, {"x-ms-policy-hash": 1}],
)  # fmt: skip
def test_malformed_guest_tokens(changes: dict) -> None:
    with pytest.raises(MalformedError):
        s.verify_token(s.token(s.guest(**changes)))


def test_only_a_clear_no_is_no_debug() -> None:
    for changes in (
        {"x-ms-sevsnpvm-is-debuggable": True},
        {"x-ms-sevsnpvm-is-debuggable": ...},
        {"dbgstat": "enabled"},
    ):
        for name in ("guest-snp", "platform-snp"):
            assert s.verify_token(s.token(_changed(name, **changes))).debug
    for changes in ({"tdx_td_attributes_debug": True}, {"dbgstat": "enabled"}, {"dbgstat": "disabled-since-boot"},
                    {"dbgstat": ..., "tdx_td_attributes_debug": ...}):  # fmt: skip
        for name in ("guest-tdx", "platform-tdx"):
            assert s.verify_token(s.token(_changed(name, **changes))).debug
    for changes in ({"dbgstat": ...}, {"tdx_td_attributes_debug": ...}):
        assert not s.verify_token(s.token(_changed("platform-tdx", **changes))).debug
    for claim in maa.GUEST_DEBUG:
        assert s.verify_token(s.token(s.guest(**{claim: True}))).debug


# Rules


def _rule(claims: dict, name: str, text: str) -> str:
    return common.rule(s.verify_token(s.token(claims)), name, text)


SVN = "[minimum_svn]\nbootloader = 4\ntee = 0\nsnp = 24\nmicrocode = 219\nguest = 10\n"
TD = '[[measurement]]\nmrtd = "{}"\nrtmr1 = "{}"\nrtmr2 = "{}"'


@pytest.mark.parametrize(
    ("token", "name", "good", "bad"),
    [
        ("guest-snp", "issuer", f'issuer = ["x", "{s.ISSUER}"]', f'issuer = ["{s.ISSUER}/"]'),
        ("guest-snp", "attestation_type", 'attestation_type = ["azurevm"]', 'attestation_type = ["sevsnpvm", "tdxvm"]'),
        ("platform-tdx", "attestation_type", 'attestation_type = ["tdxvm"]', 'attestation_type = ["azurevm"]'),
        ("guest-tdx", "isolation", 'isolation = ["tdxvm"]', 'isolation = ["sevsnpvm"]'),
        ("guest-snp", "measurement", f'[[measurement]]\nlaunch_measurement = "{"6a" * 48}"',
         f'[[measurement]]\nlaunch_measurement = "{"6b" * 48}"'),
        ("platform-snp", "measurement", f'[[measurement]]\nlaunch_measurement = "{"6a" * 48}"\nhost_data = "{"0b" * 32}"\nlabel = "x"',
         f'[[measurement]]\nlaunch_measurement = "{"6a" * 48}"\nhost_data = "{"0c" * 32}"'),
        ("guest-tdx", "measurement", TD.format("0d" * 48, "00" * 48, "00" * 48), TD.format("0d" * 48, "00" * 48, "01" * 48)),
        ("platform-tdx", "measurement", TD.format("0d" * 48, "00" * 48, "00" * 48), TD.format("0e" * 48, "00" * 48, "00" * 48)),
        ("platform-tdx", "measurement", TD.format("0d" * 48, "00" * 48, "00" * 48), f'[[measurement]]\nlaunch_measurement = "{"0d" * 48}"'),
        ("guest-snp", "compliance", 'compliance = ["azure-compliant-cvm"]', 'compliance = ["azure-compliant-uvm"]'),
        ("guest-snp", "minimum_svn", SVN, SVN.replace("24", "25")),
        ("guest-snp", "minimum_svn", SVN, SVN.replace("tee = 0", "tee = 1").replace("219", "1")),
        ("guest-snp", "minimum_svn", SVN + f'tee_tcb_svn = "{"ff" * 16}"', f'[minimum_svn]\ntee_tcb_svn = "{"00" * 16}"'),
        ("guest-tdx", "minimum_svn", f'[minimum_svn]\ntee_tcb_svn = "020106{"00" * 13}"', f'[minimum_svn]\ntee_tcb_svn = "020107{"00" * 13}"'),
        ("guest-tdx", "minimum_svn", f'[minimum_svn]\ntee_tcb_svn = "{"00" * 16}"', SVN),
        ("guest-tdx", "tcb_status", 'tcb_status = ["UpToDate"]', 'tcb_status = ["OutOfDate"]'),
        ("guest-snp", "vmpl", "vmpl = 0", "vmpl = 1"),
        ("guest-snp", "secure_boot", 'secure_boot = "required"', None),
        ("guest-snp", "migration", 'migration = "forbidden"', None),
        ("guest-snp", "policy_hash", f'policy_hash = ["{"Q" * 43}"]', f'policy_hash = ["{"R" * 43}"]'),
        ("guest-snp", "id_key_digest", f'id_key_digest = ["{"1d" * 48}"]', f'id_key_digest = ["{"1e" * 48}"]'),
        ("guest-snp", "vm_unique_id", f'vm_unique_id = ["{s.VM["vmUniqueId"].lower()}"]', 'vm_unique_id = ["x"]'),
        ("platform-snp", "vm_unique_id", None, 'vm_unique_id = [""]'),
        ("platform-snp", "secure_boot", None, 'secure_boot = "required"'),
    ],
)  # fmt: skip
def test_rules(token: str, name: str, good: str | None, bad: str | None) -> None:
    if good is not None:
        assert _rule(GOOD[token], name, good)
    if bad is not None:
        with pytest.raises(RefusedError):
            _rule(GOOD[token], name, bad)


def test_rules_about_one_kind_of_hardware_say_so_of_the_other() -> None:
    assert "none" in _rule(GOOD["guest-snp"], "tcb_status", 'tcb_status = ["UpToDate"]')
    assert "none" in _rule(GOOD["guest-tdx"], "vmpl", "vmpl = 0")
    assert "none" in _rule(GOOD["guest-tdx"], "id_key_digest", f'id_key_digest = ["{"1d" * 48}"]')


def test_secure_boot_migration_compliance() -> None:
    required, runtime = 'secure_boot = "required"', {**s.RUNTIME, "vm-configuration": {**s.VM, "secure-boot": False}}
    for claims in (s.guest(secureboot=False), _changed("guest-snp", **{"x-ms-runtime": runtime})):
        with pytest.raises(RefusedError, match="securely"):
            _rule(claims, "secure_boot", required)
    assert _rule(s.guest(secureboot=...), "secure_boot", required) == "on"
    moved = _changed("guest-snp", **{"x-ms-sevsnpvm-migration-allowed": True})
    with pytest.raises(RefusedError, match="migration"):
        _rule(moved, "migration", 'migration = "forbidden"')
    assert _rule(moved, "migration", 'migration = "allowed"') == "allowed"
    with pytest.raises(RefusedError, match="compliant"):
        _rule(
            _changed("guest-snp", **{"x-ms-compliance-status": ...}),
            "compliance",
            'compliance = ["azure-compliant-cvm"]',
        )


@pytest.mark.parametrize(
    "text",
    ["issuer = []", 'attestation_type = ["sgx"]', 'isolation = ["azurevm"]', '[[measurement]]\nlabel = "x"',
     f'[[measurement]]\nhost_data = "{"0b" * 32}"', f'[[measurement]]\nlaunch_measurement = "{"00" * 48}"',
     f'[[measurement]]\nmrtd = "{"0d" * 48}"\nrtmr1 = "{"00" * 48}"', f'[[measurement]]\nlaunch_measurement = "{"0d" * 47}"',
     '[minimum_svn]\nbootloader = 4', '[minimum_svn]\ntee_tcb_svn = "00"', 'tcb_status = ["Fine"]', "vmpl = 4",
     'secure_boot = "off"', 'policy_hash = ["x"]', 'id_key_digest = ["00"]', 'compliance = ["yes"]', 'migration = "maybe"'],
)  # fmt: skip
def test_rules_that_cannot_be_read(text: str) -> None:
    table = toml.parse(text.encode(), limit=10_000)
    with pytest.raises(PolicyDocumentError):
        _read_all(table)


def _read_all(table: toml.Table) -> None:
    for rule in maa_rules.RULES:
        rule.read(table)
    table.done()


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.lists(st.integers(), max_size=2)


@given(
    st.sampled_from(sorted(GOOD)),
    st.dictionaries(st.sampled_from([*s.SNP_CLAIMS, *s.TDX_CLAIMS, "x-ms-runtime"]), VALUES),
)
def test_only_our_errors_leave(name: str, changes: dict) -> None:
    with contextlib.suppress(CloisterError):
        s.verify_token(s.token(_changed(name, **changes)))
    with contextlib.suppress(CloisterError):
        s.verify_token(s.token(s.but(GOOD[name], changes)))
    with contextlib.suppress(CloisterError):
        maa.parse(json.dumps(changes).encode())
