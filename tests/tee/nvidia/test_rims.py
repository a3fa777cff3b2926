"""Manifests under our own root: one form of signature, over all of the document, by a signer of manifests."""

from __future__ import annotations

import base64
import re
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from tests.tee.nvidia import real, signer
from tests.tee.nvidia.signer import ANCHORS, NOW, RIM_CA, RIM_ROOT, Chip, RimText, driver_rim, issue, value, vbios_rim

from cloister.errors import MalformedError, NotGenuineError
from cloister.tee.nvidia.device import Golden
from cloister.tee.nvidia.evidence import Arch, Kind
from cloister.tee.nvidia.rim import MAX_RIM, Rim

CHIP = Chip.make()
DRIVER_RIM, VBIOS_RIM = driver_rim(), vbios_rim()


def _golden(*rims: bytes, chip: Chip = CHIP, now=NOW, **options: object) -> Golden:
    claims = real.gpu([chip.report(**options)], now=now, anchors=ANCHORS, collateral=signer.collateral(rims))
    return claims.details.devices[0].golden


def _check(rim: bytes) -> None:
    Rim.parse(rim).verify(ANCHORS["nvidia-rim"], now=NOW)


def test_measurements_are_compared() -> None:
    golden = _golden(DRIVER_RIM, VBIOS_RIM)
    assert (golden.missing, golden.compared, golden.wrong) == ((), 32, ())
    assert _golden(DRIVER_RIM, VBIOS_RIM, changed={25: bytes(48), 3: bytes(48)}).wrong == (3, 25)
    # Not listed, so not compared; and a second value that is good.
    assert _golden(DRIVER_RIM, VBIOS_RIM, changed={50: bytes(48)}).wrong == ()
    assert _golden(DRIVER_RIM, VBIOS_RIM, changed={22: value(0)}).wrong == ()


def test_both_manifests_are_needed() -> None:
    assert _golden(DRIVER_RIM).missing == (signer.VBIOS,)
    assert _golden(VBIOS_RIM).missing == (signer.DRIVER,)
    assert _golden().missing == (signer.DRIVER, signer.VBIOS)


@pytest.mark.parametrize("change", [{"version": "590.13"}, {"product": "GB100"}, {"edition": "SWITCH"}])
def test_a_manifest_of_something_else_is_none(change: dict) -> None:
    assert _golden(driver_rim(**change), VBIOS_RIM).missing == (signer.DRIVER,)


def test_what_is_not_asked_for_is_not_compared_but_must_parse() -> None:
    assert _golden(DRIVER_RIM, VBIOS_RIM, driver_rim(version="1.0", golden={1: [bytes(48)]})).wrong == ()
    with pytest.raises(MalformedError):
        _golden(DRIVER_RIM, VBIOS_RIM, b"<x/>")


def test_two_manifests_of_one_version_are_alternatives_and_copies_are_one() -> None:
    older = driver_rim(golden={20: [bytes(48)]})
    assert _golden(older, DRIVER_RIM, VBIOS_RIM).wrong == ()
    assert _golden(older, VBIOS_RIM).wrong == (20,)
    spaced = DRIVER_RIM.replace(b"<ds:SignatureValue>", b"<ds:SignatureValue>\n")
    _check(spaced)
    assert _golden(*[DRIVER_RIM, spaced] * 15, VBIOS_RIM).compared == 32
    with pytest.raises(MalformedError, match="more than 32 manifests"):
        _golden(*[DRIVER_RIM, spaced] * 16, VBIOS_RIM)


def test_a_manifest_that_was_signed_anew() -> None:
    ended = issue("ended", RIM_CA, ca=False, not_after=NOW - timedelta(days=3))
    old = driver_rim(signer=ended)
    for rims in ((old, DRIVER_RIM, VBIOS_RIM), (DRIVER_RIM, old, VBIOS_RIM)):
        assert min(manifest.ends for manifest in _golden(*rims).manifests) > NOW


def test_an_index_in_both_manifests_is_an_error() -> None:
    with pytest.raises(NotGenuineError, match="both claim"):
        _golden(DRIVER_RIM, vbios_rim(golden={20: [value(20)]}))


def test_a_golden_index_that_the_report_lacks_is_wrong() -> None:
    assert _golden(DRIVER_RIM, vbios_rim(golden={200: [value(200)]})).wrong == (200,)


def test_index_35_counts_unless_nvdec0_is_disabled() -> None:
    changed = {35: bytes(48)}
    assert _golden(DRIVER_RIM, VBIOS_RIM, changed=changed).wrong == (35,)
    assert _golden(DRIVER_RIM, VBIOS_RIM, changed=changed, opaque={11: b"\x55"}).wrong == ()
    for other in (b"\x00", b"\x55\x00", None):
        assert _golden(DRIVER_RIM, VBIOS_RIM, changed=changed, opaque={11: other}).wrong == (35,)


def test_a_switch_has_one_manifest() -> None:
    chip = Chip.make("LS_10 A01 FSP FMC LF", kind=Kind.SWITCH, arch=Arch.LS10)
    opaque = {**dict.fromkeys(signer.OPAQUE), 6: b"96.10.55.00.01"}
    rim = RimText(version="96.10.55.00.01", product="LS10", edition="SWITCH", golden={1: [value(1)]}).build()
    assert _golden(rim, chip=chip, count=31, opaque=opaque).compared == 1
    assert _golden(rim, chip=chip, count=31, opaque=opaque, changed={1: bytes(48)}).wrong == (1,)


def _text(rim: bytes = DRIVER_RIM) -> str:
    return rim.decode()


@pytest.mark.parametrize(
    ("find", "replace"),
    [
        (f'colloquialVersion="{signer.DRIVER}"', 'colloquialVersion="590.13"'),
        ('product="GH100"', 'product="GB100"'),
        ('active="True"', 'active="False"'),
        (value(25).hex(), bytes(48).hex()),
        ('tagId="t"', 'tagId="u"'),
        ("<ns0:Payload>", "<ns0:Payload> "),
        ("<ns0:Meta ", '<ns0:Entity name="x"></ns0:Entity><ns0:Meta '),
        ("<ns0:Meta ", '<ns0:Meta xmlns:new="urn:new" '),
    ],
)
def test_everything_but_the_signature_is_signed(find: str, replace: str) -> None:
    assert find in _text()
    with pytest.raises(NotGenuineError, match="not the one that was signed"):
        _check(_text().replace(find, replace, 1).encode())


def test_spelling_that_canonical_xml_forgives() -> None:
    text = _text().replace("></ns0:Meta>", "/>", 1).replace(' edition="GPU"', "\n edition='GPU'", 1)
    _check(b'<?xml version="1.0" encoding="UTF-8"?>\n' + text.encode())


def test_the_signed_info_is_signed() -> None:
    digest = re.search("<ds:DigestValue>(.*?)</ds:DigestValue>", _text())[1]
    with pytest.raises(NotGenuineError, match="does not verify"):
        _check(_text().replace(digest, base64.b64encode(bytes(48)).decode()).encode())
    text = _text().replace('tagId="t"', 'tagId="u"')
    with pytest.raises(NotGenuineError, match="does not verify"):
        _check(text.replace(digest, re.search("<ds:DigestValue>(.*?)<", _text(driver_rim(edit=str)))[1][::-1]).encode())


SHA256_METHOD = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha256"
ENVELOPED = "http://www.w3.org/2000/09/xmldsig#enveloped-signature"
C14N_10 = "http://www.w3.org/TR/2001/REC-xml-c14n-20010315"


@pytest.mark.parametrize(
    "options",
    [
        {"reference": 'URI="#payload"'},
        {"reference": 'URI="http://attacker.example/"'},
        {"reference": 'Id="x"'},
        {"reference": 'Id="x" URI=""'},
        {"references": 2},
        {"references": 0},
        {"transforms": (ENVELOPED,)},
        {"transforms": (ENVELOPED, C14N_10)},
        {"transforms": (ENVELOPED, signer._C14N, signer._C14N)},
        {"transforms": ("http://www.w3.org/TR/1999/REC-xslt-19991116", signer._C14N)},
        {"digest_method": "http://www.w3.org/2000/09/xmldsig#sha1"},
        {"method": SHA256_METHOD},
        {"method": "http://www.w3.org/2000/09/xmldsig#hmac-sha1"},
    ],
)
def test_other_forms_of_signatures_are_refused(options: dict) -> None:
    with pytest.raises(MalformedError):
        _check(driver_rim(**options))


def _signature() -> str:
    return re.search("<ds:Signature .*</ds:Signature>", _text())[0]


def test_signature_wrapping() -> None:
    """The signed document, or its signature, moved to where it still verifies but something else is read."""
    whole, forged = _text(), _text().replace('active="True"', 'active="False"')
    unsigned = forged.replace(_signature(), "")
    attempts = [
        unsigned.replace("</SoftwareIdentity>", f"{whole}</SoftwareIdentity>"),
        forged.replace("<ds:KeyInfo>", f"<ds:Object>{whole}</ds:Object><ds:KeyInfo>"),
        forged.replace("</ds:KeyInfo>", f"</ds:KeyInfo><ds:Object>{whole}</ds:Object>"),
        whole.replace("</SoftwareIdentity>", _signature() + "</SoftwareIdentity>"),
        whole.replace("<ns0:Payload>", "<ns0:Payload></ns0:Payload><ns0:Payload>"),
        whole.replace("</ns0:Payload>", f"{_signature()}</ns0:Payload>"),
        whole.replace("<ns0:Meta ", f"<ns0:Entity>{_signature()}</ns0:Entity><ns0:Meta "),
        f"<x>{whole}</x>",
        whole + whole,
    ]
    for attempt in attempts:
        with pytest.raises(MalformedError):
            _check(attempt.encode())


def test_active_content_is_refused() -> None:
    whole = _text()
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    attempts = [
        bomb + whole, '<!DOCTYPE x SYSTEM "file:///etc/passwd">' + whole,
        "<!-- c -->" + whole, whole + "<!-- c -->", "<?pi?>" + whole,
        whole.replace(signer.DRIVER, f"{signer.DRIVER}&a;"), whole.replace("<ns0:Payload>", "<ns0:Payload><![CDATA[ ]]>"),
        whole.replace("<ns0:Payload>", '<ns0:Payload xml:space="preserve">'),
        whole.replace("<ds:SignatureValue>", "<ds:SignatureValue><!-- c -->"),
    ]  # fmt: skip
    for attempt in attempts:
        with pytest.raises(MalformedError):
            _check(attempt.encode())


@pytest.mark.parametrize(
    ("find", "replace"),
    [
        ('index="20"', 'index="21"'),
        ('index="20"', 'index="-1"'),
        ('index="20"', 'index="020"'),
        ('index="20"', 'index="256"'),
        ('index="20"', ""),
        ('active="True"', 'active="true"'),
        ('active="True"', ""),
        ('alternatives="1"', 'alternatives="2"'),
        ('alternatives="2"', 'alternatives="1"'),
        ('alternatives="1"', 'alternatives="0"'),
        ('size="48"', 'size="32"'),
        ('size="48"', ""),
        ('type="Measurement"', 'type="Other"'),
        (value(25).hex(), value(25).hex()[:-2]),
        (value(25).hex(), "g" * 96),
        ("ns2:Hash1", "ns2:Hash7"),
        ("ns2:Hash0", "Hash0"),
        (f'colloquialVersion="{signer.DRIVER}"', ""),
        ("<ns0:Payload>", "<ns0:Payload>text"),
        ("<ns0:Payload>", "<ns0:Payload><ns0:Directory></ns0:Directory>"),
        ("<SoftwareIdentity ", "<SoftwareIdentity2 "),
        (signer._SWID, 'xmlns="urn:other"'),
    ],
)
def test_malformed_manifests(find: str, replace: str) -> None:
    assert find in _text()
    text = _text().replace(find, replace, 1).replace("</SoftwareIdentity>", "</SoftwareIdentity>")
    with pytest.raises(MalformedError):
        Rim.parse(text.encode())


def test_no_active_measurement_is_no_manifest() -> None:
    with pytest.raises(MalformedError, match="no active"):
        Rim.parse(RimText(version="1", golden={}).build())


def test_size_is_bounded() -> None:
    with pytest.raises(MalformedError, match="limit"):
        Rim.parse(DRIVER_RIM + b" " * MAX_RIM)


def test_chains_of_manifests() -> None:
    other = issue("other root")
    purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])
    early = issue("early", RIM_CA, ca=False, not_before=NOW + timedelta(days=1))
    for options, message in (
        ({"signer": issue("s", other, ca=False), "above": (other,)}, "not trusted"),
        ({"signer": issue("s", signer.DEVICE_ROOT, ca=False), "above": (signer.DEVICE_ROOT,)}, "not trusted"),
        ({"signer": early}, "not valid yet"),
        ({"signer": issue("s", RIM_CA)}, "certificate authority"),
        ({"signer": issue("s", RIM_CA, ca=False, extensions=((purpose, False),))}, "OCSP responder"),
        ({"above": (RIM_ROOT,)}, "another issuer"),
        ({"above": (RIM_CA, RIM_CA, RIM_ROOT)}, "another issuer"),
        ({"signer": issue("test RIM signer", issue("test RIM CA", other), ca=False)}, "does not verify"),
    ):
        with pytest.raises(NotGenuineError, match=message):
            _check(driver_rim(**options))
    with pytest.raises(MalformedError, match="chain"):
        _check(driver_rim(above=()))


def test_a_signer_that_has_ended_is_reported_not_hidden() -> None:
    ended = issue("ended", RIM_CA, ca=False, not_after=NOW - timedelta(days=3))
    golden = _golden(driver_rim(signer=ended), VBIOS_RIM)
    assert [manifest.ends for manifest in golden.manifests] == [
        NOW - timedelta(days=3), RIM_CA.certificate.not_valid_after_utc,
    ]  # fmt: skip
