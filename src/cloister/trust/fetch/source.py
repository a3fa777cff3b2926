"""How one need is met: what to ask, and how an answer shows that it is one; with the checks that vendors share."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.errors import MalformedError, NotGenuineError
from cloister.trust.anchors import load_certificate
from cloister.trust.crl import MAX_CRL
from cloister.trust.fetch.http import Http
from cloister.trust.need import Life, Need

MAX_PEM = 32 * 1024
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\s([A-Za-z0-9+/=\s]{1,8192})-----END CERTIFICATE-----")


@dataclass(frozen=True, kw_only=True)
class Source:
    """`key` is the whole question, `load` asks it. `life` gets an answer, new or from disk, and when it came.

    It raises MalformedError or NotGenuineError for what is no answer to it. After `fresh` the question is asked
    again, though the old answer stays good while its life lasts. Of the sources that name the same `serial` one asks at
    a time.
    """

    key: str
    load: Callable[[Http], bytes]
    life: Callable[[bytes, datetime], Life]
    fresh: timedelta
    serial: str | None = None


def parameter(need: Need, name: str, pattern: str) -> str:
    """A parameter that goes into an address: all of it must match. Raises MalformedError."""
    value = need.parameters.get(name, "")
    if not re.fullmatch(pattern, value, re.ASCII):
        raise MalformedError(f"{need.kind}: {name} is not of the form that the service asks for")
    return value


def common_name(name: x509.Name) -> str:
    """The one common name, empty where there is none or several."""
    found = [item.value for item in name.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return found[0] if len(found) == 1 and isinstance(found[0], str) else ""


def certificates(pem: bytes, count: int, what: str) -> tuple[bytes, ...]:
    """Exactly `count` certificates (DER) of a PEM text with nothing but white space around them.

    Raises MalformedError.
    """
    found = _PEM.findall(pem) if len(pem) <= MAX_PEM else []
    if len(found) != count or _PEM.sub(b"", pem).strip():
        raise MalformedError(f"{what}: not {count} certificates in PEM")
    try:
        ders = tuple(base64.b64decode(b"".join(each.split()), validate=True) for each in found)
    except binascii.Error:
        raise MalformedError(f"{what}: not {count} certificates in PEM") from None
    for der in ders:
        load_certificate(der, what)
    return ders


def crl_life(der: bytes, issuer: str, what: str) -> Life:
    """The life of one DER list whose issuer has that common name; raises MalformedError or NotGenuineError."""
    if len(der) > MAX_CRL:
        raise MalformedError(f"{what}: {len(der)} bytes, the limit is {MAX_CRL}")
    try:
        found = x509.load_der_x509_crl(der)
        whole = found.public_bytes(Encoding.DER) == der
        name, start, until = common_name(found.issuer), found.last_update_utc, found.next_update_utc
    except (ValueError, TypeError, x509.InvalidVersion):
        raise MalformedError(f"{what}: not a certificate revocation list") from None
    if not whole or until is None:
        raise MalformedError(f"{what}: not one DER list, or one without an end")
    if name != issuer:
        raise NotGenuineError(f"{what}: the list of another issuer")
    return Life(start, until)
