"""NRAS tokens under our own key: every claim that decides, in both versions."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from hypothesis import given
from hypothesis import strategies as st
from tests.tee.nvidia import real

from cloister.errors import MalformedError, NotGenuineError, RefusedError, UndecidedError
from cloister.tee import registry
from cloister.tee.claims import Claims
from cloister.tee.nvidia.formats import nonce
from cloister.tee.nvidia.roots import NRAS_ISSUER
from cloister.trust.collateral import Collateral, Item
from cloister.wire.strict_json import encode_base64url

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = ec.generate_private_key(ec.SECP384R1())
BINDING = bytes(range(32))
TIMES = {
    "iss": NRAS_ISSUER,
    "iat": int(NOW.timestamp()),
    "nbf": int(NOW.timestamp()),
    "exp": int(NOW.timestamp()) + 3600,
}
COMMON = {"eat_nonce": nonce(BINDING).hex(), **TIMES}
GOOD_CHAIN = {
    "x-nvidia-cert-status": "valid", "x-nvidia-cert-ocsp-status": "good", "x-nvidia-cert-revocation-reason": None,
    "x-nvidia-cert-expiration-date": "2027-01-01T00:00:00Z",
}  # fmt: skip
RIM = ("fetched", "schema-validated", "signature-verified", "measurements-available")
POLICY = {
    "result": "success", "arch": ["hopper"], "driver": ["550.90.07"], "vbios": ["96.00.9F.00.01", "96.10.55.00.01"],
    "gpus": 1, "switches": 0, "ueid": ["101", "102", "201"],
}  # fmt: skip


def _device(kind: str = "gpu", version: str = "3.0", *, ueid: str = "101", **changed: object) -> dict:
    """All claims of a device that passed; a value of `...` removes one."""
    prefix = f"x-nvidia-{kind}-"
    rims = ("driver-rim", "vbios-rim") if kind == "gpu" else ("bios-rim",)
    claims: dict[str, object] = {
        **COMMON, "ueid": ueid, "hwmodel": "GH100 A01 GSP BROM" if kind == "gpu" else "LS_10 A01 FSP BROM",
        "measres": "success", "secboot": True, "dbgstat": "disabled", "x-nvidia-attestation-warning": None,
        f"{prefix}{'vbios' if kind == 'gpu' else 'bios'}-version": "96.00.9F.00.01" if kind == "gpu" else "96.10.55.00.01",
    }  # fmt: skip
    flags = ["arch-check", "attestation-report-parsed", "attestation-report-signature-verified",
             "attestation-report-nonce-match", *(f"{rim}-{name}" for rim in rims for name in RIM)]  # fmt: skip
    if kind == "gpu":
        claims[f"{prefix}driver-version"] = "550.90.07"
        flags.append("vbios-index-no-conflict")
    if version == "3.0":
        flags += ["attestation-report-cert-chain-fwid-match", *(f"{rim}-version-match" for rim in rims)]
        claims |= {f"{prefix}{name}-cert-chain": GOOD_CHAIN for name in ("attestation-report", *rims)}
    else:
        flags += ["attestation-report-cert-chain-validated", *(f"{rim}-cert-validated" for rim in rims)]
    claims |= {f"{prefix}{name}": True for name in flags}
    return {k: v for k, v in {**claims, **changed}.items() if v is not ...}


def _sign(claims: dict, *, key: ec.EllipticCurvePrivateKey = KEY, kid: str = "k") -> str:
    header = {"alg": "ES384", "kid": kid}
    signed = ".".join(encode_base64url(json.dumps(part).encode()) for part in (header, claims))
    parts = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(SHA384())))
    return f"{signed}.{encode_base64url(b''.join(part.to_bytes(48, 'big') for part in parts))}"


def _bundle(devices: dict[str, dict], version: str = "3.0", overall: dict | None = None) -> bytes:
    tokens = {name: _sign(claims) for name, claims in devices.items()}
    digests = {
        name: ["DIGEST", ["SHA-256", hashlib.sha256(text.encode()).hexdigest()]] for name, text in tokens.items()
    }
    claims = {
        **COMMON, "sub": "NVIDIA-PLATFORM-ATTESTATION", "x-nvidia-ver": version, "x-nvidia-overall-att-result": True,
        "submods": digests, **(overall or {}),
    }  # fmt: skip
    return json.dumps([["JWT", _sign(claims)], tokens]).encode()


def _keys(*, kid: str = "k", issuer: str = NRAS_ISSUER, alg: str = "ES384") -> Collateral:
    numbers = KEY.public_key().public_numbers()
    x, y = (encode_base64url(value.to_bytes(48, "big")) for value in (numbers.x, numbers.y))
    key = {"kty": "EC", "crv": "P-384", "kid": kid, "alg": alg, "x": x, "y": y}
    return Collateral([Item("jwks", json.dumps({"issuer": issuer, "keys": [key]}).encode())])


def _verify(evidence: bytes, **options: object) -> Claims:
    return real.verify("nvidia-nras", evidence, **{"now": NOW, "collateral": _keys(), **options})


def _one(version: str = "3.0", **changed: object) -> Claims:
    return _verify(_bundle({"GPU-0": _device(version=version, **changed)}, version))


@pytest.mark.parametrize("version", ["2.0", "3.0"])
def test_a_full_policy_accepts_both_versions(version: str) -> None:
    claims = _one(version)
    assert set(real.apply("nvidia-nras", claims, POLICY)) == set(POLICY)
    assert (claims.signed_at, claims.debug) == (NOW, False)
    registry.get("nvidia-nras").bind(claims, BINDING, None)
    with pytest.raises(NotGenuineError, match="bind"):
        registry.get("nvidia-nras").bind(claims, bytes(32), None)


@pytest.mark.parametrize("version", ["2.0", "3.0"])
@pytest.mark.parametrize("kind", ["gpu", "switch"])
def test_every_claim_that_decides(kind: str, version: str) -> None:
    name = "GPU-0" if kind == "gpu" else "SWITCH-0"
    good = _device(kind, version)
    decisive = [key for key, value in good.items() if value is True] + ["measres"]
    decisive += [key for key in good if key.endswith("-cert-chain")]
    assert len(decisive) > (10 if kind == "switch" else 16)
    for key in decisive:
        for bad in (..., False, "true", 1, None, {}):
            claims = _verify(_bundle({name: _device(kind, version, **{key: bad})}, version))
            with pytest.raises(RefusedError, match=key):
                real.apply("nvidia-nras", claims, POLICY, "result")


@pytest.mark.parametrize(
    "changed",
    [
        {"x-nvidia-attestation-warning": "certificate hold"},
        {"x-nvidia-gpu-something-new": False},
        {"x-nvidia-gpu-driver-rim-cert-chain": {**GOOD_CHAIN, "x-nvidia-cert-status": "expired"}},
        {"x-nvidia-gpu-driver-rim-cert-chain": {**GOOD_CHAIN, "x-nvidia-cert-ocsp-status": "revoked"}},
        {"x-nvidia-gpu-driver-rim-cert-chain": {**GOOD_CHAIN, "x-nvidia-cert-revocation-reason": "certificateHold"}},
        {"x-nvidia-gpu-new-cert-chain": {**GOOD_CHAIN, "x-nvidia-cert-status": "invalid"}},
    ],
)
def test_what_else_did_not_pass(changed: dict) -> None:
    with pytest.raises(RefusedError, match="did not pass"):
        real.apply("nvidia-nras", _one(**changed), POLICY, "result")


@pytest.mark.parametrize("value", [False, ..., "true", 1, None])
def test_the_overall_result(value: object) -> None:
    overall = {"x-nvidia-overall-att-result": None if value is ... else value}
    with pytest.raises(RefusedError, match="overall"):
        real.apply("nvidia-nras", _verify(_bundle({"GPU-0": _device()}, overall=overall)), POLICY, "result")


@pytest.mark.parametrize("value", ["enabled", "disabled-since-boot", ..., None, True])
def test_debug(value: object) -> None:
    assert _one(dbgstat=value).debug


def test_other_rules() -> None:
    def refused(claims: Claims, rule: str, **policy: object) -> None:
        with pytest.raises(RefusedError):
            real.apply("nvidia-nras", claims, {**POLICY, **policy}, rule)

    one = _one()
    refused(one, "arch", arch=["blackwell"])
    refused(one, "driver", driver=["550.90.08"])
    refused(one, "vbios", vbios=["96.00.9F.00.02"])
    refused(one, "gpus", gpus=2)
    refused(one, "switches", switches=1)
    refused(one, "ueid", ueid=["1"])
    refused(_one(hwmodel="AD102 A01"), "arch", arch=["hopper", "blackwell"])
    both = _verify(_bundle({"GPU-0": _device(), "GPU-1": _device(ueid="102", hwmodel="GB100 A01 GSP BROM")}))
    refused(both, "arch", arch=["hopper", "blackwell"])
    switch = _verify(_bundle({"GPU-0": _device(), "SWITCH-0": _device("switch", ueid="201")}))
    real.apply("nvidia-nras", switch, {**POLICY, "switches": 1})


def test_tokens_of_other_signers() -> None:
    bundle = _bundle({"GPU-0": _device()})
    for options, error in (
        ({"collateral": Collateral()}, UndecidedError),
        ({"collateral": _keys(kid="other")}, UndecidedError),
        ({"collateral": _keys(issuer="https://nras.attestation-stg.nvidia.com")}, UndecidedError),
        ({"collateral": _keys(alg="ES256")}, NotGenuineError),
        ({"now": NOW + timedelta(hours=2), "max_age": timedelta(days=1)}, NotGenuineError),
        ({"now": NOW + timedelta(minutes=6), "max_age": timedelta(minutes=5)}, NotGenuineError),
        ({"now": NOW - timedelta(minutes=2)}, NotGenuineError),
    ):
        with pytest.raises(error):
            _verify(bundle, **options)
    stranger = ec.generate_private_key(ec.SECP384R1())
    parts = json.loads(bundle)
    for forged in (
        [["JWT", _sign({**COMMON}, key=stranger)], parts[1]],
        [parts[0], {"GPU-0": _sign(_device(), key=stranger)}],
    ):
        with pytest.raises(NotGenuineError):
            _verify(json.dumps(forged).encode())


@pytest.mark.parametrize("name", ["iss", "exp", "nbf"])
def test_each_level_has_its_own_issuer_and_times(name: str) -> None:
    bad = {"iss": "https://nras.attestation-stg.nvidia.com", "exp": TIMES["iat"] - 600, "nbf": TIMES["iat"] + 600}[name]
    for bundle in (_bundle({"GPU-0": _device(**{name: bad})}), _bundle({"GPU-0": _device()}, overall={name: bad})):
        with pytest.raises(NotGenuineError):
            _verify(bundle)


def test_submodules_are_complete_and_fit() -> None:
    devices = {"GPU-0": _device(), "GPU-1": _device(ueid="102")}
    good = json.loads(_bundle(devices))
    digest = hashlib.sha256(good[1]["GPU-0"].encode()).hexdigest()
    for submods in (
        {}, None, [], {"GPU-0": ["DIGEST", ["SHA-256", digest]]}, {"GPU-0": ["DIGEST", ["SHA-256", digest.upper()]]},
        {"GPU-0": ["DIGEST", ["SHA-1", digest]]}, {"GPU-0": digest}, {"GPU-1": ["DIGEST", ["SHA-256", digest]]},
    ):  # fmt: skip
        bundle = [["JWT", _sign({**COMMON, "x-nvidia-ver": "3.0", "submods": submods})], {"GPU-0": good[1]["GPU-0"]}]
        if submods == {"GPU-0": ["DIGEST", ["SHA-256", digest]]}:
            _verify(json.dumps(bundle).encode())
            continue
        with pytest.raises(NotGenuineError, match="overall token is of"):
            _verify(json.dumps(bundle).encode())
    del good[1]["GPU-1"]
    with pytest.raises(NotGenuineError, match="other devices"):
        _verify(json.dumps(good).encode())


def test_one_nonce_and_distinct_devices() -> None:
    with pytest.raises(NotGenuineError, match="different nonces"):
        _one(eat_nonce="00" * 32)
    with pytest.raises(NotGenuineError, match="different nonces"):
        _verify(_bundle({"GPU-0": _device()}, overall={"eat_nonce": "00" * 32}))
    with pytest.raises(NotGenuineError, match="counted twice"):
        _verify(_bundle({"GPU-0": _device(), "GPU-1": _device()}))
    # A list of one is the same claim (RFC 9711 section 4.1).
    assert _one(eat_nonce=[COMMON["eat_nonce"]]).nonce == nonce(BINDING)


@pytest.mark.parametrize(
    "changed",
    [
        {"eat_nonce": "00" * 31}, {"eat_nonce": ["00" * 32, "00" * 32]}, {"eat_nonce": 7}, {"eat_nonce": ...},
        {"ueid": ...}, {"ueid": 101}, {"hwmodel": ...}, {"x-nvidia-gpu-driver-version": ...},
        {"x-nvidia-gpu-vbios-version": 7}, {"iat": ...}, {"exp": "1"},
    ],
)  # fmt: skip
def test_malformed_claims(changed: dict) -> None:
    with pytest.raises(MalformedError):
        _one(**changed)


def test_another_version_of_the_claims() -> None:
    for version in ("1.0", "4.0", 3.0):
        with pytest.raises(MalformedError):
            _verify(_bundle({"GPU-0": _device()}, overall={"x-nvidia-ver": version}))


def test_malformed_bundles() -> None:
    good = json.loads(_bundle({"GPU-0": _device()}))
    text = good[1]["GPU-0"]
    for bad in (
        {}, [], [good[0]], good[::-1], [good[0], {}], [["JWT"], good[1]], [["CWT", good[0][1]], good[1]],
        [[*good[0], 1], good[1]], [good[0], [text]], [good[0], {"CPU-0": text}], [good[0], {"GPU-00": text}],
        [good[0], {"GPU-0": 7}], [good[0], {"GPU-0": "é"}], [good[0], {"GPU-0": text + "\n"}],
        [good[0], {f"GPU-{at}": text for at in range(33)}], {"detached_eat": good},
    ):  # fmt: skip
        with pytest.raises(MalformedError):
            _verify(json.dumps(bad).encode())
    with pytest.raises(MalformedError):
        _verify(b'[["JWT","a"],{"GPU-0":"b","GPU-0":"c"}]')


@given(st.binary(max_size=200))
def test_bytes_from_strangers(data: bytes) -> None:
    with pytest.raises(MalformedError):
        _verify(data)
