"""Every SGX and TDX entry of the collected vectors, at the time it names, with the verdict it expects."""

from __future__ import annotations

import hashlib
import json
import random
import re
from base64 import b64decode
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.tee.dcap.signer import World, verify

from cloister.errors import CloisterError, MalformedError, NotGenuineError, RefusedError, UndecidedError
from cloister.tee import registry
from cloister.tee.claims import Claims
from cloister.tee.sgx.evidence import SgxQuote
from cloister.tee.tdx.evidence import TdQuote
from cloister.trust.collateral import Item
from cloister.trust.dcap import pck
from cloister.trust.dcap.quote import Quote
from cloister.trust.dcap.root import INTEL_SGX_ROOT_CA
from cloister.wire import toml

#: dcap-qvl's words in the vectors, and what they become here.
REJECTED = {
    "Debug mode is enabled": RefusedError,
    "SEPT_VE_DISABLE is not enabled": RefusedError,
    "Invalid MR service TD": RefusedError,
    "Fmspc mismatch": UndecidedError,
    "No matching TCB level found": NotGenuineError,
    "parse error": MalformedError,
}
#: The file ends in bytes that are not zero.
TRAILING = "tdx/go-tdx-guest_tdx_prod_quote_SPR_E4.dat"


def quote(vectors: Path, name: str) -> bytes:
    data = (vectors / name).read_bytes()
    return bytes.fromhex(data.decode().strip().removeprefix("0x")) if name.endswith(".hex") else data


def entries(vectors: Path) -> list[dict]:
    listed = json.loads((vectors / "vectors.json").read_bytes())["vectors"]
    return [entry for entry in listed if entry.get("platform") in ("intel-tdx", "intel-sgx")]


def appraise(
    vectors: Path, entry: dict, *, now: datetime | None = None, data: bytes | None = None, **options: object
) -> Claims:
    items = [Item("intel-collateral", (vectors / entry["collateral"]).read_bytes())] if entry.get("collateral") else []
    at = now or datetime.fromisoformat((entry.get("verify_at") or "2026-06-01T00:00:00Z").replace("Z", "+00:00"))
    evidence = quote(vectors, entry["file"]) if data is None else data
    return verify(entry["platform"].removeprefix("intel-"), evidence, *items, now=at, **options)


def rule(claims: Claims, name: str, text: str) -> None:
    """Check one rule stated in TOML."""
    found = next(each for each in registry.get(claims.tee).rules if each.name == name)
    demand = found.read(toml.parse(text.encode(), limit=10000).table(claims.tee))
    assert demand is not None
    found.check(claims, demand)


def test_expected_verdicts(vectors: Path) -> None:
    seen = {"accept": 0, "policy": 0, "reject": 0, "signature": 0}
    for entry in entries(vectors):
        expected = entry["expected"]
        kind = re.split(r"[ :]", expected)[0]
        seen[kind] += 1
        if kind in ("accept", "policy"):
            claims = appraise(vectors, entry)
            assert claims.genuine
            assert not claims.debug
            assert claims.user_data == bytes.fromhex(entry["report_data"])
            for name, value in claims.measurements.items():
                assert entry[name] == value
            status = "UpToDate" if kind == "accept" else expected.rpartition(" ")[2]
            assert claims.facts["tcb_status"] == status == entry["dcap_qvl"]
            assert claims.facts["advisories"] == ", ".join(sorted(entry["advisories"]))
            assert claims.facts["fmspc"] == entry["fmspc"]
            rule(claims, "tcb_status", f'[{claims.tee}]\ntcb_status = ["{status}"]')
            other = "SWHardeningNeeded"
            with pytest.raises(RefusedError, match=status):
                rule(claims, "tcb_status", f'[{claims.tee}]\ntcb_status = ["{other}"]')
            if entry["advisories"]:
                with pytest.raises(RefusedError, match=entry["advisories"][0]):
                    rule(
                        claims,
                        "advisories_refused",
                        f'[{claims.tee}]\nadvisories_refused = ["{entry["advisories"][0]}"]',
                    )
            number = entry.get("tcbEvaluationDataNumber", int(claims.facts["tcb_evaluation"]))
            rule(claims, "tcb_evaluation_min", f"[{claims.tee}]\ntcb_evaluation_min = {number}")
            with pytest.raises(RefusedError, match="evaluation"):
                rule(claims, "tcb_evaluation_min", f"[{claims.tee}]\ntcb_evaluation_min = {number + 1}")
        elif kind == "signature":
            with pytest.raises(UndecidedError, match=entry["fmspc"]):
                appraise(vectors, entry)
        else:
            wanted = next(error for words, error in REJECTED.items() if words in expected)
            with pytest.raises(MalformedError if entry["file"] == TRAILING else wanted):
                appraise(vectors, entry)
    assert min(seen.values()) > 0


def test_the_quote_with_trailing_bytes_is_refused_without_them_too(vectors: Path) -> None:
    entry = next(each for each in entries(vectors) if each["file"] == TRAILING)
    with pytest.raises(NotGenuineError, match="no level"):
        appraise(vectors, entry, data=quote(vectors, TRAILING)[: -entry["trailing_bytes"]])


def test_at_another_time_nothing_is_accepted(vectors: Path) -> None:
    for entry in entries(vectors):
        if entry["expected"] != "accept":
            continue
        start, end = (
            datetime.fromisoformat(entry[field].replace("Z", "+00:00")) for field in ("valid_from", "valid_until")
        )
        for now in (start - timedelta(seconds=1), end + timedelta(seconds=1)):
            with pytest.raises(UndecidedError, match="TCB info|QE identity|CRL"):
                appraise(vectors, entry, now=now)
        with pytest.raises(NotGenuineError, match="expired"):
            appraise(vectors, entry, now=datetime(2045, 1, 1, tzinfo=UTC))


def test_under_a_foreign_root_nothing_is_accepted(vectors: Path) -> None:
    foreign = (World(tdx=True).anchor,)
    for entry in entries(vectors):
        if entry["expected"] == "accept":
            with pytest.raises(NotGenuineError, match="root"):
                appraise(vectors, entry, anchors=foreign)


# A changed certificate may also make the parser warn; what counts is that it is refused.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@pytest.mark.parametrize("name", ["tdx/phala_tdx_quote.bin", "sgx/phala_sgx_quote.bin"])
def test_a_flipped_bit_is_refused(vectors: Path, name: str) -> None:
    entry = next(each for each in entries(vectors) if each["file"] == name)
    data, choose = quote(vectors, name), random.Random(1)
    length = len(Quote.parse(data).raw)
    accepted = []
    for at in [*range(0, length, 3), *range(length, len(data))]:
        changed = bytearray(data)
        changed[at] ^= 1 << choose.randrange(8)
        try:
            appraise(vectors, entry, data=bytes(changed))
        except CloisterError:
            continue
        accepted.append(at)
    # White space of the PEM text is outside every signature, and one kind may stand for another.
    pem = Quote.parse(data).pck_chain
    start = data.index(pem)
    assert all(
        start <= at < start + len(pem) and (pem[at - start : at - start + 1].isspace() or pem[at - start] == 0)
        for at in accepted
    )


@pytest.mark.parametrize(
    "which", ["tcb_info", "qe_identity", "tcb_info_signature", "qe_identity_signature", "root_ca_crl", "pck_crl"]
)
def test_changed_collateral_is_refused(vectors: Path, which: str) -> None:
    entry = next(each for each in entries(vectors) if each["file"] == "tdx/phala_tdx_quote.bin")
    members = json.loads((vectors / entry["collateral"]).read_bytes())
    now = datetime.fromisoformat(entry["verify_at"].replace("Z", "+00:00"))
    text, choose = members[which], random.Random(2)
    for _ in range(60):
        at = choose.randrange(len(text))
        letter = choose.choice("0123456789")
        if letter == text[at]:
            continue
        item = json.dumps(members | {which: text[:at] + letter + text[at + 1 :]}).encode()
        with pytest.raises(CloisterError):
            verify("tdx", quote(vectors, entry["file"]), Item("intel-collateral", item), now=now)


def test_padding_is_zero_or_the_quote_is_malformed(vectors: Path) -> None:
    entry = next(each for each in entries(vectors) if each["file"] == "tdx/phala_tdx_quote.bin")
    data = Quote.parse(quote(vectors, entry["file"])).raw
    for padding in (b"", bytes(1), bytes(8000 - len(data))):
        assert appraise(vectors, entry, data=data + padding).genuine
    for padding in (b"\x01", bytes(69) + b"\x01", b"\x00\x01" + bytes(68)):
        with pytest.raises(MalformedError, match="trailing"):
            appraise(vectors, entry, data=data + padding)
    with pytest.raises(MalformedError, match="limit"):
        appraise(vectors, entry, data=data + bytes(16384))
    for size in (0, 1, 47, 48, 300, 636, 700, len(data) - 1):
        with pytest.raises(MalformedError):
            appraise(vectors, entry, data=data[:size])


def test_a_quote_of_the_other_kind_is_malformed(vectors: Path) -> None:
    with pytest.raises(MalformedError, match="enclave"):
        SgxQuote.parse(quote(vectors, "tdx/phala_tdx_quote.bin"))
    with pytest.raises(MalformedError, match="trust domain"):
        TdQuote.parse(quote(vectors, "sgx/phala_sgx_quote.bin"))


def _embedded(vectors: Path) -> dict[str, bytes]:
    """Quotes that other files carry."""
    found = {}
    for name in ("dstack_quote-report.json", "dstack_tdx-lite-getquote.json"):
        found[name] = bytes.fromhex(json.loads((vectors / "tdx" / name).read_bytes())["quote"])
    for name in ("azure/trustee_tdx_evidence-v0.json",):
        found[name] = bytes(json.loads((vectors / name).read_bytes())["td_quote"])
    for name in ("tdx/openpcc_gce_tdx_report.txt", "tdx/openpcc_azure_tdx_report.txt"):
        text = (vectors / name).read_text()
        for number, block in enumerate(
            re.findall(r"-----BEGIN (?:REPORT|QUOTE|TDX QUOTE)-----(.*?)-----END", text, re.DOTALL)
        ):
            data = b64decode("".join(block.split()))
            if data[:2] == b"\x04\x00":
                found[f"{name}:{number}"] = data
    return found


def test_quotes_embedded_in_other_files_parse(vectors: Path) -> None:
    found = _embedded(vectors)
    assert len(found) >= 4
    for data in found.values():
        report = TdQuote.parse(data).report
        assert any(report.mr_td)
        leaf = pck.certificates(Quote.parse(data).pck_chain, 3, "chain")[0]
        with pytest.raises(UndecidedError, match="collateral"):
            verify("tdx", data, now=x509.load_der_x509_certificate(leaf).not_valid_before_utc + timedelta(days=30))


def test_the_anchor_is_the_published_certificate(vectors: Path) -> None:
    certificate = x509.load_pem_x509_certificate((vectors / "tdx" / "intel_sgx_root_ca.pem").read_bytes())
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    anchor = INTEL_SGX_ROOT_CA
    assert (spki, certificate.subject.rfc4514_string()) == (anchor.spki, anchor.subject)
    assert hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest() == anchor.sha256
    assert (certificate.not_valid_before_utc, certificate.not_valid_after_utc) == (anchor.not_before, anchor.not_after)
    for name in ("tdx", "sgx"):
        assert registry.get(name).anchors == (anchor,)
