"""Every SNP report in the collected vectors, inside its certificate's life, with the verdict that they expect."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.tee.snp import signer as s

from cloister.errors import CloisterError, MalformedError, NotGenuineError, RefusedError, UndecidedError
from cloister.tee.claims import Claims
from cloister.tee.snp import rules, verify
from cloister.tee.snp.certificates import Endorsement
from cloister.tee.snp.evidence import Product, Report
from cloister.tee.snp.roots import ANCHORS, INTERMEDIATES
from cloister.wire import toml

#: (report, endorsement key), as vectors.json names them.
PAIRS = (
    ("go-sev-guest_milan_v2_report.bin", "go-sev-guest_vcek.der"),
    ("virtee_report_milan.hex", "virtee_vcek_milan.der"),
    ("ms_milan_report.bin", "ms_milan_vcek.pem"),
    ("ms_genoa_report.bin", "ms_genoa_vcek.pem"),
    ("trustee_report.bin", "trustee_vcek.der"),
    ("lunal_genoa_v5_report.bin", "lunal_genoa_vcek.der"),
    ("trustee_report.bin", "trustee_vcek_invalid_legacy.der"),
    ("trustee_report.bin", "trustee_vcek_invalid_new.der"),
)
#: Reports for which there is no endorsement key.
ALONE = ("openpcc_gce_report.bin", "tinfoil_report.bin")
ALL = {rule.name: rule for rule in rules.RULES}


def _read(path: Path) -> bytes:
    data = path.read_bytes()
    if b"-----BEGIN" in data:
        return base64.b64decode(re.findall(rb"-----BEGIN [A-Z0-9 ]+-----([^-]+)-----END", data)[0])
    return bytes.fromhex(data.decode()) if path.suffix == ".hex" else data


def _chain(path: Path) -> dict[str, x509.Certificate]:
    found = x509.load_pem_x509_certificates(path.read_bytes())
    return {each.subject.rfc4514_string().partition(",")[0]: each for each in found}


def _verify(evidence: bytes, vcek: bytes, *, now: datetime, **more: bytes) -> Claims:
    return s.Setting(items=s.items(vcek=vcek, **more), anchors=None, now=now).verify(evidence)


def _appraise(claims: Claims, text: str) -> None:
    table = toml.parse(text.encode(), limit=10_000)
    for rule in rules.RULES:
        value = rule.read(table)
        if value is not None:
            rule.check(claims, value)
    table.done()


@pytest.fixture(scope="module")
def entries(vectors: Path) -> dict[tuple[str, str], dict]:
    listed = json.loads((vectors / "vectors.json").read_bytes())["vectors"]
    return {
        (Path(entry["file"]).name, Path(entry["ek"]).name): entry for entry in listed if entry["platform"] == "amd-snp"
    }


def test_no_report_of_the_vectors_is_left_out(vectors: Path, entries: dict) -> None:
    assert set(entries) == set(PAIRS)
    bare = {path.name for path in (vectors / "snp").iterdir() if path.stat().st_size == 1184}
    assert bare <= {report for report, _ in PAIRS} | set(ALONE)


@pytest.mark.parametrize(("report", "vcek"), PAIRS, ids=lambda name: name.partition(".")[0])
def test_expected_verdict(vectors: Path, entries: dict, report: str, vcek: str) -> None:
    entry, folder = entries[report, vcek], vectors / "snp"
    now = datetime.fromisoformat(entry["ek_not_before"]) + timedelta(days=1)
    evidence, key = _read(folder / report), _read(folder / vcek)
    if entry["expected"].startswith("reject: SIG"):
        with pytest.raises(NotGenuineError):
            _verify(evidence, key, now=now)
        return
    claims = _verify(evidence, key, now=now)
    details = claims.details
    assert isinstance(details, verify.Verified)
    assert claims.genuine
    assert claims.debug is entry["debug"]
    assert claims.user_data == bytes.fromhex(entry["report_data"])
    assert claims.measurements == {"measurement": entry["measurement"]}
    assert details.report.host_data.hex() == entry["host_data"]
    assert (details.report.version, details.product) == (entry["version"], entry["product"])
    assert [details.report.family, details.report.model, details.report.stepping] == entry["fms"]
    assert (details.report.vmpl, details.report.guest_svn) == (entry["vmpl"], entry["guest_svn"])
    assert details.report.chip_id.hex() == entry["chip_id"]
    for name in ("reported", "current", "committed", "launch"):
        tcb, expected = getattr(details, name), entry[f"{name}_tcb"]
        assert (tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode) == tuple(
            expected[part] for part in ("bl", "tee", "snp", "ucode")
        )
    text = f'measurement = ["{entry["measurement"]}"]\nproducts = ["{entry["product"]}"]\nvmpl = {entry["vmpl"]}\n'
    _appraise(claims, text + 'provisional_firmware = "allowed"\nmasked_chip_id = "forbidden"\nsigning_key = ["VCEK"]')
    strict = text + 'provisional_firmware = "forbidden"'
    if "provisional" in entry["expected"]:
        with pytest.raises(RefusedError, match="provisional"):
            _appraise(claims, strict)
    else:
        assert entry["expected"] == "accept" or entry["debug"]
        _appraise(claims, strict)


@pytest.mark.parametrize(("report", "vcek"), PAIRS[:6], ids=lambda name: name.partition(".")[0])
def test_any_changed_byte_is_noticed(vectors: Path, entries: dict, report: str, vcek: str) -> None:
    entry, folder = entries[report, vcek], vectors / "snp"
    now = datetime.fromisoformat(entry["ek_not_before"]) + timedelta(days=1)
    evidence, key = _read(folder / report), _read(folder / vcek)
    rng = random.Random(1)
    for offset in sorted({*rng.sample(range(1184), 60), *(offset for offset, _ in s.FIELDS.values())}):
        changed = bytearray(evidence)
        changed[offset] ^= 1 << rng.randrange(8)
        with pytest.raises((MalformedError, NotGenuineError)):
            _verify(bytes(changed), key, now=now)
    for wrong in (evidence[:-1], evidence + b"\x00", evidence + bytes(16), b""):
        with pytest.raises(MalformedError):
            _verify(wrong, key, now=now)
    for offset in rng.sample(range(len(key)), 25):
        changed = bytearray(key)
        changed[offset] ^= 1 << rng.randrange(8)
        with pytest.raises((MalformedError, NotGenuineError, UndecidedError)):
            _verify(evidence, bytes(changed), now=now)


def test_certificates_of_others_and_other_times(vectors: Path, entries: dict) -> None:
    folder = vectors / "snp"
    genoa, milan = _read(folder / "ms_genoa_report.bin"), _read(folder / "ms_milan_report.bin")
    now = datetime(2026, 3, 1, tzinfo=UTC)
    keys = {name: _read(folder / f"ms_{name}_vcek.pem") for name in ("milan", "genoa", "turin")}
    for report, wrong in ((genoa, "milan"), (genoa, "turin"), (milan, "genoa")):
        with pytest.raises(NotGenuineError, match="the report is of"):
            _verify(report, keys[wrong], now=now)
    with pytest.raises(NotGenuineError, match="not signed by the key"):
        _verify(genoa, _read(folder / "lunal_genoa_vcek.der"), now=now)
    # Of several, the right one is found.
    claims = _verify(genoa, keys["milan"], now=now, vcek2=_read(folder / "lunal_genoa_vcek.der"), vcek3=keys["genoa"])
    assert claims.facts["product"] == "Genoa"
    for when, word in (
        (datetime(2026, 1, 1, tzinfo=UTC), "not valid yet"),
        (datetime(2034, 1, 1, tzinfo=UTC), "expired"),
    ):
        with pytest.raises(NotGenuineError, match=word):
            _verify(genoa, keys["genoa"], now=when)
    with pytest.raises(UndecidedError, match="VCEK certificate is missing"):
        s.Setting(items=(), anchors=None, now=now).verify(genoa)


def _base64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text.replace("+", "-").replace("/", "_") + "=" * (-len(text) % 4))


def test_reports_that_azure_envelops(vectors: Path) -> None:
    folder = vectors / "azure"
    found = []
    for name in ("trustee_snp_evidence-genoa.json", "trustee_snp_evidence-v0.json"):
        content = json.loads((folder / name).read_text())
        found.append((bytes(content["report"]), base64.b64decode(content["vcek"].split("-----")[2])))
    for name in ("trustee_snp_evidence-v1.json", "lunal_snp_live-evidence.json"):
        content = json.loads((folder / name).read_text())
        content = content.get("evidence", content)
        found.append((_base64(content["hcl_report"]), _base64(content["vcek"])))
    for name, key in (
        ("azure/trustee_snp_hcl-report.bin", "azure/trustee_snp_vcek.pem"),
        ("snp/openpcc_azure_report.txt", "snp/openpcc_azure_vcek.pem"),
    ):
        found.append((_read(vectors / name), _read(vectors / key)))
    for report, vcek in found:
        assert report[:4] == b"HCLA"
        issued = Endorsement.parse(vcek).certificate.not_valid_before_utc
        claims = _verify(report[32 : 32 + 1184], vcek, now=issued + timedelta(days=1))
        assert claims.genuine
        assert not claims.debug
        assert claims.user_data is not None
        assert not any(claims.user_data[32:])


def test_reports_of_dstack_and_of_lunal(vectors: Path) -> None:
    folder = vectors / "snp"
    whole = (folder / "dstack_attestation_scale.bin").read_bytes()
    claims = _verify(whole[4 : 4 + 1184], _read(folder / "dstack_vcek.pem"), now=datetime(2026, 7, 1, tzinfo=UTC))
    assert claims.user_data is not None
    assert claims.user_data.startswith(b"attest-test-fixture-2026")
    content = json.loads((folder / "lunal_genoa_evidence.json").read_text())["evidence"]
    report, vcek = _base64(content["attestation_report"]), _base64(content["cert_chain"]["vcek"])
    claims = _verify(report, vcek, now=datetime(2026, 3, 1, tzinfo=UTC))
    assert claims.facts["mitigations"]


def test_reports_without_their_key_are_undecided(vectors: Path) -> None:
    for name in ALONE:
        evidence = (vectors / "snp" / name).read_bytes()
        assert Report.parse(evidence).product in (Product.MILAN, Product.GENOA)
        with pytest.raises(UndecidedError):
            s.Setting(items=(), anchors=None).verify(evidence)


@pytest.mark.parametrize(
    ("file", "kind", "product", "when"),
    [
        ("trustee_vlek.der", "VLEK", "Milan", datetime(2025, 6, 1, tzinfo=UTC)),
        ("virtee_vcek_turin.der", "VCEK", "Turin", datetime(2026, 1, 1, tzinfo=UTC)),
        ("ms_turin_vcek.pem", "VCEK", "Turin", datetime(2026, 5, 1, tzinfo=UTC)),
        ("openpcc_azure_vcek.pem", "VCEK", "Genoa", datetime(2026, 1, 1, tzinfo=UTC)),
    ],
)
def test_keys_without_their_report_pass_up_to_its_signature(
    vectors: Path, file: str, kind: str, product: str, when: datetime
) -> None:
    der = _read(vectors / "snp" / file)
    key = Endorsement.parse(der)
    assert (key.kind, key.product, key.serial) == (kind, product, 0)
    if kind == "VLEK":
        assert (key.csp_id, key.chip_id) == ("cc-us-east-2.amazonaws.com", None)
    tcb = s.tcb_bytes(product, key.tcb.parts())
    forged = s.report(product, vlek=kind == "VLEK", reported_tcb=tcb, chip_id=key.chip_id or bytes(64))
    context = s.Setting(items=s.items(vcek=der), anchors=None, now=when).context()
    with pytest.raises(NotGenuineError, match="not signed by the key"):
        s.FORMAT.verify(forged, context)
    status = {check.id: check.status for check in context.checklist.results()}
    assert status["snp.chain"] == "passed"
    assert status["snp.signature"] == "failed"


def test_revocation_lists(vectors: Path) -> None:
    folder = vectors / "snp"
    report, vcek = _read(folder / "ms_genoa_report.bin"), _read(folder / "ms_genoa_vcek.pem")
    genoa, milan = ((folder / f"amd_crl_{name}.der").read_bytes() for name in ("Genoa", "Milan"))
    now = datetime(2026, 3, 1, tzinfo=UTC)
    claims = _verify(report, vcek, now=now, crl=milan, crl2=genoa)
    assert isinstance(claims.details, verify.Verified)
    assert claims.details.revocation_until == datetime(2026, 10, 31, 20, 30, tzinfo=UTC)
    ALL["revocation"].check(claims, "required")
    # The list of another product says nothing about this one, and a stale one is not passed over.
    foreign = _verify(report, vcek, now=now, crl=milan)
    with pytest.raises(UndecidedError):
        ALL["revocation"].check(foreign, "required")
    with pytest.raises(NotGenuineError, match="stale"):
        _verify(report, vcek, now=datetime(2027, 1, 1, tzinfo=UTC), crl=genoa)
    # AMD has revoked one certificate: an older ASK of Genoa, which is not among the built-in ones.
    revoked = x509.load_der_x509_crl(genoa)
    assert [each.serial_number for each in revoked] == [0x20001]
    assert 0x20001 not in {each.serial for each in INTERMEDIATES}
    for at in range(0, len(genoa), 37):
        changed = bytearray(genoa)
        changed[at] ^= 4
        try:
            claims = _verify(report, vcek, now=now, crl=bytes(changed))
        except CloisterError:
            continue
        assert isinstance(claims.details, verify.Verified)
        assert claims.details.revocation_until is None  # another issuer's name: not our list


def test_anchors_are_the_published_certificates(vectors: Path) -> None:
    for anchor, product in zip(ANCHORS, Product, strict=True):
        found = _chain(vectors / "snp" / f"trustee_{product.lower()}_ask_ark_asvk.pem")
        named = [(anchor, found[f"CN=ARK-{product}"])]
        for known in INTERMEDIATES:
            if known.root is anchor:
                certificate = found[known.key.subject.partition(",")[0]]
                assert certificate.serial_number == known.serial
                certificate.verify_directly_issued_by(found[f"CN=ARK-{product}"])
                named.append((known.key, certificate))
        assert len(named) == 3
        for fact, certificate in named:
            der = certificate.public_bytes(Encoding.DER)
            spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            assert fact.sha256 == hashlib.sha256(der).hexdigest()
            assert (fact.subject, fact.spki) == (certificate.subject.rfc4514_string(), spki)
            assert (fact.not_before, fact.not_after) == (
                certificate.not_valid_before_utc, certificate.not_valid_after_utc,
            )  # fmt: skip
            assert fact.genuine


def test_an_ask_may_come_along(vectors: Path) -> None:
    folder = vectors / "snp"
    report, vcek = _read(folder / "ms_genoa_report.bin"), _read(folder / "ms_genoa_vcek.pem")
    ask = _chain(folder / "amd_ask_ark_genoa.pem")["CN=SEV-Genoa"]
    der = ask.public_bytes(Encoding.DER)
    now = datetime(2026, 3, 1, tzinfo=UTC)
    assert _verify(report, vcek, now=now, ask=der).genuine
    # A built-in intermediate counts only where its own root does.
    for more in ({}, {"ask": der}):
        with pytest.raises((UndecidedError, NotGenuineError)):
            s.Setting(items=s.items(vcek=vcek, **more), anchors=(s.root("Genoa"),), now=now).verify(report)
