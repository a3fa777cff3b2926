"""NRAS tokens under our own key: every claim that decides, in both versions."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from tests.tee.nvidia import real
from tests.tee.nvidia.nras_signer import BINDING, COMMON, GOOD_CHAIN, TIMES, bundle, device, keys, one, sign, verify
from tests.trust.tokens import NOW

from cloister.errors import MalformedError, NotGenuineError, RefusedError, UndecidedError
from cloister.tee import registry
from cloister.tee.claims import Claims
from cloister.tee.nvidia.evidence import nonce
from cloister.trust.collateral import Collateral

POLICY = {
    "result": "success", "arch": ["hopper"], "driver": ["550.90.07"], "vbios": ["96.00.9F.00.01", "96.10.55.00.01"],
    "gpus": 1, "switches": 0, "ueid": ["101", "102", "201"],
}  # fmt: skip


@pytest.mark.parametrize("version", ["2.0", "3.0"])
def test_a_full_policy_accepts_both_versions(version: str) -> None:
    claims = one(version)
    assert set(real.apply("nvidia-nras", claims, POLICY)) == set(POLICY)
    assert (claims.signed_at, claims.debug) == (NOW, False)
    registry.get("nvidia-nras").bind(claims, BINDING, None)
    with pytest.raises(NotGenuineError, match="bind"):
        registry.get("nvidia-nras").bind(claims, bytes(32), None)


@pytest.mark.parametrize("version", ["2.0", "3.0"])
@pytest.mark.parametrize("kind", ["gpu", "switch"])
def test_every_claim_that_decides(kind: str, version: str) -> None:
    name = "GPU-0" if kind == "gpu" else "SWITCH-0"
    good = device(kind, version)
    decisive = [key for key, value in good.items() if value is True] + ["measres"]
    decisive += [key for key in good if key.endswith("-cert-chain")]
    assert len(decisive) > (10 if kind == "switch" else 16)
    for key in decisive:
        for bad in (..., False, "true", 1, None, {}):
            claims = verify(bundle({name: device(kind, version, **{key: bad})}, version))
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
        real.apply("nvidia-nras", one(**changed), POLICY, "result")


@pytest.mark.parametrize("value", [False, ..., "true", 1, None])
def test_the_overall_result(value: object) -> None:
    overall = {"x-nvidia-overall-att-result": None if value is ... else value}
    with pytest.raises(RefusedError, match="overall"):
        real.apply("nvidia-nras", verify(bundle({"GPU-0": device()}, overall=overall)), POLICY, "result")


@pytest.mark.parametrize("value", ["enabled", "disabled-since-boot", ..., None, True])
def test_debug(value: object) -> None:
    assert one(dbgstat=value).debug


def test_other_rules() -> None:
    def refused(claims: Claims, rule: str, **policy: object) -> None:
        with pytest.raises(RefusedError):
            real.apply("nvidia-nras", claims, {**POLICY, **policy}, rule)

    single = one()
    refused(single, "arch", arch=["blackwell"])
    refused(single, "driver", driver=["550.90.08"])
    refused(single, "vbios", vbios=["96.00.9F.00.02"])
    refused(single, "gpus", gpus=2)
    refused(single, "switches", switches=1)
    refused(single, "ueid", ueid=["1"])
    refused(one(hwmodel="AD102 A01"), "arch", arch=["hopper", "blackwell"])
    both = verify(bundle({"GPU-0": device(), "GPU-1": device(ueid="102", hwmodel="GB100 A01 GSP BROM")}))
    refused(both, "arch", arch=["hopper", "blackwell"])
    switch = verify(bundle({"GPU-0": device(), "SWITCH-0": device("switch", ueid="201")}))
    real.apply("nvidia-nras", switch, {**POLICY, "switches": 1})


def test_tokens_of_other_signers() -> None:
    sent = bundle({"GPU-0": device()})
    for options, error in (
        ({"collateral": Collateral()}, UndecidedError),
        ({"collateral": keys(kid="other")}, UndecidedError),
        ({"collateral": keys(issuer="https://nras.attestation-stg.nvidia.com")}, UndecidedError),
        ({"collateral": keys(alg="ES256")}, NotGenuineError),
        ({"now": NOW + timedelta(hours=2), "max_age": timedelta(days=1)}, NotGenuineError),
        ({"now": NOW + timedelta(minutes=6), "max_age": timedelta(minutes=5)}, NotGenuineError),
        ({"now": NOW - timedelta(minutes=2)}, NotGenuineError),
    ):
        with pytest.raises(error):
            verify(sent, **options)
    stranger = ec.generate_private_key(ec.SECP384R1())
    parts = json.loads(sent)
    for forged in (
        [["JWT", sign({**COMMON}, key=stranger)], parts[1]],
        [parts[0], {"GPU-0": sign(device(), key=stranger)}],
    ):
        with pytest.raises(NotGenuineError):
            verify(json.dumps(forged).encode())


@pytest.mark.parametrize("name", ["iss", "exp", "nbf"])
def test_each_level_has_its_own_issuer_and_times(name: str) -> None:
    bad = {"iss": "https://nras.attestation-stg.nvidia.com", "exp": TIMES["iat"] - 600, "nbf": TIMES["iat"] + 600}[name]
    for sent in (bundle({"GPU-0": device(**{name: bad})}), bundle({"GPU-0": device()}, overall={name: bad})):
        with pytest.raises(NotGenuineError):
            verify(sent)


def test_submodules_are_complete_and_fit() -> None:
    devices = {"GPU-0": device(), "GPU-1": device(ueid="102")}
    good = json.loads(bundle(devices))
    digest = hashlib.sha256(good[1]["GPU-0"].encode()).hexdigest()
    for submods in (
        {}, None, [], {"GPU-0": ["DIGEST", ["SHA-256", digest]]}, {"GPU-0": ["DIGEST", ["SHA-256", digest.upper()]]},
        {"GPU-0": ["DIGEST", ["SHA-1", digest]]}, {"GPU-0": digest}, {"GPU-1": ["DIGEST", ["SHA-256", digest]]},
    ):  # fmt: skip
        sent = [["JWT", sign({**COMMON, "x-nvidia-ver": "3.0", "submods": submods})], {"GPU-0": good[1]["GPU-0"]}]
        if submods == {"GPU-0": ["DIGEST", ["SHA-256", digest]]}:
            verify(json.dumps(sent).encode())
            continue
        with pytest.raises(NotGenuineError, match="overall token is of"):
            verify(json.dumps(sent).encode())
    del good[1]["GPU-1"]
    with pytest.raises(NotGenuineError, match="other devices"):
        verify(json.dumps(good).encode())


def test_one_nonce_and_distinct_devices() -> None:
    with pytest.raises(NotGenuineError, match="different nonces"):
        one(eat_nonce="00" * 32)
    with pytest.raises(NotGenuineError, match="different nonces"):
        verify(bundle({"GPU-0": device()}, overall={"eat_nonce": "00" * 32}))
    with pytest.raises(NotGenuineError, match="counted twice"):
        verify(bundle({"GPU-0": device(), "GPU-1": device()}))
    # A list of one is the same claim (RFC 9711 section 4.1).
    assert one(eat_nonce=[COMMON["eat_nonce"]]).nonce == nonce(BINDING)


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
        one(**changed)


def test_another_version_of_the_claims() -> None:
    for version in ("1.0", "4.0", 3.0):
        with pytest.raises(MalformedError):
            verify(bundle({"GPU-0": device()}, overall={"x-nvidia-ver": version}))


def test_malformed_bundles() -> None:
    good = json.loads(bundle({"GPU-0": device()}))
    text = good[1]["GPU-0"]
    for bad in (
        {}, [], [good[0]], good[::-1], [good[0], {}], [["JWT"], good[1]], [["CWT", good[0][1]], good[1]],
        [[*good[0], 1], good[1]], [good[0], [text]], [good[0], {"CPU-0": text}], [good[0], {"GPU-00": text}],
        [good[0], {"GPU-0": 7}], [good[0], {"GPU-0": "é"}], [good[0], {"GPU-0": text + "\n"}],
        [good[0], {f"GPU-{at}": text for at in range(33)}], {"detached_eat": good},
    ):  # fmt: skip
        with pytest.raises(MalformedError):
            verify(json.dumps(bad).encode())
    with pytest.raises(MalformedError):
        verify(b'[["JWT","a"],{"GPU-0":"b","GPU-0":"c"}]')


@given(st.binary(max_size=200))
def test_bytes_from_strangers(data: bytes) -> None:
    with pytest.raises(MalformedError):
        verify(data)
