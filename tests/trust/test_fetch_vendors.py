"""Intel's, NVIDIA's and the token issuers' collateral: shapes, lives, lies."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from tests.tee.ita import signer as ita
from tests.trust import pcs
from tests.trust.services import Answering, Call, Reply, Service, Time, fetcher, serving

from cloister.errors import MalformedError, UndecidedError
from cloister.tee import registry
from cloister.trust.collateral import Collateral, Item
from cloister.trust.fetch import intel, issuers
from cloister.trust.fetch.fetcher import SOURCES
from cloister.trust.jwt import Alg, KeySet
from cloister.trust.need import Need
from cloister.wire.strict_json import encode_base64url

NOW = ita.NOW
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


@pytest.fixture
def time() -> Time:
    return Time(NOW)


@pytest.fixture
def service() -> Iterator[Service]:
    with serving(lambda call: Reply(404)) as running:
        yield running


# --- Intel ---


def _intel(tee: str = "tdx", ca: str = "platform", fmspc: str = pcs.FMSPC) -> Need:
    return Need(kind="intel-collateral", parameters={"tee": tee, "fmspc": fmspc, "ca": ca})


@pytest.mark.parametrize("form", [False, True])
@pytest.mark.parametrize(("tee", "ca"), [("tdx", "platform"), ("sgx", "processor")])
def test_intel_collateral(service: Service, time: Time, tmp_path: Path, tee: str, ca: str, form: bool) -> None:
    intels = pcs.Pcs()
    intels.hex = form
    service.answer = intels
    item = fetcher(tmp_path, time, base=service.url).get(_intel(tee, ca))
    members = json.loads(item.data)
    assert set(members) == {
        "pck_crl_issuer_chain", "root_ca_crl", "pck_crl", "tcb_info_issuer_chain", "tcb_info", "tcb_info_signature",
        "qe_identity_issuer_chain", "qe_identity", "qe_identity_signature",
    }  # fmt: skip
    assert members["tcb_info"] == intels.text(tee.upper(), intels.tcb_end)
    assert members["tcb_info_signature"] == "ab" * 64
    assert members["qe_identity_signature"] == "cd" * 64
    assert x509.load_der_x509_crl(bytes.fromhex(members["pck_crl"])).issuer == pcs.name(pcs.CAS[ca])
    assert members["tcb_info_issuer_chain"].count("BEGIN CERTIFICATE") == 2
    assert len(service.calls) == 4


def test_intel_collateral_lives_as_long_as_its_shortest_part(service: Service, time: Time, tmp_path: Path) -> None:
    service.answer = intels = pcs.Pcs()
    fetching = fetcher(tmp_path, time, base=service.url)
    first = fetching.get(_intel())
    time.now = NOW + 20 * DAY
    offline = fetcher(tmp_path, time, base=service.url, offline=True)
    assert offline.get(_intel()) == first
    time.now += timedelta(seconds=1)
    with pytest.raises(UndecidedError, match="offline"):
        offline.get(_intel())
    with pytest.raises(UndecidedError, match="expired"):
        fetching.get(_intel())
    intels.crl_end, intels.signer_end = NOW + 50 * DAY, NOW + DAY
    with pytest.raises(UndecidedError, match="expired"):
        fetching.get(_intel())


@pytest.mark.parametrize(
    ("part", "reply"),
    [
        ("tcb", Reply(body=b"<html>")),
        ("tcb", Reply(body=b'{"tcbInfo":{},"signature":"00"}')),
        ("tcb", Reply(body=b'{"tcbInfo":{"a":1},"tcbInfo":{"a":1},"signature":"' + b"00" * 64 + b'"}')),
        ("tcb", Reply(body=b'{"tcbInfo":{"a":1},"signature":"' + b"00" * 64 + b'"}')),
        ("qe/identity", Reply(body=b'{"enclaveIdentity":[],"signature":"' + b"00" * 64 + b'"}')),
        ("qe/identity", Reply(404)),
        ("pckcrl", Reply(body=b"\x30\x00")),
        ("rootcacrl", Reply(body=pcs.crl("Intel SGX PCK Platform CA"))),
        ("rootcacrl", Reply(body=b"zz")),
        ("rootcacrl", Reply(body=b"")),
        ("rootcacrl", Reply(body=b"\xff" * 4_000_000)),
    ],
)
def test_intel_lies(service: Service, time: Time, tmp_path: Path, part: str, reply: Reply) -> None:
    service.answer = intels = pcs.Pcs()
    intels.replies[part] = reply
    with pytest.raises(UndecidedError):
        fetcher(tmp_path, time, base=service.url).get(_intel())
    assert list(tmp_path.glob("*.item")) == []


@pytest.mark.parametrize(
    "header", ["", "-----BEGIN", quote("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" * 2), "%ff%fe"]
)
def test_intel_chain_in_the_header_must_be_one(service: Service, time: Time, tmp_path: Path, header: str) -> None:
    service.answer = intels = pcs.Pcs()
    good = intels(Call("GET", f"/tdx/certification/v4/tcb?fmspc={pcs.FMSPC.upper()}", b"", {}))
    intels.replies["tcb"] = Reply(body=good.body, headers={"TCB-Info-Issuer-Chain": header})
    with pytest.raises(UndecidedError, match="gave no intel-collateral"):
        fetcher(tmp_path, time, base=service.url).get(_intel())


def test_intel_tcb_info_of_another_platform(service: Service, time: Time, tmp_path: Path) -> None:
    service.answer = intels = pcs.Pcs()
    body = intels(Call("GET", f"/tdx/certification/v4/tcb?fmspc={pcs.FMSPC.upper()}", b"", {}))
    intels.replies["tcb"] = Reply(body=body.body.replace(pcs.FMSPC.encode(), b"00806f050000"), headers=body.headers)
    with pytest.raises(UndecidedError, match="another platform"):
        fetcher(tmp_path, time, base=service.url).get(_intel())


def test_intels_own_service_has_the_root_list_elsewhere(time: Time, tmp_path: Path) -> None:
    asked = []

    class Recording:
        def get(self, url: str, *, limit: int) -> object:
            asked.append(url)
            if "rootcacrl" in url or url.startswith("https://certificates"):
                raise UndecidedError("enough")
            reply = pcs.Pcs()(Call("GET", url.removeprefix(intel.BASE), b"", {}))
            return intel.Answer(body=reply.body, headers={k.lower(): v for k, v in reply.headers.items()})

    make, base = SOURCES["intel-collateral"]
    with pytest.raises(UndecidedError, match="enough"):
        make(_intel(), base).load(Recording())  # type: ignore[arg-type]
    assert asked == [
        f"https://api.trustedservices.intel.com/tdx/certification/v4/tcb?fmspc={pcs.FMSPC.upper()}",
        "https://api.trustedservices.intel.com/tdx/certification/v4/qe/identity",
        "https://api.trustedservices.intel.com/sgx/certification/v4/pckcrl?ca=platform&encoding=der",
        "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der",
    ]


def test_intel_collateral_that_is_real_is_read(vectors: Path) -> None:
    """Collateral that Intel signed, as others have stored it."""
    life = {}
    for file, tee, fmspc, ca in (
        ("tdx/phala_tdx_quote_collateral.json", "tdx", None, "platform"),
        ("tdx/lunal_90c06f_collateral.json", "tdx", "90c06f000000", "platform"),
        ("sgx/phala_sgx_quote_collateral.json", "sgx", None, "processor"),
    ):
        data = (vectors / file).read_bytes()
        fmspc = fmspc or json.loads(json.loads(data)["tcb_info"])["fmspc"].lower()
        life[file] = intel.life(data, tee=tee, fmspc=fmspc, ca=ca)
        with pytest.raises(Exception, match="another"):
            intel.life(data, tee=tee, fmspc="000000000000", ca=ca)
    assert life["tdx/lunal_90c06f_collateral.json"].until.strftime("%Y-%m") == "2026-04"


def test_real_collateral_comes_out_as_it_is_stored(service: Service, time: Time, tmp_path: Path, vectors: Path) -> None:
    """What Intel signed, given out by a service of ours in the pieces in which Intel gives it."""
    stored = json.loads((vectors / "tdx" / "lunal_90c06f_collateral.json").read_bytes())

    service.answer = pcs.stored(stored)
    time.now = datetime.fromisoformat("2026-03-20T00:00:00Z")
    assert json.loads(fetcher(tmp_path, time, base=service.url).get(_intel()).data) == stored


def test_intel_signed_texts_that_are_real_come_through_whole(vectors: Path) -> None:
    for file, name in (("sample_tcbInfo_response", "tcbInfo"), ("sample_qeIdentity_response", "enclaveIdentity")):
        body = (vectors / "tdx" / f"go-tdx-guest_{file}").read_bytes()
        text, signature = intel.signed_text(body, name)
        assert text.encode() in body
        assert len(signature) == 128


# --- NVIDIA ---

RIM = b'<?xml version="1.0"?><SoftwareIdentity xmlns="x" name="GH100"/>'
RIM_ID = "NV_GPU_DRIVER_GH100_550.90.07"


def _rim_service(**changes: object) -> Answering:
    def answer(call: Call) -> Reply:
        if call.path != f"/v1/rim/{RIM_ID}":
            return Reply(404)
        members = {
            "id": RIM_ID, "rim": base64.b64encode(RIM).decode(), "sha256": hashlib.sha256(RIM).hexdigest(),
            "last_updated": "2025-01-01T00:00:00Z", "request_id": "x",
        }  # fmt: skip
        return Reply(body=json.dumps({**members, **changes}).encode())

    return answer


def test_a_rim(service: Service, time: Time, tmp_path: Path) -> None:
    service.answer = _rim_service()
    fetching, need = fetcher(tmp_path, time, base=service.url), Need(kind="nvidia-rim", parameters={"id": RIM_ID})
    assert fetching.get(need) == Item("nvidia-rim", RIM)
    time.now += 29 * DAY
    assert fetching.get(need).data == RIM
    assert len(service.calls) == 1
    with pytest.raises(UndecidedError, match="404"):
        fetching.get(Need(kind="nvidia-rim", parameters={"id": "NV_GPU_DRIVER_GH100_1"}))
    with pytest.raises(MalformedError):
        fetching.get(Need(kind="nvidia-rim", parameters={"id": "../ids"}))


@pytest.mark.parametrize(
    "changes",
    [
        {"sha256": "00" * 32},
        {"sha256": None},
        {"id": "NV_GPU_DRIVER_GH100_535.86.09"},
        {"rim": "?"},
        {"rim": base64.b64encode(RIM + b" ").decode()},
        {"rim": base64.b64encode(b"no xml").decode(), "sha256": hashlib.sha256(b"no xml").hexdigest()},
    ],
)
def test_rim_lies(service: Service, time: Time, tmp_path: Path, changes: Mapping[str, object]) -> None:
    service.answer = _rim_service(**changes)
    with pytest.raises(UndecidedError, match="gave no nvidia-rim"):
        fetcher(tmp_path, time, base=service.url).get(Need(kind="nvidia-rim", parameters={"id": RIM_ID}))
    assert list(tmp_path.glob("*.item")) == []


def _certificate_object(subject: str, issuer: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pcs.certificate(subject, issuer))


def _ocsp_need() -> Need:
    certificate, issuer = (_certificate_object(name, "top").public_bytes(Encoding.DER) for name in ("middle", "top"))
    encoded = {"certificate": base64.b64encode(certificate).decode(), "issuer": base64.b64encode(issuer).decode()}
    return Need(kind="nvidia-ocsp", parameters=encoded)


def _responder(
    *, start: datetime = NOW - HOUR, end: datetime | None = NOW + DAY, subject: str = "middle", issuer: str = "top"
) -> Answering:
    def answer(call: Call) -> Reply:
        asked = ocsp.load_der_ocsp_request(call.body)
        assert call.headers["content-type"] == "application/ocsp-request"
        assert isinstance(asked.hash_algorithm, SHA384)
        builder = ocsp.OCSPResponseBuilder().add_response(
            cert=_certificate_object(subject, issuer), issuer=_certificate_object(issuer, issuer), algorithm=SHA384(),
            cert_status=ocsp.OCSPCertStatus.GOOD, this_update=start, next_update=end, revocation_time=None,
            revocation_reason=None,
        )  # fmt: skip
        builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, _certificate_object(issuer, issuer))
        return Reply(body=builder.sign(pcs.key(issuer), SHA256()).public_bytes(Encoding.DER))

    return answer


def test_an_ocsp_response(service: Service, time: Time, tmp_path: Path) -> None:
    service.answer = _responder()
    fetching = fetcher(tmp_path, time, base=service.url)
    first = fetching.get(_ocsp_need())
    assert fetching.get(_ocsp_need()) == first
    assert [call.method for call in service.calls] == ["POST"]
    time.now += HOUR
    fetching.get(_ocsp_need())
    assert len(service.calls) == 2
    time.now = NOW + DAY + timedelta(seconds=1)
    with pytest.raises(UndecidedError, match="expired"):
        fetching.get(_ocsp_need())


def test_an_ocsp_response_without_an_end_holds_a_day(service: Service, time: Time, tmp_path: Path) -> None:
    service.answer = _responder(end=None)
    fetcher(tmp_path, time, base=service.url).get(_ocsp_need())
    offline = fetcher(tmp_path, time, base=service.url, offline=True)
    time.now = NOW - HOUR + DAY
    offline.get(_ocsp_need())
    time.now += timedelta(seconds=1)
    with pytest.raises(UndecidedError):
        offline.get(_ocsp_need())


@pytest.mark.parametrize(
    "answer",
    [
        _responder(issuer="another"),
        _responder(start=NOW + HOUR),
        _responder(end=NOW - timedelta(seconds=1)),
        lambda call: Reply(body=b"<html>"),
        lambda call: Reply(
            body=ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER).public_bytes(
                Encoding.DER
            )
        ),
    ],
)
def test_ocsp_lies(service: Service, time: Time, tmp_path: Path, answer: Answering) -> None:
    service.answer = answer
    with pytest.raises(UndecidedError):
        fetcher(tmp_path, time, base=service.url).get(_ocsp_need())
    assert list(tmp_path.glob("*.item")) == []


# --- Issuers ---

MAA = "https://sharedeus2.eus2.attest.azure.net"


@cache
def _jwk(kid: str = "one") -> Mapping[str, str]:
    numbers = rsa.generate_private_key(65537, 2048).public_key().public_numbers()
    return {
        "kty": "RSA",
        "kid": kid,
        "alg": "RS256",
        "n": encode_base64url(numbers.n.to_bytes(256, "big")),
        "e": "AQAB",
    }


def _keys(*keys: object) -> Reply:
    return Reply(body=json.dumps({"keys": keys}).encode())


def _jwks(issuer: str) -> Need:
    return Need(kind="jwks", parameters={"issuer": issuer})


@pytest.mark.parametrize(("issuer", "path"), [(MAA, "/certs"), (issuers.NRAS, "/.well-known/jwks.json")])
def test_the_keys_of_an_issuer_for_an_hour(
    service: Service, time: Time, tmp_path: Path, issuer: str, path: str
) -> None:
    service.answer = lambda call: _keys(_jwk()) if call.path == path else Reply(404)
    fetching = fetcher(tmp_path, time, base=service.url)
    item = fetching.get(_jwks(issuer))
    assert KeySet.of(Collateral((item,)), issuer).find("one", Alg.RS256)
    time.now += HOUR - timedelta(seconds=1)
    fetching.get(_jwks(issuer))
    assert len(service.calls) == 1
    service.answer = lambda call: _keys(_jwk("two")) if call.path == path else Reply(404)
    time.now += timedelta(seconds=2)
    with pytest.raises(UndecidedError, match="offline"):
        fetcher(tmp_path, time, base=service.url, offline=True).get(_jwks(issuer))
    assert KeySet.parse(fetching.get(_jwks(issuer)).data).keys[0].kid == "two"


def _discovery(service: Service, keys: str, issuer: str = issuers.GOOGLE) -> Answering:
    def answer(call: Call) -> Reply:
        if call.path == "/.well-known/openid-configuration":
            return Reply(body=json.dumps({"issuer": issuer, "jwks_uri": keys, "more": 1}).encode())
        return _keys(_jwk()) if call.path == "/keys" else Reply(404)

    return answer


def test_googles_keys_are_where_its_discovery_says(service: Service, time: Time, tmp_path: Path) -> None:
    service.answer = _discovery(service, f"{service.url}/keys")
    item = fetcher(tmp_path, time, base=service.url).get(_jwks(issuers.GOOGLE))
    assert KeySet.parse(item.data).issuer == issuers.GOOGLE
    assert [call.path for call in service.calls] == ["/.well-known/openid-configuration", "/keys"]


def test_a_discovery_that_points_elsewhere_is_not_followed(service: Service, time: Time, tmp_path: Path) -> None:
    with serving(lambda call: _keys(_jwk())) as other:
        for number, (keys, issuer) in enumerate(
            (
                (f"{other.url}/keys", issuers.GOOGLE),
                ("http://www.googleapis.com/service_accounts/v1/metadata/jwk/x", issuers.GOOGLE),
                ("https://www.googleapis.com.example.org/service_accounts/v1/metadata/jwk/x", issuers.GOOGLE),
                ("https://www.googleapis.com@127.0.0.1/", issuers.GOOGLE),
                (f"{service.url}/keys", "https://accounts.google.com"),
                ("keys", issuers.GOOGLE),
            )
        ):
            service.answer = _discovery(service, keys, issuer)
            with pytest.raises(UndecidedError):
                fetcher(tmp_path / str(number), time, base=service.url).get(_jwks(issuers.GOOGLE))
        assert other.calls == []
    assert {call.path for call in service.calls} == {"/.well-known/openid-configuration"}


@pytest.mark.parametrize(
    "issuer",
    [
        "https://evil.example.org", "http://sharedeus2.eus2.attest.azure.net", "https://attest.azure.net",
        "https://a.b.attest.azure.net.evil.org", "https://evil.org/x.eus.attest.azure.net", MAA + "/", MAA + ":444",
        "https://shared\neus2.eus2.attest.azure.net", "https://127.0.0.1#.eus.attest.azure.net", "", MAA + "\n",
        "https://confidentialcomputing.googleapis.com/",
    ],
)  # fmt: skip
def test_a_strangers_issuer_is_not_asked(service: Service, time: Time, tmp_path: Path, issuer: str) -> None:
    for base in (service.url, None):
        with pytest.raises(UndecidedError, match="not one whose keys are fetched"):
            fetcher(tmp_path, time, base=base).get(_jwks(issuer))
    assert service.calls == []


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body=b"<html>"), Reply(body=b"[]"), Reply(body=b"{}"), Reply(body=b'{"keys":[]}'), Reply(body=b'{"keys":[1]}'),
        Reply(body=b'{"keys":[{"kty":"RSA","kid":"a","n":"AA","e":"AQAB"}]}'), Reply(body=b'{"keys":[{"kty":"oct","kid":"a"}]}'),
        Reply(body=b'{"keys":[' + b" " * 300_000 + b"]}"), _keys(*[{"kty": "oct"}] * 65),
    ],
)  # fmt: skip
def test_key_sets_that_are_none(service: Service, time: Time, tmp_path: Path, reply: Reply) -> None:
    service.answer = lambda call: reply
    with pytest.raises(UndecidedError):
        fetcher(tmp_path, time, base=service.url).get(_jwks(MAA))
    assert list(tmp_path.glob("*.item")) == []


def test_keys_from_a_mirror_are_not_the_issuers_own(service: Service, time: Time, tmp_path: Path) -> None:
    """What a named mirror gave must not be found later by someone who asks the issuer."""
    service.answer = lambda call: _keys(_jwk())
    fetcher(tmp_path, time, base=service.url).get(_jwks(MAA))
    with pytest.raises(UndecidedError, match="offline"):
        fetcher(tmp_path, time, offline=True).get(_jwks(MAA))


def test_the_real_key_sets_are_read(vectors: Path, service: Service, time: Time, tmp_path: Path) -> None:
    data = json.loads((vectors / "azure" / "maa_keys_secretnetwork.json").read_bytes())
    service.answer = lambda call: Reply(body=json.dumps({"keys": data["keys"]}).encode())
    assert KeySet.parse(fetcher(tmp_path, time, base=service.url).get(_jwks(MAA)).data).keys
    time.now = datetime.fromisoformat("2024-01-01T00:00:00Z")
    service.answer = lambda call: Reply(body=(vectors / "ita" / "ita_prod_2023_jwks.json").read_bytes())
    assert fetcher(tmp_path, time, base=service.url).get(Need(kind="ita-certs", parameters={"region": "us"}))
    time.now = datetime.fromisoformat("2024-12-01T00:00:00Z")
    with pytest.raises(UndecidedError, match="expired"):
        fetcher(tmp_path, time, base=service.url).get(Need(kind="ita-certs", parameters={"region": "us"}))


def test_what_a_trust_authority_token_needs(service: Service, time: Time, tmp_path: Path) -> None:
    root = ita.issue("Intel Trust Authority Root CA", None, ca=True)
    authority = ita.issue("Intel Trust Authority ATS Signing CA", root, ca=True)

    def answer(call: Call) -> Reply:
        issuer = {"/crl/ats-ca-crl.der": authority, "/crl/root-ca-crl.der": root}.get(call.path)
        if issuer is None:
            return Reply(404)
        builder = (
            x509.CertificateRevocationListBuilder().issuer_name(issuer.name).last_update(NOW).next_update(NOW + DAY)
        )
        return Reply(body=builder.sign(issuer.key, SHA256()).public_bytes(Encoding.DER))

    service.answer = answer
    form = registry.get("ita")
    found = form.needs(_token({"iss": "Intel Trust Authority"}))
    assert [need.parameters.get("list") for need in found] == [None, "ats-ca", "root-ca"]
    fetching = fetcher(tmp_path, time, base=service.url)
    for need in found[1:]:
        assert x509.load_der_x509_crl(fetching.get(need).data).next_update_utc == NOW + DAY
    service.answer = lambda call: answer(Call("GET", "/crl/root-ca-crl.der", b"", {}))
    with pytest.raises(UndecidedError, match="another issuer"):
        fetcher(tmp_path / "other", time, base=service.url).get(found[1])
    assert {need.parameters["region"] for need in form.needs(_token({"iss": "https://evil.example.org"}))} == {"us"}
    european = form.needs(_token({"iss": "https://portal.eu.trustauthority.intel.com"}))
    assert issuers.ita_certs(european[0], "").key == "https://portal.eu.trustauthority.intel.com/certs"
    with pytest.raises(MalformedError):
        form.needs(b"a.b")


def _token(claims: Mapping[str, object]) -> bytes:
    parts = (json.dumps(part).encode() for part in ({"alg": "PS384", "kid": "k"}, claims))
    return ".".join([*map(encode_base64url, parts), encode_base64url(b"signature")]).encode()


def test_a_kind_without_a_service(time: Time, tmp_path: Path) -> None:
    with pytest.raises(UndecidedError, match="not fetched from anywhere"):
        fetcher(tmp_path, time).get(Need(kind="tcg-event-log"))
    with pytest.raises(ValueError, match="no-kind"):
        Need(kind="no-kind")
