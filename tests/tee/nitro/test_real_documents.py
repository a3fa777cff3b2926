"""Every document in the collected vectors, at the time they name, with the verdict they expect."""

from __future__ import annotations

import hashlib
import json
import random
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.tee.documents import ANCHOR, verify

from cloister.errors import CloisterError, MalformedError, NotGenuineError, PolicyDocumentError, RefusedError
from cloister.tee.nitro import rules
from cloister.tee.nitro.roots import ANCHORS, AWS_NITRO_ROOT_G1

DOCUMENTS = (
    "anjuna_attestdoc_sample_prod_doc.bin",
    "anjuna_attestdoc_with_publickey.bin",
    "anjuna_attester_doc_full.bin",
    "dstack_debug_bfmap.bin",
    "dstack_nsm_qvl_bfmap.bin",
    "evervault_debug_from_cert.bin",
    "evervault_debug_mode.bin",
    "evervault_valid_beta.bin",
)


@pytest.fixture(scope="module")
def entries(vectors: Path) -> dict[str, dict]:
    listed = json.loads((vectors / "vectors.json").read_bytes())["vectors"]
    return {entry["file"]: entry for entry in listed if entry["file"].startswith("nitro/")}


def _at(entry: dict) -> datetime:
    return datetime.fromisoformat(entry["verify_at"].replace("Z", "+00:00"))


def test_no_document_of_the_vectors_is_left_out(entries: dict) -> None:
    known = {f"nitro/{name}" for name in DOCUMENTS}
    signed = {name for name, entry in entries.items() if entry.get("cose") == "OK" and "verify_at" in entry}
    assert signed <= known | {name for name in signed if not name.endswith(".bin")}
    assert known <= set(entries)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_expected_verdict(vectors: Path, entries: dict, name: str) -> None:
    entry = entries[f"nitro/{name}"]
    claims = verify((vectors / "nitro" / name).read_bytes(), now=_at(entry), anchors=ANCHORS)
    assert claims.genuine
    assert claims.debug is entry["debug"]
    assert claims.facts["module_id"] == entry["module_id"]
    assert len(claims.measurements) == entry["n_pcrs"]
    for index, value in entry["pcrs"].items():
        assert claims.measurements[f"pcr{index}"] == value
    for field in ("user_data", "nonce"):
        got = getattr(claims, field)
        assert (got.hex() if got else None) == (entry[field] or None)
    if entry["expected"] == "accept":
        assert not claims.debug
        expected = rules.Measurement(pcr0=claims.measurements["pcr0"])
        assert rules.check_measurements(claims, (expected,)) is expected
    else:
        assert entry["expected"].startswith("reject: debug")
        assert claims.debug


@pytest.mark.parametrize("name", DOCUMENTS)
def test_at_another_time_it_is_refused(vectors: Path, entries: dict, name: str) -> None:
    data, entry = (vectors / "nitro" / name).read_bytes(), entries[f"nitro/{name}"]
    start, end = (datetime.fromisoformat(entry[field]) for field in ("valid_from", "valid_until"))
    for now in (start - timedelta(seconds=1), end + timedelta(seconds=1)):
        with pytest.raises(NotGenuineError):
            verify(data, now=now, anchors=ANCHORS, max_age=timedelta(days=1), max_skew=timedelta(days=1))
    with pytest.raises(NotGenuineError, match="old"):
        verify(data, now=_at(entry) + timedelta(minutes=6), anchors=ANCHORS)
    # Stored evidence: the chain is checked at the document's own time.
    later = _at(entry) + timedelta(days=365)
    assert verify(data, now=later, anchors=ANCHORS, max_age=timedelta(days=366), chain_time="signed").genuine


@pytest.mark.parametrize("name", DOCUMENTS)
def test_under_a_foreign_root_it_is_refused(vectors: Path, entries: dict, name: str) -> None:
    data, entry = (vectors / "nitro" / name).read_bytes(), entries[f"nitro/{name}"]
    with pytest.raises(NotGenuineError, match="root"):
        verify(data, now=_at(entry), anchors=(ANCHOR,))


# A changed certificate may also make the parser warn; what counts is that it is refused.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_a_bit_flipped_in_any_byte_is_refused(vectors: Path, entries: dict) -> None:
    name = "dstack_nsm_qvl_bfmap.bin"
    data, entry = (vectors / "nitro" / name).read_bytes(), entries[f"nitro/{name}"]
    now, choose = _at(entry), random.Random(1)
    accepted = []
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << choose.randrange(8)
        try:
            verify(bytes(changed), now=now, anchors=ANCHORS)
        except CloisterError:
            continue
        accepted.append(at)
    assert accepted == []


def test_what_is_not_a_document(vectors: Path) -> None:
    for name in ("ephemeralml_fake.eif", "evervault_nondebug_cert_with_doc.der", "evervault_debug_cert_with_doc.pem",
                 "evervault_valid_ga_tls_cert.der", "ephemeralml_enclave_describe.json"):  # fmt: skip
        with pytest.raises(MalformedError):
            verify((vectors / "nitro" / name).read_bytes(), anchors=ANCHORS)


def test_the_evervault_specs_name_registers_that_match_or_not(vectors: Path, entries: dict) -> None:
    """Their expected registers against the documents they belong to: right ones accepted, wrong ones refused."""
    claims = verify(
        (vectors / "nitro" / "evervault_valid_beta.bin").read_bytes(),
        now=_at(entries["nitro/evervault_valid_beta.bin"]),
        anchors=ANCHORS,
    )
    seen = 0
    for path in sorted((vectors / "nitro" / "evervault_specs").iterdir()):
        pcrs = json.loads(path.read_bytes()).get("pcrs")
        if not pcrs:
            continue
        stated = {
            name: value.lower()
            for key, value in pcrs.items()
            if isinstance(value, str) and (name := key.lower().replace("_", "")) in rules.REGISTERS
        }
        fits = all(claims.measurements[name] == value for name, value in stated.items())
        try:
            measurement = rules.Measurement(**stated)
        except PolicyDocumentError:
            continue  # debug registers (all zero) cannot even be stated
        seen += 1
        if fits:
            rules.check_measurements(claims, (measurement,))
        else:
            with pytest.raises(RefusedError, match="differ"):
                rules.check_measurements(claims, (measurement,))
    assert seen >= 2


def test_the_anchor_is_the_published_certificate(vectors: Path) -> None:
    certificate = x509.load_pem_x509_certificate((vectors / "nitro" / "aws_nitro_root_g1.pem").read_bytes())
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert spki == AWS_NITRO_ROOT_G1.spki
    assert hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest() == AWS_NITRO_ROOT_G1.sha256
    assert certificate.subject.rfc4514_string() == AWS_NITRO_ROOT_G1.subject
    assert certificate.not_valid_before_utc == AWS_NITRO_ROOT_G1.not_before
    assert certificate.not_valid_after_utc == AWS_NITRO_ROOT_G1.not_after
