"""A SIMULATED Intel: certificates, revocation lists, TCB info and QE identity as Intel's PCS has them, and quotes.

Everything is made in software under a root that calls itself SIMULATED. The shapes are those of "Intel SGX PCK
Certificate and CRL Profile Specification" and the Intel Provisioning Certification Service's API, version 4.
"""

from __future__ import annotations

import hashlib
import json
import struct
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from cloister.tee.sim.root import Issued
from cloister.trust.dcap.quote import INTEL

ROOT_NAME = "cloister SIMULATED Intel SGX Root CA - NOT A TEE"
FMSPC, PPID = bytes.fromhex("00906ed50000"), bytes(range(16))
SGX_EXTENSION = "1.2.840.113741.1.13.1"
TD_QE_SIGNER, QE_SIGNER = bytes.fromhex("dc9e2a7c" * 8), bytes.fromhex("8c4f5775" * 8)
PCE_SVN = 11
#: TEE TCB SVN of the platform: the TDX module's SVN, its major version, the loader's SVN; and the level that fits it.
TDX_SVN, TDX_LEVEL = (5, 1, 2), (5, 0, 2)
SEPT_VE_DISABLE = 1 << 28
XFAM = 0x602E7
TCB_DATE = "2026-01-01T00:00:00Z"
#: What the quoting enclave adds to the hash of its key: any 32 bytes.
QE_AUTH = bytes(range(32))


def issue(
    name: str,
    issuer: Issued | None,
    *,
    ca: bool,
    start: datetime,
    days: int = 3650,
    extension: bytes | None = None,
) -> Issued:
    """A certificate shaped as Intel's are, for a new P-256 key; `extension` is the SGX part of a PCK's, DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "SIMULATED")]
    )
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
            x509.KeyUsage(
                digital_signature=not ca, content_commitment=not ca, key_encipherment=False, data_encipherment=False,
                key_agreement=False, key_cert_sign=ca, crl_sign=ca, encipher_only=False, decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False)
    )  # fmt: skip
    if extension is not None:
        builder = builder.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(SGX_EXTENSION), extension), critical=False
        )
    return Issued(builder.sign(signing_key, hashes.SHA256()), key)


def crl(issuer: Issued, *revoked: Issued, start: datetime, days: int = 30) -> bytes:
    """A revocation list of `issuer`, DER."""
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


def pck_extension(*, svn: int, fmspc: bytes = FMSPC) -> bytes:
    """The SGX part of a PCK certificate (DER): every component of the CPU's TCB at `svn`."""
    tcb = b"".join(_entry(f"2.{number}", _integer(svn)) for number in range(1, 17))
    tcb += _entry("2.17", _integer(PCE_SVN)) + _entry("2.18", _der(4, bytes([svn] * 16)))
    configuration = b"".join(_entry(f"7.{number}", _der(1, b"\xff")) for number in (1, 2, 3))
    return _der(
        0x30,
        b"".join(
            (
                _entry("1", _der(4, PPID)), _entry("2", _der(0x30, tcb)), _entry("3", _der(4, bytes(2))),
                _entry("4", _der(4, fmspc)), _entry("5", _der(10, b"\x01")), _entry("6", _der(4, bytes(16))),
                _entry("7", _der(0x30, configuration)),
            )
        ),
    )  # fmt: skip


def enclave_report(
    *, attributes: int = 0x05, xfrm: int = 0xE7, misc: int = 0, mrenclave: bytes = b"\x0e" * 32,
    mrsigner: bytes = b"\x05" * 32, configid: bytes = bytes(64), prodid: int = 1, svn: int = 8, configsvn: int = 0,
    report_data: bytes = bytes(64), cpusvn: bytes = b"\x02" * 16,
) -> bytes:  # fmt: skip
    """The 384 bytes of an SGX report."""
    return (
        cpusvn + struct.pack("<I", misc) + bytes(28) + struct.pack("<QQ", attributes, xfrm) + mrenclave + bytes(32)
        + mrsigner + bytes(32) + configid + struct.pack("<HHH", prodid, svn, configsvn) + bytes(58) + report_data
    )  # fmt: skip


def td_report(
    *, tcb_svn: bytes = bytes([*TDX_SVN]) + bytes(13), seam: bytes = b"\x5e" * 48, signer: bytes = bytes(48),
    seam_attributes: bytes = bytes(8), attributes: int = SEPT_VE_DISABLE, xfam: int = XFAM,
    mrtd: bytes = b"\x0d" * 48, configid: bytes = bytes(48), owner: bytes = bytes(48), ownerconfig: bytes = bytes(48),
    rtmrs: tuple[bytes, ...] = (b"\xa0" * 48, b"\xa1" * 48, b"\xa2" * 48, bytes(48)), report_data: bytes = bytes(64),
    newer: bool = False, svn2: bytes = bytes([*TDX_SVN]) + bytes(13), service: bytes = bytes(48),
) -> bytes:  # fmt: skip
    """The 584 or, if `newer`, 648 bytes of a TD report."""
    body = (
        tcb_svn + seam + signer + seam_attributes + struct.pack("<QQ", attributes, xfam) + mrtd + configid + owner
        + ownerconfig + b"".join(rtmrs) + report_data
    )  # fmt: skip
    return body + (svn2 + service if newer else b"")


def sign_quote(
    signed: bytes,
    *,
    attestation_key: ec.EllipticCurvePrivateKey,
    pck: Issued,
    chain: bytes,
    qe_report: bytes | None = None,
    version: int = 4,
) -> bytes:
    """A whole quote over header and body; `chain` is the PCK certificate chain in PEM.

    Without a `qe_report` the TD quoting enclave vouches for the attestation key, as it has to.
    """
    report = td_qe_report(attestation_key) if qe_report is None else qe_report
    inner = report + raw(pck.key, report) + struct.pack("<H", len(QE_AUTH)) + QE_AUTH
    inner += struct.pack("<HI", 5, len(chain)) + chain
    if version >= 4:
        inner = struct.pack("<HI", 6, len(inner)) + inner
    section = raw(attestation_key, signed) + point(attestation_key) + inner
    return signed + struct.pack("<I", len(section)) + section


def bound(attestation_key: ec.EllipticCurvePrivateKey) -> bytes:
    """The 64 bytes with which a quoting enclave vouches for its attestation key."""
    return hashlib.sha256(point(attestation_key) + QE_AUTH).digest() + bytes(32)


def td_qe_report(attestation_key: ec.EllipticCurvePrivateKey) -> bytes:
    """The report of the TD quoting enclave."""
    return enclave_report(attributes=0x15, mrsigner=TD_QE_SIGNER, prodid=2, report_data=bound(attestation_key))


def header(*, tdx: bool, version: int = 4, body: int = 584) -> bytes:
    """The header of a quote; version 5 also names the size of its body."""
    head = struct.pack("<HHIHH", version, 2, 0x81 if tdx else 0, 8, PCE_SVN) + INTEL + bytes(20)
    return head + (struct.pack("<HI", {384: 1, 584: 2, 648: 3}[body], body) if version == 5 else b"")


def tcb_info(
    *, tdx: bool, issued: datetime, life: timedelta, fmspc: bytes = FMSPC, svn: int = 2,
    tdx_level: tuple[int, ...] = TDX_LEVEL, status: str = "UpToDate", advisories: tuple[str, ...] = (),
    evaluation: int = 17, module: dict[str, object] | None = None,
) -> dict[str, object]:  # fmt: skip
    """What the TCB signing key signs about a platform: one level."""
    level: dict[str, object] = {"sgxtcbcomponents": [{"svn": svn}] * 16, "pcesvn": PCE_SVN}
    if tdx:
        level["tdxtcbcomponents"] = [{"svn": number} for number in (*tdx_level, *(0,) * 16)[:16]]
    info: dict[str, object] = {
        "id": "TDX" if tdx else "SGX", "version": 3, "issueDate": stamp(issued), "nextUpdate": stamp(issued + life),
        "fmspc": fmspc.hex().upper(), "pceId": "0000", "tcbType": 0, "tcbEvaluationDataNumber": evaluation,
        "tcbLevels": [{"tcb": level, "tcbDate": TCB_DATE, "tcbStatus": status, "advisoryIDs": list(advisories)}],
    }  # fmt: skip
    if tdx:
        known = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "ff" * 8, **(module or {})}
        levels = [{"tcb": {"isvsvn": TDX_SVN[0]}, "tcbDate": TCB_DATE, "tcbStatus": "UpToDate"}]
        info["tdxModule"] = known
        info["tdxModuleIdentities"] = [{"id": f"TDX_{TDX_SVN[1]:02x}", **known, "tcbLevels": levels}]
    return info


def qe_identity(*, tdx: bool, issued: datetime, life: timedelta, evaluation: int = 17) -> dict[str, object]:
    """What it signs about the quoting enclave."""
    return {
        "id": "TD_QE" if tdx else "QE", "version": 2, "issueDate": stamp(issued), "nextUpdate": stamp(issued + life),
        "tcbEvaluationDataNumber": evaluation, "miscselect": "00000000", "miscselectMask": "FFFFFFFF",
        "attributes": "11" + "00" * 15, "attributesMask": "FB" + "FF" * 7 + "00" * 8,
        "mrsigner": (TD_QE_SIGNER if tdx else QE_SIGNER).hex().upper(), "isvprodid": 2 if tdx else 1,
        "tcbLevels": [{"tcb": {"isvsvn": 8}, "tcbDate": TCB_DATE, "tcbStatus": "UpToDate"}],
    }  # fmt: skip


def collateral(
    info: dict[str, object],
    identity: dict[str, object],
    *,
    signing: Issued,
    ca: Issued,
    root: Issued,
    root_crl: bytes,
    pck_crl: bytes,
) -> dict[str, str]:
    """The members of an item of `intel-collateral` (trust/dcap/collateral.py), signed by `signing`."""
    texts = {"tcb_info": json.dumps(info), "qe_identity": json.dumps(identity)}
    members = {
        "pck_crl_issuer_chain": pem(ca) + pem(root),
        "root_ca_crl": root_crl.hex(),
        "pck_crl": pck_crl.hex(),
    }
    for name, text in texts.items():
        members |= {
            name: text,
            f"{name}_signature": raw(signing.key, text.encode()).hex(),
            f"{name}_issuer_chain": pem(signing) + pem(root),
        }
    return members


def raw(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """An ECDSA signature over SHA-256 as r ‖ s, 32 bytes each."""
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def point(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public key as x ‖ y."""
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def pem(issued: Issued) -> str:
    """The certificate as PEM."""
    return issued.certificate.public_bytes(Encoding.PEM).decode("ascii")


def stamp(at: datetime) -> str:
    """As Intel writes times."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag]) + (bytes([size]) if size < 128 else bytes([0x80 | len(octets)]) + octets) + content


def _oid(text: str) -> bytes:
    first, second, *rest = map(int, text.split("."))
    out = bytes([first * 40 + second])
    for number in rest:
        groups, left = [number & 0x7F], number >> 7
        while left:
            groups.append(left & 0x7F | 0x80)
            left >>= 7
        out += bytes(reversed(groups))
    return _der(6, out)


def _entry(suffix: str, value: bytes) -> bytes:
    return _der(0x30, _oid(f"{SGX_EXTENSION}.{suffix}") + value)


def _integer(value: int) -> bytes:
    return _der(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))
