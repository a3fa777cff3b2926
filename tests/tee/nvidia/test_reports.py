"""Reports under our own root: what is not exactly a fresh report of a known device is refused."""

from __future__ import annotations

import json
import struct
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given
from hypothesis import strategies as st
from tests.tee.nvidia import real, signer
from tests.tee.nvidia.signer import ANCHORS, NOW, Chip, anchor, block, dice, issue

from cloister.errors import MalformedError, NotGenuineError
from cloister.tee import registry
from cloister.tee.claims import Claims
from cloister.tee.nvidia.device import Mode
from cloister.tee.nvidia.evidence import MAX_EVIDENCE, Arch, Evidence, Kind, nonce, pack
from cloister.tee.nvidia.spdm import MAX_REPORT, Report, vbios_version

CHIP = Chip.make()
SWITCH = Chip.make("LS_10 A01 FSP FMC LF", kind=Kind.SWITCH, arch=Arch.LS10)
SWITCH_OPAQUE = {
    **dict.fromkeys(signer.OPAQUE), 6: b"96.10.55.00.01", 22: bytes(range(1, 9)), 26: bytes(range(8)) * 8 + b"\xff" * 64,
}  # fmt: skip


def _verify(*devices: real.Device, **options: object) -> Claims:
    return real.gpu(list(devices), **{"now": NOW, "anchors": ANCHORS, **options})


def test_our_own_reports_verify() -> None:
    claims = _verify(CHIP.report(), SWITCH.report(count=31, opaque=SWITCH_OPAQUE))
    gpu, switch = (device.facts for device in claims.details.devices)
    assert (gpu.driver, gpu.vbios, gpu.board, gpu.mode) == (signer.DRIVER, signer.VBIOS, "G520/0200/885", Mode.SPT)
    assert (switch.driver, switch.vbios, switch.pdi) == (None, "96.10.55.00.01", bytes(range(1, 9)))
    assert switch.pdis == {bytes(range(8))}
    assert set(claims.measurements) == {"gpu0", "switch0"}


def test_evidence_binds_the_key_statement() -> None:
    binding = bytes(range(100, 132))
    claims = _verify(CHIP.report(nonce=nonce(binding)))
    bind = registry.get("nvidia-gpu").bind
    bind(claims, binding, None)
    bind(claims, binding, bytes(32))
    for other in (bytes(32), binding[::-1]):
        with pytest.raises(NotGenuineError, match="bind"):
            bind(claims, other, None)
    with pytest.raises(NotGenuineError, match="bind"):
        bind(_verify(CHIP.report(nonce=binding)), binding, None)


def test_a_simulated_root_is_never_genuine() -> None:
    for name in ("nvidia-gpu", "nvidia-rim"):
        root = signer.DEVICE_ROOT if name == "nvidia-gpu" else signer.RIM_ROOT
        anchors = {**ANCHORS, name: (anchor(root, genuine=False),)}
        rims = signer.collateral([signer.driver_rim(), signer.vbios_rim()])
        assert _verify(CHIP.report(), collateral=rims).genuine
        assert not _verify(CHIP.report(), collateral=rims, anchors=anchors).genuine


def test_the_built_in_root_does_not_accept_ours() -> None:
    with pytest.raises(NotGenuineError, match="not trusted"):
        real.gpu([CHIP.report()], now=NOW)


def test_a_manifests_root_is_not_a_devices() -> None:
    with pytest.raises(NotGenuineError, match="not trusted"):
        _verify(CHIP.report(), anchors={"nvidia-gpu": ANCHORS["nvidia-rim"], "nvidia-rim": ANCHORS["nvidia-gpu"]})


def _device(**options: object) -> real.Device:
    return Chip.make(**options).report()


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (lambda: _device(not_after=NOW - timedelta(days=1)), "expired"),
        (lambda: _device(not_before=NOW + timedelta(days=1)), "not valid yet"),
        (lambda: _device(digest=SHA256()), "not signed with"),
        (lambda: _device(usage=("key_agreement",)), "no key usage for signing"),
        (lambda: _device(key=ec.generate_private_key(ec.SECP256R1())), "not on P-384"),
        (lambda: _device(name="GH100 A01 GSP BROM"), "not that of a GPU"),
        (lambda: _device(name="GV100 A01 GSP FMC LF"), "not that of a GPU"),
        (lambda: _device(name="GB100 A01 GSP FMC LF"), "not hopper"),
        (lambda: _device(name="LS_10 A01 FSP FMC LF"), "not hopper"),
        (lambda: _device(arch=Arch.BLACKWELL), "not blackwell"),
        (lambda: _device(extensions=((dice(bytes(48)), False),)), "firmware identity"),
        (lambda: _device(extensions=((dice(b"x" * 48), False),)), "firmware identity"),
        (lambda: _device(extensions=()), "no DICE identity"),
        (lambda: _device(extensions=((dice(), False), (dice(arc="2.23.133.5.4.1.1"), False))), "no DICE identity"),
        (lambda: _device(extensions=((dice(), True),)), "critical extension"),
    ],
)  # fmt: skip
def test_a_devices_certificate(device: object, message: str) -> None:
    with pytest.raises(NotGenuineError, match=message):
        _verify(device())


def test_a_blackwell_device_has_its_identity_within_the_structure() -> None:
    extension = ((dice(arc="2.23.133.5.4.1.1"), False),)
    chip = Chip.make("GB100 A01 GSP FMC LF", arch=Arch.BLACKWELL, extensions=extension)
    facts = _verify(chip.report(opaque={35: b"GB100\x00", 36: b"\x01\x00", 21: None})).details.devices[0].facts
    assert (facts.chip, facts.mode, facts.fwid) == ("GB100", Mode.MPT, True)
    with pytest.raises(NotGenuineError, match="another chip"):
        _verify(chip.report(opaque={35: b"GB200\x00", 36: b"\x01\x00", 21: None}))
    # The second entry of the list is zero: it must not match a report that says zero.
    with pytest.raises(NotGenuineError, match="firmware identity"):
        _verify(chip.report(opaque={20: bytes(48), 21: None, 36: b"\x01\x00"}))


def test_an_intermediate_that_may_not_issue() -> None:
    weak = issue("test weak", signer.IDENTITY, ca=False)
    brom = issue("GH100 A01 GSP BROM", weak)
    leaf = issue("GH100 A01 GSP FMC LF", brom, ca=False, extensions=((dice(), False),))
    chip = Chip(signer=leaf, above=(brom, weak, signer.IDENTITY, signer.DEVICE_ROOT))
    with pytest.raises(NotGenuineError, match="may not issue"):
        _verify(chip.report())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opaque": {20: b"y" * 48}}, "firmware identity"),
        ({"opaque": {36: b"\x02\x00"}}, "contradicts itself"),
        ({"opaque": {21: b"\xaa"}}, "contradicts itself"),
        ({"opaque": {21: b"\x00"}}, "no meaning"),
        ({"opaque": {35: b"GH200\x00"}}, "another chip"),
        ({"count": 63}, "measurements"),
        ({"count": 31}, "measurements"),
    ],
)
def test_a_signed_report_that_contradicts_its_certificate(options: dict, message: str) -> None:
    with pytest.raises(NotGenuineError, match=message):
        _verify(CHIP.report(**options))


@pytest.mark.parametrize(
    ("opaque", "mode"),
    [
        ({}, Mode.SPT),
        ({36: None}, Mode.SPT),
        ({36: None, 21: b"\xaa"}, Mode.PPCIE),
        ({36: b"\x02\x00", 21: b"\xaa"}, Mode.PPCIE),
        ({36: b"\x01\x00", 21: None}, Mode.MPT),
        ({36: None, 21: None}, None),
        ({36: b"\x07\x00", 21: None}, None),
    ],
)
def test_modes(opaque: dict, mode: Mode | None) -> None:
    assert _verify(CHIP.report(opaque=opaque)).details.devices[0].facts.mode is mode


def _malformed() -> dict[str, dict]:
    full = [block(at + 1, signer.value(at)) for at in range(64)]
    return {
        "another request": {"request": bytes.fromhex("11e000ff")},
        "another version": {"request": bytes.fromhex("12e001ff")},
        "an error response": {"response": bytes.fromhex("117f0000")},
        "fewer blocks than said": {"record": b"".join(full[:63])},
        "more blocks than said": {"record": b"".join(full), "blocks": 63},
        "a block twice": {"record": b"".join([*full[:63], full[0]])},
        "index zero": {"record": b"".join([*full[:63], block(0, signer.value(0))])},
        "a short value": {"record": b"".join([*full[:63], block(64, bytes(47))])},
        "another specification": {"record": b"".join([*full[:63], block(64, bytes(48), specification=2)])},
        "a value that ends early": {"record": b"".join([*full[:63], struct.pack("<BBHBH", 64, 1, 51, 1, 47) + bytes(48)])},
        "opaque type twice": {"opaque_data": signer.tlv({3: b"1", 6: bytes(8)}) + signer.tlv({3: b"2"})},
        "opaque cut": {"opaque_data": struct.pack("<HH", 3, 9) + b"590"},
        "no driver": {"opaque": {3: None}},
        "an empty driver": {"opaque": {3: b"\x00"}},
        "a driver that is no text": {"opaque": {3: b"590\x01"}},
        "no VBIOS": {"opaque": {6: None}},
        "a long VBIOS": {"opaque": {6: bytes(9)}},
        "a VBIOS with more bytes": {"opaque": {6: bytes.fromhex("00a5009601000001")}},
        "a short firmware identity": {"opaque": {20: bytes(47)}},
        "a long feature flag": {"opaque": {36: bytes(4)}},
        "half a switch": {"opaque": {22: bytes(12)}},
    }  # fmt: skip


@pytest.mark.parametrize("name", list(_malformed()))
def test_malformed_reports(name: str) -> None:
    with pytest.raises(MalformedError):
        _verify(CHIP.report(**_malformed()[name]))


def test_every_byte_of_a_report_is_signed() -> None:
    good = signer.report(CHIP.signer)
    for at in range(len(good)):
        changed = bytearray(good)
        changed[at] ^= 0x80
        try:
            report = Report.parse(bytes(changed))
        except MalformedError:
            continue
        # What still parses differs in what is signed, or in the signature.
        assert (report.signed, report.signature) != (good[:-96], good[-96:])
    for at in (0, 4, 36, 37, 60, 1000, len(good) - 96 - 200, len(good) - 96, len(good) - 1):
        changed = bytearray(good)
        changed[at] ^= 0x80
        with pytest.raises((MalformedError, NotGenuineError)):
            _verify(CHIP.entry(bytes(changed)))


def test_lengths_are_exact() -> None:
    good = signer.report(CHIP.signer)
    for bad in (good + b"\x00", good[:-1], good[1:], b"", good[:37], good + bytes(MAX_REPORT)):
        with pytest.raises(MalformedError):
            _verify(CHIP.entry(bad))


def test_another_devices_signature() -> None:
    with pytest.raises(NotGenuineError, match="does not verify"):
        _verify(CHIP.entry(signer.report(Chip.make().signer)))


def test_the_other_half_of_an_ecdsa_signature_is_the_same_statement() -> None:
    """The group's order minus s verifies too (RFC 9053 does not demand low-S); nothing takes a signature for a name."""
    order = int("FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973", 16)
    good = signer.report(CHIP.signer)
    s = order - int.from_bytes(good[-48:], "big")
    _verify(CHIP.entry(good[:-48] + s.to_bytes(48, "big")))
    for r_or_s in (good[:-96] + bytes(48) + good[-48:], good[:-48] + bytes(48), good[:-96] + b"\xff" * 96):
        with pytest.raises(NotGenuineError, match="does not verify"):
            _verify(CHIP.entry(r_or_s))


def test_distinct_devices_and_one_nonce() -> None:
    second = Chip.make()
    assert len(_verify(CHIP.report(), second.report()).details.gpus()) == 2
    with pytest.raises(NotGenuineError, match="counted twice"):
        _verify(CHIP.report(), CHIP.report())
    same_serial = Chip.make(serial=CHIP.signer.certificate.serial_number)
    same_key = Chip.make(key=CHIP.signer.key)
    for other in (same_serial, same_key):
        with pytest.raises(NotGenuineError, match="counted twice"):
            _verify(CHIP.report(), other.report())
    with pytest.raises(NotGenuineError, match="different nonces"):
        _verify(CHIP.report(), second.report(nonce=bytes(32)))


def test_one_bad_device_spoils_the_set() -> None:
    with pytest.raises(NotGenuineError):
        _verify(CHIP.report(), Chip.make().entry(signer.report(CHIP.signer)))


def _envelope(**changed: object) -> bytes:
    members = json.loads(pack([CHIP.report()]))
    return json.dumps({**members, **changed}).encode()


def _entry(**changed: object) -> bytes:
    entry = json.loads(pack([CHIP.report()]))["reports"][0]
    return _envelope(reports=[{key: item for key, item in {**entry, **changed}.items() if item is not None}])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        pack([CHIP.report()]) + b" {}",
        pack([]),
        _envelope(v="cloister-nvgpu/2"),
        _envelope(extra=1),
        _envelope(reports={}),
        _envelope(reports=[1]),
        _envelope(reports=json.loads(pack([CHIP.report()] * 33))["reports"]),
        _entry(kind="dpu"),
        _entry(kind="switch"),
        _entry(arch="HOPPER"),
        _entry(arch="ampere"),
        _entry(arch="ls10"),
        _entry(arch=None),
        _entry(report=None),
        _entry(report="!"),
        _entry(report=""),
        _entry(extra=1),
        _entry(chain=None),
        _entry(chain=[]),
        _entry(chain=[1] * 5),
        _entry(chain=["AA" * 5000] * 5),
        b'{"v":"cloister-nvgpu/1","v":"cloister-nvgpu/1","reports":[]}',
        b" " * (MAX_EVIDENCE + 1),
    ],
)
def test_malformed_envelopes(data: bytes) -> None:
    with pytest.raises(MalformedError):
        real.verify("nvidia-gpu", data, now=NOW, anchors=ANCHORS)


def test_certificates_that_are_none() -> None:
    kind, arch, report, chain = CHIP.report()
    for bad in (b"\x30\x00", chain[0] + b"\x00", x509.load_der_x509_certificate(chain[0]).tbs_certificate_bytes):
        with pytest.raises(MalformedError):
            _verify((kind, arch, report, (bad, *chain[1:])))


def test_vbios_versions() -> None:
    assert vbios_version(bytes.fromhex("009f009601000000")) == "96.00.9F.00.01"


@given(st.binary(max_size=200))
def test_reports_and_envelopes_from_strangers(data: bytes) -> None:
    for decode in (Report.parse, Evidence.parse):
        with pytest.raises(MalformedError):
            decode(data)
