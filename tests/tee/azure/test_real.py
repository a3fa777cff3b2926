"""Every Azure entry of the collected vectors, and the files beside them, with the verdicts that they expect."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.tee.azure import common, real

from cloister.errors import CloisterError, MalformedError, NotGenuineError, RefusedError, UndecidedError
from cloister.tee import registry
from cloister.tee.azure import maa, verify
from cloister.tee.azure.evidence import Evidence, TpmQuote, pack
from cloister.tee.azure.hcl import Hardware, HclReport
from cloister.tee.azure.roots import ANCHORS
from cloister.tee.snp.certificates import Endorsement
from cloister.trust import tpm
from cloister.trust.collateral import Item
from cloister.wire.tpm import Bank, Quote, Scheme, Signature

BOOT = ("4", "8", "9", "11", "12", "14")
SEEN = {
    "azure/trustee_snp_evidence-genoa.json", "azure/trustee_snp_evidence-v0.json", "azure/trustee_snp_evidence-v1.json",
    "azure/lunal_snp_live-evidence.json", "azure/trustee_tdx_evidence-v0.json", "azure/trustee_tdx_evidence-v1.json",
    "azure/lunal_tdx_evidence-v1.json", real.PARTS,
}  # fmt: skip


def _measurement(pcrs: dict[str, str], **changes: str) -> str:
    stated = {f"pcr{index}": pcrs.get(index, "00" * 32) for index in BOOT} | changes
    return "[[measurement]]\n" + "\n".join(f'{name} = "{value}"' for name, value in stated.items())


def test_no_entry_is_left_out(vectors: Path) -> None:
    assert {entry["file"] for entry in real.entries(vectors, "azure-cvm")} == SEEN
    assert [entry["file"] for entry in real.entries(vectors, "azure-maa")] == ["azure/midnight_maa_snp.jwt"]


@pytest.mark.parametrize("name", sorted(SEEN))
def test_expected_verdict(vectors: Path, name: str) -> None:
    entry = next(each for each in real.entries(vectors, "azure-cvm") if each["file"] == name)
    data, items, now = real.sample(vectors, entry)
    if "REJECTED" in entry["expected"]:
        error, checks = common.checks("azure-vtpm", data, *items, now=now)
        assert isinstance(error, RefusedError)
        assert "SEPT_VE_DISABLE" in error.message
        assert [check.id for check in checks.values() if check.status == "failed"] == ["tdx.tcb"]
        assert checks["tdx.signature"].status == "passed"
        # "chain+binding OK": nothing but the host's setting stands against it.
        _binding(data, entry)
        return
    claims = common.verify("azure-vtpm", data, *items, now=now)
    assert claims.genuine
    assert not claims.debug
    assert [each.tee for each in claims.inner] == [entry["hw"]]
    assert claims.user_data == bytes.fromhex(entry["user_data"])
    assert claims.facts["hcl_version"] == str(entry["hcl_version"])
    vm = entry["vm_configuration"]
    assert claims.facts["vm_unique_id"] == vm["vmUniqueId"].lower()
    common.rule(claims, "vm_unique_id", f'vm_unique_id = ["{vm["vmUniqueId"]}"]')
    table = '[vm_configuration]\nsecure_boot = "required"\ntpm_enabled = "required"\nconsole_enabled = '
    common.rule(claims, "vm_configuration", table + '"any"')
    with pytest.raises(RefusedError, match="console_enabled"):
        common.rule(claims, "vm_configuration", table + '"forbidden"')
    with pytest.raises(UndecidedError, match="azure-ak"):
        common.rule(claims, "ak_certificate", 'ak_certificate = "required"')
    if "pcrs" not in entry:
        assert (claims.nonce, claims.measurements) == (None, {})
        with pytest.raises(RefusedError, match="no TPM quote"):
            common.rule(claims, "measurement", _measurement({}, pcr4="11" * 32))
        assert claims.inner[0].facts["tcb_status"] == "UpToDate"
        assert claims.inner[0].measurements == {"mrtd": entry["mrtd"], **{f"rtmr{at}": "00" * 48 for at in range(4)}}
        return
    assert claims.nonce == bytes.fromhex(entry["tpm_nonce"])
    quoted = {f"pcr{index}": entry["pcrs"].get(str(index), "00" * 32) for index in entry["tpm_pcr_selection"]}
    assert claims.measurements == quoted
    common.rule(claims, "measurement", _measurement(entry["pcrs"]))
    with pytest.raises(RefusedError, match="another system than the policy names: PCR 12"):
        common.rule(claims, "measurement", _measurement(entry["pcrs"], pcr12="00" * 32))
    assert claims.inner[0].measurements == {"measurement": entry["measurement"]}
    assert claims.inner[0].facts["product"] == entry["product"]
    common.rule(claims.inner[0], "vmpl", f"vmpl = {entry['vmpl']}")


def _binding(data: bytes, entry: dict) -> None:
    """Runtime data, TDREPORT, TD quote and TPM quote belong together."""
    parsed = Evidence.parse(data)
    td = registry.get("tdx").parse(parsed.td_quote or b"")
    assert parsed.hcl.hardware is Hardware.TDX
    assert parsed.hcl.digest == parsed.hcl.td_report_data == td.report.report_data
    assert not any(any(value) for value in td.report.rtmrs)
    assert parsed.hcl.runtime.vm.unique_id == entry["vm_configuration"]["vmUniqueId"].lower()
    assert parsed.tpm_quote is not None
    quoted = _quoted(parsed.tpm_quote, parsed.hcl)
    assert quoted.quote.extra_data == bytes.fromhex(entry["tpm_nonce"])
    zeros = {f"pcr{index}": "00" * 32 for index in entry["tpm_pcr_selection"]}
    assert quoted.measurements() == zeros | {f"pcr{index}": value for index, value in entry["pcrs"].items()}


def _quoted(given: TpmQuote, hcl: HclReport) -> tpm.Quoted:
    signature = Signature(scheme=Scheme.RSASSA, bank=Bank.SHA256, value=given.signature)
    return tpm.verify_quote(given.message, signature, hcl.runtime.attestation_key, given.pcrs, Bank.SHA256)


@pytest.mark.parametrize(
    "name", ["azure/trustee_snp_evidence-genoa.json", "azure/lunal_snp_live-evidence.json", real.PARTS]
)
def test_any_changed_byte_of_the_paravisors_report_is_noticed(vectors: Path, name: str) -> None:
    entry = next(each for each in real.entries(vectors, "azure-cvm") if each["file"] == name)
    data, items, now = real.sample(vectors, entry)
    members = json.loads(data)
    blob, rng = base64.urlsafe_b64decode(members["hcl_report"] + "=="), random.Random(1)
    tdx = entry["hw"] == "tdx"
    # Of the TDREPORT only its report data counts: the TD quote says the rest, signed.
    ignored = {
        *range(0x0C, 0x10),
        *(range(0x22, 0x20 + 128) if tdx else ()),
        *(range(0x20 + 192, 0x420) if tdx else ()),
    }
    for offset in rng.sample(sorted(set(range(2600)) - ignored), 120):
        changed = bytearray(blob)
        changed[offset] ^= 1 << rng.randrange(8)
        members["hcl_report"] = base64.urlsafe_b64encode(changed).decode().rstrip("=")
        with pytest.raises((MalformedError, NotGenuineError)):
            common.verify("azure-vtpm", json.dumps(members).encode(), *items, now=now)


def test_any_changed_byte_of_the_quote_is_noticed(vectors: Path) -> None:
    entry = next(e for e in real.entries(vectors, "azure-cvm") if e["file"] == "azure/trustee_snp_evidence-v1.json")
    data, _, _ = real.sample(vectors, entry)
    given = Evidence.parse(data)
    assert given.tpm_quote is not None
    hcl, rng = given.hcl, random.Random(2)
    for _ in range(80):
        part = rng.choice(["message", "signature"])
        changed = bytearray(getattr(given.tpm_quote, part))
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        with pytest.raises((MalformedError, NotGenuineError)):
            _quoted(replace(given.tpm_quote, **{part: bytes(changed)}), hcl)
    for index in range(24):
        value = bytearray(given.tpm_quote.pcrs[index])
        value[0] ^= 1
        with pytest.raises(NotGenuineError):
            _quoted(replace(given.tpm_quote, pcrs={**given.tpm_quote.pcrs, index: bytes(value)}), hcl)


def test_parts_of_two_vms_do_not_go_together(vectors: Path) -> None:
    by_name = {entry["file"]: entry for entry in real.entries(vectors, "azure-cvm")}
    one, items, now = real.sample(vectors, by_name["azure/trustee_snp_evidence-v1.json"])
    other, _, _ = real.sample(vectors, by_name["azure/lunal_snp_live-evidence.json"])
    mixed = json.loads(one) | {"tpm_quote": json.loads(other)["tpm_quote"]}
    with pytest.raises(NotGenuineError, match="signature"):
        common.verify("azure-vtpm", json.dumps(mixed).encode(), *items, now=now)
    td, tdx_items, when = real.sample(vectors, by_name[real.PARTS])
    foreign = json.loads(real.sample(vectors, by_name["azure/trustee_tdx_evidence-v1.json"])[0])
    mixed = json.loads(td) | {"hcl_report": foreign["hcl_report"]}
    with pytest.raises(NotGenuineError, match="another TD report"):
        common.verify("azure-vtpm", json.dumps(mixed).encode(), *tdx_items, now=when)


def test_other_times_and_missing_collateral(vectors: Path) -> None:
    for name in ("azure/trustee_snp_evidence-genoa.json", real.PARTS):
        entry = next(each for each in real.entries(vectors, "azure-cvm") if each["file"] == name)
        data, items, now = real.sample(vectors, entry)
        with pytest.raises(UndecidedError):
            common.verify("azure-vtpm", data, now=now)
        for when in (datetime(2017, 1, 1, tzinfo=UTC), datetime(2050, 1, 1, tzinfo=UTC)):
            with pytest.raises(NotGenuineError, match="not valid|expired"):
                common.verify("azure-vtpm", data, *items, now=when)


@pytest.mark.parametrize(
    ("report", "key"),
    [("trustee_snp_hcl-report.bin", "azure/trustee_snp_vcek.pem"), ("lunal_snp_hcl-report.bin", "azure/trustee_snp_vcek.pem"),
     ("../snp/openpcc_azure_report.txt", "snp/openpcc_azure_vcek.pem")],
)  # fmt: skip
def test_reports_without_a_quote(vectors: Path, report: str, key: str) -> None:
    data = (vectors / "azure" / report).read_bytes()
    if b"-----BEGIN REPORT" in data:
        data = base64.b64decode(re.findall(rb"BEGIN REPORT-----([^-]+)", data)[0])
    vcek = real.certificate((vectors / key).read_text())
    now = Endorsement.parse(vcek).certificate.not_valid_before_utc + timedelta(days=1)
    claims = common.verify("azure-vtpm", pack(hcl_report=data, tpm_quote=None), Item("amd-vcek", vcek), now=now)
    assert claims.genuine
    assert claims.inner[0].user_data == HclReport.parse(data).digest


@pytest.mark.parametrize("hardware", ["snp", "tdx"])
def test_quotes_in_files_of_their_own(vectors: Path, hardware: str) -> None:
    folder = vectors / "azure"
    hcl = HclReport.parse((folder / f"trustee_{hardware}_hcl-report.bin").read_bytes())
    found = real.quote(json.loads((folder / f"trustee_{hardware}_tpm-quote-v1.json").read_bytes()))
    assert _quoted(found, hcl).quote.extra_data == b"challenge"
    # The same once more in another shape: two lengths of eight bytes, signature and message.
    data = (folder / f"trustee_{hardware}_quote.bin").read_bytes()
    assert (found.signature, found.message) == (data[8:264], data[272 : 272 + len(found.message)])


def test_a_quote_whose_vm_is_not_known(vectors: Path) -> None:
    message, value = ((vectors / f"azure/trustee_snp_tpm-quote.{end}").read_bytes() for end in ("msg", "sig"))
    assert Quote.parse(message).extra_data == b"challenge"
    signature = Signature(scheme=Scheme.RSASSA, bank=Bank.SHA256, value=value)
    for entry in real.entries(vectors, "azure-cvm"):
        key = Evidence.parse(real.sample(vectors, entry)[0]).hcl.runtime.attestation_key
        with pytest.raises(NotGenuineError):
            tpm.check_signature(message, signature, key)


def test_the_anchor_is_the_published_certificate(vectors: Path) -> None:
    (anchor,) = ANCHORS
    certificate = x509.load_pem_x509_certificate((vectors / "azure/azure_tpm_root_2023.pem").read_bytes())
    assert anchor.sha256 == hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
    assert anchor.subject == certificate.subject.rfc4514_string()
    assert anchor.spki == certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert (anchor.not_before, anchor.not_after) == (certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def test_real_certificates_of_attestation_keys(vectors: Path) -> None:
    """One as a file, one as the guest reads it: 4096 bytes, zeros at the end."""
    text = (vectors / "azure/openpcc_azure_ak_certificates.txt").read_text()
    blocks = re.findall("-----BEGIN CERTIFICATE-----([^-]+)-----END", text)
    found = [base64.b64decode("".join(block.split())) for block in blocks]
    assert sorted(map(len, found)) == [1009, 4096]
    above = [_der(vectors, number) for number in ("01", "03")]
    now = datetime(2025, 12, 1, tzinfo=UTC)
    for der in found:
        key = x509.load_der_x509_certificate(der[:1009]).public_key()
        given = common.context("azure-vtpm", *(Item("azure-ak", each) for each in (*above, der)), now=now)
        anchor, names = verify._check_certificate(key, given)
        assert anchor is ANCHORS[0]
        assert [name.partition(",")[0] for name in names[:2]] == [
            "CN=Azure Virtual TPM Root Certificate Authority 2023", "CN=Global Virtual TPM CA - 03",
        ]  # fmt: skip
        alone = common.context("azure-vtpm", Item("azure-ak", der), now=now)
        with pytest.raises(UndecidedError, match="between"):
            verify._check_certificate(key, alone)
        late = common.context(
            "azure-vtpm", *(Item("azure-ak", each) for each in (*above, der)), now=datetime(2027, 6, 1, tzinfo=UTC)
        )
        with pytest.raises(NotGenuineError, match="expired"):
            verify._check_certificate(key, late)


def _der(vectors: Path, number: str) -> bytes:
    pem = (vectors / f"azure/azure_tpm_intermediate_{number}.pem").read_bytes()
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


# Tokens


def _token(vectors: Path) -> tuple[dict, bytes, Item]:
    (entry,) = real.entries(vectors, "azure-maa")
    keys = json.loads((vectors / entry["keys"]).read_bytes())["keys"]
    data = (vectors / entry["file"]).read_bytes().strip()
    return entry, data, Item("jwks", json.dumps({"issuer": entry["iss"], "keys": keys}).encode())


def test_the_token(vectors: Path) -> None:
    entry, data, keys = _token(vectors)
    now = datetime.fromisoformat(entry["verify_at"].replace("Z", "+00:00"))
    claims = common.verify("azure-maa", data, keys, now=now)
    assert (claims.genuine, claims.debug) == (True, False)
    assert claims.facts["issuer"] == entry["iss"] == "https://sharedeus2.eus2.attest.azure.net"
    assert claims.signed_at == datetime.fromtimestamp(entry["iat"], UTC)
    assert claims.nonce == base64.b64encode(b"midnight-srs")
    details = claims.details
    assert isinstance(details, maa.Verified)
    assert details.attestation.registers["launch_measurement"].startswith("6a063be9")
    for name, text in {
        "issuer": f'issuer = ["{entry["iss"]}"]', "attestation_type": 'attestation_type = ["azurevm"]',
        "isolation": 'isolation = ["sevsnpvm"]', "compliance": 'compliance = ["azure-compliant-cvm"]',
        "measurement": f'[[measurement]]\nlaunch_measurement = "{claims.measurements["launch_measurement"]}"',
        "minimum_svn": "[minimum_svn]\nbootloader = 4\ntee = 0\nsnp = 24\nmicrocode = 219\nguest = 10",
        "vmpl": "vmpl = 0", "migration": 'migration = "forbidden"', "secure_boot": 'secure_boot = "required"',
        "policy_hash": 'policy_hash = ["QsNi9UE365SgcskuV_a4p-uFQyGlNcIlQkrsi0UIy7o"]',
        "id_key_digest": f'id_key_digest = ["{claims.measurements["id_key_digest"]}"]',
        "vm_unique_id": 'vm_unique_id = ["ABD9EA99-D837-4F68-AD3E-C87C88006AFA"]',
    }.items():  # fmt: skip
        common.rule(claims, name, text)
    for when, word in ((entry["exp"] + 61, "expired"), (entry["iat"] - 61, "future")):
        with pytest.raises(NotGenuineError, match=word):
            common.verify("azure-maa", data, keys, now=datetime.fromtimestamp(when, UTC), max_age=timedelta(days=1))
    with pytest.raises(NotGenuineError, match="old"):
        common.verify("azure-maa", data, keys, now=now + timedelta(hours=2))
    with pytest.raises(UndecidedError, match="not at hand"):
        common.verify("azure-maa", data, now=now)


def test_any_changed_byte_of_the_token_is_noticed(vectors: Path) -> None:
    entry, data, keys = _token(vectors)
    now, rng = datetime.fromisoformat(entry["verify_at"].replace("Z", "+00:00")), random.Random(3)
    for offset in rng.sample(range(len(data)), 80):
        changed = bytearray(data)
        changed[offset] ^= 1 << rng.randrange(7)
        with pytest.raises(CloisterError):
            common.verify("azure-maa", bytes(changed), keys, now=now)
