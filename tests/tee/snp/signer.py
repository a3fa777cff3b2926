"""A stand-in for AMD: an ARK, ASKs and ASVKs of our own, endorsement keys under them, and reports that these sign.

Certificates have AMD's shape: RSASSA-PSS with SHA-384, serial number 0, AMD's extensions, no key usage on the leaf.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from cloister.tee import registry
from cloister.tee.checks import Checklist
from cloister.tee.claims import Claims
from cloister.tee.context import Context
from cloister.trust.anchors import Anchor
from cloister.trust.collateral import Collateral, Item

NOW = datetime(2026, 6, 1, tzinfo=UTC)
FORMAT = registry.get("snp")
AMD = "1.3.6.1.4.1.3704.1."
FAMILY = {"Milan": (0x19, 0x01, 1), "Genoa": (0x19, 0x11, 1), "Turin": (0x1A, 0x02, 1)}
CHIP = {"Milan": b"\x5a" * 64, "Genoa": b"\x5b" * 64, "Turin": b"\x5c" * 8}
CSP = b"\x16\x0eCN=a.cloud.org"
#: fmc, bootloader, tee, snp, microcode
TCB = (0, 10, 1, 23, 84)

FIELDS = {
    "version": (0x00, 4), "guest_svn": (0x04, 4), "policy": (0x08, 8), "family_id": (0x10, 16), "image_id": (0x20, 16),
    "vmpl": (0x30, 4), "signature_algo": (0x34, 4), "current_tcb": (0x38, 8), "platform_info": (0x40, 8),
    "flags": (0x48, 4), "report_data": (0x50, 64), "measurement": (0x90, 48), "host_data": (0xC0, 32),
    "id_key_digest": (0xE0, 48), "author_key_digest": (0x110, 48), "report_id": (0x140, 32),
    "report_id_ma": (0x160, 32), "reported_tcb": (0x180, 8), "family": (0x188, 1), "model": (0x189, 1),
    "stepping": (0x18A, 1), "chip_id": (0x1A0, 64), "committed_tcb": (0x1E0, 8), "current": (0x1E8, 3),
    "committed": (0x1EC, 3), "launch_tcb": (0x1F0, 8), "launch_mitigations": (0x1F8, 8),
    "current_mitigations": (0x200, 8),
}  # fmt: skip


def tcb_bytes(product: str, parts: Sequence[int] = TCB) -> bytes:
    """TCB_VERSION in the product's layout."""
    fmc, bootloader, tee, snp, microcode = parts
    if product == "Turin":
        return bytes((fmc, bootloader, tee, snp, 0, 0, 0, microcode))
    return bytes((bootloader, tee, 0, 0, 0, 0, snp, microcode))


def integer(value: int) -> bytes:
    """DER INTEGER."""
    raw = value.to_bytes(value.bit_length() // 8 + 1, "big")
    return bytes((2, len(raw))) + raw


def extensions(
    product: str, *, vlek: bool = False, tcb: Sequence[int] = TCB, **changes: bytes | None
) -> dict[str, bytes]:
    """AMD's extensions of an endorsement key; `changes` maps the last part of an OID (`x4`, `x3_8`) to bytes or None."""
    fmc, bootloader, tee, snp, microcode = tcb
    name = f"{product}-B0".encode()
    found = {"1": integer(product == "Turin"), "2": bytes((0x16, len(name))) + name}
    found |= {f"3.{part}": integer(0) for part in (4, 5, 6, 7)}
    found |= {"3.1": integer(bootloader), "3.2": integer(tee), "3.3": integer(snp), "3.8": integer(microcode)}
    if product == "Turin":
        found["3.9"] = integer(fmc)
    found |= {"5": CSP} if vlek else {"4": CHIP[product]}
    for key, value in changes.items():
        part = key[1:].replace("_", ".")
        found.pop(part, None)
        if value is not None:
            found[part] = value
    return found


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes((size,)) if size < 0x80 else bytes((0x82,)) + size.to_bytes(2, "big")
    return bytes((tag,)) + length + content


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "Engineering"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Advanced Micro Devices"),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


@cache
def _rsa(name: str) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@cache
def leaf_key(name: str = "chip") -> ec.EllipticCurvePrivateKey:
    """The endorsement key of that name."""
    return ec.generate_private_key(ec.SECP384R1())


def certificate(
    subject: str,
    issuer: str,
    public_key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    *,
    signer: str | None = None,
    ca: bool = False,
    serial: int = 0,
    start: datetime = NOW - timedelta(days=100),
    end: datetime = NOW + timedelta(days=100),
    amd: Mapping[str, bytes] | None = None,
    also: Iterable[tuple[x509.ExtensionType, bool]] = (),
    digest: HashAlgorithm | None = None,
    pss: bool = True,
) -> bytes:
    """DER, signed by the RSA key called `signer` (the issuer's name if not given)."""
    builder = x509.CertificateBuilder().subject_name(_name(subject)).issuer_name(_name(issuer)).public_key(public_key)
    builder = builder.serial_number(serial or 1).not_valid_before(start).not_valid_after(end)
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(
            x509.KeyUsage(
                digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
                key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
            ),
            critical=True,
        )  # fmt: skip
    for part, value in (amd or {}).items():
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(AMD + part), value), False)
    for extension, critical in also:
        builder = builder.add_extension(extension, critical)
    key, digest = _rsa(signer or issuer), digest or SHA384()
    scheme = padding.PSS(padding.MGF1(digest), digest.digest_size) if pss else padding.PKCS1v15()
    made = builder.sign(key, digest, rsa_padding=scheme)
    if serial:
        return made.public_bytes(Encoding.DER)
    # The builder refuses the serial number 0 that AMD uses: write it and sign again.
    body, one = made.tbs_certificate_bytes, bytes.fromhex("a003020102020101")
    assert body.count(one) == 1
    body = body.replace(one, one[:-1] + b"\x00")
    whole = made.public_bytes(Encoding.DER)
    algorithm = whole[4 + len(body) : len(whole) - 4 - len(made.signature) - 1]
    signature = key.sign(body, scheme, digest)
    return _der(0x30, body + algorithm + _der(0x03, b"\x00" + signature))


def root(product: str, name: str | None = None) -> Anchor:
    """The ARK of a product as an anchor."""
    name = name or f"ARK-{product}"
    der = _root(name)
    return Anchor(
        subject=_name(f"ARK-{product}").rfc4514_string(),
        spki=_rsa(name).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        not_before=NOW - timedelta(days=100),
        not_after=NOW + timedelta(days=100),
        sha256=hashlib.sha256(der).hexdigest(),
        origin="made for a test",
    )


@cache
def _root(name: str) -> bytes:
    return certificate(name, name, _rsa(name).public_key(), ca=True, serial=0x10000)


def intermediate(product: str, *, vlek: bool = False, **changes: object) -> bytes:
    """The ASK or ASVK; `changes` go to `certificate`."""
    name = f"SEV-VLEK-{product}" if vlek else f"SEV-{product}"
    options: dict = {"ca": True, "serial": 0x10101 if vlek else 0x10001} | changes
    return certificate(name, f"ARK-{product}", _rsa(name).public_key(), **options)


def endorsement(product: str, *, vlek: bool = False, key: str = "chip", **changes: object) -> bytes:
    """The VCEK or VLEK certificate; `changes` go to `certificate`."""
    name, issuer = ("SEV-VLEK", f"SEV-VLEK-{product}") if vlek else ("SEV-VCEK", f"SEV-{product}")
    options: dict = {"amd": extensions(product, vlek=vlek), "subject": name, "issuer": issuer} | changes
    return certificate(public_key=options.pop("public_key", leaf_key(key).public_key()), **options)


def revocations(
    product: str,
    serials: Sequence[int] = (),
    *,
    start: datetime = NOW - timedelta(days=30),
    end: datetime = NOW + timedelta(days=30),
    signer: str | None = None,
) -> bytes:
    """The ARK's list. Serial number 0 cannot be built, so a list names a VLEK by a positive one."""
    builder = x509.CertificateRevocationListBuilder().issuer_name(_name(f"ARK-{product}"))
    builder = builder.last_update(start).next_update(end)
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(start)
        builder = builder.add_revoked_certificate(entry.build())
    made = builder.sign(_rsa(signer or f"ARK-{product}"), SHA384(), rsa_padding=padding.PSS(padding.MGF1(SHA384()), 48))
    return made.public_bytes(Encoding.DER)


def unsigned(product: str = "Genoa", version: int = 5, *, vlek: bool = False, **changes: int | bytes) -> bytearray:
    """A report without its signature; `changes` are fields by name."""
    tcb = tcb_bytes(product)
    family, model, stepping = FAMILY[product] if version >= 3 else (0, 0, 0)
    fields: dict[str, int | bytes] = {
        "version": version, "policy": 0x3001F, "signature_algo": 1, "platform_info": 0x25, "flags": int(vlek) << 2,
        "report_data": b"\x11" * 64, "measurement": b"\x22" * 48, "host_data": b"\x33" * 32,
        "id_key_digest": b"\x44" * 48, "author_key_digest": b"\x55" * 48, "report_id": b"\x66" * 32,
        "report_id_ma": b"\xff" * 32, "reported_tcb": tcb, "current_tcb": tcb, "committed_tcb": tcb, "launch_tcb": tcb,
        "family": family, "model": model, "stepping": stepping, "chip_id": CHIP[product].ljust(64, b"\x00"),
        "current": b"\x28\x37\x01", "committed": b"\x28\x37\x01",
    }  # fmt: skip
    if version >= 5:
        fields |= {"launch_mitigations": 3, "current_mitigations": 7}
    report = bytearray(1184)
    for name, value in {**fields, **changes}.items():
        offset, size = FIELDS[name]
        raw = value.to_bytes(size, "little") if isinstance(value, int) else value
        assert len(raw) == size
        report[offset : offset + size] = raw
    return report


def sign(report: bytes | bytearray, key: str = "chip") -> bytes:
    """The report with the signature of that key over its first 0x2A0 bytes."""
    body = bytes(report[:0x2A0])
    r, s = decode_dss_signature(leaf_key(key).sign(body, ec.ECDSA(SHA384())))
    return body + r.to_bytes(72, "little") + s.to_bytes(72, "little") + bytes(368)


def report(product: str = "Genoa", version: int = 5, *, key: str = "chip", **changes: int | bytes | bool) -> bytes:
    """A signed report."""
    return sign(unsigned(product, version, **changes), key)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a verifier is given beside the report."""

    items: tuple[Item, ...]
    anchors: tuple[Anchor, ...] | None
    now: datetime = NOW

    def context(self) -> Context:
        """With the format's checks planned."""
        checklist = Checklist()
        checklist.plan(FORMAT.checks)
        return Context(
            now=self.now,
            checklist=checklist,
            max_age=timedelta(minutes=5),
            max_skew=timedelta(minutes=1),
            anchors={} if self.anchors is None else {"snp": self.anchors},
            collateral=Collateral(self.items),
        )

    def verify(self, evidence: bytes) -> Claims:
        """Through the format; every planned check must have passed."""
        context = self.context()
        claims = FORMAT.verify(evidence, context)
        assert context.checklist.complete()
        return claims


def items(**kinds: bytes) -> tuple[Item, ...]:
    """Collateral by the last word of its kind: `vcek`, `ask`, `crl`; a trailing digit tells several apart."""
    return tuple(Item(kind=f"amd-{kind.rstrip('0123456789')}", data=data) for kind, data in kinds.items())


def setting(
    product: str = "Genoa", *, vlek: bool = False, now: datetime = NOW, crl: bytes | None = None, **changes: bytes
) -> Setting:
    """Everything good for `report(product, vlek=vlek)`, with certificates replaced by `changes` (`vcek`, `ask`)."""
    parts = {"vcek": endorsement(product, vlek=vlek), "ask": intermediate(product, vlek=vlek)} | changes
    if crl is not None:
        parts["crl"] = crl
    return Setting(items=items(**parts), anchors=(root(product),), now=now)
