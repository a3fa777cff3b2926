"""Reference Integrity Manifests: NVIDIA's signed golden measurements of one driver or VBIOS.

SWID tags (ISO/IEC 19770-2:2015) with an enveloped XML signature. Of the signature's many forms exactly one is read: one
reference to the whole document, so that nothing can stand beside what was signed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from cloister.errors import MalformedError, NotGenuineError
from cloister.tee.nvidia.spdm import MEASUREMENT_SIZE
from cloister.trust import chain, signatures
from cloister.trust.anchors import Anchor
from cloister.trust.certificates import load_certificate
from cloister.trust.signatures import Algorithm
from cloister.wire import xml
from cloister.wire.xml import Element

MAX_RIM = 128 * 1024
MAX_INDEX = 255
MAX_ALTERNATIVES = 64
MAX_CHAIN = 6
SWID = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
HASH = "http://www.w3.org/2001/04/xmlenc#sha384"
DSIG = "http://www.w3.org/2000/09/xmldsig#"
C14N = "http://www.w3.org/2006/12/xml-c14n11"
ENVELOPED = "http://www.w3.org/2000/09/xmldsig#enveloped-signature"
ECDSA_SHA384 = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
SHA384 = "http://www.w3.org/2001/04/xmldsig-more#sha384"
_NUMBER = re.compile(r"(0|[1-9][0-9]{0,3})\Z")
_DIGEST = re.compile(r"[0-9A-Fa-f]{96}\Z")


@dataclass(frozen=True, kw_only=True)
class Rim:
    """A manifest as parsed; nothing in it is trusted before `verify`.

    `version` is its colloquialVersion, `product` the chip (GH100), `edition` GPU or SWITCH. `golden` maps the index of
    each active measurement to the values (48 bytes) that are good. `certificates` are DER, the signer's first.
    """

    version: str
    product: str
    edition: str
    golden: Mapping[int, tuple[bytes, ...]]
    certificates: tuple[bytes, ...]
    digest: bytes
    document: bytes
    signed_info: bytes
    signature: bytes

    @classmethod
    def parse(cls, data: bytes) -> Rim:
        """Parse the document and its signature; raises MalformedError."""
        root = xml.parse(data, "RIM", limit=MAX_RIM)
        if not root.is_a(SWID, "SoftwareIdentity"):
            raise MalformedError("RIM: not a SWID tag")
        meta, payload = _only(root, SWID, "Meta"), _only(root, SWID, "Payload")
        signature = _only(root, DSIG, "Signature")
        if sum(element.namespace == DSIG and element.local == "Signature" for element in root.walk()) != 1:
            raise MalformedError("RIM: a second signature")
        signed_info, value, certificates = _signature(signature)
        return cls(
            version=_attribute(meta, "colloquialVersion"),
            product=_attribute(meta, "product"),
            edition=_attribute(meta, "edition"),
            golden=_golden(payload),
            certificates=certificates,
            digest=_reference(signed_info),
            document=xml.canonical(root, without=signature),
            signed_info=xml.canonical(signed_info),
            signature=value,
        )

    def verify(
        self, anchors: Sequence[Anchor], *, now: datetime
    ) -> tuple[Anchor, tuple[x509.Certificate, ...], datetime]:
        """The anchor, the certificates (signer last) and when the first of them ends, whether or not that has passed.

        A driver outlives the certificate that signed its manifest; how long is the policy's word, not this function's.
        Raises MalformedError or NotGenuineError.
        """
        loaded = [load_certificate(der, "RIM certificate") for der in self.certificates]
        ends = min(certificate.not_valid_after_utc for certificate in loaded)
        anchor, certificates = chain.validate(
            tuple(reversed(self.certificates[1:])), self.certificates[0], anchors, now=min(now, ends)
        )
        _check_purpose(certificates[-1])
        key, signature = chain.p384(certificates[-1]), signatures.from_raw(self.signature)
        signatures.check(key, Algorithm.ECDSA_P384_SHA384, signature, self.signed_info, "RIM")
        if not hmac.compare_digest(hashlib.sha384(self.document).digest(), self.digest):
            raise NotGenuineError("RIM: the document is not the one that was signed")
        return anchor, certificates, ends


def _check_purpose(certificate: x509.Certificate) -> None:
    """An OCSP responder under the same root has no business signing manifests."""
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.ExtendedKeyUsage) and ExtendedKeyUsageOID.OCSP_SIGNING in value:
            raise NotGenuineError("RIM: signed by an OCSP responder")


def _only(parent: Element, namespace: str, local: str) -> Element:
    found = [child for child in parent.elements() if child.is_a(namespace, local)]
    if len(found) != 1:
        raise MalformedError(f"RIM: not exactly one {local}")
    return found[0]


def _attribute(element: Element, name: str, namespace: str = "") -> str:
    value = element.attributes.get((namespace, name), "")
    if not value or len(value) > 256 or not value.isprintable():
        raise MalformedError(f"RIM: {element.local} has no {name}")
    return value


def _number(element: Element, name: str, smallest: int, largest: int) -> int:
    text = _attribute(element, name)
    if not _NUMBER.match(text) or not smallest <= int(text) <= largest:
        raise MalformedError(f"RIM: {name} is out of range")
    return int(text)


def _golden(payload: Element) -> dict[int, tuple[bytes, ...]]:
    golden: dict[int, tuple[bytes, ...]] = {}
    seen = set()
    for resource in payload.elements():
        if not resource.is_a(SWID, "Resource") or _attribute(resource, "type") != "Measurement" or resource.elements():
            raise MalformedError("RIM: the payload holds something else than measurements")
        index = _number(resource, "index", 0, MAX_INDEX)
        active = _attribute(resource, "active")
        values = _alternatives(resource)
        if index in seen or active not in ("True", "False"):
            raise MalformedError("RIM: a measurement occurs twice, or is neither active nor not")
        seen.add(index)
        if active == "True":
            golden[index] = values
    if not golden:
        raise MalformedError("RIM: no active measurement")
    return golden


def _alternatives(resource: Element) -> tuple[bytes, ...]:
    count = _number(resource, "alternatives", 1, MAX_ALTERNATIVES)
    hashes = {local: value for (namespace, local), value in resource.attributes.items() if namespace == HASH}
    if set(hashes) != {f"Hash{at}" for at in range(count)}:
        raise MalformedError("RIM: not as many values as alternatives")
    if _number(resource, "size", 1, 9999) != MEASUREMENT_SIZE or not all(map(_DIGEST.match, hashes.values())):
        raise MalformedError("RIM: a value is not 48 bytes")
    return tuple(bytes.fromhex(hashes[f"Hash{at}"]) for at in range(count))


def _signature(signature: Element) -> tuple[Element, bytes, tuple[bytes, ...]]:
    """SignedInfo, the value (r ‖ s) and the certificates (XML Signature 1.1, section 4)."""
    signed_info, value, key_info = _children(signature, "SignedInfo", "SignatureValue", "KeyInfo")
    (data,) = _children(key_info, "X509Data")
    certificates = data.elements()
    if not 2 <= len(certificates) <= MAX_CHAIN or not all(each.is_a(DSIG, "X509Certificate") for each in certificates):
        raise MalformedError("RIM: no chain of certificates")
    raw = _base64(value.text())
    if len(raw) != 2 * MEASUREMENT_SIZE:
        raise MalformedError("RIM: the signature is not 96 bytes")
    return signed_info, raw, tuple(_base64(each.text()) for each in certificates)


def _reference(signed_info: Element) -> bytes:
    """The digest of the only reference, which is to the whole document; raises MalformedError for any other form."""
    canonicalization, method, reference = _children(
        signed_info, "CanonicalizationMethod", "SignatureMethod", "Reference"
    )
    _algorithm(canonicalization, C14N)
    _algorithm(method, ECDSA_SHA384)
    if reference.attributes != {("", "URI"): ""}:
        raise MalformedError("RIM: the signature is not over the whole document")
    transforms, digest_method, digest = _children(reference, "Transforms", "DigestMethod", "DigestValue")
    enveloped, canonical = _children(transforms, "Transform", "Transform")
    _algorithm(enveloped, ENVELOPED)
    _algorithm(canonical, C14N)
    _algorithm(digest_method, SHA384)
    return _base64(digest.text())


def _children(parent: Element, *names: str) -> list[Element]:
    children = parent.elements()
    if [(child.namespace, child.local) for child in children] != [(DSIG, name) for name in names]:
        raise MalformedError(f"RIM: {parent.local} is not of the one form that is read")
    return children


def _algorithm(element: Element, algorithm: str) -> None:
    if element.attributes != {("", "Algorithm"): algorithm} or element.children:
        raise MalformedError(f"RIM: {element.local} is not the one that is expected")


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (ValueError, binascii.Error):
        raise MalformedError("RIM: not base64") from None
