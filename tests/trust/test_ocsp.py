"""OCSP responses: by whom, about what, and from when."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp as x509_ocsp
from hypothesis import given
from hypothesis import strategies as st
from tests.tee.nvidia.signer import BROM, DAY, IDENTITY, NOW, PROVISIONER, issue, responder, response

from cloister.errors import MalformedError, NotGenuineError
from cloister.trust import ocsp
from cloister.trust.chain import P384
from cloister.trust.ocsp import Answer, Status

SKEW = timedelta(seconds=60)


def _check(der: bytes, *, now=NOW, issuer=IDENTITY) -> Answer:
    return ocsp.check(ocsp.parse(der), issuer.certificate, P384, now=now, skew=SKEW)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("good", Status.GOOD),
        ("unknown", Status.UNKNOWN),
        ("revoked", Status.REVOKED),
        ("compromise", Status.REVOKED),
        ("hold", Status.HOLD),
    ],
)
def test_what_a_responder_says(status: str, expected: Status) -> None:
    answer = _check(response(PROVISIONER, IDENTITY, status=status))
    assert answer == Answer(status=expected, this_update=NOW - timedelta(hours=1), next_update=NOW + DAY)


@pytest.mark.parametrize("by_name", [True, False])
def test_the_issuer_may_answer_itself(by_name: bool) -> None:
    assert _check(response(PROVISIONER, IDENTITY, by=IDENTITY, by_name=by_name, carried=False)).status is Status.GOOD
    assert _check(response(PROVISIONER, IDENTITY, by_name=by_name)).status is Status.GOOD


def test_a_response_is_about_one_certificate_of_one_issuer() -> None:
    parsed = ocsp.parse(response(PROVISIONER, IDENTITY))
    assert ocsp.about(parsed, PROVISIONER.certificate, IDENTITY.certificate)
    assert not ocsp.about(parsed, BROM.certificate, IDENTITY.certificate)
    twin = issue("twin", IDENTITY, serial=PROVISIONER.certificate.serial_number)
    assert ocsp.about(parsed, twin.certificate, IDENTITY.certificate)
    same_name = issue("test GH100 identity")
    assert not ocsp.about(parsed, PROVISIONER.certificate, same_name.certificate)
    same_key = issue("another name", key=IDENTITY.key)
    assert not ocsp.about(parsed, PROVISIONER.certificate, same_key.certificate)


def _responders() -> dict[str, tuple[dict, str]]:
    purpose = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH])
    alien = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    signing = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.OCSP_SIGNING])
    return {
        "another issuer's": ({"by": responder(BROM)}, "another issuer"),
        "an issuer of the same name": ({"by": responder(issue("test GH100 identity"))}, "does not verify"),
        "not delegated": ({"by": issue("x", IDENTITY, ca=False)}, "not delegated"),
        "delegated for something else": ({"by": responder(IDENTITY, extensions=((purpose, True),))}, "not delegated"),
        "an authority": ({"by": responder(IDENTITY, ca=True)}, "authority"),
        "not to sign": ({"by": responder(IDENTITY, usage=("key_agreement",))}, "not delegated"),
        "ended": ({"by": responder(IDENTITY, not_after=NOW - DAY)}, "not valid at"),
        "not begun": ({"by": responder(IDENTITY, not_before=NOW + DAY)}, "not valid at"),
        "with another hash": ({"by": responder(IDENTITY, digest=SHA256())}, "not signed with"),
        "on another curve": (
            {"by": responder(IDENTITY, key=ec.generate_private_key(ec.SECP256R1()))}, "does not fit",
        ),
        "with a critical extension": (
            {"by": responder(IDENTITY, extensions=((signing, True), (alien, True)))}, "not understood",
        ),
        "not carried": ({"carried": False}, "names a responder"),
        "that used another hash": ({"digest": SHA256()}, "not allowed"),
        "of the future": ({"this_update": NOW + timedelta(seconds=61)}, "future"),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(_responders()))
def test_responders_that_may_not_answer(name: str) -> None:
    options, message = _responders()[name]
    with pytest.raises(NotGenuineError, match=message):
        _check(response(PROVISIONER, IDENTITY, **options))


def test_a_little_of_the_future_is_a_clocks() -> None:
    _check(response(PROVISIONER, IDENTITY, this_update=NOW + timedelta(seconds=59)))


def test_every_flipped_bit_is_noticed() -> None:
    good = response(PROVISIONER, IDENTITY)
    answer, parsed = _check(good), ocsp.parse(good)
    for at in range(len(good)):
        changed = bytearray(good)
        changed[at] ^= 0x01
        try:
            other = ocsp.parse(bytes(changed))
            assert _check(bytes(changed)) == answer
        except (MalformedError, NotGenuineError):
            continue
        # What still verifies was not under the signature (a flag of the carried certificate's list, say).
        assert other.tbs_response_bytes == parsed.tbs_response_bytes


def test_what_is_no_response() -> None:
    good = response(PROVISIONER, IDENTITY)
    refusal = x509_ocsp.OCSPResponseBuilder.build_unsuccessful(x509_ocsp.OCSPResponseStatus.TRY_LATER)
    request = x509_ocsp.OCSPRequestBuilder().add_certificate(PROVISIONER.certificate, IDENTITY.certificate, SHA384())
    for bad in (
        b"", good[:-1], good + b"\x00", bytes(ocsp.MAX_RESPONSE + 1), refusal.public_bytes(Encoding.DER),
        request.build().public_bytes(Encoding.DER),
    ):  # fmt: skip
        with pytest.raises(MalformedError):
            ocsp.parse(bad)


@given(st.binary(max_size=200))
def test_bytes_from_strangers(data: bytes) -> None:
    with pytest.raises(MalformedError):
        ocsp.parse(data)
