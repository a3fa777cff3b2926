"""Signs quotes and collateral as Intel and its enclaves do, under a root of its own; every part can be changed."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from cloister.errors import CloisterError
from cloister.tee import registry
from cloister.tee.checks import Checklist
from cloister.tee.claims import Claims
from cloister.tee.context import Context
from cloister.trust.anchors import Anchor
from cloister.trust.collateral import Collateral, Item

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
FMSPC, PPID = bytes.fromhex("00906ed50000"), bytes(range(16))
INTEL = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
SGX_EXTENSION = "1.2.840.113741.1.13.1"
TD_QE_SIGNER, QE_SIGNER = bytes.fromhex("dc9e2a7c" * 8), bytes.fromhex("8c4f5775" * 8)


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = (
        bytes([size])
        if size < 128
        else bytes([0x80 | (size.bit_length() + 7) // 8]) + size.to_bytes((size.bit_length() + 7) // 8, "big")
    )
    return bytes([tag]) + length + content


def _oid(text: str) -> bytes:
    first, second, *rest = map(int, text.split("."))
    out = bytes([first * 40 + second])
    for number in rest:
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(number & 0x7F | 0x80)
        out += bytes(reversed(groups))
    return _der(6, out)


def _entry(suffix: str, value: bytes) -> bytes:
    return _der(0x30, _oid(f"{SGX_EXTENSION}.{suffix}") + value)


def _integer(value: int) -> bytes:
    return _der(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def raw(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """r ‖ s."""
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def point(key: ec.EllipticCurvePrivateKey) -> bytes:
    """x ‖ y."""
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


@dataclass(frozen=True)
class Issued:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(Encoding.PEM)


def issue(name: str, issuer: Issued | None, *, ca: bool, start: datetime | None = None, days: int = 3650,
          extension: bytes | None = None) -> Issued:  # fmt: skip
    """A certificate shaped as Intel's are."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test")]
    )
    start = start or NOW - timedelta(days=100)
    signing_key = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=(0 if issuer else 1) if ca else None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=not ca, content_commitment=not ca, key_encipherment=False,
                          data_encipherment=False, key_agreement=False, key_cert_sign=ca, crl_sign=ca,
                          encipher_only=False, decipher_only=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False)
    )  # fmt: skip
    if extension is not None:
        builder = builder.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(SGX_EXTENSION), extension), critical=False
        )
    return Issued(builder.sign(signing_key, hashes.SHA256()), key)


def crl(issuer: Issued, *revoked: Issued, start: datetime | None = None, days: int = 30) -> bytes:
    """A revocation list, DER."""
    start = start or NOW - timedelta(days=1)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(start)
        .next_update(start + timedelta(days=days))
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
    )
    for each in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(each.certificate.serial_number).revocation_date(start)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.DER)


def enclave_report(*, attributes: int = 0x05, xfrm: int = 0xE7, misc: int = 0, mrenclave: bytes = b"\x0e" * 32,
                   mrsigner: bytes = b"\x05" * 32, configid: bytes = bytes(64), prodid: int = 1, svn: int = 8,
                   configsvn: int = 0, report_data: bytes = bytes(64), cpusvn: bytes = b"\x02" * 16) -> bytes:  # fmt: skip
    """The 384 bytes of an SGX report."""
    return (
        cpusvn + struct.pack("<I", misc) + bytes(28) + struct.pack("<QQ", attributes, xfrm) + mrenclave + bytes(32)
        + mrsigner + bytes(32) + configid + struct.pack("<HHH", prodid, svn, configsvn) + bytes(58) + report_data
    )  # fmt: skip


def td_report(*, tcb_svn: bytes = bytes([5, 1, 2]) + bytes(13), seam: bytes = b"\x5e" * 48, signer: bytes = bytes(48),
              seam_attributes: bytes = bytes(8), attributes: int = 1 << 28, xfam: int = 0x602E7,
              mrtd: bytes = b"\x0d" * 48, configid: bytes = bytes(48), owner: bytes = bytes(48),
              ownerconfig: bytes = bytes(48), rtmrs: tuple[bytes, ...] = (b"\xa0" * 48, b"\xa1" * 48, b"\xa2" * 48, bytes(48)),
              report_data: bytes = bytes(64), newer: bool = False, svn2: bytes = bytes([5, 1, 2]) + bytes(13),
              service: bytes = bytes(48)) -> bytes:  # fmt: skip
    """The 584 or 648 bytes of a TD report."""
    body = (
        tcb_svn + seam + signer + seam_attributes + struct.pack("<QQ", attributes, xfam) + mrtd + configid + owner
        + ownerconfig + b"".join(rtmrs) + report_data
    )  # fmt: skip
    return body + (svn2 + service if newer else b"")


@dataclass(frozen=True, kw_only=True)
class World:
    """Intel's hierarchy, one platform, one signed quote with collateral. `replace` one field to make one mistake."""

    tdx: bool
    body: bytes = b""
    version: int = 4
    status: str = "UpToDate"
    advisories: tuple[str, ...] = ()
    evaluation: int = 17
    qe_evaluation: int = 17
    issued: datetime = NOW - timedelta(days=1)
    life: timedelta = timedelta(days=30)
    qe: dict = field(default_factory=dict)
    platform_svn: int = 2
    level_svn: int = 2
    tdx_level: tuple[int, ...] = (5, 0, 2)
    fmspc: bytes = FMSPC
    info_fmspc: bytes | None = None
    bind: bool = True
    pck_start: datetime | None = None
    revoke_pck: bool = False
    revoke_ca: bool = False
    revoke_signer: bool = False
    crl_start: datetime | None = None
    module: dict = field(default_factory=dict)

    @cached_property
    def root(self) -> Issued:
        """Stands for the Intel SGX Root CA."""
        return issue("SIMULATED SGX Root CA", None, ca=True)

    @cached_property
    def ca(self) -> Issued:
        """Stands for the PCK Platform CA."""
        return issue("SIMULATED SGX PCK Platform CA", self.root, ca=True)

    @cached_property
    def signing(self) -> Issued:
        """Signs TCB info and QE identity."""
        return issue("SIMULATED SGX TCB Signing", self.root, ca=False)

    @cached_property
    def pck(self) -> Issued:
        """The platform's certificate."""
        svn = self.platform_svn
        tcb = b"".join(_entry(f"2.{n}", _integer(svn)) for n in range(1, 17))
        tcb += _entry("2.17", _integer(11)) + _entry("2.18", _der(4, bytes([svn] * 16)))
        extension = _der(0x30, _entry("1", _der(4, PPID)) + _entry("2", _der(0x30, tcb)) + _entry("3", _der(4, bytes(2)))
                         + _entry("4", _der(4, self.fmspc)) + _entry("5", _der(10, b"\x01"))
                         + _entry("6", _der(4, bytes(16)))
                         + _entry("7", _der(0x30, b"".join(_entry(f"7.{n}", _der(1, b"\xff")) for n in (1, 2, 3)))))  # fmt: skip
        return issue("SIMULATED SGX PCK Certificate", self.ca, ca=False, extension=extension, start=self.pck_start)

    @property
    def anchor(self) -> Anchor:
        """Its root as a test's anchor."""
        root = self.root.certificate
        return Anchor(
            subject=root.subject.rfc4514_string(),
            spki=root.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            not_before=root.not_valid_before_utc,
            not_after=root.not_valid_after_utc,
            sha256=root.fingerprint(hashes.SHA256()).hex(),
            origin="this test",
        )

    @cached_property
    def attestation_key(self) -> ec.EllipticCurvePrivateKey:
        """Made by the quoting enclave."""
        return ec.generate_private_key(ec.SECP256R1())

    @cached_property
    def quote(self) -> bytes:
        """The signed quote."""
        body = self.body or (td_report(newer=self.version == 5) if self.tdx else enclave_report())
        header = struct.pack("<HHIHH", self.version, 2, 0x81 if self.tdx else 0, 8, 11) + INTEL + bytes(20)
        if self.version == 5:
            header += struct.pack("<HI", {384: 1, 584: 2, 648: 3}[len(body)], len(body))
        signed, auth = header + body, bytes(range(32))
        bound = hashlib.sha256(point(self.attestation_key) + auth).digest() if self.bind else bytes(32)
        qe_report = enclave_report(
            **{"attributes": 0x15, "mrsigner": TD_QE_SIGNER if self.tdx else QE_SIGNER, "prodid": 2 if self.tdx else 1}
            | self.qe,
            report_data=bound + bytes(32),
        )
        certificates = self.pck.pem + self.ca.pem + self.root.pem
        inner = qe_report + raw(self.pck.key, qe_report) + struct.pack("<H", len(auth)) + auth
        inner += struct.pack("<HI", 5, len(certificates)) + certificates
        if self.version >= 4:
            inner = struct.pack("<HI", 6, len(inner)) + inner
        section = raw(self.attestation_key, signed) + point(self.attestation_key) + inner
        return signed + struct.pack("<I", len(section)) + section

    def tcb_info(self) -> dict:
        """What the TCB signing key signs about the platform."""
        level = {"sgxtcbcomponents": [{"svn": self.level_svn}] * 16, "pcesvn": 11}
        if self.tdx:
            level["tdxtcbcomponents"] = [{"svn": n} for n in (*self.tdx_level, *(0,) * 16)[:16]]
        info = {
            "id": "TDX" if self.tdx else "SGX", "version": 3, "issueDate": stamp(self.issued),
            "nextUpdate": stamp(self.issued + self.life), "fmspc": (self.info_fmspc or self.fmspc).hex().upper(),
            "pceId": "0000", "tcbType": 0, "tcbEvaluationDataNumber": self.evaluation,
            "tcbLevels": [{"tcb": level, "tcbDate": "2026-01-01T00:00:00Z", "tcbStatus": self.status,
                           "advisoryIDs": list(self.advisories)}],
        }  # fmt: skip
        if self.tdx:
            module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "ff" * 8} | self.module
            info["tdxModule"] = module
            info["tdxModuleIdentities"] = [
                {
                    "id": "TDX_01",
                    **module,
                    "tcbLevels": [{"tcb": {"isvsvn": 5}, "tcbDate": "2026-01-01T00:00:00Z", "tcbStatus": "UpToDate"}],
                }
            ]
        return info

    def qe_identity(self) -> dict:
        """What it signs about the quoting enclave."""
        return {
            "id": "TD_QE" if self.tdx else "QE", "version": 2, "issueDate": stamp(self.issued),
            "nextUpdate": stamp(self.issued + self.life), "tcbEvaluationDataNumber": self.qe_evaluation,
            "miscselect": "00000000", "miscselectMask": "FFFFFFFF", "attributes": "11" + "00" * 15,
            "attributesMask": "FB" + "FF" * 7 + "00" * 8,
            "mrsigner": (TD_QE_SIGNER if self.tdx else QE_SIGNER).hex().upper(), "isvprodid": 2 if self.tdx else 1,
            "tcbLevels": [{"tcb": {"isvsvn": 8}, "tcbDate": "2026-01-01T00:00:00Z", "tcbStatus": "UpToDate"}],
        }  # fmt: skip

    def collateral(self, **changes: object) -> bytes:
        """The JSON; `changes` replace members, or with ... leave them out."""
        info, identity = json.dumps(self.tcb_info()), json.dumps(self.qe_identity())
        root_revoked = [
            one for one, wanted in ((self.ca, self.revoke_ca), (self.signing, self.revoke_signer)) if wanted
        ]
        members = {
            "pck_crl_issuer_chain": (self.ca.pem + self.root.pem).decode(),
            "root_ca_crl": crl(self.root, *root_revoked, days=400).hex(),
            "pck_crl": crl(self.ca, *([self.pck] if self.revoke_pck else []), start=self.crl_start).hex(),
            "tcb_info_issuer_chain": (self.signing.pem + self.root.pem).decode(),
            "tcb_info": info,
            "tcb_info_signature": raw(self.signing.key, info.encode()).hex(),
            "qe_identity_issuer_chain": (self.signing.pem + self.root.pem).decode(),
            "qe_identity": identity,
            "qe_identity_signature": raw(self.signing.key, identity.encode()).hex(),
        } | changes
        return json.dumps({name: value for name, value in members.items() if value is not ...}).encode()

    def but(self, **changes: object) -> World:
        """The same with another detail."""
        return replace(self, **changes)


def stamp(at: datetime) -> str:
    """As Intel writes times."""
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


def verify(
    name: str, evidence: bytes, *items: Item, anchors: tuple[Anchor, ...] | None = None, now: datetime = NOW
) -> Claims:
    """Format.verify under anchors, with every planned check done."""
    form, checklist = registry.get(name), Checklist()
    checklist.plan(form.checks)
    context = Context(
        now=now, checklist=checklist, max_age=timedelta(minutes=5), max_skew=timedelta(minutes=1),
        anchors={} if anchors is None else {name: anchors}, collateral=Collateral(items),
    )  # fmt: skip
    claims = form.verify(evidence, context)
    assert checklist.complete()
    return claims


def claims(
    world: World, *more: Item, evidence: bytes | None = None, collateral: bytes | None = None, now: datetime = NOW
) -> Claims:
    """The claims of a world's quote with its collateral."""
    item = Item("intel-collateral", world.collateral() if collateral is None else collateral)
    return verify(
        "tdx" if world.tdx else "sgx", world.quote if evidence is None else evidence, item, *more,
        anchors=(world.anchor,), now=now,
    )  # fmt: skip


def refusal(world: World, *more: Item, **options: object) -> CloisterError | None:
    """The error, None if it is accepted."""
    try:
        claims(world, *more, **options)
    except CloisterError as error:
        return error
    return None
