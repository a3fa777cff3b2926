"""Our own NRAS: bundles of tokens in both versions of the claims."""

from __future__ import annotations

import hashlib
import json

from cryptography.hazmat.primitives.asymmetric import ec
from tests.tee.nvidia import real
from tests.trust import tokens
from tests.trust.tokens import NOW, P384_KEY

from cloister.tee.claims import Claims
from cloister.tee.nvidia.evidence import nonce
from cloister.tee.nvidia.roots import NRAS_ISSUER
from cloister.trust.collateral import Collateral, Item

BINDING = bytes(range(32))
TIMES = {
    "iss": NRAS_ISSUER,
    "iat": int(NOW.timestamp()),
    "nbf": int(NOW.timestamp()),
    "exp": int(NOW.timestamp()) + 3600,
}
COMMON = {"eat_nonce": nonce(BINDING).hex(), **TIMES}
GOOD_CHAIN = {
    "x-nvidia-cert-status": "valid", "x-nvidia-cert-ocsp-status": "good", "x-nvidia-cert-revocation-reason": None,
    "x-nvidia-cert-expiration-date": "2027-01-01T00:00:00Z",
}  # fmt: skip
RIM = ("fetched", "schema-validated", "signature-verified", "measurements-available")


def device(kind: str = "gpu", version: str = "3.0", *, ueid: str = "101", **changed: object) -> dict:
    """All claims of a device that passed; a value of `...` removes one."""
    prefix = f"x-nvidia-{kind}-"
    rims = ("driver-rim", "vbios-rim") if kind == "gpu" else ("bios-rim",)
    claims: dict[str, object] = {
        **COMMON, "ueid": ueid, "hwmodel": "GH100 A01 GSP BROM" if kind == "gpu" else "LS_10 A01 FSP BROM",
        "measres": "success", "secboot": True, "dbgstat": "disabled", "x-nvidia-attestation-warning": None,
        f"{prefix}{'vbios' if kind == 'gpu' else 'bios'}-version": "96.00.9F.00.01" if kind == "gpu" else "96.10.55.00.01",
    }  # fmt: skip
    flags = ["arch-check", "attestation-report-parsed", "attestation-report-signature-verified",
             "attestation-report-nonce-match", *(f"{rim}-{name}" for rim in rims for name in RIM)]  # fmt: skip
    if kind == "gpu":
        claims[f"{prefix}driver-version"] = "550.90.07"
        flags.append("vbios-index-no-conflict")
    if version == "3.0":
        flags += ["attestation-report-cert-chain-fwid-match", *(f"{rim}-version-match" for rim in rims)]
        claims |= {f"{prefix}{name}-cert-chain": GOOD_CHAIN for name in ("attestation-report", *rims)}
    else:
        flags += ["attestation-report-cert-chain-validated", *(f"{rim}-cert-validated" for rim in rims)]
    claims |= {f"{prefix}{name}": True for name in flags}
    return {k: v for k, v in {**claims, **changed}.items() if v is not ...}


def sign(claims: dict, *, key: ec.EllipticCurvePrivateKey = P384_KEY) -> str:
    """A token as text, by our NRAS or by a stranger's key."""
    return tokens.sign(claims, key=key).decode()


def bundle(devices: dict[str, dict], version: str = "3.0", overall: dict | None = None) -> bytes:
    """Devices' tokens and an overall token that names them."""
    signed = {name: sign(claims) for name, claims in devices.items()}
    digests = {
        name: ["DIGEST", ["SHA-256", hashlib.sha256(text.encode()).hexdigest()]] for name, text in signed.items()
    }
    claims = {
        **COMMON, "sub": "NVIDIA-PLATFORM-ATTESTATION", "x-nvidia-ver": version, "x-nvidia-overall-att-result": True,
        "submods": digests, **(overall or {}),
    }  # fmt: skip
    return json.dumps([["JWT", sign(claims)], signed]).encode()


def keys(*, issuer: str = NRAS_ISSUER, **entry: object) -> Collateral:
    """Our NRAS's key set as collateral."""
    data = json.dumps({"issuer": issuer, "keys": [tokens.ec_entry(**entry)]})
    return Collateral((Item("jwks", data.encode()),))


def verify(evidence: bytes, **options: object) -> Claims:
    """Through the registered format, with our key set at hand."""
    return real.verify("nvidia-nras", evidence, **{"now": NOW, "collateral": keys(), **options})


def one(version: str = "3.0", **changed: object) -> Claims:
    """Claims of one GPU, some of them changed."""
    return verify(bundle({"GPU-0": device(version=version, **changed)}, version))
