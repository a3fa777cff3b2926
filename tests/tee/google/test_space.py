"""Confidential Space tokens: real ones, ones of a Google of our own, every check and rule refusing once."""

from __future__ import annotations

import contextlib
import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tee.google import signer as s

from cloister.errors import (
    CloisterError,
    MalformedError,
    NotGenuineError,
    PolicyDocumentError,
    RefusedError,
    UndecidedError,
)
from cloister.policy.appraise import Expected, appraise_evidence
from cloister.policy.document import Policy
from cloister.tee import registry
from cloister.tee.evidence import Offers, Role
from cloister.tee.google import roots
from cloister.tee.google.space import rules
from cloister.trust.collateral import Collateral, Item
from cloister.wire import toml
from cloister.wire.strict_json import encode_base64url

FORMAT = registry.get("google-space")
NAMES = [rule.name for rule in rules.RULES]


# Real tokens


@pytest.fixture(scope="module")
def entries(vectors: Path) -> dict[str, dict]:
    listed = json.loads((vectors / "vectors.json").read_bytes())["vectors"]
    return {entry["file"]: entry for entry in listed if entry["platform"] == "gcp-confidential-space"}


def _keys(vectors: Path, entry: dict, issuer: str = s.ISSUER) -> tuple[str, bytes]:
    return "jwks", json.dumps(json.loads((vectors / entry["keys"]).read_bytes()) | {"issuer": issuer}).encode()


def test_no_token_of_the_vectors_is_left_out(vectors: Path, entries: dict) -> None:
    assert {f"google/{path.name}" for path in (vectors / "google").glob("*.jwt")} == set(entries)


def test_a_real_token_of_a_debug_image(vectors: Path, entries: dict) -> None:
    entry = entries["google/synddb_cs_oidc_debug.jwt"]
    data, keys = (vectors / entry["file"]).read_bytes().strip(), _keys(vectors, entry)
    now = datetime.fromisoformat(entry["verify_at"])
    given = s.context("google-space", keys, now=now, max_age=timedelta(hours=1))
    claims = FORMAT.verify(data, given)
    assert given.checklist.complete()
    assert claims.genuine
    assert claims.debug
    assert claims.details.attestation.audience == entry["aud"]
    assert claims.user_data is None  # it carries no nonce
    assert claims.facts["swversion"] == "251001"
    with pytest.raises(NotGenuineError, match="nonces"):
        FORMAT.bind(claims, s.BINDING, None)
    for late in (timedelta(hours=2), timedelta(days=-1)):
        with pytest.raises(NotGenuineError):
            FORMAT.verify(data, s.context("google-space", keys, now=now + late, max_age=timedelta(days=9)))
    head, body, signature = data.split(b".")
    for wrong in (
        b".".join((head, body, signature[:-6] + b"AAAAAA")),
        b".".join((head, body[:-8] + b"AAAAAAAA", signature)),
        b".".join((head[:-4] + b"AAAA", body, signature)),
    ):
        with pytest.raises((NotGenuineError, MalformedError, UndecidedError)):
            s.verify_token(wrong, keys, now=now)
    with pytest.raises(UndecidedError):  # the same keys, said to be of somebody else
        s.verify_token(data, _keys(vectors, entry, "https://accounts.google.com"), now=now)


def test_a_real_production_token_whose_key_nobody_kept(vectors: Path, entries: dict) -> None:
    entry = entries["google/oasys_cs_prod_2024-05-03_nokey.jwt"]
    data = (vectors / entry["file"]).read_bytes().strip()
    with pytest.raises(UndecidedError):
        s.verify_token(data, _keys(vectors, entries["google/synddb_cs_oidc_debug.jwt"]))
    attestation = FORMAT.parse(data)
    assert attestation.debug is False
    assert (attestation.audience, attestation.nonces) == (entry["aud"], (entry["eat_nonce"],))
    assert attestation.support_attributes == ("LATEST", "STABLE", "USABLE")


# Tokens of our own


def test_good_tokens() -> None:
    claims = s.verify_token(s.token(s.space()))
    assert (claims.genuine, claims.debug, claims.nonce) == (True, False, None)
    assert claims.user_data == encode_base64url(s.BINDING).encode()
    assert claims.measurements == {"image_digest": s.DIGEST, "image_id": "cd" * 32}
    assert claims.signed_at == s.NOW - timedelta(seconds=10)
    FORMAT.bind(claims, s.BINDING, b"F" * 32)
    assert FORMAT.role is Role.RESULT


@pytest.mark.parametrize(
    ("nonces", "bound"),
    [
        (encode_base64url(s.BINDING), True),
        ([encode_base64url(s.BINDING)], True),
        (["another nonce", encode_base64url(s.BINDING)], True),
        (encode_base64url(b"C" * 32), False),
        (encode_base64url(s.BINDING) + "=", False),
        (encode_base64url(s.BINDING)[:-1], False),
        ("B" * 32, False),
        (s.BINDING.hex(), False),
        (["another nonce", "and another"], False),
        (..., False),
    ],
)
def test_the_binding_is_one_whole_nonce(nonces: object, bound: bool) -> None:
    claims = s.verify_token(s.token(s.space(eat_nonce=nonces)))
    if bound:
        FORMAT.bind(claims, s.BINDING, None)
    else:
        with pytest.raises(NotGenuineError):
            FORMAT.bind(claims, s.BINDING, None)


AT = int(s.NOW.timestamp())
OTHER = s.rsa_key("somebody else's")
BAD: dict[str, tuple[bytes, tuple[tuple[str, bytes], ...], object]] = {
    "alg none": (s.token(s.space(), alg="none"), (), NotGenuineError),
    "alg PS384": (s.token(s.space(), alg="PS384"), (), NotGenuineError),
    "alg HS256": (s.token(s.space(), alg="HS256"), (), NotGenuineError),
    "no kid": (s.token(s.space(), kid=...), (), UndecidedError),
    "unknown kid": (s.token(s.space(), kid="x"), (), UndecidedError),
    "no keys": (s.token(s.space()), (("google-ak", b""),), UndecidedError),
    "keys of another issuer": (s.token(s.space()), (("jwks", s.jwks(issuer="https://x")),), UndecidedError),
    "another key of that name": (s.token(s.space()), (("jwks", s.jwks(OTHER)),), NotGenuineError),
    "signed by somebody else": (s.token(s.space(), OTHER), (), NotGenuineError),
    "another issuer": (s.token(s.space(iss="https://portal.trustauthority.intel.com")), (), NotGenuineError),
    "an issuer with a slash more": (s.token(s.space(iss=s.ISSUER + "/")), (), NotGenuineError),
    "no issuer": (s.token(s.space(iss=...)), (), NotGenuineError),
    "expired": (s.token(s.space(exp=AT - 100)), (), NotGenuineError),
    "no end": (s.token(s.space(exp=...)), (), MalformedError),
    "no start": (s.token(s.space(iat=...)), (), MalformedError),
    "from the future": (s.token(s.space(nbf=AT + 100)), (), NotGenuineError),
    "too old": (s.token(s.space(iat=AT - 400, nbf=AT - 400)), (), NotGenuineError),
    "two audiences": (s.token(s.space(aud=["https://client.example", "x"])), (), MalformedError),
    "no audience": (s.token(s.space(aud=...)), (), MalformedError),
    "seven nonces": (s.token(s.space(eat_nonce=["n" * 10] * 7)), (), MalformedError),
    "no nonce in the list": (s.token(s.space(eat_nonce=[])), (), MalformedError),
    "a short nonce": (s.token(s.space(eat_nonce="short")), (), MalformedError),
    "a long nonce": (s.token(s.space(eat_nonce="n" * 89)), (), MalformedError),
    "a nonce that is a number": (s.token(s.space(eat_nonce=[1234567890])), (), MalformedError),
    "secure boot as text": (s.token(s.space(secboot="true")), (), MalformedError),
    "no debug status": (s.token(s.space(dbgstat=...)), (), MalformedError),
    "two versions": (s.token(s.space(swversion=["251001", "251002"])), (), MalformedError),
    "a version that is none": (s.token(s.space(swversion=["new"])), (), MalformedError),
    "a digest that is none": (
        s.token(s.space(submods=s.submods(container=s.container(image_digest="latest")))), (), MalformedError,
    ),
    "a digest in upper case": (
        s.token(s.space(submods=s.submods(container=s.container(image_digest="sha256:" + "AB" * 32)))),
        (),
        MalformedError,
    ),
    "a container that is a list": (s.token(s.space(submods=s.submods(container=[]))), (), MalformedError),
    "a line end in a name": (s.token(s.space(hwmodel="GCP\nACCEPTED")), (), MalformedError),
    "env that is no text": (
        s.token(s.space(submods=s.submods(container=s.container(env={"A": 1})))), (), MalformedError,
    ),
    "two TCB statuses": (
        s.token(s.space(tdx=[{"gcp_attester_tcb_status": "UpToDate"}, {"gcp_attester_tcb_status": "OutOfDate"}])),
        (),
        MalformedError,
    ),
    "a line end": (s.token(s.space()) + b"\n", (), MalformedError),
    "a byte less": (s.token(s.space())[:-1], (), (MalformedError, NotGenuineError)),
    "certificates and no root": (s.pki_token(s.space()), (), UndecidedError),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_must_fail(name: str) -> None:
    data, items, kind = BAD[name]
    with pytest.raises(kind):
        s.verify_token(data, *items)


def test_tokens_with_certificates() -> None:
    claims = s.verify_token(s.pki_token(s.space()), pki=s.PKI_ROOT)
    assert (claims.genuine, claims.details.trusted_by) == (True, "pki")
    assert claims.chain == ("CN=test PKI CA", "CN=test PKI leaf")
    assert s.verify_token(s.pki_token(s.space(), (s.PKI_LEAF, s.PKI_CA)), pki=s.PKI_ROOT).genuine
    other = s.issue("test PKI root", s.issue("x", None, ca=True), ca=True)
    old = s.issue("old leaf", s.PKI_CA, ca=False, start=s.NOW - timedelta(days=400))
    foreign_root = s.issue("foreign root", None, ca=True)
    foreign = s.issue("foreign leaf", foreign_root, ca=False)
    for chain in (
        (foreign, foreign_root),
        (foreign, s.PKI_CA),
        (old, s.PKI_CA),
        (s.PKI_LEAF,),
        (s.PKI_LEAF, s.PKI_CA, other),
    ):
        with pytest.raises(NotGenuineError):
            s.verify_token(s.pki_token(s.space(), chain), pki=s.PKI_ROOT)
    # The issuer's keys at hand make no difference to a token with certificates.
    with pytest.raises(NotGenuineError):
        s.verify_token(s.token(s.space(), x5c=[s.PKI_LEAF.b64, s.PKI_CA.b64]), pki=s.PKI_ROOT)


def test_the_root_of_the_pki_is_the_documented_one() -> None:
    with pytest.raises(NotGenuineError):
        roots.pki_anchor(s.PKI_ROOT.der)
    with pytest.raises(MalformedError):
        roots.pki_anchor(s.PKI_ROOT.der + b"\x00")


def test_a_bundle_cannot_bring_the_keys() -> None:
    with pytest.raises(MalformedError):
        Collateral.carried([Item("jwks", s.jwks())])


@pytest.mark.parametrize(
    "claims",
    [
        s.space(dbgstat="enabled"),
        s.space(dbgstat="disabled"),
        s.space(dbgstat="Disabled-Since-Boot"),
        s.space(submods=s.submods(nvidia_gpu={"cc_mode": "DEVTOOLS"})),
    ],
)
def test_anything_but_a_clear_no_is_debug(claims: dict) -> None:
    assert s.verify_token(s.token(claims)).debug


# Rules

POLICY = f"""
[google-space]
audience = ["https://client.example"]
image_digest = ["sha256:{s.DIGEST}"]
hwmodel = ["GCP_INTEL_TDX"]
swname = ["CONFIDENTIAL_SPACE"]
minimum_swversion = 251000
support_attributes = ["STABLE"]
secure_boot = "required"
tcb_status = ["UpToDate"]
image_reference = ["us-docker.pkg.dev/project/images/serve:1"]
image_signatures = ["ECDSA_P256_SHA256:0011"]
restart_policy = ["Never"]
args = ["/app/serve", "--port", "8000"]
cmd_override = "forbidden"
env_override = "forbidden"
monitoring = "forbidden"
project_id = ["project"]
project_number = ["123"]
zone = ["us-west1-b"]
instance_id = ["5"]
instance_name = ["vm"]
service_accounts = ["serve@project.iam.gserviceaccount.com"]
gpu = "none"
trusted_by = ["jwks"]

[google-space.env]
HOSTNAME = "*"
PATH = "/bin"
"""
SIGNED = [{"key_id": "0011", "signature": "AA==", "signature_algorithm": "ECDSA_P256_SHA256"}]


def _space(**container: object) -> dict:
    return s.space(submods=s.submods(container=s.container(**{"image_signatures": SIGNED, **container})))


def _rule(name: str, claims: dict, text: str = POLICY) -> str:
    rule = next(rule for rule in rules.RULES if rule.name == name)
    value = rule.read(toml.parse(text.encode(), limit=10_000).table("google-space"))
    assert value is not None
    return rule.check(s.verify_token(s.token(claims)), value)


@pytest.mark.parametrize("name", NAMES)
def test_rules_pass(name: str) -> None:
    assert _rule(name, _space())


GCE = s.space(swname="GCE", swversion=..., submods=s.submods(container=..., confidential_space=...))
REFUSED: list[tuple[str, dict]] = [
    ("audience", s.space(aud="https://sts.googleapis.com")),
    ("audience", s.space(aud="https://client.example/")),
    ("image_digest", _space(image_digest="sha256:" + "00" * 32)),
    ("image_digest", GCE),
    ("hwmodel", s.space(hwmodel="GCP_AMD_SEV")),
    ("hwmodel", s.space(hwmodel="GCP_SHIELDED_VM")),
    ("swname", GCE),
    ("minimum_swversion", s.space(swversion=["250900"])),
    ("minimum_swversion", s.space(swversion=["20250900"])),
    ("minimum_swversion", s.space(swversion=...)),
    ("support_attributes", s.space(submods=s.submods(confidential_space={"support_attributes": ["USABLE"]}))),
    ("support_attributes", s.space(submods=s.submods(confidential_space=...))),
    ("secure_boot", s.space(secboot=False)),
    ("tcb_status", s.space(tdx=[{"gcp_attester_tcb_status": "OutOfDate"}])),
    ("tcb_status", s.space(tdx=...)),
    ("image_reference", _space(image_reference="elsewhere/serve:1")),
    ("image_reference", GCE),
    ("image_signatures", _space(image_signatures=[{**SIGNED[0], "key_id": "0022"}])),
    ("image_signatures", _space(image_signatures=...)),
    ("restart_policy", _space(restart_policy="Always")),
    ("args", _space(args=["/app/serve", "--port", "8000", "--debug"])),
    ("args", _space(args=["/app/serve"])),
    ("cmd_override", _space(cmd_override=["sh"])),
    ("env", _space(env={"HOSTNAME": "vm", "PATH": "/bin", "LD_PRELOAD": "/evil.so"})),
    ("env", _space(env={"PATH": "/evil"})),
    ("env_override", _space(env_override={"A": "b"})),
    ("monitoring", s.space(submods=s.submods(confidential_space={"monitoring_enabled": {"memory": True}}))),
    ("project_id", s.space(submods=s.submods(gce={"project_id": "other"}))),
    ("project_number", s.space(submods=s.submods(gce=...))),
    ("zone", s.space(submods=s.submods(gce={"zone": "us-west1-c"}))),
    ("instance_id", s.space(submods=s.submods(gce={"instance_id": "6"}))),
    ("instance_name", s.space(submods=s.submods(gce={"instance_name": "vm2"}))),
    ("service_accounts", s.space(google_service_accounts=["serve@project.iam.gserviceaccount.com", "evil@x"])),
    ("service_accounts", s.space(google_service_accounts=...)),
    ("gpu", s.space(submods=s.submods(nvidia_gpu={"cc_mode": "OFF"}))),
]


@pytest.mark.parametrize(("name", "claims"), REFUSED, ids=[f"{at} {name}" for at, (name, _) in enumerate(REFUSED)])
def test_rules_refuse(name: str, claims: dict) -> None:
    with pytest.raises(RefusedError):
        _rule(name, claims)


def test_every_rule_refuses_once() -> None:
    assert {name for name, _ in REFUSED} | {"trusted_by"} == set(NAMES)
    rule = rules.RULES[NAMES.index("trusted_by")]
    with pytest.raises(RefusedError):
        rule.check(s.verify_token(s.pki_token(s.space()), pki=s.PKI_ROOT), ("jwks",))


def test_gpus() -> None:
    text = POLICY.replace('gpu = "none"', 'gpu = "ON"')
    gpus = {"cc_mode": "ON", "gpus": [{"hwmodel": "GCP_NVIDIA_H100", "driver_version": "550.90.07"}]}
    assert _rule("gpu", s.space(submods=s.submods(nvidia_gpu=gpus)), text) == "ON"
    for claims in (s.space(), s.space(submods=s.submods(nvidia_gpu={"cc_mode": "OFF"}))):
        with pytest.raises(RefusedError):
            _rule("gpu", claims, text)


def test_a_token_without_a_container_takes_a_word_for_it() -> None:
    text = POLICY.replace(f'"sha256:{s.DIGEST}"', '"unmeasured"').replace('"CONFIDENTIAL_SPACE"', '"GCE"')
    assert "no code" in _rule("image_digest", GCE, text)
    assert _rule("swname", GCE, text) == "GCE"
    with pytest.raises(RefusedError):
        _rule("image_digest", _space(), text)


def test_overridden_environment_by_name() -> None:
    text = POLICY.replace('env_override = "forbidden"\n', "") + '[google-space.env_override]\nA = "*"\n'
    assert _rule("env_override", _space(env_override={"A": "b"}), text)
    with pytest.raises(RefusedError):
        _rule("env_override", _space(env_override={"A": "b", "C": "d"}), text)


@pytest.mark.parametrize(
    "text",
    [
        'audience = ["https://sts.googleapis.com"]',
        'audience = ["https://client.example", "https://sts.google.com"]',
        f'image_digest = ["{s.DIGEST}"]',
        'image_digest = ["latest"]',
        'hwmodel = ["GCP_INTEL_TDX", "GCP_SHIELDED_VM"]',
        'swname = ["COS"]',
        'support_attributes = ["NEW"]',
        "minimum_swversion = 20251001",
        'gpu = "DEVTOOLS"',
        'secure_boot = "any"',
        'env_override = "allowed"',
        "env = 1",
        "[env]\nA = 1",
        'trusted_by = ["tls"]',
    ],
)
def test_demands_that_are_none(text: str) -> None:
    with pytest.raises(PolicyDocumentError):
        for rule in rules.RULES:
            rule.read(toml.parse(text.encode(), limit=10_000))


REST = """
[freshness]
max_age_seconds = 300
max_clock_skew_seconds = 60
reverify_after_seconds = 3600
challenge = "required"
[model]
sha256 = ["0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"]
[config]
sha256 = ["0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"]
[key]
scope = ["replica"]
"""


def test_a_whole_policy() -> None:
    head = 'schema = "cloister-policy/1"\nname = "space"\n[tee]\naccept = ["google-space"]\n'
    policy = Policy.from_toml((head + POLICY + REST).encode())
    assert Policy.from_toml(policy.to_toml().encode()).demands == policy.demands
    offers = Offers.one(FORMAT.media_type, s.token(_space()), role=Role.RESULT)
    own = Collateral((Item("jwks", s.jwks()),))
    expected = Expected(user_data=encode_base64url(s.BINDING).encode())
    verdict = appraise_evidence(offers, expected, policy, now=s.NOW, collateral=own)
    assert verdict.accepted
    with pytest.raises(RefusedError, match="debug"):
        debug = Offers.one(FORMAT.media_type, s.token(s.space(dbgstat="enabled")), role=Role.RESULT)
        appraise_evidence(debug, expected, policy, now=s.NOW, collateral=own)
    with pytest.raises(PolicyDocumentError, match="audience"):
        Policy.from_toml((head + POLICY.replace('audience = ["https://client.example"]\n', "") + REST).encode())


@given(st.dictionaries(st.sampled_from(sorted(s.space())), st.none() | st.booleans() | st.text() | st.lists(st.text())))
def test_only_our_errors_leave(changes: dict) -> None:
    with contextlib.suppress(CloisterError):
        s.verify_token(s.token(s.space(**changes)))


@given(st.recursive(st.none() | st.text() | st.integers(), lambda inner: st.dictionaries(
    st.sampled_from(["container", "gce", "nvidia_gpu", "confidential_space", "env", "args", "cc_mode", "gpus"]), inner)
))  # fmt: skip
def test_only_our_errors_leave_submodules(value: object) -> None:
    with contextlib.suppress(CloisterError):
        s.verify_token(s.token(s.space(submods=value)))
