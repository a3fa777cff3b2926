"""X.509 that is odd: whatever the library raises for it becomes one of our errors, wherever it comes in."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from tests.tee.dcap import signer as intel
from tests.tee.google import signer as google
from tests.tee.nvidia import signer as nvidia

from cloister.errors import MalformedError, NotGenuineError, PolicyDocumentError, UsageError
from cloister.image import config
from cloister.tee.google.vtpm import endorsement
from cloister.tee.sim.root import SimulatedRoot
from cloister.trust import crl, ocsp
from cloister.trust.anchors import Anchor
from cloister.trust.certificates import UNREADABLE, common_name, from_pem, load_certificate, load_crl
from cloister.trust.chain import P384
from cloister.trust.collateral import Item
from cloister.trust.dcap.pck import P256
from cloister.trust.fetch.source import crl_life


@cache
def world() -> intel.World:
    return intel.World(tdx=True)


def odd_certificate(der: bytes) -> bytes:
    """The same, of a version that does not exist."""
    at = der.index(b"\xa0\x03\x02\x01\x02")
    return der[: at + 4] + b"\x09" + der[at + 5 :]


def odd_crl(der: bytes) -> bytes:
    at = der.index(b"\x02\x01\x01")
    return der[: at + 2] + b"\x09" + der[at + 3 :]


def pem(*ders: bytes) -> bytes:
    armoured = (base64.encodebytes(der).replace(b"\n", b"") for der in ders)
    return b"".join(b"-----BEGIN CERTIFICATE-----\n" + text + b"\n-----END CERTIFICATE-----\n" for text in armoured)


def _certificate() -> bytes:
    return world().root.certificate.public_bytes(Encoding.DER)


def _list() -> bytes:
    return intel.crl(world().root, world().pck)


def _list_of(*extensions: x509.ExtensionType) -> bytes:
    """A list with one entry that carries extensions of its own."""
    entry = x509.RevokedCertificateBuilder().serial_number(5).revocation_date(intel.NOW)
    for extension in extensions:
        entry = entry.add_extension(extension, critical=False)
    builder = x509.CertificateRevocationListBuilder().issuer_name(world().root.certificate.subject)
    builder = builder.last_update(intel.NOW).next_update(intel.NOW + timedelta(days=1))
    made = builder.add_revoked_certificate(entry.build()).sign(world().root.key, SHA256())
    return made.public_bytes(Encoding.DER)


def test_the_library_raises_something_else_than_a_value_error_for_odd_versions() -> None:
    for load, der in ((x509.load_der_x509_certificate, odd_certificate(_certificate())),
                      (x509.load_der_x509_crl, odd_crl(_list()))):  # fmt: skip
        with pytest.raises(UNREADABLE) as caught:
            load(der)
        assert not isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "change", [odd_certificate, lambda der: der + b"\x00", lambda der: der[:-1], lambda _: b"", lambda _: b"\x30\x00"]
)
def test_certificates_must_fail(change: Callable[[bytes], bytes]) -> None:
    assert load_certificate(_certificate(), "x").subject == world().root.certificate.subject
    with pytest.raises(MalformedError):
        load_certificate(change(_certificate()), "x")


@pytest.mark.parametrize(
    "change",
    [odd_crl, lambda der: der + b"\x00", lambda der: der[:-1], lambda _: b"", lambda _: bytes(1024 * 1024 + 1)],
)
def test_lists_must_fail_wherever_they_are_read(change: Callable[[bytes], bytes]) -> None:
    good, bad = _list(), change(_list())
    assert load_crl(good, "x").next_update_utc is not None
    root = world().root.certificate
    for read in (
        lambda der: load_crl(der, "x"),
        crl.issuer,
        lambda der: crl.load(der, root.subject, root.public_key(), P256, now=intel.NOW),
        lambda der: crl_life(der, "SIMULATED SGX Root CA", "x"),
    ):
        read(good)
        with pytest.raises(MalformedError):
            read(bad)


def test_an_entry_whose_extension_cannot_be_read() -> None:
    good = _list_of(x509.CRLReason(x509.ReasonFlags.key_compromise))
    load_crl(good, "x")
    at = good.index(b"\x0a\x01\x01")
    # There is no reason of that number.
    with pytest.raises(MalformedError):
        load_crl(good[: at + 2] + b"\x07" + good[at + 3 :], "x")


@pytest.mark.parametrize("member", ["root_ca_crl", "pck_crl"])
def test_a_list_of_an_odd_version_in_intels_collateral(member: str) -> None:
    members = json.loads(world().collateral())
    members[member] = odd_crl(bytes.fromhex(members[member])).hex()
    item = Item("intel-collateral", json.dumps(members).encode())
    with pytest.raises(MalformedError, match="revocation list"):
        intel.verify("tdx", world().quote, item, anchors=(world().anchor,))


@pytest.mark.parametrize("member", ["tcb_info_issuer_chain", "qe_identity_issuer_chain"])
def test_a_certificate_of_an_odd_version_in_intels_collateral(member: str) -> None:
    signing, root = (each.certificate.public_bytes(Encoding.DER) for each in (world().signing, world().root))
    item = Item("intel-collateral", world().collateral(**{member: pem(odd_certificate(signing), root).decode()}))
    with pytest.raises(MalformedError, match=r"not an X\.509 certificate"):
        intel.verify("tdx", world().quote, item, anchors=(world().anchor,))


def test_a_responder_of_an_odd_version() -> None:
    good = nvidia.response(nvidia.IDENTITY, nvidia.DEVICE_ROOT)
    response = ocsp.parse(good)
    (carried,) = [each.public_bytes(Encoding.DER) for each in response.certificates]
    odd = good.replace(carried, odd_certificate(carried))
    assert odd != good
    root = nvidia.DEVICE_ROOT.certificate
    with pytest.raises(MalformedError):
        ocsp.check(ocsp.parse(odd), root, P384, now=nvidia.NOW, skew=timedelta(0))


def test_certificates_of_odd_versions_in_an_endorsement() -> None:
    other = google.issue("another root", None, ca=True)
    leaf = google.issue("leaf", other, ca=False).certificate
    bundle = pem(odd_certificate(other.der))
    with pytest.raises(MalformedError):
        endorsement._intermediates(bundle, leaf, (google.TCB_ROOT.anchor,))
    for bad in (pem(other.der) * 9, b"text\n" + pem(other.der), b"-----BEGIN CERTIFICATE-----"):
        with pytest.raises(MalformedError):
            endorsement._intermediates(bad, leaf, (google.TCB_ROOT.anchor,))
    assert endorsement._intermediates(pem(other.der), leaf, (google.TCB_ROOT.anchor,)) == (other.der,)


def test_an_owners_files_of_odd_versions(tmp_path: Path) -> None:
    root = SimulatedRoot.load_or_create(tmp_path / "root.pem")
    key = (tmp_path / "root.pem").read_bytes().partition(b"-----BEGIN CERTIFICATE-----")[0]
    odd = pem(odd_certificate(root.issued.der))
    (tmp_path / "root.pem").write_bytes(key + odd)
    with pytest.raises(UsageError, match="damaged"):
        SimulatedRoot.load_or_create(tmp_path / "root.pem")
    (tmp_path / "roots.pem").write_bytes(odd)
    with pytest.raises(UsageError, match="certificates in PEM"):
        config._roots(tmp_path / "roots.pem")
    with pytest.raises(PolicyDocumentError):
        Anchor.simulated(odd.decode())


@pytest.mark.parametrize(
    ("text", "smallest", "largest"),
    [
        (b"", 1, 2), (pem(b"\x30\x00"), 2, 2), (pem(b"\x30\x00") * 3, 1, 2), (b"x" + pem(b"\x30\x00"), 1, 1),
        (pem(b"\x30\x00").replace(b"MAA=", b"MAA"), 1, 1), (pem(b"\x30\x00") + b"-----BEGIN CERTIFICATE-----", 1, 1),
        (b" " * 70_000 + pem(b"\x30\x00"), 1, 1), (pem(b"\x30\x00") + b"\x00", 1, 1),
    ],
)  # fmt: skip
def test_pem_must_fail(text: bytes, smallest: int, largest: int) -> None:
    assert from_pem(b"\n" + pem(b"\x30\x00", b"\x30\x01\x00"), "x", smallest=2, largest=2) == (
        b"\x30\x00",
        b"\x30\x01\x00",
    )
    with pytest.raises(MalformedError):
        from_pem(text, "x", smallest=smallest, largest=largest)


def test_the_one_common_name() -> None:
    attribute = x509.NameAttribute(x509.NameOID.COMMON_NAME, "one")
    assert common_name(x509.Name([attribute])) == "one"
    assert common_name(x509.Name([])) == ""
    assert common_name(x509.Name([attribute, x509.NameAttribute(x509.NameOID.COMMON_NAME, "two")])) == ""


# Roots that somebody names


def test_a_named_root() -> None:
    anchor = Anchor.root(google.PKI_ROOT.der, "here")
    assert (anchor.genuine, anchor.origin) == (True, "here")
    assert {name: getattr(anchor, name) for name in ("subject", "spki", "sha256", "not_after")} == {
        name: getattr(google.PKI_ROOT.anchor, name) for name in ("subject", "spki", "sha256", "not_after")
    }


@pytest.mark.parametrize(
    ("der", "kind"),
    [
        (google.PKI_CA.der, NotGenuineError),
        (google.PKI_LEAF.der, NotGenuineError),
        (google.issue("SIMULATED root", None, ca=True).der, NotGenuineError),
        (google.issue("no CA", None, ca=False).der, NotGenuineError),
        (google.PKI_ROOT.der[:-4] + bytes(4), NotGenuineError),
        (google.PKI_ROOT.der + b"\x00", MalformedError),
        (odd_certificate(google.PKI_ROOT.der), MalformedError),
    ],
)
def test_named_roots_must_fail(der: bytes, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        Anchor.root(der, "here")
