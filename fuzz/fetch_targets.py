"""Targets for what the vendors' services answer, and for the cache's files."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from datetime import timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from tests.tee.snp import signer
from tests.trust import pcs

from cloister.tee.snp.needs import needs
from cloister.trust.fetch import intel, issuers, nvidia
from cloister.trust.fetch.cache import Entry
from cloister.trust.fetch.fetcher import SOURCES
from cloister.trust.fetch.http import Answer
from cloister.trust.need import Need


class _Pcs:
    """Answers without a socket."""

    def get(self, url: str, *, limit: int) -> Answer:
        reply = pcs.Pcs()(pcs.Call("GET", url.removeprefix("http://127.0.0.1"), b"", {}))
        assert len(reply.body) <= limit
        return Answer(body=reply.body, headers={name.lower(): value for name, value in reply.headers.items()})


@cache
def _collateral() -> bytes:
    need = Need(kind="intel-collateral", parameters={"tee": "tdx", "fmspc": pcs.FMSPC, "ca": "platform"})
    return SOURCES["intel-collateral"][0](need, "http://127.0.0.1").load(_Pcs())  # type: ignore[arg-type]


def _tcb_info() -> bytes:
    return _Pcs().get(f"http://127.0.0.1/tdx/certification/v4/tcb?fmspc={pcs.FMSPC.upper()}", limit=99_999).body


def _entry() -> bytes:
    later = signer.NOW + timedelta(days=1)
    return Entry(kind="amd-crl", key="what was asked", fetched=signer.NOW, until=later, data=b"item").to_bytes()


def _rim() -> bytes:
    data = b"<SoftwareIdentity/>"
    members = {"id": "A", "rim": base64.b64encode(data).decode(), "sha256": hashlib.sha256(data).hexdigest()}
    return json.dumps(members).encode()


def _crl(data: bytes) -> object:
    return SOURCES["amd-crl"][0](Need(kind="amd-crl", parameters={"product": "Genoa"}), "").life(data, signer.NOW)


def _keys(data: bytes) -> object:
    need = Need(kind="jwks", parameters={"issuer": issuers.NRAS})
    return SOURCES["jwks"][0](need, "").life(data, signer.NOW)


@cache
def _certificates() -> tuple[x509.Certificate, x509.Certificate]:
    first, second = (x509.load_pem_x509_certificate(pcs.certificate(name, "top")) for name in ("middle", "top"))
    return first, second


@cache
def _asked() -> Need:
    names = ("certificate", "issuer")
    ders = (each.public_bytes(Encoding.DER) for each in _certificates())
    parameters = {name: base64.b64encode(der).decode() for name, der in zip(names, ders, strict=True)}
    return Need(kind="nvidia-ocsp", parameters=parameters)


@cache
def _response() -> bytes:
    certificate, issuer = _certificates()
    builder = ocsp.OCSPResponseBuilder().add_response(
        cert=certificate, issuer=issuer, algorithm=SHA384(), cert_status=ocsp.OCSPCertStatus.GOOD,
        this_update=pcs.NOW, next_update=None, revocation_time=None, revocation_reason=None,
    )  # fmt: skip
    builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, issuer)
    return builder.sign(pcs.key("top"), SHA256()).public_bytes(Encoding.DER)


def _ocsp(data: bytes) -> object:
    return SOURCES["nvidia-ocsp"][0](_asked(), "").life(data, pcs.NOW)


_KEY = {"kty": "EC", "crv": "P-256", "kid": "a", "x": "a" * 43, "y": "b" * 43, "use": "enc"}
_RSA = {
    "kty": "RSA",
    "kid": "b",
    "n": base64.urlsafe_b64encode(b"\xc1" * 255 + b"\x01").decode().rstrip("="),
    "e": "AQAB",
}

#: Name, corpus, decoder.
TARGETS: tuple[tuple[str, Callable[[], list[bytes]], Callable[[bytes], object]], ...] = (
    ("cache-file", lambda: [_entry()], Entry.from_bytes),
    ("snp-needs", lambda: [signer.report("Milan", 2), signer.report("Turin"), signer.report(vlek=True)], needs),
    ("amd-crl", lambda: [signer.revocations("Genoa", (1, 2))], _crl),
    ("intel-signed-text", lambda: [_tcb_info()], lambda data: intel.signed_text(data, "tcbInfo")),
    (
        "fetched-intel-collateral", lambda: [_collateral()],
        lambda data: intel.life(data, tee="tdx", fmspc=pcs.FMSPC, ca="platform"),
    ),
    ("rim-service", lambda: [_rim()], lambda data: nvidia.manifest(data, "A")),
    ("nvidia-ocsp", lambda: [_response()], _ocsp),
    ("fetched-jwks", lambda: [json.dumps({"issuer": issuers.NRAS, "keys": [_KEY, _RSA]}).encode()], _keys),
)  # fmt: skip
