"""Our own NVIDIA: device roots, reports, manifests and OCSP responses that are signed as the real ones are."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloister.tee.nvidia.evidence import Arch, Kind
from cloister.trust.anchors import Anchor
from cloister.trust.collateral import Collateral, Item

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
FWID = hashlib.sha384(b"firmware").digest()
NONCE = bytes(range(32))
DRIVER, VBIOS = "590.12", "96.00.A5.00.01"
_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


def _usage(*names: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in names for name in _USAGES})


@dataclass(frozen=True, kw_only=True)
class Signer:
    """A key and its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    def raw(self, data: bytes) -> bytes:
        """r ‖ s."""
        r, s = decode_dss_signature(self.key.sign(data, ec.ECDSA(SHA384())))
        return r.to_bytes(48, "big") + s.to_bytes(48, "big")


def issue(
    name: str, issuer: Signer | None = None, *, ca: bool = True, serial: int | None = None,
    not_before: datetime = NOW - 365 * DAY, not_after: datetime = NOW + 365 * DAY,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (), key: ec.EllipticCurvePrivateKey | None = None,
    usage: Sequence[str] | None = None, digest: SHA256 | SHA384 | None = None, path_length: int | None = None,
) -> Signer:  # fmt: skip
    """A certificate under an issuer, self-signed without one."""
    key = key or ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
        .add_extension(_usage(*(usage or (("key_cert_sign",) if ca else ("digital_signature",)))), critical=True)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return Signer(key=key, certificate=builder.sign(issuer.key if issuer else key, digest or SHA384()))


def anchor(root: Signer, *, genuine: bool = True) -> Anchor:
    """A root as an anchor; `genuine` as the vendor's own is."""
    return Anchor(
        subject=root.certificate.subject.rfc4514_string(),
        spki=root.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        not_before=root.certificate.not_valid_before_utc,
        not_after=root.certificate.not_valid_after_utc,
        sha256=hashlib.sha256(root.der).hexdigest(),
        origin="tests",
        genuine=genuine,
    )


def _der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = bytes([len(body)]) if len(body) < 128 else bytes([0x81, len(body)])
    return bytes([tag]) + size + body


def dice(fwid: bytes = FWID, *, arc: str = "2.23.133.5.4.1") -> x509.UnrecognizedExtension:
    """The DICE extension with one FWID: at the end of the structure (Hopper), or in a list (Blackwell's arc)."""
    identity = _der(0x30, bytes.fromhex("0609608648016503040202"), _der(0x04, fwid))
    empty = _der(0x30, bytes.fromhex("0609608648016503040202"), _der(0x04, bytes(48)))
    body = _der(0xA6, identity, empty) if arc.endswith(".1.1") else identity
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(arc), _der(0x30, _der(0x02, b"\x01"), body))


DEVICE_ROOT = issue("test device root")
IDENTITY = issue("test GH100 identity", DEVICE_ROOT)
PROVISIONER = issue("test GH100 provisioner", IDENTITY)
BROM = issue("GH100 A01 GSP BROM", PROVISIONER)
RIM_ROOT = issue("test RIM root")
RIM_CA = issue("test RIM CA", RIM_ROOT)
RIM_SIGNER = issue("test RIM signer", RIM_CA, ca=False)
ANCHORS = {"nvidia-gpu": (anchor(DEVICE_ROOT),), "nvidia-rim": (anchor(RIM_ROOT),)}


@dataclass(frozen=True, kw_only=True)
class Chip:
    """A device: its own key and the certificates above it, its own first."""

    signer: Signer
    above: tuple[Signer, ...] = (BROM, PROVISIONER, IDENTITY, DEVICE_ROOT)
    kind: Kind = Kind.GPU
    arch: Arch = Arch.HOPPER

    @classmethod
    def make(cls, name: str = "GH100 A01 GSP FMC LF", *, kind: Kind = Kind.GPU, arch: Arch = Arch.HOPPER,
             extensions: Sequence[tuple[x509.ExtensionType, bool]] = ((dice(), False),), **options: object) -> Chip:  # fmt: skip
        return cls(signer=issue(name, BROM, ca=False, extensions=extensions, **options), kind=kind, arch=arch)

    @property
    def chain(self) -> tuple[bytes, ...]:
        return (self.signer.der, *(signer.der for signer in self.above))

    @property
    def ueid(self) -> str:
        return str(self.signer.certificate.serial_number)

    def entry(self, report: bytes) -> tuple[Kind, Arch, bytes, tuple[bytes, ...]]:
        return self.kind, self.arch, report, self.chain

    def report(self, **options: object) -> tuple[Kind, Arch, bytes, tuple[bytes, ...]]:
        return self.entry(report(self.signer, **options))


def value(index: int) -> bytes:
    """The good value of a measurement."""
    return hashlib.sha384(b"measurement %d" % index).digest()


#: Opaque data of a GPU: driver, VBIOS, NVDEC0 enabled, project, SKUs, FWID, single-GPU passthrough.
OPAQUE: Mapping[int, bytes] = {
    6: bytes.fromhex("00a5009601000000"), 15: b"885\x00", 17: b"G520\x00", 18: b"0200\x00", 3: DRIVER.encode() + b"\x00",
    11: b"\xaa", 20: FWID, 21: b"\x55", 36: b"\x00\x00",
}  # fmt: skip


def tlv(items: Mapping[int, bytes | None]) -> bytes:
    """Opaque data; None leaves a type out."""
    return b"".join(
        struct.pack("<HH", kind, len(data)) + data for kind, data in items.items() if data is not None
    )  # fmt: skip


def block(index: int, data: bytes, *, specification: int = 1) -> bytes:
    """One measurement block; `index` counts from one."""
    body = struct.pack("<BH", 1, len(data)) + data
    return struct.pack("<BBH", index, specification, len(body)) + body


def unsigned(
    *, nonce: bytes = NONCE, count: int = 64, changed: Mapping[int, bytes] | None = None,
    opaque: Mapping[int, bytes | None] | None = None, request: bytes = bytes.fromhex("11e001ff"),
    response: bytes = bytes.fromhex("11600000"), record: bytes | None = None, opaque_data: bytes | None = None,
    blocks: int | None = None,
) -> bytes:  # fmt: skip
    """All of an exchange before its signature."""
    values = {**{at: value(at) for at in range(count)}, **(changed or {})}
    if record is None:
        record = b"".join(block(at + 1, data) for at, data in values.items())
    data = tlv({**OPAQUE, **(opaque or {})}) if opaque_data is None else opaque_data
    return (
        request + nonce + b"\x00" + response + bytes([count if blocks is None else blocks])
        + len(record).to_bytes(3, "little") + record + bytes(range(32, 64)) + struct.pack("<H", len(data)) + data
    )  # fmt: skip


def report(signer: Signer, **options: object) -> bytes:
    """A signed exchange."""
    body = unsigned(**options)
    return body + signer.raw(body)


_C14N = "http://www.w3.org/2006/12/xml-c14n11"
_SWID = 'xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd"'
_NS0 = 'xmlns:ns0="http://standards.iso.org/iso/19770/-2/2015/schema.xsd"'
_NS2 = 'xmlns:ns2="http://www.w3.org/2001/04/xmlenc#sha384"'
_DS = 'xmlns:ds="http://www.w3.org/2000/09/xmldsig#"'


@dataclass(kw_only=True)
class RimText:
    """A manifest, written in canonical form by hand so that no code under test canonicalises what it then verifies.

    `edit` changes the finished document; `content` stands before the payload's end.
    """

    version: str
    product: str = "GH100"
    edition: str = "GPU"
    golden: Mapping[int, Sequence[bytes]] = field(default_factory=dict)
    content: str = ""
    signer: Signer = RIM_SIGNER
    above: Sequence[Signer] = (RIM_CA, RIM_ROOT)
    reference: str = 'URI=""'
    transforms: Sequence[str] = ("http://www.w3.org/2000/09/xmldsig#enveloped-signature", _C14N)
    digest_method: str = "http://www.w3.org/2001/04/xmldsig-more#sha384"
    method: str = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
    references: int = 1
    edit: Callable[[str], str] = str

    def resource(self, index: int, values: Sequence[bytes], active: bool) -> str:
        hashes = "".join(f' ns2:Hash{at}="{data.hex()}"' for at, data in enumerate(values))
        return (
            f'<ns0:Resource active="{active}" alternatives="{len(values)}" index="{index}" name="M{index}" size="48" '
            f'type="Measurement"{hashes}></ns0:Resource>'
        )

    def parts(self) -> tuple[str, str]:
        rows = "".join(self.resource(at, values, True) for at, values in self.golden.items())
        rows += self.resource(63, [bytes(48)], False) if 63 not in self.golden else ""
        before = (
            f'<SoftwareIdentity {_SWID} {_NS0} {_NS2} name="GH100" tagId="t" version="1.0">'
            f'<ns0:Meta colloquialVersion="{self.version}" edition="{self.edition}" product="{self.product}"></ns0:Meta>'
            f"<ns0:Payload>{rows}{self.content}</ns0:Payload>"
        )
        return before, "</SoftwareIdentity>"

    def build(self) -> bytes:
        before, after = self.parts()
        digest = base64.b64encode(hashlib.sha384((before + after).encode()).digest()).decode()
        transforms = "".join(f'<ds:Transform Algorithm="{name}"></ds:Transform>' for name in self.transforms)
        reference = (
            f"<ds:Reference {self.reference}><ds:Transforms>{transforms}</ds:Transforms>"
            f'<ds:DigestMethod Algorithm="{self.digest_method}"></ds:DigestMethod>'
            f"<ds:DigestValue>{digest}</ds:DigestValue></ds:Reference>"
        )
        inside = (
            f'<ds:CanonicalizationMethod Algorithm="{_C14N}"></ds:CanonicalizationMethod>'
            f'<ds:SignatureMethod Algorithm="{self.method}"></ds:SignatureMethod>{reference * self.references}'
            "</ds:SignedInfo>"
        )
        # As a part of the document its apex carries every namespace in scope.
        canonical = f"<ds:SignedInfo {_SWID} {_DS} {_NS0} {_NS2}>{inside}"
        signature = base64.b64encode(self.signer.raw(canonical.encode())).decode()
        certificates = "".join(
            f"<ds:X509Certificate>{base64.b64encode(each.der).decode()}</ds:X509Certificate>"
            for each in (self.signer, *self.above)
        )
        document = (
            f"{before}<ds:Signature {_DS}><ds:SignedInfo>{inside}<ds:SignatureValue>{signature}</ds:SignatureValue>"
            f"<ds:KeyInfo><ds:X509Data>{certificates}</ds:X509Data></ds:KeyInfo></ds:Signature>{after}"
        )
        return self.edit(document).encode()


def driver_rim(**options: object) -> bytes:
    """A driver's manifest: measurements 20 to 39, one with two alternatives."""
    golden = {at: [value(at)] for at in range(20, 40)} | {22: [value(0), value(22)]}
    return RimText(**{"version": DRIVER, "golden": golden, **options}).build()


def vbios_rim(**options: object) -> bytes:
    """A VBIOS's manifest: measurements 1 to 12."""
    return RimText(**{"version": VBIOS, "golden": {at: [value(at)] for at in range(1, 13)}, **options}).build()


def responder(issuer: Signer, name: str = "test responder", **options: object) -> Signer:
    """An OCSP responder that an issuer delegated."""
    purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])
    return issue(name, issuer, **{"ca": False, "extensions": ((purpose, True),), **options})


def response(
    certificate: Signer, issuer: Signer, *, by: Signer | None = None, status: str = "good",
    this_update: datetime = NOW - timedelta(hours=1), next_update: datetime | None = NOW + DAY,
    by_name: bool = False, carried: bool = True, digest: SHA256 | SHA384 | None = None,
) -> bytes:  # fmt: skip
    """An OCSP response about a certificate, by a delegated responder."""
    by = by or responder(issuer)
    statuses = {"good": ocsp.OCSPCertStatus.GOOD, "unknown": ocsp.OCSPCertStatus.UNKNOWN}
    reasons = {"hold": x509.ReasonFlags.certificate_hold, "compromise": x509.ReasonFlags.key_compromise}
    revoked = status in ("revoked", *reasons)
    builder = ocsp.OCSPResponseBuilder().add_response(
        cert=certificate.certificate, issuer=issuer.certificate, algorithm=SHA384(),
        cert_status=ocsp.OCSPCertStatus.REVOKED if revoked else statuses[status],
        this_update=this_update, next_update=next_update,
        revocation_time=NOW - DAY if revoked else None, revocation_reason=reasons.get(status),
    )  # fmt: skip
    encoding = ocsp.OCSPResponderEncoding.NAME if by_name else ocsp.OCSPResponderEncoding.HASH
    builder = builder.responder_id(encoding, by.certificate)
    if carried:
        builder = builder.certificates([by.certificate])
    return builder.sign(by.key, digest or SHA384()).public_bytes(Encoding.DER)


def responses(**changed: bytes) -> list[bytes]:
    """One response for each certificate that is asked for: `identity`, `provisioner`, `brom`, `rim_ca`, `rim_signer`."""
    good = {
        "identity": response(IDENTITY, DEVICE_ROOT), "provisioner": response(PROVISIONER, IDENTITY),
        "brom": response(BROM, PROVISIONER), "rim_ca": response(RIM_CA, RIM_ROOT),
        "rim_signer": response(RIM_SIGNER, RIM_CA),
    }  # fmt: skip
    return list({**good, **changed}.values())


def collateral(rims: Sequence[bytes] = (), ocsps: Sequence[bytes] = ()) -> Collateral:
    """Manifests and OCSP responses."""
    items = [("nvidia-rim", rim) for rim in rims] + [("nvidia-ocsp", each) for each in ocsps]
    return Collateral(tuple(Item(kind, data) for kind, data in items))
