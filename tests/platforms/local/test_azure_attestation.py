"""The SIMULATED Azure Attestation: SNP reports and TDX quotes in, tokens in Microsoft's shape out."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import ssl
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import httpx2
import pytest
from tests.platforms.local.lab import REGISTERS
from tests.tee.snp import signer as amd

from cloister.errors import NotGenuineError
from cloister.platforms import lab_tls
from cloister.platforms.local.azure_attestation.service import COMPLIANT, AttestationError, Service
from cloister.platforms.local.trust_authority import files
from cloister.tee.checks import Checklist
from cloister.tee.context import Context
from cloister.tee.sim import tdx
from cloister.tee.sim.tdx import SimulatedTdx
from cloister.trust.anchors import Anchor
from cloister.trust.collateral import Collateral, Item
from cloister.trust.jwt import Alg, KeySet, Token
from cloister.wire.strict_json import Fields, encode_base64url

NOW = amd.NOW
D = json.dumps({"a": "key statement", "and": "its challenge"}).encode()
REPORT_DATA = hashlib.sha256(D).digest() + bytes(32)
ARK = replace(amd.root("Genoa"), genuine=False)


class Rig:
    """A service that knows both simulated roots, and evidence for it."""

    def __init__(self, pcs: Path, *, url: str = "https://localhost", now: datetime = NOW) -> None:
        root = tdx.create_root(now)
        self.td = SimulatedTdx(root, REGISTERS, clock=lambda: now)
        self.td.publish(pcs)
        self.service = Service(
            pcs, url=url, tdx=(Anchor.simulated(root.pem),), snp=(ARK,), compliant=["22" * 48], clock=lambda: now
        )

    def tdx(self, report_data: bytes = REPORT_DATA, **changes: object) -> dict:
        return _with(changes, quote=encode_base64url(self.td.quote(report_data)))

    def attest(self, body: dict) -> Token:
        data = json.dumps(body).encode()
        return Token.parse(self.service.attest(data, tdx="quote" in body)["token"].encode(), "token")


def _with(changes: dict, **members: object) -> dict:
    body = {"runtimeData": {"data": encode_base64url(D), "dataType": "JSON"}, "nonce": "123", **members, **changes}
    return {name: value for name, value in body.items() if value is not ...}


def _pem(*certificates: bytes) -> bytes:
    return b"".join(
        b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(each) + b"-----END CERTIFICATE-----\n"
        for each in certificates
    )


CHAIN = (amd.endorsement("Genoa"), amd.intermediate("Genoa"), amd._root("ARK-Genoa"))


def _snp(report: bytes | None = None, chain: tuple[bytes, ...] = CHAIN, **changes: object) -> dict:
    report = amd.report(report_data=REPORT_DATA) if report is None else report
    inner = {"SnpReport": encode_base64url(report), "VcekCertChain": encode_base64url(_pem(*chain))}
    return _with(changes, report=encode_base64url(json.dumps(inner).encode()))


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return Rig(tmp_path_factory.mktemp("pcs"))


def test_a_token_about_a_td(rig: Rig) -> None:
    token = rig.attest(rig.tdx())
    token.verify(KeySet.of_issuer(Fields(rig.service.key_set(), "keys"), ""), Alg.RS256)
    claims = token.claims
    assert (claims["iss"], claims["x-ms-attestation-type"]) == ("https://localhost", "tdxvm")
    assert claims["exp"] - claims["iat"] == 8 * 3600
    assert (claims["tdx_mrtd"], claims["tdx_report_data"]) == ("0d" * 48, REPORT_DATA.hex())
    assert (claims["x-ms-runtime"], claims["nonce"], claims["dbgstat"]) == (json.loads(D), "123", "disabled")
    assert "x-ms-compliance-status" not in claims


def test_a_token_about_an_snp_guest(rig: Rig) -> None:
    claims = rig.attest(_snp()).claims
    assert claims["x-ms-attestation-type"] == "sevsnpvm"
    assert claims["x-ms-sevsnpvm-launchmeasurement"] == "22" * 48
    assert claims["x-ms-compliance-status"] == COMPLIANT
    svns = [claims[f"x-ms-sevsnpvm-{name}-svn"] for name in ("bootloader", "tee", "snpfw", "microcode")]
    assert tuple(svns) == amd.TCB[1:]
    other = rig.attest(_snp(amd.report(report_data=REPORT_DATA, measurement=b"\x23" * 48))).claims
    assert "x-ms-compliance-status" not in other


def test_what_the_default_policy_lets_through_is_told(rig: Rig) -> None:
    claims = rig.attest(_snp(amd.report(report_data=REPORT_DATA, policy=0x3001F | 1 << 19))).claims
    assert claims["x-ms-sevsnpvm-is-debuggable"] is True


def test_runtime_data_may_be_left_out_or_be_binary(rig: Rig) -> None:
    assert "x-ms-runtime" not in rig.attest(rig.tdx(b"r" * 64, runtimeData=...)).claims
    binary = {"data": encode_base64url(b"\xff"), "dataType": "Binary"}
    token = rig.attest(rig.tdx(hashlib.sha256(b"\xff").digest() + b"x" * 32, runtimeData=binary))
    assert "x-ms-runtime" not in token.claims


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (lambda r: r.tdx(bytes(64)), "does not cover"),
        (lambda r: _snp(amd.report(report_data=bytes(64))), "does not cover"),
        (lambda r: _snp(amd.report(report_data=REPORT_DATA)[:-1] + b"\x01"), "does not verify"),
        (lambda r: _snp(amd.report(report_data=REPORT_DATA, key="another")), "does not verify"),
        (lambda r: _snp(chain=(CHAIN[0], amd.intermediate("Milan"), CHAIN[2])), "does not verify"),
        (lambda r: _snp(chain=CHAIN[:2]), "VcekCertChain: not 3"),
        (lambda r: _snp(amd.report("Milan", report_data=REPORT_DATA)), "does not verify"),
        (lambda r: r.tdx(quote=encode_base64url(r.td.quote(REPORT_DATA)[:-200])), "does not verify"),
        (lambda r: r.tdx(quote="=="), "base64url"),
        (lambda r: r.tdx(more=1), "unknown member"),
        (lambda r: r.tdx(initTimeData={}), "unknown member"),
        (lambda r: r.tdx(runtimeData={"data": encode_base64url(D), "dataType": "Text"}), "neither Binary nor JSON"),
        (lambda r: r.tdx(runtimeData={"data": encode_base64url(b"[]"), "dataType": "JSON"}), "not a JSON object"),
        (lambda r: {"report": encode_base64url(b"{}")}, "SnpReport is missing"),
    ],
)
def test_what_is_wrong_gets_no_token(rig: Rig, body: Callable[[Rig], dict], why: str) -> None:
    with pytest.raises(AttestationError, match=why) as caught:
        rig.attest(body(rig))
    assert (caught.value.status, caught.value.code) == (400, "InvalidParameter")


def test_it_vouches_for_simulated_evidence_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="simulated evidence alone"):
        Service(tmp_path, url="https://localhost", snp=(amd.root("Genoa"),))


def test_over_https(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cloister.platforms.local.azure_attestation", "--state", str(tmp_path)],
            stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (tmp_path / "log").read_text()
        url = json.loads(line)["url"]
        td = SimulatedTdx(tdx.load_or_create_root(tmp_path / files.INTEL_ROOT), REGISTERS)
        td.publish(tmp_path / files.PCS)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(tmp_path / lab_tls.AUTHORITY)
        with httpx2.Client(base_url=url, verify=context, params={"api-version": "2025-06-01"}) as http:
            body = _with({}, quote=encode_base64url(td.quote(REPORT_DATA)))
            answer = http.post("/attest/TdxVm", json=body)
            assert answer.status_code == 200, answer.text
            keys = KeySet.of_issuer(Fields(http.get("/certs").json(), "keys"), "")
            token = Token.parse(answer.json()["token"].encode(), "token")
            token.verify(keys, Alg.RS256)
            assert token.claims["iss"] == url
            assert "SIMULATED" in answer.headers["x-cloister-simulated"]
            # No simulated AMD root is known to the process.
            refused = http.post("/attest/SevSnpVm", json=_snp())
            assert (refused.status_code, refused.headers["x-ms-error-code"]) == (400, "InvalidParameter")
            assert http.post("/attest/TdxVm", json=body, params={"api-version": ""}).status_code == 400
            assert http.post("/attest/TdxVm", content=b" " * 600_000).status_code == 413
            assert http.post("/attest/OpenEnclave", json=body).status_code == 404
    finally:
        process.terminate()
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()


# --- With the verifier of real tokens ---------------------------------------------------------------------------------


def _formats() -> object:
    try:
        return importlib.import_module("cloister.tee.azure.formats")
    except ModuleNotFoundError:
        pytest.skip("this version has no verifier of Azure Attestation's tokens")


@pytest.mark.parametrize("kind", ["tdx", "snp"])
def test_the_verifier_reads_its_tokens_but_not_under_its_name(tmp_path: Path, kind: str) -> None:
    form = next(each for each in _formats().FORMATS if each.name == "azure-maa")

    def verify(url: str) -> object:
        rig = Rig(tmp_path, url=url)
        token = rig.service.attest(json.dumps(rig.tdx() if kind == "tdx" else _snp()).encode(), tdx=kind == "tdx")
        checklist = Checklist()
        checklist.plan(form.checks)
        keys = json.dumps({"issuer": url, **rig.service.key_set()}).encode()
        context = Context(
            now=NOW, checklist=checklist, max_age=timedelta(minutes=5), max_skew=timedelta(minutes=1),
            collateral=Collateral((Item("jwks", keys),)),
        )  # fmt: skip
        return form.verify(token["token"].encode(), context)

    # Only under a name that the emulator cannot have, with keys that the client itself brings.
    claims = verify("https://simulated.attest.azure.net")
    assert claims.user_data == REPORT_DATA
    assert not claims.debug
    with pytest.raises(NotGenuineError):
        verify("https://localhost")
