"""Documents that a simulated root signed, each wrong in one way, and the variants that must be accepted."""

from __future__ import annotations

from datetime import timedelta

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from tests.tee import documents as d

from cloister.errors import MalformedError, NotGenuineError, PolicyDocumentError, RefusedError, UndecidedError
from cloister.tee.binding import user_data_and_nonce as check_binding
from cloister.tee.nitro import rules
from cloister.tee.nitro.roots import ANCHORS
from cloister.tee.sim.root import SimulatedRoot, issue
from cloister.trust.anchors import Anchor

GOOD = d.signed(d.payload())
P384_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973


def test_a_good_document_is_accepted_and_never_genuine() -> None:
    claims = d.verify(GOOD)
    assert not claims.genuine
    assert not claims.debug
    assert claims.user_data == b"u" * 32
    assert "SIMULATED" in claims.chain[0]
    with pytest.raises(NotGenuineError, match="root"):
        d.verify(GOOD, anchors=ANCHORS)


@pytest.mark.parametrize(
    "changes",
    [
        {"extra": "unknown members are AWS's to add"},
        {"pcrs": {**d.PCRS, **{i: bytes(48) for i in range(3, 17)}}},
        {"user_data": b""},
        {"user_data": b"x" * 512, "nonce": b"x" * 512, "public_key": b"x" * 1024},
        {"nonce": ..., "public_key": ..., "user_data": ...},
    ],
)
def test_variants_of_real_documents_are_accepted(changes: dict) -> None:
    assert d.refused(d.signed(d.payload(**changes))) is None


def test_a_tagged_an_indefinite_and_a_high_s_document_are_accepted() -> None:
    assert d.refused(b"\xd2" + GOOD) is None
    fields = d.payload()
    indefinite = b"\xbf" + b"".join(cbor2.dumps(key) + cbor2.dumps(value) for key, value in fields.items()) + b"\xff"
    assert d.refused(d.signed(indefinite)) is None
    protected, header, body, signature = cbor2.loads(GOOD)
    s = int.from_bytes(signature[48:], "big")
    other = signature[:48] + (P384_ORDER - s).to_bytes(48, "big")
    assert d.refused(cbor2.dumps([protected, header, body, other])) is None


def _raw(**parts: object) -> bytes:
    protected, header, body, signature = cbor2.loads(GOOD)
    whole = {"protected": protected, "header": header, "body": body, "signature": signature, **parts}
    return cbor2.dumps(list(whole.values()))


def _der_signature() -> bytes:
    protected, _, body, _ = cbor2.loads(GOOD)
    structure = cbor2.dumps(["Signature1", protected, b"", body])
    return d.CHAIN[-1].key.sign(structure, ec.ECDSA(SHA384()))


DUPLICATE = b"\xa2\x01\x38\x22\x01\x38\x22"
MALFORMED = {
    "empty": b"",
    "not cbor": b"\xff\xff",
    "text": b"hello world, this is no document",
    "too large": d.signed(d.payload(extra=b"x" * 17000)),
    "trailing byte": GOOD + b"\x00",
    "truncated": GOOD[:-1],
    "tag 17": b"\xd1" + GOOD,
    "tag 99": b"\xd8\x63" + GOOD,
    "three members": cbor2.dumps([b"", {}, b""]),
    "five members": cbor2.dumps([*cbor2.loads(GOOD), 1]),
    "ES256": d.signed(d.payload(), protected=cbor2.dumps({1: -7})),
    "QEMU's algorithm": d.signed(d.payload(), protected=cbor2.dumps({1: -1})),
    "no algorithm": d.signed(d.payload(), protected=b""),
    "another protected parameter": d.signed(d.payload(), protected=cbor2.dumps({1: -35, 4: b"kid"})),
    "duplicate protected parameter": d.signed(d.payload(), protected=DUPLICATE),
    "critical": d.signed(d.payload(), protected=cbor2.dumps({1: -35, 2: [1]})),
    "trailing byte in the header": d.signed(d.payload(), protected=cbor2.dumps({1: -35}) + b"\x00"),
    "unprotected algorithm": _raw(header={1: -35}),
    "unprotected critical": _raw(header={2: []}),
    "signature of 95 bytes": _raw(signature=b"x" * 95),
    "signature as DER": _raw(signature=_der_signature()),
    "detached payload": _raw(body=None),
    "payload is no map": d.signed([1, 2]),
    "payload has a tail": d.signed(cbor2.dumps(d.payload()) + b"\x00"),
    "duplicate member": d.signed(
        b"\xbf"
        + b"".join(cbor2.dumps(k) + cbor2.dumps(v) for k, v in [*d.payload().items(), ("nonce", b"x")])
        + b"\xff"
    ),
    "a tag inside": d.signed(d.payload(extra=cbor2.CBORTag(1, 5))),
    "nested too deep": d.signed(d.payload(extra=[[[[[[[[[[1]]]]]]]]]])),
    **{
        f"without {name}": d.signed(d.payload(**{name: ...}))
        for name in ("module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle")
    },
    "digest SHA256": d.signed(d.payload(digest="SHA256")),
    "timestamp 0": d.signed(d.payload(timestamp=0)),
    "timestamp negative": d.signed(d.payload(timestamp=-1)),
    "timestamp enormous": d.signed(d.payload(timestamp=1 << 60)),
    "timestamp in the year 10000": d.signed(d.payload(timestamp=253_402_300_800_000)),
    "timestamp float": d.signed(d.payload(timestamp=1.5)),
    "timestamp true": d.signed(d.payload(timestamp=True)),
    "no registers": d.signed(d.payload(pcrs={})),
    "register 32": d.signed(d.payload(pcrs={**d.PCRS, 32: bytes(48)})),
    "register -1": d.signed(d.payload(pcrs={**d.PCRS, -1: bytes(48)})),
    "register of 47 bytes": d.signed(d.payload(pcrs={**d.PCRS, 3: bytes(47)})),
    "register named by text": d.signed(d.payload(pcrs={"0": bytes(48)})),
    "empty bundle": d.signed(d.payload(cabundle=[])),
    "bundle of text": d.signed(d.payload(cabundle=["x"])),
    "empty certificate": d.signed(d.payload(certificate=b"")),
    "certificate of 1025 bytes": d.signed(d.payload(certificate=b"x" * 1025)),
    "certificate with a tail": d.signed(d.payload(certificate=d.CHAIN[-1].der + b"\x00")),
    "no certificate at all": d.signed(d.payload(certificate=b"\x30\x03\x02\x01\x01")),
    "user data of 513 bytes": d.signed(d.payload(user_data=b"x" * 513)),
    "nonce of 513 bytes": d.signed(d.payload(nonce=b"x" * 513)),
    "nonce as text": d.signed(d.payload(nonce="x")),
    "public key of 1025 bytes": d.signed(d.payload(public_key=b"x" * 1025)),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(name: str) -> None:
    assert isinstance(d.refused(MALFORMED[name]), MalformedError)


def _with_chain(links: list, **changes: object) -> bytes:
    return d.signed(d.payload(links, **changes), links)


FOREIGN = SimulatedRoot.create(d.NOW)


def _broken_chains() -> dict[str, bytes]:
    region, zone, instance, leaf = d.CHAIN
    root = d.ROOT.issued
    start, day = d.NOW - timedelta(minutes=5), timedelta(days=1)
    other_leaf = issue("SIMULATED leaf", None, start=start, life=day, ca=False)
    same_name = issue("SIMULATED instance", None, start=start, life=day, ca=True, path_length=0)
    under_same_name = issue("SIMULATED leaf", same_name, start=start, life=day, ca=False)
    tight = issue("SIMULATED region", root, start=start, life=day, ca=True, path_length=0)
    tight_zone = issue("SIMULATED zone", tight, start=start, life=day, ca=True, path_length=0)
    tight_leaf = issue("SIMULATED leaf", tight_zone, start=start, life=day, ca=False)
    not_ca = issue("SIMULATED region", root, start=start, life=day, ca=False)
    below = issue("SIMULATED leaf", not_ca, start=start, life=day, ca=False)
    return {
        "foreign root": _with_chain(d.chain(FOREIGN), cabundle=[FOREIGN.issued.der]),
        "foreign chain under our root": d.signed(d.payload(d.chain(FOREIGN)), d.chain(FOREIGN)),
        "no intermediates": d.signed(d.payload(cabundle=[root.der])),
        "order turned": d.signed(d.payload(cabundle=[root.der, zone.der, region.der, instance.der])),
        "root left out": d.signed(d.payload(cabundle=[region.der, zone.der, instance.der])),
        "one left out": d.signed(d.payload(cabundle=[root.der, region.der, instance.der])),
        "leaf of itself": _with_chain([region, zone, instance, other_leaf]),
        "issuer's name but not its key": _with_chain([region, zone, instance, under_same_name]),
        "path too long": _with_chain([tight, tight_zone, tight_leaf]),
        "issuer is no authority": _with_chain([not_ca, below]),
        "leaf is an authority": _with_chain(d.chain(ca=True)),
        "leaf expired": _with_chain(d.chain(start=d.NOW - timedelta(hours=4))),
        "leaf not yet valid": _with_chain(d.chain(start=d.NOW + timedelta(minutes=1))),
        "signed by another key": d.signed(d.payload(), d.chain()),
        "r is zero": _raw(signature=bytes(48) + b"\x01" * 48),
        "signature of zeros": _raw(signature=bytes(96)),
        "register changed after signing": _raw(body=cbor2.dumps(d.payload(pcrs=dict.fromkeys(range(16), b"\t" * 48)))),
        "instance as leaf": d.signed(d.payload(certificate=instance.der), [instance]),
        "leaf in the bundle": _with_chain(d.CHAIN, cabundle=[root.der, region.der, zone.der, instance.der, leaf.der]),
    }


BROKEN = _broken_chains()


@pytest.mark.parametrize("name", BROKEN)
def test_not_genuine(name: str) -> None:
    assert isinstance(d.refused(BROKEN[name]), NotGenuineError)


def test_age_and_clock() -> None:
    for minutes, accepted in ((4.9, True), (5.1, False), (-0.9, True), (-1.1, False)):
        error = d.refused(GOOD, now=d.NOW + timedelta(minutes=minutes))
        assert (error is None) is accepted, minutes


# A changed certificate may also make the parser warn; what counts is that it is refused.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_every_flipped_bit_of_the_signature_and_every_byte_of_the_rest_is_refused() -> None:
    for at in range(len(GOOD)):
        for bit in range(8) if at >= len(GOOD) - 96 else (at % 8,):
            changed = bytearray(GOOD)
            changed[at] ^= 1 << bit
            assert d.refused(bytes(changed)) is not None, (at, bit)


# --- Rules ------------------------------------------------------------------------------------------------------------


def test_debug_is_refused() -> None:
    for pcrs in ({i: bytes(48) for i in range(16)}, {3: b"\x01" * 48}):
        assert d.verify(d.signed(d.payload(pcrs=pcrs))).debug


@pytest.mark.parametrize(
    "stated",
    [
        {},
        {"pcr1": "01" * 48},
        {"pcr2": "01" * 48},
        {"pcr3": "01" * 48, "pcr4": "01" * 48},
        {"pcr0": "00" * 48},
        {"pcr0": "01" * 47},
        {"pcr0": "0A" * 48},
        {"pcr0": ""},
    ],
)
def test_a_measurement_that_names_no_image(stated: dict) -> None:
    with pytest.raises(PolicyDocumentError):
        rules.Measurement(**stated)


def test_measurements_are_compared_whole() -> None:
    claims = d.verify(GOOD)
    right = {"pcr0": "01" * 48, "pcr1": "02" * 48, "pcr2": "03" * 48}
    assert rules.check_measurements(claims, (rules.Measurement(**right),))
    for name in right:
        wrong = {**right, name: right[name][:-1] + "f"}
        with pytest.raises(RefusedError, match=name):
            rules.check_measurements(claims, (rules.Measurement(**wrong),))
    with pytest.raises(RefusedError, match="pcr8"):
        rules.check_measurements(claims, (rules.Measurement(pcr8="01" * 48),))
    with pytest.raises(PolicyDocumentError):
        rules.check_measurements(claims, ())


def test_binding_and_challenge() -> None:
    bound = d.verify(d.signed(d.payload(user_data=b"B" * 32, nonce=b"F" * 32)))
    check_binding(bound, b"B" * 32, b"F" * 32)
    for binding, challenge in (
        (b"C" * 32, b"F" * 32),
        (b"B" * 32, b"G" * 32),
        (b"B" * 32, None),
        (b"B" * 31, b"F" * 32),
    ):
        with pytest.raises(NotGenuineError):
            check_binding(bound, binding, challenge)
    unbound = d.verify(d.signed(d.payload(user_data=None, nonce=b"F" * 32)))
    with pytest.raises(NotGenuineError, match="bind"):
        check_binding(unbound, b"", b"F" * 32)
    longer = d.verify(d.signed(d.payload(user_data=b"B" * 33)))
    with pytest.raises(NotGenuineError):
        check_binding(longer, b"B" * 32, None)


# --- The simulated side -----------------------------------------------------------------------------------------------


def test_the_simulated_attester_makes_what_the_verifier_accepts_and_keeps_the_limits() -> None:
    attester = d.attester()
    claims = d.verify(attester.attest(b"B" * 32, b"F" * 32))
    check_binding(claims, b"B" * 32, b"F" * 32)
    assert claims.measurements["pcr0"] == "01" * 48
    assert attester.attest(b"x" * 512, b"y" * 512)
    for user_data, nonce in ((b"x" * 513, None), (b"", b"x" * 513)):
        with pytest.raises(UndecidedError):
            attester.attest(user_data, nonce)


def test_a_leaf_near_its_end_is_replaced() -> None:
    times = [d.NOW]
    attester = d.SimulatedNitro(d.ROOT, d.PCRS, clock=lambda: times[-1])
    attester.attest(b"", None)
    times.append(d.NOW + timedelta(hours=2, minutes=50))
    assert d.refused(attester.attest(b"", None), now=times[-1]) is None


def test_a_root_is_kept_privately_and_a_damaged_one_is_said(tmp_path) -> None:
    path = tmp_path / "state" / "root.pem"
    first = SimulatedRoot.load_or_create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert SimulatedRoot.load_or_create(path).pem == first.pem
    path.write_text("junk")
    with pytest.raises(Exception, match="damaged"):
        SimulatedRoot.load_or_create(path)


def test_no_vendor_root_passes_for_a_simulated_one(vectors) -> None:
    with pytest.raises(PolicyDocumentError, match="SIMULATED"):
        Anchor.simulated((vectors / "nitro" / "aws_nitro_root_g1.pem").read_text())
    for pem in ("", "junk", d.ROOT.pem.replace("A", "B", 3)):
        with pytest.raises(PolicyDocumentError):
            Anchor.simulated(pem)
