"""NVIDIA's RIM service, and its OCSP responder (RFC 6960)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp as x509_ocsp

from cloister.errors import MalformedError, NotGenuineError
from cloister.trust import ocsp as ocsp_response
from cloister.trust.certificates import load_certificate
from cloister.trust.collateral import MAX_ITEM
from cloister.trust.fetch.http import Http
from cloister.trust.fetch.source import Source, parameter
from cloister.trust.need import Life, Need
from cloister.wire import strict_json

RIM_BASE = "https://rim.attestation.nvidia.com"
OCSP_BASE = "https://ocsp.ndis.nvidia.com"
#: A response that names no end is good for as long as a policy would believe it.
OCSP_LIFE = timedelta(days=1)
_BASE64 = r"[A-Za-z0-9+/]{1,16384}={0,2}"


def rim(need: Need, base: str) -> Source:
    """`id`, such as NV_GPU_DRIVER_GH100_550.90.07."""
    name = parameter(need, "id", r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
    url = f"{base}/v1/rim/{name}"

    def load(http: Http) -> bytes:
        return manifest(http.get(url, limit=2 * MAX_ITEM).body, name)

    def life(data: bytes, fetched: datetime) -> Life:
        if not data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") or b"SoftwareIdentity" not in data:
            raise MalformedError("RIM: not a SWID tag")
        if need.check is not None:
            need.check(data)
        # It is of one version of one driver; its signer's certificate is the verifier's business.
        return Life(fetched, datetime.max.replace(tzinfo=UTC))

    return Source(key=url, load=load, life=life, fresh=timedelta(days=30))


def manifest(body: bytes, name: str) -> bytes:
    """The document in an answer of the RIM service for that id; raises MalformedError or NotGenuineError."""
    fields = strict_json.Fields(strict_json.loads(body, "RIM service", limit=2 * MAX_ITEM), "RIM service")
    if fields.text("id") != name:
        raise NotGenuineError("the RIM service gives another manifest")
    text = fields.text("rim", limit=2 * MAX_ITEM)
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise MalformedError("RIM service: rim is not base64") from None
    # The service does not say whether it means the manifest or its base64; both are of the same bytes.
    stated = fields.text("sha256").lower()
    if not any(
        hmac.compare_digest(stated.encode(), hashlib.sha256(each).hexdigest().encode())
        for each in (data, text.encode())
    ):
        raise NotGenuineError("the RIM service gives another SHA-256 than the manifest has")
    return data


def ocsp(need: Need, base: str) -> Source:
    """`certificate` and `issuer`, each DER in base64. Without a nonce: the responder supports none."""
    certificate, issuer = (load_certificate(_octets(need, name), name) for name in ("certificate", "issuer"))
    request = x509_ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, SHA384()).build()
    body = request.public_bytes(Encoding.DER)

    def load(http: Http) -> bytes:
        return http.post(base, body, "application/ocsp-request", limit=ocsp_response.MAX_RESPONSE).body

    def life(data: bytes, _: datetime) -> Life:
        response = ocsp_response.parse(data)
        about = (response.serial_number, response.issuer_name_hash, response.issuer_key_hash)
        if about != (request.serial_number, request.issuer_name_hash, request.issuer_key_hash):
            raise NotGenuineError("the OCSP response is about another certificate")
        start = response.this_update_utc
        return Life(start, response.next_update_utc or start + OCSP_LIFE)

    return Source(key=f"{base} {hashlib.sha256(body).hexdigest()}", load=load, life=life, fresh=timedelta(hours=1))


def _octets(need: Need, name: str) -> bytes:
    try:
        return base64.b64decode(parameter(need, name, _BASE64), validate=True)
    except binascii.Error:
        raise MalformedError(f"{need.kind}: {name} is not base64") from None
