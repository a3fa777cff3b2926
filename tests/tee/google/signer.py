"""A Google of our own: tokens with any claims, a PKI for them, vTPMs with any registers and logs, endorsements."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from cloister.tee import registry
from cloister.tee.checks import Checklist
from cloister.tee.claims import Claims
from cloister.tee.context import Context
from cloister.trust.anchors import Anchor
from cloister.trust.collateral import Collateral, Item
from cloister.wire.strict_json import encode_base64url

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
ISSUER = "https://confidentialcomputing.googleapis.com"
KID = "test-key"
BINDING = b"B" * 32
DIGEST = "ab" * 32


# Certificates


@dataclass(frozen=True)
class Authority:
    """A certificate and its key."""

    key: rsa.RSAPrivateKey
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def b64(self) -> str:
        return base64.b64encode(self.der).decode()

    @property
    def anchor(self) -> Anchor:
        return Anchor(
            subject=self.certificate.subject.rfc4514_string(),
            spki=self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            not_before=self.certificate.not_valid_before_utc,
            not_after=self.certificate.not_valid_after_utc,
            sha256=hashlib.sha256(self.der).hexdigest(),
            origin="a test",
        )


@cache
def rsa_key(name: str) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def issue(
    name: str,
    issuer: Authority | None,
    *,
    ca: bool,
    start: datetime = NOW - timedelta(days=1),
    life: timedelta = timedelta(days=365),
    extension: bytes | None = None,
    pss: bool = False,
) -> Authority:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    key = rsa_key(f"{name} {issuer.certificate.subject if issuer else ''}")
    rest = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only")
    usage = dict.fromkeys((*rest, "decipher_only"), False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + life)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, **usage), critical=True)
    )
    if extension is not None:
        oid = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.1.21")
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, extension), critical=False)
    scheme = padding.PSS(padding.MGF1(SHA256()), 32) if pss else padding.PKCS1v15()
    made = builder.sign(issuer.key if issuer else key, SHA256(), rsa_padding=scheme)
    return Authority(key, made)


def der(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = (
        bytes((size,)) if size < 0x80 else bytes((0x81, size)) if size < 0x100 else b"\x82" + size.to_bytes(2, "big")
    )
    return bytes((tag,)) + length + content


def der_integer(value: int) -> bytes:
    return der(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def instance(
    *, zone: str = "us-west1-b", project: str = "project", name: str = "vm", production: bool | None = True
) -> bytes:
    """Google's extension."""
    body = (
        der(0x0C, zone.encode()) + der_integer(123) + der(0x0C, project.encode()) + der_integer((1 << 63) + 5)
        + der(0x0C, name.encode())
    )  # fmt: skip
    if production is not None:
        flags = der(0xA0, der_integer(0)) + der(0xA1, der(1, b"\xff" if production else b"\x00"))
        body += der(0xA0, der(0x30, flags + der(0xA2, der(1, b"\xff"))))
    return der(0x30, body)


# Tokens

TOKEN_KEY = rsa_key("tokens")
PKI_ROOT = issue("test PKI root", None, ca=True)
PKI_CA = issue("test PKI CA", PKI_ROOT, ca=True)
PKI_LEAF = issue("test PKI leaf", PKI_CA, ca=False)


def jwks(key: rsa.RSAPrivateKey = TOKEN_KEY, *, issuer: str = ISSUER, kid: str = KID) -> bytes:
    numbers = key.public_key().public_numbers()
    entry = {
        "kty": "RSA", "kid": kid, "alg": "RS256", "use": "sig",
        "n": encode_base64url(numbers.n.to_bytes(256, "big")), "e": encode_base64url(numbers.e.to_bytes(3, "big")),
    }  # fmt: skip
    return json.dumps({"issuer": issuer, "keys": [entry]}).encode()


def container(**changes: object) -> dict[str, object]:
    return _changed(
        {
            "image_reference": "us-docker.pkg.dev/project/images/serve:1",
            "image_digest": f"sha256:{DIGEST}",
            "image_id": f"sha256:{'cd' * 32}",
            "restart_policy": "Never",
            "args": ["/app/serve", "--port", "8000"],
            "env": {"HOSTNAME": "vm", "PATH": "/bin"},
        },
        changes,
    )


def submods(**changes: object) -> dict[str, object]:
    return _changed(
        {
            "confidential_space": {
                "support_attributes": ["LATEST", "STABLE", "USABLE"],
                "monitoring_enabled": {"memory": False},
            },
            "container": container(),
            "gce": {
                "project_id": "project", "project_number": "123", "zone": "us-west1-b", "instance_id": "5",
                "instance_name": "vm",
            },
        },
        changes,
    )  # fmt: skip


def space(**changes: object) -> dict[str, object]:
    """Claims of a Confidential Space token; a change to ... removes one."""
    at = int(NOW.timestamp())
    return _changed(
        {
            "iss": ISSUER, "aud": "https://client.example", "iat": at - 10, "nbf": at - 10, "exp": at + 3590,
            "sub": "https://www.googleapis.com/compute/v1/projects/project/zones/us-west1-b/instances/vm",
            "eat_nonce": encode_base64url(BINDING), "secboot": True, "oemid": 11129, "hwmodel": "GCP_INTEL_TDX",
            "swname": "CONFIDENTIAL_SPACE", "swversion": ["251001"], "dbgstat": "disabled-since-boot",
            "attester_tcb": ["INTEL"], "submods": submods(),
            "google_service_accounts": ["serve@project.iam.gserviceaccount.com"],
            "tdx": [{"gcp_attester_tcb_status": "UpToDate", "gcp_attester_tcb_date": "2025-02-12T00:00:00Z"}],
        },
        changes,
    )  # fmt: skip


def _changed(claims: dict[str, object], changes: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in {**claims, **changes}.items() if value is not ...}


def token(claims: dict[str, object], key: rsa.RSAPrivateKey = TOKEN_KEY, **header: object) -> bytes:
    head = _changed({"alg": "RS256", "kid": KID, "typ": "JWT"}, header)
    signed = b".".join(encode_base64url(json.dumps(part).encode()).encode() for part in (head, claims))
    return signed + b"." + encode_base64url(key.sign(signed, padding.PKCS1v15(), SHA256())).encode()


def pki_token(
    claims: dict[str, object], chain: Sequence[Authority] = (PKI_LEAF, PKI_CA, PKI_ROOT), **header: object
) -> bytes:
    return token(claims, chain[0].key, kid=..., x5c=[each.b64 for each in chain], **header)


# Protocol Buffers


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes((value & 0x7F | 0x80,))
        value >>= 7
    return out + bytes((value,))


def proto(*fields: tuple[int, int | bytes]) -> bytes:
    """A message; zero and empty values are left out, as encoders do."""
    out = b""
    for number, value in fields:
        if isinstance(value, int) and value:
            out += varint(number << 3) + varint(value)
        elif isinstance(value, bytes) and value:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def snp_message(
    report: bytes, *, vcek: bytes = b"", ask: bytes = b"", extras: Mapping[str, bytes] | None = None
) -> bytes:
    """A `sevsnp.Attestation` of a report, taken apart as go-sev-guest does it."""
    numbers = {
        1: (0x000, 4), 2: (0x004, 4), 3: (0x008, 8), 6: (0x030, 4), 7: (0x034, 4), 8: (0x038, 8), 9: (0x040, 8),
        10: (0x048, 4), 18: (0x180, 8), 20: (0x1E0, 8), 21: (0x1E8, 1), 22: (0x1E9, 1), 23: (0x1EA, 1),
        24: (0x1EC, 1), 25: (0x1ED, 1), 26: (0x1EE, 1), 27: (0x1F0, 8), 30: (0x1F8, 8), 31: (0x200, 8),
    }  # fmt: skip
    octets = {
        4: (0x010, 16), 5: (0x020, 16), 11: (0x050, 64), 12: (0x090, 48), 13: (0x0C0, 32), 14: (0x0E0, 48),
        15: (0x110, 48), 16: (0x140, 32), 17: (0x160, 32), 19: (0x1A0, 64), 28: (0x2A0, 512),
    }  # fmt: skip
    fields: list[tuple[int, int | bytes]] = [
        (number, int.from_bytes(report[at : at + size], "little")) for number, (at, size) in numbers.items()
    ]
    fields += [(number, report[at : at + size]) for number, (at, size) in octets.items()]
    family, model, stepping = report[0x188:0x18B]
    base = min(family, 0xF)
    fields.append((29, (family - base) << 20 | (model >> 4) << 16 | base << 8 | (model & 0xF) << 4 | stepping))
    chain = [
        (1, vcek),
        (2, ask),
        *((7, proto((1, name.encode()), (2, value))) for name, value in (extras or {}).items()),
    ]
    return proto((1, proto(*fields)), (2, proto(*chain)))


def tdx_message(quote: bytes) -> bytes:
    """A `tdx.QuoteV4` of a quote of version 4, taken apart as go-tdx-guest does it."""

    def uint(at: int, size: int) -> int:
        return int.from_bytes(quote[at : at + size], "little")

    header = proto(
        (1, uint(0, 2)), (2, uint(2, 2)), (3, uint(4, 4)), (4, quote[10:12]), (5, quote[8:10]), (6, quote[12:28]),
        (7, quote[28:48]),
    )  # fmt: skip
    at, body = 48, []
    for number, size in ((1, 16), (2, 48), (3, 48), (4, 8), (5, 8), (6, 8), (7, 48), (8, 48), (9, 48), (10, 48)):
        body.append((number, quote[at : at + size]))
        at += size
    body += [(11, quote[at + 48 * index : at + 48 * index + 48]) for index in range(4)]
    body.append((12, quote[at + 192 : at + 256]))
    at += 256
    assert at == 632
    length, start = uint(at, 4), at + 4
    kind, size = uint(start + 128, 2), uint(start + 130, 4)
    report = start + 134
    enclave, offset = [], 0
    for number, width in (
        (1, 16), (2, 4), (3, 28), (4, 16), (5, 32), (6, 32), (7, 32), (8, 96), (9, 2), (10, 2), (11, 60), (12, 64),
    ):  # fmt: skip
        piece = quote[report + offset : report + offset + width]
        enclave.append((number, int.from_bytes(piece, "little") if number in (2, 9, 10) else piece))
        offset += width
    assert offset == 384
    auth = report + 448
    auth_size = uint(auth, 2)
    certs = auth + 2 + auth_size
    data = proto(
        (1, proto(*enclave)), (2, quote[report + 384 : auth]),
        (3, proto((1, auth_size), (2, quote[auth + 2 : certs]))),
        (4, proto((1, uint(certs, 2)), (2, uint(certs + 2, 4)), (3, quote[certs + 6 : certs + 6 + uint(certs + 2, 4)]))),
    )  # fmt: skip
    signature = proto(
        (1, quote[start : start + 64]), (2, quote[start + 64 : start + 128]),
        (3, proto((1, kind), (2, size), (3, data))),
    )  # fmt: skip
    return proto((1, header), (2, proto(*body)), (3, length), (4, signature), (5, quote[start + length :]))


# vTPM

BANKS = {"sha1": 4, "sha256": 11, "sha384": 12}
EV_SEPARATOR, EV_VERSION, EV_NONHOST, EV_VARIABLE, EV_APPLICATION, EV_ACTION = (
    4,
    8,
    17,
    0x80000001,
    0x80000003,
    0x80000007,
)
GLOBAL = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
TECHNOLOGIES = ("NONE", "AMD_SEV", "AMD_SEV_ES", "INTEL_TDX", "AMD_SEV_SNP")
SHIM, GRUB = b"shim", b"grub"

AK_ROOT = issue("test AK root", None, ca=True)
AK_CA = issue("test AK CA", AK_ROOT, ca=True)
AK = issue("8033817256003918212", AK_CA, ca=False, extension=instance())


@dataclass(frozen=True)
class Event:
    """One event: `measured` is what is digested, if it is not `data`."""

    index: int
    kind: int
    data: bytes
    measured: bytes | None = None

    def digest(self, bank: str) -> bytes:
        return hashlib.new(bank, self.data if self.measured is None else self.measured).digest()


def variable(name: str, value: bytes, vendor: bytes = GLOBAL) -> bytes:
    return vendor + struct.pack("<QQ", len(name), len(value)) + name.encode("utf-16-le") + value


def boot(
    *, version: str = "2", technology: int = 1, secure_boot: bytes = b"\x01", apps: Sequence[bytes] = (SHIM, GRUB)
) -> list[Event]:
    """What Compute Engine's firmware and GRUB measure, in short."""
    text = f"GCE Virtual Firmware v{version}\0".encode("utf-16-le")
    events = [
        Event(0, EV_VERSION, text),
        Event(0, EV_NONHOST, b"GCE NonHostInfo\x00" + bytes((technology,)) + bytes(15)),
        Event(7, EV_VARIABLE, variable("SecureBoot", secure_boot)),
        Event(7, EV_VARIABLE, variable("PK", b"platform key")),
        *(Event(index, EV_SEPARATOR, bytes(4)) for index in range(8) if index != 4),
        Event(4, EV_ACTION, b"Calling EFI Application from Boot Option"),
        Event(4, EV_SEPARATOR, bytes(4)),
    ]
    events += [Event(4, EV_APPLICATION, b"device path of " + app, app) for app in apps]
    return [*events, Event(8, 0xD, b"grub_cmd: linux\0", b"linux"), Event(9, 0xD, b"vmlinuz", b"kernel")]


def log(events: Iterable[Event], banks: Mapping[str, int] = BANKS) -> bytes:
    spec = b"Spec ID Event03\x00" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(banks))
    spec += (
        b"".join(struct.pack("<HH", number, hashlib.new(name).digest_size) for name, number in banks.items()) + b"\0"
    )
    out = struct.pack("<II20sI", 0, 3, bytes(20), len(spec)) + spec
    for event in events:
        out += struct.pack("<III", event.index, event.kind, len(banks))
        out += b"".join(struct.pack("<H", number) + event.digest(name) for name, number in banks.items())
        out += struct.pack("<I", len(event.data)) + event.data
    return out


def registers(
    events: Iterable[Event], bank: str = "sha256", start: Mapping[int, bytes] | None = None
) -> dict[int, bytes]:
    """All 24 values after those events."""
    size = hashlib.new(bank).digest_size
    values = {index: b"\xff" * size if 17 <= index <= 22 else bytes(size) for index in range(24)} | dict(start or {})
    for event in events:
        values[event.index] = hashlib.new(bank, values[event.index] + event.digest(bank)).digest()
    return values


def sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def attest(
    pcrs: Mapping[int, bytes], extra: bytes = BINDING, bank: int = 11, *, magic: bytes = b"\xffTCG", kind: int = 0x8018,
    digest: str = "sha256", indices: Sequence[int] | None = None,
) -> bytes:  # fmt: skip
    """A TPMS_ATTEST of those values."""
    bits = sum(1 << index for index in (pcrs if indices is None else indices))
    value = hashlib.new(digest, b"".join(pcrs[index] for index in sorted(pcrs))).digest()
    return (
        magic + kind.to_bytes(2, "big") + sized(b"\x00\x0b" + bytes(32)) + sized(extra)
        + struct.pack(">QIIBQ", 1000, 10, 0, 1, 0x2016051100162800)
        + struct.pack(">IHB", 1, bank, 3) + bits.to_bytes(3, "little") + sized(value)
    )  # fmt: skip


def signature(
    message: bytes, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey = AK.key, *, scheme: int = 0x14
) -> bytes:
    """A TPMT_SIGNATURE with SHA-256."""
    head = struct.pack(">HH", scheme if isinstance(key, rsa.RSAPrivateKey) else 0x18, 11)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        r, s = decode_dss_signature(key.sign(message, ec.ECDSA(SHA256())))
        return head + sized(r.to_bytes(32, "big").lstrip(b"\0")) + sized(s.to_bytes(32, "big").lstrip(b"\0"))
    if scheme == 0x16:
        return head + sized(key.sign(message, padding.PSS(padding.MGF1(SHA256()), padding.PSS.MAX_LENGTH), SHA256()))
    return head + sized(key.sign(message, padding.PKCS1v15(), SHA256()))


def public_area(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey, attributes: int = 0x50072) -> bytes:
    """A TPMT_PUBLIC of a restricted signing key."""
    if isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        head = (
            struct.pack(">HHI", 1, 11, attributes) + sized(b"") + struct.pack(">HHHHI", 0x10, 0x14, 11, key.key_size, 0)
        )
        return head + sized(numbers.n.to_bytes(key.key_size // 8, "big"))
    point = key.public_numbers()
    head = struct.pack(">HHI", 0x23, 11, attributes) + sized(b"") + struct.pack(">HHHHH", 0x10, 0x18, 11, 3, 0x10)
    return head + sized(point.x.to_bytes(32, "big")) + sized(point.y.to_bytes(32, "big"))


def pcr_message(pcrs: Mapping[int, bytes], bank: int = 11) -> bytes:
    entries = [
        (2, (varint(1 << 3) + varint(index) if index else b"") + proto((2, value))) for index, value in pcrs.items()
    ]
    return proto((1, bank), *entries)


def quote(
    pcrs: Mapping[int, bytes], extra: bytes = BINDING, *, bank: int = 11, ak: Authority = AK, **changes: object
) -> bytes:
    """A tpm.Quote; `changes` go to `attest`, or are `message` and `signature` as they are."""
    given, made = changes.pop("message", None), changes.pop("signature", None)
    message = given if isinstance(given, bytes) else attest(pcrs, extra, bank, **changes)  # type: ignore[arg-type]
    return proto(
        (1, message), (2, made if isinstance(made, bytes) else signature(message, ak.key)), (3, pcr_message(pcrs, bank))
    )


def attestation(
    events: Sequence[Event] | None = None,
    extra: bytes = BINDING,
    *,
    ak: Authority = AK,
    chain: Sequence[Authority] = (AK_CA, AK_ROOT),
    **changes: bytes | None,
) -> bytes:
    """An attest.Attestation. `changes` replace a part: key, quotes, log, certificate, snp, tdx, tail."""
    events = boot() if events is None else events
    pcrs = {name: registers(events, name) for name in ("sha1", "sha256")}
    parts: dict[str, bytes | None] = {
        "key": public_area(ak.key.public_key()),
        "quotes": b"".join(proto((2, quote(pcrs[name], extra, bank=BANKS[name], ak=ak))) for name in pcrs),
        "log": log(events),
        "certificate": ak.der,
        "snp": b"",
        "tdx": b"",
        "tail": b"",
        **changes,
    }
    return (
        proto((1, parts["key"] or b"")) + (parts["quotes"] or b"") + proto((3, parts["log"] or b""))
        + proto((4, proto((1, b"us-west1-b"), (2, b"a lie"))), (6, parts["certificate"] or b""))
        + proto(*((7, each.der) for each in chain)) + proto((8, parts["snp"] or b""), (9, parts["tdx"] or b""))
        + (parts["tail"] or b"")
    )  # fmt: skip


# Endorsements

TCB_ROOT = issue("test GCE-cc-tcb-root_1", None, ca=True, pss=True)
TCB_KEY = issue("test firmware signer", TCB_ROOT, ca=False, pss=True)


def endorse(
    *, snp: Sequence[tuple[int, bytes]] = (), tdx: Sequence[bytes] = (), svn: int = 3, signer: Authority = TCB_KEY,
    at: datetime = NOW - timedelta(hours=1), bundle: bytes = b"", pss: bool = True, tail: bytes = b"", digest: bytes = b"\x77" * 48,
) -> bytes:  # fmt: skip
    """A VMLaunchEndorsement."""
    golden = proto(
        (1, proto((1, int(at.timestamp())))), (2, 7), (3, b"commit"), (4, signer.der), (5, digest), (6, bundle)
    )
    if snp:
        entries = [(2, proto((1, count), (2, value))) for count, value in snp]
        golden += proto((7, proto((1, svn), *entries, (3, bytes(range(16))), (5, 0x30000))))
    if tdx:
        golden += proto((8, proto((1, svn), *((2, proto((1, 16), (2, 1), (3, mrtd))) for mrtd in tdx))))
    golden += tail
    scheme = padding.PSS(padding.MGF1(SHA256()), 32) if pss else padding.PKCS1v15()
    return proto((1, golden), (2, signer.key.sign(golden, scheme, SHA256())))


# Verifying


def context(
    name: str, *items: tuple[str, bytes], now: datetime = NOW, anchors: Mapping[str, Sequence[Anchor]] | None = None,
    max_age: timedelta = timedelta(minutes=5),
) -> Context:  # fmt: skip
    checklist = Checklist()
    checklist.plan(registry.get(name).checks)
    return Context(
        now=now,
        checklist=checklist,
        max_age=max_age,
        max_skew=timedelta(seconds=30),
        anchors=anchors or {},
        collateral=Collateral(tuple(Item(kind, data) for kind, data in items)),
    )


def verify_token(
    evidence: bytes, *items: tuple[str, bytes], now: datetime = NOW, pki: Authority | None = None
) -> Claims:
    """Through the format, with the usual keys if no collateral is given; every planned check must have passed."""
    anchors = {"google-space": (pki.anchor,)} if pki is not None else {}
    given = context("google-space", *(items or (("jwks", jwks()),)), now=now, anchors=anchors)
    claims = registry.get("google-space").verify(evidence, given)
    assert given.checklist.complete()
    return claims


def verify_vtpm(
    evidence: bytes,
    *items: tuple[str, bytes],
    now: datetime = NOW,
    anchors: Mapping[str, Sequence[Anchor]] | None = None,
) -> Claims:
    """The same for an attestation, under the root of this file unless `anchors` says otherwise."""
    given = context("google-vtpm", *items, now=now, anchors={"google-vtpm": (AK_ROOT.anchor,)} | dict(anchors or {}))
    claims = registry.get("google-vtpm").verify(evidence, given)
    assert given.checklist.complete()
    return claims
