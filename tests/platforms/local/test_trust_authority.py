"""The SIMULATED Trust Authority enforces what the real one does: requests over HTTPS in the shape of Intel's clients."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from tests.platforms.local.lab import FITS, MISFIT, NOW, UNKNOWN, B, Inside, Lab, b64

from cloister.platforms.local.trust_authority.errors import ServiceError
from cloister.trust import jwt
from cloister.trust.jwt import Alg, KeySet, Token
from cloister.wire.strict_json import Fields


def _report(nonce: dict[str, str], held: bytes) -> bytes:
    return hashlib.sha512(base64.b64decode(nonce["val"]) + base64.b64decode(nonce["iat"]) + held).digest()


def _claims(token: str) -> dict:
    return Token.parse(token.encode(), "token").claims


# --- Over HTTPS -------------------------------------------------------------------------------------------------------


def test_both_versions_answer_requests_of_intels_clients(lab: Lab) -> None:
    request_id = str(uuid.uuid4())
    with lab.http() as http:
        for version in (1, 2):
            answer = http.get(f"/appraisal/v{version}/nonce", headers={"request-id": request_id})
            assert answer.status_code == 200
            assert answer.headers["request-id"] == request_id
            assert "trace-id" in answer.headers
            assert "SIMULATED" in answer.headers["x-cloister-simulated"]
            nonce = answer.json()
            assert set(nonce) == {"val", "iat", "signature"}
            part = {
                "quote": b64(lab.td.quote(_report(nonce, B))), "verifier_nonce": nonce, "runtime_data": b64(B),
                "event_log": b64(b"[]"),
            }  # fmt: skip
            rest = {"policy_ids": [FITS], "token_signing_alg": "RS256", "policy_must_match": True}
            body = part | rest if version == 1 else {"tdx": part} | rest
            answer = http.post(f"/appraisal/v{version}/attest", json=body, headers={"request-id": request_id})
            assert answer.status_code == 200, answer.text
            claims = _claims(answer.json()["token"])
            inner = claims if version == 1 else claims["tdx"]
            assert claims["ver"] == f"{version}.0.0"
            assert claims["exp"] - claims["iat"] == 300
            assert [each["id"] for each in claims["policy_ids_matched"]] == [FITS]
            assert (inner["attester_held_data"], inner["verifier_nonce"]) == (b64(B), nonce)
            assert (inner["attester_tcb_status"], inner["dbgstat"]) == ("UpToDate", "disabled")
            # Used up.
            again = http.post(f"/appraisal/v{version}/attest", json=body)
            assert (again.status_code, again.json()["error"]) == (400, "verifier nonce: used before")


def test_without_the_api_key_nothing_is_answered(lab: Lab) -> None:
    with lab.http() as http:
        for key in ("", lab.key[:-1], lab.key + "x", "né".encode()):
            headers = {"x-api-key": key}
            assert http.get("/appraisal/v2/nonce", headers=headers).status_code == 401
            assert http.post("/appraisal/v2/attest", json={}, headers=headers).status_code == 401
    assert lab.key not in lab.log.read_text()


def test_keys_and_lists_are_what_relying_parties_need(lab: Lab) -> None:
    with lab.http() as http:
        del http.headers["x-api-key"]
        keys = http.get("/certs").json()["keys"]
        assert [key["alg"] for key in keys] == ["PS384", "RS256"]
        assert len({key["kid"] for key in keys}) == len({key["n"] for key in keys}) == 1
        assert len(KeySet.of_issuer(Fields({"keys": keys}, "keys"), "").keys) == 2
        names = [x509.load_der_x509_certificate(base64.b64decode(each)).subject for each in keys[0]["x5c"]]
        assert all("SIMULATED" in name.rfc4514_string() for name in names)
        for path, issuer in (("/crl/ats-ca-crl.der", names[1]), ("/crl/root-ca-crl.der", names[2])):
            assert x509.load_der_x509_crl(http.get(path).content).issuer == issuer
        assert http.get("/crl/other.der").status_code == 404
        assert http.get("/elsewhere").status_code == 404


def test_a_body_without_end_is_cut_off(lab: Lab) -> None:
    with lab.http() as http:
        assert http.post("/appraisal/v2/attest", content=b" " * 600_000).status_code == 413


# --- Within -----------------------------------------------------------------------------------------------------------


def test_the_token_verifies_with_the_key_that_the_set_names(inside: Inside) -> None:
    keys = KeySet.of_issuer(Fields(inside.service.key_set(), "keys"), "")
    for alg in (Alg.PS384, Alg.RS256):
        token = Token.parse(inside.attest(inside.body(token_signing_alg=str(alg))), "token")
        assert token.verify(keys, alg).alg == alg
        other = Alg.RS256 if alg is Alg.PS384 else Alg.PS384
        with pytest.raises(jwt.NotGenuineError):
            token.verify(keys, other)


def test_an_algorithm_is_ps384_where_none_is_asked_for(inside: Inside) -> None:
    body = inside.body()
    del body["token_signing_alg"]
    assert Token.parse(inside.attest(body), "token").alg == "PS384"


def test_policies(inside: Inside) -> None:
    claims = _claims(inside.attest(inside.body(policy_ids=[FITS, MISFIT])).decode())
    assert [each["id"] for each in claims["policy_ids_unmatched"]] == [MISFIT]
    with pytest.raises(ServiceError, match="was not matched"):
        inside.attest(inside.body(policy_ids=[FITS, MISFIT], policy_must_match=True))
    with pytest.raises(ServiceError, match="does not exist"):
        inside.attest(inside.body(policy_ids=[UNKNOWN]))


def test_a_quote_alone_is_looked_at_without_its_report_data(inside: Inside) -> None:
    claims = _claims(inside.attest({"tdx": {"quote": b64(inside.td.quote(b"r" * 64))}}).decode())
    assert claims["tdx"]["tdx_report_data"] == b"r".hex() * 64
    assert not {"attester_held_data", "verifier_nonce"} & set(claims["tdx"])


def _flip(data: str, at: int) -> str:
    raw = bytearray(base64.b64decode(data))
    raw[at] ^= 1
    return b64(bytes(raw))


def _changed(member: str, at: int) -> Callable[[dict], None]:
    def change(body: dict) -> None:
        body["tdx"]["verifier_nonce"] |= {member: _flip(body["tdx"]["verifier_nonce"][member], at)}

    return change


def _set(**members: object) -> Callable[[dict], None]:
    def change(body: dict) -> None:
        for name, value in members.items():
            part = body["tdx"] if name in ("quote", "runtime_data", "verifier_nonce", "user_data", "more") else body
            part[name] = value
            if value is ...:
                del part[name]

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_changed("val", 0), "not of this service"),
        (_changed("iat", 3), "not of this service"),
        (_changed("signature", 20), "not of this service"),
        (_set(runtime_data=b64(b"C" * 32)), "does not cover"),
        (_set(runtime_data=...), "does not cover"),
        (_set(verifier_nonce=...), "does not cover"),
        (lambda body: body["tdx"].update(quote=_flip(body["tdx"]["quote"], 48 + 136)), "quote verification failed"),
        (
            lambda body: body["tdx"].update(quote=_flip(body["tdx"]["quote"], 48 + 584 + 10)),
            "quote verification failed",
        ),
        (_set(quote=b64(b"no quote")), "quote verification failed"),
        (_set(quote="!"), "not base64"),
        (_set(quote=...), "quote is missing"),
        (_set(user_data=b64(b"u")), "not emulated"),
        (_set(more=1), "unknown member"),
        (_set(nvgpu={}), "unknown member"),
        (_set(token_signing_alg="none"), "neither PS384 nor RS256"),
        (_set(token_signing_alg="ES256"), "neither PS384 nor RS256"),
        (_set(policy_ids=["x"]), "UUIDs"),
        (_set(policy_ids=[FITS, FITS]), "UUIDs"),
        (_set(policy_ids=[FITS] * 11), "at most 10"),
        (_set(policy_must_match="true"), "neither true nor false"),
    ],
)
def test_what_is_wrong_gets_no_token(inside: Inside, change: Callable[[dict], None], why: str) -> None:
    body = inside.body()
    change(body)
    with pytest.raises(ServiceError, match=why) as caught:
        inside.attest(body)
    assert caught.value.status == 400


def test_a_nonce_lives_two_minutes(inside: Inside) -> None:
    body, late = inside.body(), inside.body()
    try:
        inside.now = NOW + timedelta(minutes=2)
        inside.attest(body)
        inside.now += timedelta(seconds=1)
        with pytest.raises(ServiceError, match="expired"):
            inside.attest(late)
    finally:
        inside.now = NOW


def test_a_nonce_is_good_once_even_if_the_quote_was_wrong(inside: Inside) -> None:
    body = inside.body()
    wrong = json.loads(json.dumps(body))
    wrong["tdx"]["quote"] = _flip(body["tdx"]["quote"], 200)
    for each, why in ((wrong, "quote verification failed"), (body, "used before")):
        with pytest.raises(ServiceError, match=why):
            inside.attest(each)


def test_another_platform_than_the_simulated_one_is_refused(inside: Inside, tmp_path: Path) -> None:
    stranger = Inside(tmp_path)
    nonce = inside.service.nonce("key")
    with pytest.raises(ServiceError, match="not trusted here"):
        inside.attest(stranger.body(nonce=nonce))


def test_without_collateral_there_is_no_token(tmp_path: Path) -> None:
    alone = Inside(tmp_path)
    (tmp_path / "intel-collateral.json").unlink()
    with pytest.raises(ServiceError, match="no TDX collateral"):
        alone.attest(alone.body())


def test_a_quota_says_how_long_to_wait(tmp_path: Path) -> None:
    busy = Inside(tmp_path, quota=2)
    busy.service.nonce("key")
    busy.now += timedelta(seconds=20)
    busy.service.nonce("key")
    with pytest.raises(ServiceError) as caught:
        busy.service.nonce("key")
    assert (caught.value.status, caught.value.retry_after) == (429, 40)
    busy.now += timedelta(seconds=40)
    busy.service.nonce("key")
