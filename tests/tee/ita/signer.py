"""Tokens of a Trust Authority of our own: a root, a signing CA, a key set, lists, and any claims."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from cloister.tee.checks import Checklist
from cloister.tee.claims import Claims
from cloister.tee.context import Context
from cloister.tee.ita import verify as ita
from cloister.trust.anchors import Anchor
from cloister.trust.collateral import Collateral, Item
from cloister.wire.strict_json import encode_base64url

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
KID = "ab" * 48
HELD = b"B" * 32
NONCE = {"val": base64.b64encode(b"v" * 32).decode(), "iat": base64.b64encode(b"now").decode()}


@dataclass(frozen=True)
class Authority:
    """A certificate and its key."""

    name: x509.Name
    key: rsa.RSAPrivateKey
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)


def issue(
    name: str,
    issuer: Authority | None,
    *,
    ca: bool,
    start: datetime = NOW - timedelta(days=1),
    life: timedelta = timedelta(days=365),
) -> Authority:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    key = rsa.generate_private_key(65537, 2048)
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
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.name if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + life)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, **usage), critical=True)
        .sign((issuer.key if issuer else key), SHA512())
    )
    return Authority(subject, key, certificate)


def anchor(root: Authority) -> Anchor:
    return Anchor(
        subject=root.certificate.subject.rfc4514_string(),
        spki=root.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        not_before=root.certificate.not_valid_before_utc,
        not_after=root.certificate.not_valid_after_utc,
        sha256=hashlib.sha256(root.der).hexdigest(),
        origin="a test",
    )


ROOT = issue("test root", None, ca=True)
CA = issue("test signing CA", ROOT, ca=True)
LEAF = issue("test token signing", CA, ca=False)


def key_set(leaf: Authority = LEAF, chain: tuple[Authority, ...] = (CA, ROOT), **changes: object) -> bytes:
    numbers = leaf.key.public_key().public_numbers()
    entry = {
        "kty": "RSA",
        "kid": KID,
        "alg": "RS256",
        "n": encode_base64url(numbers.n.to_bytes(256, "big")),
        "e": encode_base64url(numbers.e.to_bytes(3, "big")),
        "x5c": [base64.b64encode(each.der).decode() for each in (leaf, *chain)],
        **changes,
    }
    return json.dumps({"keys": [entry]}).encode()


def crl(issuer: Authority, *revoked: Authority, start: datetime = NOW - timedelta(days=1), days: int = 30) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.name)
        .last_update(start)
        .next_update(start + timedelta(days=days))
    )
    for each in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(each.certificate.serial_number).revocation_date(start)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(issuer.key, SHA512()).public_bytes(Encoding.DER)


def tdx(held: bytes = HELD, **changes: object) -> dict[str, object]:
    """Claims of a version 1 TDX token; a change to ... removes one."""
    signed = base64.b64decode(NONCE["val"]) + base64.b64decode(NONCE["iat"]) + held
    claims: dict[str, object] = {
        "ver": "1.0.0",
        "iss": "https://portal.trustauthority.intel.com",
        "iat": int(NOW.timestamp()) - 10,
        "nbf": int(NOW.timestamp()) - 10,
        "exp": int(NOW.timestamp()) + 290,
        "attester_type": "TDX",
        "attester_tcb_status": "UpToDate",
        "attester_tcb_date": "2026-02-15T00:00:00Z",
        "attester_held_data": base64.b64encode(held).decode(),
        "verifier_nonce": NONCE,
        "dbgstat": "disabled",
        "tdx_is_debuggable": False,
        "tdx_td_attributes_debug": False,
        "tdx_mrtd": "01" * 48,
        **{f"tdx_rtmr{index}": f"1{index}" * 48 for index in range(4)},
        "tdx_mrseam": "03" * 48,
        "tdx_mrconfigid": "00" * 48,
        "tdx_report_data": hashlib.sha512(signed).hexdigest(),
        "policy_ids_matched": [{"id": "AA-1", "version": "v1", "hash": "x"}],
    }
    return _changed(claims, changes)


def sgx(held: bytes = HELD, **changes: object) -> dict[str, object]:
    """Claims of a version 1 SGX token without a nonce."""
    claims = {name: value for name, value in tdx().items() if not name.startswith("tdx_") and name != "verifier_nonce"}
    claims |= {
        "attester_type": "SGX",
        "attester_held_data": base64.b64encode(held).decode(),
        "sgx_is_debuggable": False,
        "sgx_mrenclave": "05" * 32,
        "sgx_mrsigner": "06" * 32,
        "sgx_isvprodid": 7,
        "sgx_isvsvn": 3,
        "sgx_report_data": hashlib.sha256(held).hexdigest() + "00" * 32,
    }
    return _changed(claims, changes)


def nested(claims: dict[str, object], **top: object) -> dict[str, object]:
    """A version 1 token's claims as version 2 holds them."""
    outer = ("iss", "iat", "nbf", "exp", "policy_ids_matched")
    inner = {name: value for name, value in claims.items() if name not in (*outer, "ver")}
    return {
        "ver": "2.0.0",
        **{name: claims[name] for name in outer},
        str(claims["attester_type"]).lower(): inner,
        **top,
    }


def _changed(claims: dict[str, object], changes: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in {**claims, **changes}.items() if value is not ...}


def token(claims: dict[str, object], leaf: Authority = LEAF, **header: object) -> bytes:
    head = {"alg": "PS384", "kid": KID, "typ": "JWT", "jku": "https://elsewhere.example/certs", **header}
    signed = b".".join(encode_base64url(json.dumps(part).encode()).encode() for part in (head, claims))
    if head["alg"] == "RS256":
        signature = leaf.key.sign(signed, padding.PKCS1v15(), SHA256())
    else:
        signature = leaf.key.sign(signed, padding.PSS(padding.MGF1(SHA384()), 48), SHA384())
    return signed + b"." + encode_base64url(signature).encode()


def collateral(*items: tuple[str, bytes]) -> Collateral:
    return Collateral(tuple(Item(kind, data) for kind, data in items))


def verify(
    evidence: bytes, *, now: datetime = NOW, own: Collateral | None = None, root: Authority | None = ROOT
) -> Claims:
    """ita.verify with the usual bounds."""
    checklist = Checklist()
    checklist.plan(ita.CHECKS)
    context = Context(
        now=now,
        checklist=checklist,
        max_age=timedelta(minutes=5),
        max_skew=timedelta(seconds=30),
        anchors={"ita": (anchor(root),)} if root is not None else {},
        collateral=collateral(("ita-certs", key_set())) if own is None else own,
    )
    return ita.verify(evidence, context)
