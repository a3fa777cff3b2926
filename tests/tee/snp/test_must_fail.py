"""Reports and certificates that an authority of our own signed, each wrong in one way, and what must be accepted."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given
from hypothesis import strategies as st
from tests.tee.snp import signer as s

from cloister.errors import CloisterError, MalformedError, NotGenuineError, UndecidedError
from cloister.tee.binding import report_data
from cloister.tee.snp import verify
from cloister.tee.snp.certificates import Endorsement

P384_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
PRODUCTS = ("Milan", "Genoa", "Turin")
GOOD = s.report()


def _step(setting: s.Setting, evidence: bytes) -> tuple[str, CloisterError]:
    """The id of the failed check, and its error."""
    context = setting.context()
    with pytest.raises(CloisterError) as caught:
        s.FORMAT.verify(evidence, context)
    failed = [check.id for check in context.checklist.results() if check.status == "failed"]
    assert len(failed) == 1
    return failed[0], caught.value


def _refused(setting: s.Setting, evidence: bytes, step: str, kind: type[CloisterError], word: str = "") -> None:
    where, error = _step(setting, evidence)
    assert (where, type(error)) == (f"snp.{step}", kind)
    assert word in error.message


@pytest.mark.parametrize("vlek", [False, True])
@pytest.mark.parametrize("version", [2, 3, 4, 5])
@pytest.mark.parametrize("product", PRODUCTS)
def test_every_version_product_and_kind_of_key(product: str, version: int, vlek: bool) -> None:
    claims = s.setting(product, vlek=vlek, crl=s.revocations(product)).verify(s.report(product, version, vlek=vlek))
    assert claims.user_data == b"\x11" * 64
    assert claims.nonce is None
    assert claims.signed_at is None
    details = claims.details
    assert isinstance(details, verify.Verified)
    assert details.reported.parts() == s.TCB
    assert (details.report.launch_mitigations, details.report.current_mitigations) == (
        (3, 7) if version == 5 else (None, None)
    )
    assert ("degraded" in claims.facts) is (product == "Milan")
    assert len(claims.chain) == 3


@pytest.mark.parametrize(
    ("family", "model", "product"),
    [
        (0x19, 0x00, "Milan"), (0x19, 0x0F, "Milan"), (0x19, 0x10, "Genoa"), (0x19, 0x1F, "Genoa"),
        (0x19, 0xA0, "Genoa"), (0x19, 0xAF, "Genoa"), (0x1A, 0x00, "Turin"), (0x1A, 0x11, "Turin"),
        (0x19, 0x20, None), (0x19, 0x9F, None), (0x19, 0xB0, None), (0x1A, 0x50, None), (0x17, 0x31, None),
    ],
)  # fmt: skip
def test_processors(family: int, model: int, product: str | None) -> None:
    evidence = s.report(product or "Genoa", 3, family=family, model=model)
    if product:
        assert s.setting(product).verify(evidence).facts["product"] == product
    else:
        _refused(s.setting(), evidence, "report", MalformedError, "processor")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"version": 1}, "version"), ({"version": 6}, "version"), ({"policy": 0x1001F}, "policy"),
        ({"policy": 0x403001F}, "policy"), ({"policy": 1 << 63 | 0x3001F}, "policy"), ({"vmpl": 4}, "VMPL"),
        ({"vmpl": 0xFFFFFFFF}, "VMPL"), ({"signature_algo": 0}, "algorithm"), ({"signature_algo": 2}, "algorithm"),
        ({"platform_info": 1 << 6}, "platform"), ({"platform_info": 1 << 8}, "platform"), ({"flags": 2 << 2}, "signed"),
        ({"flags": 7 << 2}, "signed"), ({"flags": 1 << 5}, "signed"),
    ],
)  # fmt: skip
def test_fields_that_cannot_be(change: dict[str, int], word: str) -> None:
    _refused(s.setting(), s.report(**change), "report", MalformedError, word)


RESERVED = [
    *range(0x4C, 0x50), *range(0x18B, 0x1A0), 0x1EB, 0x1EF, *range(0x208, 0x2A0, 7), 0x29F,
    *range(0x2D0, 0x2E8, 5), *range(0x318, 0x330, 5), *range(0x330, 0x4A0, 31), 0x49F,
]  # fmt: skip


@pytest.mark.parametrize("version", [2, 5])
def test_reserved_bytes(version: int) -> None:
    absent = [*range(0x188, 0x18B), *range(0x1F8, 0x208)] if version == 2 else []
    for offset in RESERVED + absent:
        changed = s.unsigned("Genoa", version)
        changed[offset] = 1
        evidence = bytearray(s.sign(changed))
        evidence[offset] = 1  # also where the signature stands
        _refused(s.setting(), bytes(evidence), "report", MalformedError, "reserved")


@given(st.binary(max_size=1400))
def test_arbitrary_bytes_are_malformed(data: bytes) -> None:
    assert isinstance(_step(s.setting(), data)[1], MalformedError)


@given(st.integers(0, len(GOOD) * 8 - 1))
def test_any_flipped_bit_is_noticed(bit: int) -> None:
    changed = bytearray(GOOD)
    changed[bit // 8] ^= 1 << bit % 8
    step, error = _step(s.setting(), bytes(changed))
    assert isinstance(error, MalformedError | NotGenuineError)
    assert step in ("snp.report", "snp.certificate", "snp.signature")


def test_signatures() -> None:
    setting = s.setting()
    s_at = slice(0x2E8, 0x2E8 + 48)
    high = bytearray(GOOD)
    high[s_at] = (P384_ORDER - int.from_bytes(GOOD[s_at], "little")).to_bytes(48, "little")
    assert setting.verify(bytes(high)).user_data == b"\x11" * 64  # ECDSA has two forms of each signature
    for part in (slice(0x2A0, 0x2A0 + 48), s_at):
        for value in (bytes(48), P384_ORDER.to_bytes(48, "little"), b"\xff" * 48):
            changed = bytearray(GOOD)
            changed[part] = value
            _refused(setting, bytes(changed), "signature", NotGenuineError)
    _refused(setting, s.report(key="another"), "signature", NotGenuineError)


# Certificates


def _leaf(product: str = "Genoa", *, vlek: bool = False, **changes: object) -> s.Setting:
    return s.setting(product, vlek=vlek, vcek=s.endorsement(product, vlek=vlek, **changes))


def test_missing_certificates_are_undecided() -> None:
    whole = s.setting()
    vcek, ask = whole.items
    _refused(s.Setting(items=(ask,), anchors=whole.anchors), GOOD, "certificate", UndecidedError, "VCEK")
    _refused(s.Setting(items=(vcek,), anchors=whole.anchors), GOOD, "chain", UndecidedError, "SEV-Genoa")
    _refused(s.Setting(items=(ask,), anchors=whole.anchors), s.report(vlek=True), "certificate", UndecidedError, "VLEK")


def test_our_authority_is_not_amd() -> None:
    whole = s.setting()
    _refused(s.Setting(items=whole.items, anchors=None), GOOD, "chain", NotGenuineError, "not trusted")
    other = s.Setting(items=whole.items, anchors=(s.root("Genoa", "another ARK"),))
    _refused(other, GOOD, "chain", NotGenuineError, "signature")
    for items in (whole.items, whole.items[:1]):
        _refused(s.Setting(items=items, anchors=(s.root("Milan"),)), GOOD, "chain", NotGenuineError, "no root of Genoa")


SOON = s.NOW - timedelta(days=1)
LATE = s.NOW + timedelta(days=1)


@pytest.mark.parametrize(
    ("changes", "step", "kind", "word"),
    [
        ({"end": SOON}, "chain", NotGenuineError, "expired"),
        ({"start": LATE}, "chain", NotGenuineError, "not valid yet"),
        ({"signer": "somebody"}, "chain", NotGenuineError, "signature"),
        ({"digest": SHA256()}, "chain", NotGenuineError, "not signed with"),
        ({"pss": False}, "chain", NotGenuineError, "not signed with"),
        ({"ca": True}, "chain", NotGenuineError, "authority"),
        (
            {"also": ((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b""), True),)},
            "chain", NotGenuineError, "critical",
        ),
        ({"issuer": "SEV-Milan"}, "certificate", NotGenuineError, "not issued by"),
        ({"issuer": "SEV-VLEK-Genoa"}, "certificate", NotGenuineError, "not issued by"),
        ({"subject": "SEV-VLEK"}, "certificate", NotGenuineError, "chip"),
        ({"subject": "SEV-Genoa"}, "certificate", NotGenuineError, "not that of a VCEK"),
        ({"public_key": ec.generate_private_key(ec.SECP256R1()).public_key()}, "certificate", NotGenuineError, "P-384"),
        ({"amd": s.extensions("Genoa", x4=None)}, "certificate", NotGenuineError, "chip"),
        ({"amd": s.extensions("Genoa", x5=s.CSP)}, "certificate", NotGenuineError, "chip"),
        ({"amd": s.extensions("Genoa", x2=None)}, "certificate", MalformedError, "IA5String"),
        ({"amd": s.extensions("Genoa", x2=b"\x16\x04Rome")}, "certificate", NotGenuineError, "product"),
        ({"amd": s.extensions("Genoa", x2=b"\x0c\x05Genoa")}, "certificate", MalformedError, "IA5String"),
        ({"amd": s.extensions("Genoa", x2=b"\x16\x06Genoa")}, "certificate", MalformedError, "IA5String"),
        ({"amd": s.extensions("Genoa", x2=b"\x16\x06Genoa\x00")}, "certificate", MalformedError, "printable"),
        ({"amd": s.extensions("Genoa", x3_1=None)}, "certificate", MalformedError, "integer"),
        ({"amd": s.extensions("Genoa", x3_8=b"\x02\x02\x00\x54")}, "certificate", MalformedError, "integer"),
        ({"amd": s.extensions("Genoa", x3_8=b"\x02\x01\x80")}, "certificate", MalformedError, "integer"),
        ({"amd": s.extensions("Genoa", x3_8=b"\x02\x02\x01\x00")}, "certificate", MalformedError, "integer"),
        ({"amd": s.extensions("Genoa", x3_8=b"\x02\x01\x54\x00")}, "certificate", MalformedError, "integer"),
        ({"amd": s.extensions("Genoa", x3_4=b"\x02\x01\x01")}, "certificate", NotGenuineError, "TCB part"),
        ({"amd": s.extensions("Genoa", x3_9=b"\x02\x01\x00")}, "certificate", NotGenuineError, "another product"),
        ({"amd": s.extensions("Genoa", x4=bytes(63))}, "certificate", MalformedError, "64 bytes"),
        ({"amd": s.extensions("Genoa", x4=bytes(8))}, "certificate", MalformedError, "64 bytes"),
        ({"amd": s.extensions("Genoa", x4=b"\x5b" * 63 + b"\x5a")}, "endorsement", NotGenuineError, "another chip"),
        *(
            ({"amd": s.extensions("Genoa", tcb=(0, *parts))}, "endorsement", NotGenuineError, "the report states")
            for parts in ((9, 1, 23, 84), (10, 0, 23, 84), (10, 1, 24, 84), (10, 1, 23, 85))
        ),
    ],
)  # fmt: skip
def test_wrong_certificates(changes: dict, step: str, kind: type[CloisterError], word: str) -> None:
    _refused(_leaf(**changes), GOOD, step, kind, word)


def test_turin_has_its_own_certificate_and_layout() -> None:
    evidence = s.report("Turin", 3)
    amd = s.extensions("Turin", x3_9=None)
    _refused(_leaf("Turin", amd=amd), evidence, "certificate", NotGenuineError, "another product")
    amd = s.extensions("Turin", tcb=(1, *s.TCB[1:]))
    _refused(_leaf("Turin", amd=amd), evidence, "endorsement", NotGenuineError, "states")
    tail = s.report("Turin", 3, chip_id=b"\x5c" * 8 + bytes(55) + b"\x01")
    _refused(s.setting("Turin"), tail, "endorsement", NotGenuineError, "another chip")
    amd = s.extensions("Turin", x4=b"\x04\x08" + s.CHIP["Turin"])
    assert _leaf("Turin", amd=amd).verify(evidence).facts["product"] == "Turin"
    older = s.report("Turin", 3, reported_tcb=s.tcb_bytes("Genoa"))
    _refused(s.setting("Turin"), older, "endorsement", MalformedError, "reserved byte of a TCB")
    reserved = s.report("Genoa", 3, launch_tcb=bytes.fromhex("0a01010000001754"))
    _refused(s.setting(), reserved, "endorsement", MalformedError, "reserved byte of a TCB")


def test_a_hardware_id_may_be_wrapped() -> None:
    amd = s.extensions("Genoa", x4=b"\x04\x40" + s.CHIP["Genoa"])
    assert _leaf(amd=amd).verify(GOOD).facts["chip_id"] == s.CHIP["Genoa"].hex()


def test_version_2_names_no_processor_and_its_certificate_does() -> None:
    evidence = s.report("Milan", 2)
    _refused(s.setting("Genoa"), evidence, "endorsement", NotGenuineError, "another chip")
    assert s.setting("Milan").verify(evidence).facts["product"] == "Milan"
    for version in (3, 4, 5):
        _refused(s.setting("Genoa"), s.report("Milan", version), "certificate", NotGenuineError, "report is of Milan")


def test_kinds_of_key_are_not_confused() -> None:
    _refused(s.setting(), s.report(vlek=True), "certificate", NotGenuineError, "names a VLEK")
    _refused(s.setting(vlek=True), GOOD, "certificate", NotGenuineError, "names a VCEK")
    _refused(
        _leaf(vlek=True, amd=s.extensions("Genoa", vlek=True, x4=s.CHIP["Genoa"])),
        s.report(vlek=True), "certificate", NotGenuineError, "chip",
    )  # fmt: skip


def test_a_masked_chip_is_said_and_a_vlek_needs_none() -> None:
    claims = s.setting().verify(s.report(chip_id=bytes(64)))
    assert claims.facts["chip_id"] == "masked"
    assert s.setting(vlek=True).verify(s.report(vlek=True, chip_id=b"\x01" * 64)).facts["csp_id"] == "a.cloud.org"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"start": LATE}, "not valid yet"), ({"end": SOON}, "expired"), ({"signer": "somebody"}, "signature"),
        ({"ca": False}, "may not issue"), ({"pss": False}, "not signed with"), ({"digest": SHA256()}, "not signed"),
    ],
)  # fmt: skip
def test_wrong_intermediates(changes: dict, word: str) -> None:
    _refused(s.setting(ask=s.intermediate("Genoa", **changes)), GOOD, "chain", NotGenuineError, word)


def test_a_root_that_has_ended() -> None:
    _refused(
        s.setting(now=s.NOW + timedelta(days=101), vcek=s.endorsement("Genoa", end=s.NOW + timedelta(days=400))),
        GOOD, "chain", NotGenuineError,
    )  # fmt: skip


def test_a_second_intermediate_of_the_same_name() -> None:
    older = s.intermediate("Genoa", end=SOON)
    setting = s.Setting(
        items=s.items(
            vcek=s.endorsement("Genoa"), ask=older, ask2=s.intermediate("Milan"), ask3=s.intermediate("Genoa")
        ),
        anchors=(s.root("Genoa"),),
    )
    assert setting.verify(GOOD).facts["product"] == "Genoa"
    _refused(s.setting(ask=b"no certificate"), GOOD, "chain", MalformedError)


def test_malformed_certificates() -> None:
    vcek = s.endorsement("Genoa")
    for wrong in (b"", b"\x30", vcek[:-1], vcek + b"\x00"):
        _refused(s.setting(vcek=wrong), GOOD, "certificate", MalformedError)


def test_the_serial_number_zero_is_met_in_one_place() -> None:
    der = s.endorsement("Genoa")
    with pytest.warns(Warning, match="serial number"):
        x509.load_der_x509_certificate(der)
    assert Endorsement.parse(der).serial == 0  # and no warning, which would be an error here
    assert Endorsement.parse(s.endorsement("Genoa", serial=77)).serial == 77


# Revocation


def test_revocation() -> None:
    listed = s.setting(crl=s.revocations("Genoa", [5])).verify(GOOD)
    assert isinstance(listed.details, verify.Verified)
    assert listed.details.revocation_until == s.NOW + timedelta(days=30)
    unlisted = s.setting().verify(GOOD).details
    assert isinstance(unlisted, verify.Verified)
    assert unlisted.revocation_until is None
    revoked = s.revocations("Genoa", [5, 0x10001])
    _refused(s.setting(crl=revoked), GOOD, "crl", NotGenuineError, "intermediate was revoked")
    vlek = s.setting(vlek=True, vcek=s.endorsement("Genoa", vlek=True, serial=99))
    evidence = s.report(vlek=True)
    vlek.verify(evidence)
    revoked = s.setting(vlek=True, vcek=s.endorsement("Genoa", vlek=True, serial=99), crl=s.revocations("Genoa", [99]))
    _refused(revoked, evidence, "crl", NotGenuineError, "VLEK was revoked")
    # Every VCEK has the serial number 0 or any: a list that names it means another certificate.
    assert s.setting(vcek=s.endorsement("Genoa", serial=99), crl=s.revocations("Genoa", [99])).verify(GOOD)


@pytest.mark.parametrize(
    ("crl", "kind", "word"),
    [
        (s.revocations("Genoa", start=s.NOW - timedelta(days=9), end=SOON), NotGenuineError, "stale"),
        (s.revocations("Genoa", start=LATE), NotGenuineError, "future"),
        (s.revocations("Genoa", signer="somebody"), NotGenuineError, "signature"),
        (b"\x30\x00", MalformedError, "CRL"),
        (s.revocations("Genoa") + b"\x00", MalformedError, "CRL"),
    ],
)
def test_lists_that_are_no_good(crl: bytes, kind: type[CloisterError], word: str) -> None:
    _refused(s.setting(crl=crl), GOOD, "crl", kind, word)


def test_a_good_list_beside_a_stale_one_counts() -> None:
    whole = s.setting(crl=s.revocations("Genoa", end=SOON))
    more = s.Setting(items=(*whole.items, *s.items(crl=s.revocations("Genoa"))), anchors=whole.anchors)
    details = more.verify(GOOD).details
    assert isinstance(details, verify.Verified)
    assert details.revocation_until is not None
    revoking = s.Setting(items=(*more.items, *s.items(crl=s.revocations("Genoa", [0x10001]))), anchors=whole.anchors)
    _refused(revoking, GOOD, "crl", NotGenuineError, "revoked")


# Firmware, debug, binding


@pytest.mark.parametrize(
    "change",
    [
        {"committed_tcb": s.tcb_bytes("Genoa", (0, 11, 1, 23, 84))},
        {"committed_tcb": s.tcb_bytes("Genoa", (0, 10, 1, 22, 85))},
        {"committed": b"\x29\x37\x01"},
        {"committed": b"\x00\x38\x01"},
    ],
)
def test_firmware_that_contradicts_itself(change: dict[str, bytes]) -> None:
    _refused(s.setting(), s.report(**change), "firmware", NotGenuineError, "committed")


def test_debug_is_claimed() -> None:
    assert s.setting().verify(s.report(policy=0xB001F)).debug
    assert not s.setting().verify(GOOD).debug


def test_binding_is_all_64_bytes() -> None:
    binding = bytes(range(32))
    claims = s.setting().verify(s.report(report_data=binding + bytes(32)))
    report_data(claims, binding, None)
    s.FORMAT.bind(claims, binding, b"f" * 32)
    for wrong in (binding + bytes(31) + b"\x01", bytes(32) + binding, binding * 2, binding[:-1] + bytes(33)):
        claims = s.setting().verify(s.report(report_data=wrong))
        with pytest.raises(NotGenuineError):
            s.FORMAT.bind(claims, binding, None)
