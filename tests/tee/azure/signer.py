"""An Azure of our own: hosts of AMD's and Intel's stand-ins, paravisor reports, a vTPM with its CA, event logs, tokens."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache, cached_property

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from tests.tee.azure import common
from tests.tee.dcap import signer as intel
from tests.tee.snp import signer as amd

from cloister.tee.azure.evidence import TpmQuote, pack
from cloister.tee.claims import Claims
from cloister.trust.anchors import Anchor
from cloister.trust.collateral import Item
from cloister.wire.strict_json import encode_base64url

NOW = amd.NOW
BINDING = b"B" * 32
PCRS = {index: bytes(32) for index in range(24)} | {index: bytes([index + 1]) * 32 for index in (0, 4, 7, 9, 12, 14)}
VM = {
    "secure-boot": True,
    "tpm-enabled": True,
    "console-enabled": True,
    "vmUniqueId": "26F8BC30-774E-4290-8E7A-535F3B672AEE",
}
ISSUER = "https://ours.eus.attest.azure.net"


@cache
def key(name: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    """The RSA key of that name."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def jwk(of: rsa.RSAPrivateKey, kid: str, **more: object) -> dict:
    """A public key as JWK."""
    numbers = of.public_key().public_numbers()
    n = numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8, "big")
    return {"kid": kid, "kty": "RSA", "e": "AQAB", "n": encode_base64url(n), **more}


def runtime_data(*, ak: str = "ak", user_data: bytes | None = bytes(64), **vm: object) -> bytes:
    """The JSON of the paravisor; `vm` changes members of the configuration (`...` leaves one out)."""
    config = {
        name: value
        for name, value in (VM | {k.replace("_", "-"): v for k, v in vm.items()}).items()
        if value is not ...
    }
    members: dict = {"keys": [jwk(key(ak), "HCLAkPub"), jwk(key("ek"), "HCLEkPub")], "vm-configuration": config}
    if user_data is not None:
        members["user-data"] = user_data.hex().upper()
    return json.dumps(members).encode()


HASHES = {1: hashlib.sha256, 2: hashlib.sha384, 3: hashlib.sha512}


def hcl(hardware: bytes, data: bytes, *, kind: int, version: int = 2, hash_type: int = 1, size: int = 2600) -> bytes:
    """The blob around a hardware report and runtime data, zero padded to `size`."""
    end = 0x4D4 + len(data)
    head = b"HCLA" + struct.pack("<III", version, end, 2) + bytes(16)
    block = struct.pack("<5I", len(data) + 20, 1, kind, hash_type, len(data))
    return (head + hardware.ljust(0x4A0, b"\x00") + block + data).ljust(size, b"\x00")


def td_report(report_data: bytes) -> bytes:
    """A TDREPORT, whose MAC nobody outside the machine can check."""
    return (b"\x81\x00\x00\x00" + bytes(124) + report_data).ljust(1024, b"\x00")


def message(
    extra: bytes = BINDING, pcrs: dict[int, bytes] = PCRS, *, magic: int = 0xFF544347, kind: int = 0x8018,
    bank: int = 0x000B, digest: bytes | None = None, banks: int = 1,
) -> bytes:  # fmt: skip
    """A TPMS_ATTEST of those PCRs."""
    mask = sum(1 << index for index in pcrs).to_bytes(3, "little")
    if digest is None:
        digest = hashlib.sha256(b"".join(pcrs[index] for index in sorted(pcrs))).digest()
    signer = b"\x00\x0b" + bytes(32)
    return (
        struct.pack(">IHH", magic, kind, len(signer)) + signer + struct.pack(">H", len(extra)) + extra
        + struct.pack(">QIIBQ", 1000, 3, 1, 1, 0x2020) + struct.pack(">I", banks)
        + (struct.pack(">HB", bank, 3) + mask) * banks + struct.pack(">H", len(digest)) + digest
    )  # fmt: skip


def sign(data: bytes, ak: str = "ak", digest: HashAlgorithm | None = None, *, pss: bool = False) -> bytes:
    """RSASSA-PKCS1-v1_5 with SHA-256, unless told otherwise."""
    digest = digest or SHA256()
    scheme = padding.PSS(padding.MGF1(digest), 32) if pss else padding.PKCS1v15()
    return key(ak).sign(data, scheme, digest)


def quote(extra: bytes = BINDING, pcrs: dict[int, bytes] = PCRS, *, ak: str = "ak", **changes: object) -> TpmQuote:
    """A signed quote; `changes` go to `message`."""
    data = message(extra, pcrs, **changes)
    return TpmQuote(message=data, signature=sign(data, ak), pcrs=pcrs)


@dataclass(frozen=True, kw_only=True)
class Vm:
    """One VM and its host. `replace` one field to make one mistake."""

    tdx: bool = False
    data: bytes = field(default_factory=runtime_data)
    hash_type: int = 1
    version: int = 2
    report_data: bytes | None = None
    quote: TpmQuote | None = field(default_factory=quote)
    report: dict = field(default_factory=dict)

    @property
    def digest(self) -> bytes:
        """What the hardware signs."""
        return self.report_data or HASHES[self.hash_type](self.data).digest().ljust(64, b"\x00")

    @cached_property
    def world(self) -> intel.World:
        """Intel's side, shared by all VMs but for the quote."""
        td = intel.td_report(report_data=self.digest, rtmrs=(bytes(48),) * 4, **self.report)
        world = _world().but(body=td)
        for name in ("root", "ca", "signing", "pck", "attestation_key"):
            world.__dict__[name] = getattr(_world(), name)
        return world

    @property
    def blob(self) -> bytes:
        """The HCL report."""
        report = td_report(self.digest) if self.tdx else amd.report(report_data=self.digest, **self.report)
        return hcl(report, self.data, kind=4 if self.tdx else 2, version=self.version, hash_type=self.hash_type)

    def evidence(self) -> bytes:
        """The envelope."""
        return pack(hcl_report=self.blob, tpm_quote=self.quote, td_quote=self.world.quote if self.tdx else None)

    def items(self) -> list[Item]:
        """The hardware's collateral."""
        return [Item("intel-collateral", _collateral())] if self.tdx else list(amd.setting("Genoa").items)

    def anchors(self) -> dict:
        """Of the hardware and of the vTPM."""
        return {"snp": (amd.root("Genoa"),), "tdx": (_world().anchor,), "azure-vtpm": (anchor("root"),)}

    def verify(self, *more: Item, evidence: bytes | None = None, now: datetime = NOW) -> Claims:
        """Through the format."""
        data = self.evidence() if evidence is None else evidence
        return common.verify("azure-vtpm", data, *self.items(), *more, anchors=self.anchors(), now=now)

    def but(self, **changes: object) -> Vm:
        """The same with another detail."""
        return replace(self, **changes)


@cache
def _world() -> intel.World:
    return intel.World(tdx=True)


@cache
def _collateral() -> bytes:
    return _world().collateral()


# The CA of the vTPMs


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def certificate(
    subject: str, issuer: str, *, ca: bool = True, signer: str | None = None, public: str | None = None,
    start: datetime = NOW - timedelta(days=10), end: datetime = NOW + timedelta(days=300),
    digest: HashAlgorithm | None = None, path_length: int | None = None,
) -> bytes:  # fmt: skip
    """DER; `signer` and `public` name keys, else the issuer's and subject's names do."""
    builder = x509.CertificateBuilder().subject_name(_name(subject)).issuer_name(_name(issuer))
    builder = builder.public_key(key(public or subject).public_key()).serial_number(7)
    builder = builder.not_valid_before(start).not_valid_after(end)
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    builder = builder.add_extension(
        x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, **usage), critical=True
    )
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    return builder.sign(key(signer or issuer), digest or SHA384()).public_bytes(Encoding.DER)


def anchor(name: str) -> Anchor:
    """Our root of vTPMs."""
    der = certificate(name, name)
    return Anchor(
        subject=_name(name).rfc4514_string(),
        spki=key(name).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        not_before=NOW - timedelta(days=10), not_after=NOW + timedelta(days=300),
        sha256=hashlib.sha256(der).hexdigest(), origin="this test",
    )  # fmt: skip


def ak_certificate(**changes: object) -> bytes:
    """Of the attestation key, under our intermediate."""
    options: dict = {"ca": False, "public": "ak", "digest": SHA256()} | changes
    return certificate("vm.ConfidentialVM", options.pop("issuer", "intermediate"), **options)


def intermediate(**changes: object) -> bytes:
    """Between the attestation key's certificate and our root."""
    return certificate("intermediate", "root", **{"path_length": 0, **changes})


def ak_items(*ders: bytes) -> list[Item]:
    """As collateral."""
    return [Item("azure-ak", der) for der in ders or (ak_certificate(), intermediate())]


# Event logs


def event_log(events: list[tuple[int, bytes]]) -> bytes:
    """A crypto-agile log with SHA-256 digests of (PCR, data)."""
    spec = b"Spec ID Event03\x00" + struct.pack("<IBBBB", 0, 0, 2, 0, 2) + struct.pack("<IHH", 1, 0x000B, 32) + b"\x00"
    log = struct.pack("<II", 0, 3) + bytes(20) + struct.pack("<I", len(spec)) + spec
    for index, data in events:
        log += struct.pack("<IIIH", index, 0x0D, 1, 0x000B) + hashlib.sha256(data).digest()
        log += struct.pack("<I", len(data)) + data
    return log


def extended(*data: bytes) -> bytes:
    """A PCR after those events."""
    value = bytes(32)
    for each in data:
        value = hashlib.sha256(value + hashlib.sha256(each).digest()).digest()
    return value


# Azure Attestation

SNP_CLAIMS: dict = {
    "x-ms-attestation-type": "sevsnpvm", "x-ms-compliance-status": "azure-compliant-cvm",
    "x-ms-sevsnpvm-launchmeasurement": "6a" * 48, "x-ms-sevsnpvm-hostdata": "0b" * 32, "x-ms-sevsnpvm-idkeydigest": "1d" * 48,
    "x-ms-sevsnpvm-reportdata": "7e" * 32 + "00" * 32, "x-ms-sevsnpvm-bootloader-svn": 4, "x-ms-sevsnpvm-tee-svn": 0,
    "x-ms-sevsnpvm-snpfw-svn": 24, "x-ms-sevsnpvm-microcode-svn": 219, "x-ms-sevsnpvm-guestsvn": 10,
    "x-ms-sevsnpvm-vmpl": 0, "x-ms-sevsnpvm-migration-allowed": False, "x-ms-sevsnpvm-is-debuggable": False,
}  # fmt: skip
TDX_CLAIMS: dict = {
    "x-ms-attestation-type": "tdxvm", "x-ms-compliance-status": "azure-compliant-cvm", "attester_tcb_status": "UpToDate",
    "dbgstat": "disabled", "tdx_td_attributes_debug": False, "tdx_mrtd": "0d" * 48, "tdx_mrseam": "5e" * 48,
    **{f"tdx_rtmr{index}": "00" * 48 for index in range(4)}, "tdx_report_data": "7e" * 32 + "00" * 32,
    "tdx_tee_tcb_svn": "02010600" + "00" * 12,
}  # fmt: skip
RUNTIME = {"vm-configuration": VM, "user-data": "00" * 64, "keys": []}


def platform(part: dict = SNP_CLAIMS, **changes: object) -> dict:
    """Claims of a token about the platform alone; `changes` replace members by name with `_` for `-`."""
    now = int(NOW.timestamp())
    return but(
        {"iss": ISSUER, "iat": now, "nbf": now, "exp": now + 28800, "x-ms-policy-hash": "Q" * 43, **part}, changes
    )


def guest(part: dict = SNP_CLAIMS, nonce: str | None = None, **changes: object) -> dict:
    """Claims of a token for the guest attestation client."""
    payload = {"client-payload": {"nonce": nonce}} if nonce is not None else {}
    return but(
        platform(
            {
                "x-ms-attestation-type": "azurevm", "secureboot": True, "x-ms-azurevm-kerneldebug-enabled": False,
                "x-ms-runtime": {**payload, "keys": []}, "x-ms-isolation-tee": {**part, "x-ms-runtime": RUNTIME},
            }
        ),
        changes,
    )  # fmt: skip


def but(claims: dict, changes: dict) -> dict:
    """`...` leaves a member out."""
    return {name: value for name, value in (claims | changes).items() if value is not ...}


def encoded(value: object) -> bytes:
    """JSON in base64url."""
    return encode_base64url(json.dumps(value).encode()).encode()


def token(claims: dict, *, kid: str = "maa", by: str = "maa", **header: object) -> bytes:
    """Signed RS256."""
    head = {"alg": "RS256", "kid": kid, "typ": "JWT", "jku": f"{ISSUER}/certs", **header}
    signed = encoded(head) + b"." + encoded(claims)
    return signed + b"." + encode_base64url(key(by).sign(signed, padding.PKCS1v15(), SHA256())).encode()


def key_set(issuer: str = ISSUER, name: str = "maa", **more: object) -> Item:
    """The instance's keys, as its relying party fetched them."""
    return Item("jwks", json.dumps({"issuer": issuer, "keys": [jwk(key(name), "maa", **more)]}).encode())


def verify_token(data: bytes, *items: Item, now: datetime = NOW, max_age: timedelta = timedelta(hours=1)) -> Claims:
    """Through the format."""
    return common.verify("azure-maa", data, *(items or (key_set(),)), now=now, max_age=max_age)
