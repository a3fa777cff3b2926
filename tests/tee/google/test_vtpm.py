"""Attestations of Compute Engine's vTPM: real ones, ones under an authority of our own, every check and rule."""

from __future__ import annotations

import base64
import contextlib
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
from hypothesis import given
from hypothesis import strategies as st
from tests.tee.google import signer as s
from tests.tee.snp import signer as snp

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
from cloister.tee import google as folder
from cloister.tee import registry
from cloister.tee.claims import Claims
from cloister.tee.evidence import Offers
from cloister.tee.google.roots import ANCHORS, EK_AK_ROOT
from cloister.tee.google.vtpm import certificates, inner, rules, verify
from cloister.tee.google.vtpm.certificates import Instance
from cloister.tee.google.vtpm.evidence import Attestation
from cloister.tee.google.vtpm.firmware import Firmware, Technology
from cloister.trust import chain, tpm
from cloister.trust.collateral import Collateral, Item
from cloister.wire import toml
from cloister.wire.protobuf import Message
from cloister.wire.tcg_log import EventLog
from cloister.wire.tpm import Bank

FORMAT = registry.get("google-vtpm")
NAMES = [rule.name for rule in rules.RULES]
GENOA = b"\x22" * 48


# Real evidence


def _pem(text: str, kind: str) -> list[bytes]:
    return [base64.b64decode(body) for body in re.findall(rf"-----BEGIN {kind}-----(.*?)-----END", text, re.DOTALL)]


@pytest.fixture(scope="module")
def google(vectors: Path) -> Path:
    return vectors / "google"


def test_no_file_of_the_vectors_is_left_out(vectors: Path) -> None:
    listed = json.loads((vectors / "vectors.json").read_bytes())["vectors"]
    assert {Path(each["file"]).name for each in listed if each["platform"] == "gcp-gce-vtpm"} == {
        "gce-cos-85-nonce9009.pb", "openpcc_gce_ak_certificates.txt",
    }  # fmt: skip


@pytest.mark.parametrize(("file", "extra"), [("gce-cos-85-nonce9009.pb", "9009"), ("gce-cos-85-no-nonce.pb", "")])
def test_real_quotes_and_their_log(google: Path, file: str, extra: str) -> None:
    data = (google / "gce_vtpm" / file).read_bytes()
    attestation = Attestation.parse(data)
    assert attestation.key.restricted_signing
    assert [quote.bank for quote in attestation.quotes] == [Bank.SHA1, Bank.SHA256, Bank.SHA384]
    key = tpm.public_key(attestation.key)
    log = EventLog.parse(attestation.event_log)
    for quote in attestation.quotes:
        quoted = tpm.verify_quote(quote.message, quote.signature, key, quote.pcrs, quote.bank)
        assert quoted.quote.extra_data.hex() == extra
        assert set(quoted.pcrs) == set(range(24))
        firmware = Firmware.read(tpm.replay(log, quoted), quote.bank)
        assert (firmware.version, firmware.technology, firmware.secure_boot) == (1, Technology.AMD_SEV, True)
        assert len(firmware.boot_code) == 3
        other = replace(quoted, pcrs={**quoted.pcrs, 0: bytes(quote.bank.size)})
        with pytest.raises(NotGenuineError):
            tpm.replay(log, other)
    # Its certificate is of 2021, under a root that is not among the built-in ones.
    certificate = certificates.load(attestation.certificate or b"")
    assert certificate.public_key() == key
    assert Instance.of(certificate).project_id == "google.com:wuale-gcp-testing"
    with pytest.raises(UndecidedError):
        FORMAT.verify(data, s.context("google-vtpm", now=datetime(2022, 1, 1, tzinfo=UTC)))


def test_a_real_chain_of_an_attestation_key(google: Path) -> None:
    ders = _pem((google / "openpcc_gce_ak_certificates.txt").read_text(), "CERTIFICATE")
    ders += _pem((google / "gce_ek_ak_root.pem").read_text(), "CERTIFICATE")
    leaf, intermediate, published = map(certificates.load, ders)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    path = certificates.path(leaf, (intermediate, published), ANCHORS)
    assert path == (intermediate,)
    root, found = chain.validate(path, leaf, ANCHORS, now=now, profile=certificates.PROFILE)
    assert root is EK_AK_ROOT
    seen = Instance.of(found[-1])
    assert (seen.zone, seen.project_id, seen.production) == ("us-west1-b", "nonvolatile-dev", True)
    assert seen.instance_id == 8033817256003918212
    for wrong in (datetime(2025, 1, 1, tzinfo=UTC), datetime(2060, 1, 1, tzinfo=UTC)):
        with pytest.raises(NotGenuineError):
            chain.validate(path, leaf, ANCHORS, now=wrong, profile=certificates.PROFILE)
    with pytest.raises(UndecidedError):
        certificates.path(leaf, (), ANCHORS)
    rng = random.Random(1)
    for at in rng.sample(range(len(ders[0])), 40):
        changed = bytearray(ders[0])
        changed[at] ^= 1 << rng.randrange(8)
        with pytest.raises((MalformedError, NotGenuineError, UndecidedError)):
            _chain(bytes(changed), intermediate, now)


def _chain(leaf: bytes, intermediate: x509.Certificate, now: datetime) -> None:
    certificate = certificates.load(leaf)
    path = certificates.path(certificate, (intermediate,), ANCHORS)
    chain.validate(path, certificate, ANCHORS, now=now, profile=certificates.PROFILE)


def test_the_anchor_is_the_published_certificate(google: Path) -> None:
    (der,) = _pem((google / "gce_ek_ak_root.pem").read_text(), "CERTIFICATE")
    root = x509.load_der_x509_certificate(der)
    assert hashlib.sha256(der).hexdigest() == EK_AK_ROOT.sha256
    assert root.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == EK_AK_ROOT.spki
    assert root.subject.rfc4514_string() == EK_AK_ROOT.subject
    assert (root.not_valid_before_utc, root.not_valid_after_utc) == (EK_AK_ROOT.not_before, EK_AK_ROOT.not_after)


#: Log, technology, version, secure boot.
LOGS = (
    ("gce_vtpm/cos-101-amd-sev.bin", Technology.AMD_SEV, 1, True),
    ("gce_vtpm/ubuntu-2404-amd-sevsnp.bin", Technology.AMD_SEV_SNP, 2, None),
    ("gce_vtpm/confidential-gke-debug-251000_eventlog.bin", Technology.NONE, 2, None),
    ("openpcc_tcg_eventlog.txt", Technology.INTEL_TDX, 2, None),
)


@pytest.mark.parametrize(("file", "technology", "version", "secure_boot"), LOGS, ids=[each[0] for each in LOGS])
def test_real_logs_under_a_quote_of_our_own(
    google: Path, file: str, technology: str, version: int, secure_boot: bool | None
) -> None:
    path = google / file
    data = path.read_bytes() if path.suffix == ".bin" else _pem(path.read_text(), "LOG")[0]
    log = EventLog.parse(data)
    values = {index: bytes(32) for index in range(24)}
    for event in log.events:
        values[event.index] = hashlib.sha256(values[event.index] + event.digests[Bank.SHA256]).digest()
    claims = s.verify_vtpm(s.attestation(quotes=s.proto((2, s.quote(values))), log=data))
    firmware = claims.details.firmware
    assert (firmware.technology, firmware.version) == (technology, version)
    assert firmware.secure_boot is not None
    assert secure_boot in (None, firmware.secure_boot)
    assert firmware.boot_code


@pytest.mark.parametrize(
    "file",
    ["openpcc_gce_report.bin", "ms_milan_report.bin", "lunal_genoa_v5_report.bin", "go-sev-guest_milan_v2_report.bin"],
)
def test_real_reports_come_out_of_their_fields(vectors: Path, file: str) -> None:
    report = (vectors / "snp" / file).read_bytes()
    found = inner.parse(Message(s.proto((8, s.snp_message(report))), "test"))
    assert found is not None
    assert (found.name, found.evidence) == ("snp", report)


@pytest.mark.parametrize(
    "file",
    ["go-tdx-guest_cos-113-tdx-quote.dat", "go-tdx-guest_tdx_prod_quote_SPR_E4.dat", "openpcc_gce_tdx_report.txt"],
)
def test_real_quotes_come_out_of_their_fields(vectors: Path, file: str) -> None:
    path = vectors / "tdx" / file
    quote = path.read_bytes() if path.suffix == ".dat" else _pem(path.read_text(), "[A-Z ]+")[0]
    found = inner.parse(Message(s.proto((9, s.tdx_message(quote))), "test"))
    assert found is not None
    assert (found.name, found.evidence) == ("tdx", quote)


# An authority of our own


def test_a_good_attestation() -> None:
    claims = s.verify_vtpm(s.attestation())
    assert claims.genuine
    assert (claims.user_data, claims.nonce, claims.debug, claims.inner) == (s.BINDING, None, False, ())
    assert claims.chain == ("CN=test AK root", "CN=test AK CA", "CN=8033817256003918212")
    assert claims.measurements == {f"pcr{index}": value.hex() for index, value in s.registers(s.boot()).items()}
    assert claims.details.instance.instance_id == (1 << 63) + 5
    FORMAT.bind(claims, s.BINDING, b"F" * 32)
    with pytest.raises(NotGenuineError):
        FORMAT.bind(claims, b"C" * 32, None)
    for extra in (s.BINDING[:-1], s.BINDING + b"\x00", b""):
        with pytest.raises(NotGenuineError):
            FORMAT.bind(s.verify_vtpm(s.attestation(extra=extra)), s.BINDING, None)


def test_what_comes_beside_it() -> None:
    bare = s.attestation(certificate=b"", chain=(), log=b"")
    with pytest.raises(UndecidedError, match="certificate"):
        s.verify_vtpm(bare)
    own = [("google-ak", each.der) for each in (s.AK_CA, s.AK)]
    assert s.verify_vtpm(bare, *own).details.firmware is None
    with pytest.raises(UndecidedError, match="issuer"):
        s.verify_vtpm(bare, *own[1:])
    logs = [("tcg-event-log", s.log(events)) for events in (s.boot(version="1"), s.boot())]
    assert s.verify_vtpm(bare, *own, *logs).details.firmware.version == 2
    with pytest.raises(NotGenuineError):
        s.verify_vtpm(bare, *own, logs[0])
    assert s.verify_vtpm(s.attestation(chain=(s.AK_CA,))).genuine


FOREIGN_ROOT = s.issue("foreign root", None, ca=True)
FOREIGN = s.issue("foreign", FOREIGN_ROOT, ca=False, extension=s.instance())
GOOD = s.registers(s.boot())
MESSAGE = s.attest(GOOD)


def _quoted(message: bytes | None = None, pcrs: dict[int, bytes] = GOOD, **changes: object) -> bytes:
    return s.attestation(quotes=s.proto((2, s.quote(pcrs, message=message, **changes))))


def _ak(**changes: object) -> bytes:
    """An attestation by a key whose certificate differs."""
    options = {"ca": False, "extension": s.instance()} | changes
    return s.attestation(ak=s.issue("another", s.AK_CA, **options))  # type: ignore[arg-type]


def _inside(
    events: list[s.Event], data: bytes = s.BINDING.ljust(64, b"\x00"), extra: bytes = s.BINDING, **changes: bytes
) -> bytes:
    report = snp.report("Genoa", 5, report_data=data, measurement=GENOA)
    parts = {"vcek": snp.endorsement("Genoa"), "ask": snp.intermediate("Genoa"), **changes}
    return s.attestation(events, extra, snp=s.snp_message(report, **parts))


SNP_BOOT = s.boot(technology=4)
BAD: dict[str, tuple[bytes, object]] = {
    "empty": (b"", MalformedError),
    "an unknown field": (s.attestation(tail=s.proto((99, 1))), MalformedError),
    "a key twice": (s.attestation(tail=s.proto((1, b"x"))), MalformedError),
    "no key": (s.attestation(key=b""), MalformedError),
    "a byte after the key": (s.attestation(key=s.public_area(s.AK.key.public_key()) + b"\x00"), MalformedError),
    "no quotes": (s.attestation(quotes=b""), NotGenuineError),
    "only SHA-1": (
        s.attestation(quotes=s.proto((2, s.quote(s.registers(s.boot(), "sha1"), bank=4)))), NotGenuineError,
    ),
    "two quotes of one bank": (s.attestation(quotes=s.proto((2, s.quote(GOOD)), (2, s.quote(GOOD)))), MalformedError),
    "a certificate of another key": (s.attestation(certificate=FOREIGN.der), NotGenuineError),
    "a key of another certificate": (
        s.attestation(key=s.public_area(s.rsa_key("x").public_key())), NotGenuineError,
    ),
    "a foreign root": (s.attestation(ak=FOREIGN, chain=(FOREIGN_ROOT,)), UndecidedError),
    "a foreign root of the same name": (
        s.attestation(ak=s.issue("x", s.issue("test AK root", FOREIGN_ROOT, ca=True), ca=False, extension=s.instance())),
        NotGenuineError,
    ),
    "an intermediate that is none": (
        s.attestation(ak=s.issue("x", s.AK, ca=False, extension=s.instance()), chain=(s.AK, s.AK_CA)), NotGenuineError,
    ),
    "an expired key": (_ak(start=s.NOW - timedelta(days=400)), NotGenuineError),
    "a key of the future": (_ak(start=s.NOW + timedelta(days=1)), NotGenuineError),
    "a key of no machine": (_ak(extension=None), NotGenuineError),
    "a key of another environment": (_ak(extension=s.instance(production=False)), NotGenuineError),
    "a key of an environment that is not named": (_ak(extension=s.instance(production=None)), NotGenuineError),
    "an instance with a tail": (_ak(extension=s.instance() + b"\x00"), MalformedError),
    "an instance of junk": (_ak(extension=b"\x30\x02\x0c\x05"), MalformedError),
    "signed by another key": (
        s.attestation(quotes=s.proto((2, s.quote(GOOD, signature=s.signature(MESSAGE, s.rsa_key("x")))))), NotGenuineError,
    ),
    "signed with SHA-1": (
        s.attestation(quotes=s.proto((2, s.quote(GOOD, signature=b"\x00\x14\x00\x04" + s.signature(MESSAGE)[4:])))),
        NotGenuineError,
    ),
    "a byte after the signature": (
        s.attestation(quotes=s.proto((2, s.quote(GOOD, signature=s.signature(MESSAGE) + b"\x00")))), MalformedError,
    ),
    "another magic": (_quoted(magic=b"\xffTCH"), MalformedError),
    "a certification": (_quoted(kind=0x8017), MalformedError),
    "a byte after the quote": (_quoted(MESSAGE + b"\x00"), MalformedError),
    "a byte less": (_quoted(MESSAGE[:-1]), MalformedError),
    "a register more than was signed": (_quoted(indices=range(23)), NotGenuineError),
    "a register less than was signed": (
        _quoted(MESSAGE, pcrs={index: GOOD[index] for index in range(23)}), NotGenuineError,
    ),
    "another bank's selection": (_quoted(MESSAGE.replace(b"\x00\x0b\x03\xff", b"\x00\x0c\x03\xff")), NotGenuineError),
    "another register": (_quoted(MESSAGE, pcrs={**GOOD, 4: bytes(32)}), NotGenuineError),
    "a short register": (_quoted(MESSAGE, pcrs={**GOOD, 4: bytes(31)}), MalformedError),
    "a register that no TPM has": (_quoted(MESSAGE, pcrs={**GOOD, 24: bytes(32)}), MalformedError),
    "nothing selected": (_quoted(pcrs={}), NotGenuineError),
    "a log of another boot": (s.attestation(log=s.log(s.boot(version="9"))), NotGenuineError),
    "a log with an event less": (s.attestation(log=s.log(s.boot()[:-1] + s.boot()[-1:] * 2)), NotGenuineError),
    "a log without SHA-256": (s.attestation(log=s.log(s.boot(), {"sha1": 4})), NotGenuineError),
    "a log with a tail": (s.attestation(log=s.log(s.boot()) + b"\x01"), MalformedError),
    "another technology inside": (_inside(s.boot(technology=1)), NotGenuineError),
    "other data inside": (_inside(SNP_BOOT, b"C" * 64), NotGenuineError),
    "more data inside": (_inside(SNP_BOOT, s.BINDING.ljust(64, b"\x01")), NotGenuineError),
    "no data in the quote": (_inside(SNP_BOOT, bytes(64), b""), NotGenuineError),
    "more data in the quote than fits inside": (_inside(SNP_BOOT, b"d" * 64, b"d" * 65), NotGenuineError),
    "a foreign chip inside": (_inside(SNP_BOOT, vcek=snp.endorsement("Genoa", key="other")), NotGenuineError),
    "two kinds inside": (
        s.attestation(SNP_BOOT, snp=s.snp_message(snp.report()), tdx=s.proto((3, 1))), MalformedError,
    ),
    "a report with a short field": (
        s.attestation(SNP_BOOT, snp=s.proto((1, s.proto((1, 2), (11, b"short"))))), MalformedError,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_must_fail(name: str) -> None:
    data, kind = BAD[name]
    with pytest.raises(kind):
        s.verify_vtpm(data, anchors={"snp": (snp.root("Genoa"),)})


def test_any_changed_byte_is_noticed_or_harmless() -> None:
    data = s.attestation()
    good = s.verify_vtpm(data)
    rng = random.Random(2)
    refused = 0
    for at in rng.sample(range(len(data)), 250):
        changed = bytearray(data)
        changed[at] ^= 1 << rng.randrange(8)
        try:
            claims = s.verify_vtpm(bytes(changed))
        except CloisterError:
            refused += 1
            continue
        # The SHA-1 quote, the instance and texts of the log are nobody's words; what is claimed stays.
        assert (claims.measurements, claims.user_data, claims.chain) == (good.measurements, good.user_data, good.chain)
        assert claims.details.firmware == good.details.firmware
    assert refused > 100


def test_events_after_the_separator_say_nothing() -> None:
    late = s.Event(0, s.EV_NONHOST, b"GCE NonHostInfo\x00\x04" + bytes(15))
    assert s.verify_vtpm(s.attestation([*s.boot(), late])).details.firmware.technology is Technology.AMD_SEV
    on = s.Event(7, s.EV_VARIABLE, s.variable("SecureBoot", b"\x01"))
    assert s.verify_vtpm(s.attestation([*s.boot(secure_boot=b"\x00"), on])).details.firmware.secure_boot is False


@pytest.mark.parametrize(
    "events",
    [
        [s.Event(0, s.EV_NONHOST, b"GCE NonHostInfo\x00\x04" + bytes(15)), *s.boot()],
        [s.Event(0, s.EV_VERSION, "GCE Virtual Firmware v9\0".encode("utf-16-le")), *s.boot()],
        [replace(event, kind=s.EV_ACTION) if event.kind == s.EV_SEPARATOR else event for event in s.boot()],
        [replace(event, kind=s.EV_SEPARATOR) if event.kind == s.EV_NONHOST else event for event in s.boot()],
        [
            replace(event, data=b"GCE NonHostInfo\x00\x04" + bytes(15), measured=event.data)
            if event.kind == s.EV_NONHOST else event for event in s.boot()
        ],
        [s.Event(7, s.EV_VARIABLE, s.variable("SecureBoot", b"\x01")), *s.boot(secure_boot=b"\x00")],
    ],
)  # fmt: skip
def test_logs_that_contradict_themselves(events: list[s.Event]) -> None:
    with pytest.raises(NotGenuineError):
        s.verify_vtpm(s.attestation(events))


@pytest.mark.parametrize(
    "event",
    [
        s.Event(0, s.EV_NONHOST, b"GCE NonHostInfo\x00\x05" + bytes(15)),
        s.Event(0, s.EV_NONHOST, b"GCE NonHostInfo\x00\x01"),
        s.Event(7, s.EV_VARIABLE, b"short"),
        s.Event(7, s.EV_VARIABLE, s.variable("PK", b"x") + b"y"),
    ],
)
def test_events_of_the_firmware_that_do_not_parse(event: s.Event) -> None:
    with pytest.raises(MalformedError):
        s.verify_vtpm(s.attestation([event, *[each for each in s.boot() if each.kind != event.kind]]))


def test_a_variable_of_another_vendor_says_nothing() -> None:
    other = s.Event(7, s.EV_VARIABLE, s.variable("SecureBoot", b"\x01", vendor=bytes(16)))
    assert s.verify_vtpm(s.attestation([other, *s.boot(secure_boot=b"\x00")])).details.firmware.secure_boot is False


# Evidence inside, endorsements

ALL = {"snp": (snp.root("Genoa"),), "google-endorsement": (s.TCB_ROOT.anchor,)}
ENDORSED = s.endorse(snp=[(2, b"\x01" * 48), (4, GENOA)])


def test_evidence_inside_is_verified_too() -> None:
    claims = s.verify_vtpm(_inside(SNP_BOOT), anchors=ALL)
    assert [each.tee for each in claims.flat()] == ["google-vtpm", "snp"]
    assert claims.inner[0].measurements == {"measurement": GENOA.hex()}
    assert claims.details.technology is Technology.AMD_SEV_SNP
    with pytest.raises(UndecidedError):
        s.verify_vtpm(_inside(SNP_BOOT, vcek=b""), anchors=ALL)


def _endorsed(*endorsements: bytes, anchors: dict = ALL, now: datetime = s.NOW) -> Claims:
    items = [("google-endorsement", each) for each in endorsements]
    return s.verify_vtpm(_inside(SNP_BOOT), *items, anchors=anchors, now=now)


def test_endorsements() -> None:
    for claims in (
        _endorsed(ENDORSED),
        _endorsed(s.endorse(snp=[(1, b"\x09" * 48)]), ENDORSED),
        s.verify_vtpm(_inside(SNP_BOOT, extras={inner.ENDORSEMENT_GUID: ENDORSED}), anchors=ALL),
    ):
        assert _rule("launch_endorsement", claims) == "security version 3"
    with pytest.raises(RefusedError, match="list"):
        _rule("launch_endorsement", _endorsed(s.endorse(snp=[(1, b"\x09" * 48)])))
    with pytest.raises(RefusedError, match="list"):
        _rule("launch_endorsement", _endorsed(s.endorse(tdx=[GENOA])))
    with pytest.raises(RefusedError, match="security version"):
        _rule("launch_endorsement", _endorsed(s.endorse(snp=[(4, GENOA)], svn=2)))
    for claims in (_endorsed(), _endorsed(ENDORSED, anchors={"snp": ALL["snp"]})):
        with pytest.raises(UndecidedError):
            _rule("launch_endorsement", claims)


CA = s.issue("test TCB CA", s.TCB_ROOT, ca=True, pss=True)
UNDER_CA = s.issue("test firmware signer", CA, ca=False, pss=True)
FOREIGN_TCB = s.issue("x", s.issue("test GCE-cc-tcb-root_1", FOREIGN_ROOT, ca=True), ca=False, pss=True)


def test_endorsements_with_an_intermediate() -> None:
    bundle = b"".join(each.certificate.public_bytes(Encoding.PEM) for each in (s.TCB_ROOT, CA))
    claims = _endorsed(s.endorse(snp=[(4, GENOA)], signer=UNDER_CA, bundle=bundle))
    assert _rule("launch_endorsement", claims)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", MalformedError),
        (ENDORSED + s.proto((3, 1)), MalformedError),
        (ENDORSED[:-1], MalformedError),
        (ENDORSED[:-1] + bytes((ENDORSED[-1] ^ 1,)), NotGenuineError),
        (ENDORSED.replace(GENOA, b"\x23" * 48), NotGenuineError),
        (s.endorse(snp=[(4, GENOA)], pss=False), NotGenuineError),
        (s.endorse(snp=[(4, GENOA)], signer=FOREIGN_TCB), NotGenuineError),
        (s.endorse(snp=[(4, GENOA)], signer=UNDER_CA), NotGenuineError),
        (s.endorse(snp=[(4, GENOA)], signer=UNDER_CA, bundle=b"no PEM"), MalformedError),
        (s.endorse(snp=[(4, GENOA)], signer=s.TCB_ROOT), NotGenuineError),
        (s.endorse(snp=[(4, GENOA)], at=s.NOW + timedelta(hours=1)), NotGenuineError),
        (s.endorse(snp=[(4, GENOA[1:])]), MalformedError),
        (s.endorse(snp=[(4, GENOA), (4, GENOA)]), MalformedError),
        (s.endorse(snp=[(4, GENOA)], digest=b"\x77" * 32), MalformedError),
    ],
)
def test_endorsements_must_fail(data: bytes, kind: type[CloisterError]) -> None:
    with pytest.raises(kind):
        _endorsed(data)


def test_an_endorsement_of_a_later_shape_is_read() -> None:
    assert _rule("launch_endorsement", _endorsed(s.endorse(snp=[(4, GENOA)], tail=s.proto((15, 1)))))


def test_an_endorsement_lists_tdx_by_mrtd() -> None:
    made, _ = verify.endorsements.verify(
        s.endorse(tdx=[b"\x01" * 48, b"\x02" * 48], svn=7), (s.TCB_ROOT.anchor,), now=s.NOW, skew=timedelta(0)
    )
    assert (made.svn_of("tdx", b"\x02" * 48), made.svn_of("tdx", b"\x03" * 48), made.svn_of("snp", GENOA)) == (
        7,
        None,
        None,
    )


# Rules

APPS = ", ".join(f'"{hashlib.sha256(app).hexdigest()}"' for app in (s.SHIM, s.GRUB))


def _policy(values: dict[int, bytes]) -> str:
    return f"""
[google-vtpm]
technology = ["AMD_SEV_SNP"]
secure_boot = "required"
minimum_firmware = 2
boot_code = [{APPS}]
project_id = ["project"]
project_number = ["123"]
zone = ["us-west1-b"]
instance_id = ["{(1 << 63) + 5}"]
instance_name = ["vm"]

[google-vtpm.launch_endorsement]
minimum_svn = 3

[[google-vtpm.measurement]]
label = "image"
pcr4 = "{values[4].hex()}"
pcr8 = "{values[8].hex()}"
pcr9 = "{values[9].hex()}"
"""


POLICY = _policy(s.registers(SNP_BOOT))


def _rule(name: str, claims: Claims, text: str = POLICY) -> str:
    rule = next(rule for rule in rules.RULES if rule.name == name)
    value = rule.read(toml.parse(text.encode(), limit=10_000).table("google-vtpm"))
    assert value is not None
    return rule.check(claims, value)


@pytest.mark.parametrize("name", NAMES)
def test_rules_pass(name: str) -> None:
    assert _rule(name, _endorsed(ENDORSED))


REFUSED: list[tuple[str, bytes]] = [
    ("measurement", s.attestation([*SNP_BOOT, s.Event(9, 0xD, b"another", b"another")])),
    ("measurement", s.attestation(s.boot(apps=[s.SHIM]))),
    ("technology", s.attestation()),
    ("technology", s.attestation(SNP_BOOT)),
    ("technology", s.attestation([each for each in SNP_BOOT if each.kind != s.EV_NONHOST])),
    ("secure_boot", s.attestation(s.boot(secure_boot=b"\x00"))),
    ("secure_boot", s.attestation([each for each in SNP_BOOT if each.kind != s.EV_VARIABLE])),
    ("minimum_firmware", s.attestation(s.boot(version="1"))),
    ("minimum_firmware", s.attestation(s.boot(version="x"))),
    ("boot_code", s.attestation(s.boot(apps=[s.SHIM, s.GRUB, b"evil"]))),
    ("boot_code", s.attestation(s.boot(apps=[]))),
    # Another type hides nothing: types are not measured.
    ("boot_code", s.attestation([*SNP_BOOT, s.Event(4, s.EV_ACTION, b"harmless", b"evil")])),
    ("project_id", _ak(extension=s.instance(project="other"))),
    ("zone", _ak(extension=s.instance(zone="us-west1-c"))),
    ("instance_name", _ak(extension=s.instance(name="other"))),
    ("launch_endorsement", s.attestation()),
]


@pytest.mark.parametrize(("name", "data"), REFUSED, ids=[f"{at} {name}" for at, (name, _) in enumerate(REFUSED)])
def test_rules_refuse(name: str, data: bytes) -> None:
    with pytest.raises(RefusedError):
        _rule(name, s.verify_vtpm(data, anchors=ALL))


def test_numbers_of_the_machine_refuse() -> None:
    for name, text in (("project_number", '"123"'), ("instance_id", f'"{(1 << 63) + 5}"')):
        with pytest.raises(RefusedError):
            _rule(name, s.verify_vtpm(s.attestation()), POLICY.replace(text, '"4"'))


@pytest.mark.parametrize("name", ["technology", "secure_boot", "minimum_firmware", "boot_code"])
def test_without_a_log_it_is_undecided(name: str) -> None:
    with pytest.raises(UndecidedError):
        _rule(name, s.verify_vtpm(s.attestation(log=b"")))


@pytest.mark.parametrize(
    "text",
    [
        'technology = ["NONE"]',
        'technology = ["AMD"]',
        'secure_boot = "any"',
        "minimum_firmware = -1",
        'boot_code = ["00"]',
        "launch_endorsement = {minimum_svn = -1}",
        "launch_endorsement = {svn = 1}",
        f'[[measurement]]\npcr4 = "{"01" * 32}"',
        f'[[measurement]]\npcr8 = "{"01" * 32}"',
        f'[[measurement]]\npcr4 = "{"01" * 32}"\npcr8 = "{"00" * 32}"',
        f'[[measurement]]\npcr4 = "{"01" * 32}"\npcr8 = "{"01" * 48}"',
        f'[[measurement]]\npcr4 = "{"01" * 32}"\npcr8 = "{"01" * 32}"\npcr24 = "{"01" * 32}"',
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


def test_a_whole_policy_with_evidence_inside() -> None:
    waived = [rule.name for rule in registry.get("snp").rules if rule.name not in ("measurement", "products", "vmpl")]
    text = (
        'schema = "cloister-policy/1"\nname = "vtpm"\n[tee]\naccept = ["google-vtpm"]\ninside = ["snp"]\n'
        f'{POLICY}\n[snp]\nmeasurement = ["{GENOA.hex()}"]\nproducts = ["Genoa"]\nvmpl = 0\n{REST}'
        + "".join(f'[[waive]]\nrule = "snp.{name}"\nreason = "not what this test is about"\n' for name in waived)
    )  # fmt: skip
    policy = Policy.from_toml(text.encode())
    assert Policy.from_toml(policy.to_toml().encode()).demands == policy.demands
    policy = replace(policy, anchors={**ALL, "google-vtpm": (s.AK_ROOT.anchor,)})
    own = Collateral((Item("google-endorsement", ENDORSED),))
    expected = Expected(user_data=s.BINDING)
    verdict = appraise_evidence(
        Offers.one(FORMAT.media_type, _inside(SNP_BOOT)), expected, policy, now=s.NOW, collateral=own
    )
    assert verdict.accepted
    ids = [check.id for check in verdict.checks]
    at = ids.index("google-vtpm.inner")
    assert ids[at + 1 : at + 8] == [check for check, _ in registry.get("snp").checks]
    assert ids[at + 8] == "google-vtpm.inner-data"
    bad = snp.report("Genoa", 5, report_data=s.BINDING.ljust(64, b"\0"), measurement=GENOA, policy=0xB001F)
    message = s.snp_message(bad, vcek=snp.endorsement("Genoa"), ask=snp.intermediate("Genoa"))
    with pytest.raises(RefusedError, match="debug"):
        appraise_evidence(
            Offers.one(FORMAT.media_type, s.attestation(SNP_BOOT, snp=message)), expected, policy, now=s.NOW,
            collateral=own,
        )  # fmt: skip


@given(st.binary(max_size=300))
def test_arbitrary_bytes(data: bytes) -> None:
    for decode in (FORMAT.parse, Instance.parse, verify.endorsements.Endorsement.parse):
        with contextlib.suppress(CloisterError):
            decode(data)


def test_the_page_numbers_what_the_code_numbers() -> None:
    page = (Path(folder.__file__).parent / "README.md").read_text()
    for name in ("google-space", "google-vtpm"):
        section = page.partition(f"## `{name}`")[2].partition("\n## ")[0]
        numbered = re.findall(r"^\| (\d+) \| `([^`]+)`", section, re.MULTILINE)
        form = registry.get(name)
        named = [(title, check) for check, title in form.checks]
        named += [(rule.title, f"{name}.{rule.name}") for rule in form.rules]
        assert numbered == [(title.partition(".")[0], check) for title, check in named]


def _documented(accept: str) -> str:
    page = (Path(__file__).parents[3] / "docs" / "google.md").read_text()
    (block,) = [each for each in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if f'accept = ["{accept}"]' in each]
    return f'schema = "cloister-policy/1"\nname = "documented"\n{block}\n{REST}'


def test_the_documented_policies_are_whole() -> None:
    assert Policy.from_toml(_documented("google-space").encode()).tees == ("google-space",)
    text = _documented("google-vtpm")
    with pytest.raises(PolicyDocumentError) as caught:
        Policy.from_toml(text.encode())
    # Only what is inside is left to state.
    assert "snp.measurement" in caught.value.message
    assert "google-vtpm." not in caught.value.message


def test_a_real_tdx_quote_inside(vectors: Path) -> None:
    start = datetime(2025, 1, 1, tzinfo=UTC)
    root = s.issue("TDX day root", None, ca=True, start=start)
    ak = s.issue("TDX day key", root, ca=False, start=start, extension=s.instance())
    quote = (vectors / "tdx" / "go-tdx-guest_cos-113-tdx-quote.dat").read_bytes()
    nonce = (vectors / "tdx" / "go-tdx-guest_cos-113_nonce.dat").read_bytes()
    own = ("intel-collateral", (vectors / "tdx" / "built_00806f050000_2025-07.json").read_bytes())

    def run(extra: bytes) -> Claims:
        data = s.attestation(s.boot(technology=3), extra, ak=ak, chain=(), tdx=s.tdx_message(quote))
        now = datetime(2025, 7, 20, tzinfo=UTC)
        return s.verify_vtpm(data, own, now=now, anchors={"google-vtpm": (root.anchor,)})

    claims = run(nonce)
    assert [each.tee for each in claims.flat()] == ["google-vtpm", "tdx"]
    assert _rule("technology", claims, POLICY.replace("AMD_SEV_SNP", "INTEL_TDX"))
    assert len(verify.launch_measurement(claims.inner[0])) == 48
    with pytest.raises(NotGenuineError):
        run(nonce[:-1] + b"x")
