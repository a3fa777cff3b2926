"""X.509 from strangers (RFC 5280): certificates and revocation lists, parsed at once and whole, or MalformedError.

`cryptography` parses late and raises kinds of errors without a common base; nobody else in this project calls it for
bytes that a stranger sent.
"""

from __future__ import annotations

import base64
import binascii
import re
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.errors import MalformedError

#: AMD, Intel and NVIDIA publish lists of a few kB.
MAX_CRL = 1024 * 1024
MAX_PEM = 64 * 1024
#: Everything that `cryptography` raises for X.509 structures that it cannot read.
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\s([A-Za-z0-9+/=\s]{1,32768})-----END CERTIFICATE-----")


def load_certificate(der: bytes, what: str) -> x509.Certificate:
    """Parse one DER certificate without trailing bytes; raises MalformedError."""
    try:
        certificate, reencoded = _parsed(der)
    except UNREADABLE:
        raise MalformedError(f"{what}: not an X.509 certificate") from None
    if reencoded != der:
        raise MalformedError(f"{what}: not one DER certificate")
    return certificate


# Roots and intermediates are the same in every verification. Only what parsed is kept, by all of its bytes; whether it
# is valid, and who signed it, is looked at each time.
@lru_cache(maxsize=128)
def _parsed(der: bytes) -> tuple[x509.Certificate, bytes]:
    """A certificate, and its bytes encoded again."""
    certificate = x509.load_der_x509_certificate(der)
    # Parse what is lazy now, so that nothing later can fail in another way.
    certificate.extensions  # noqa: B018
    certificate.subject.rfc4514_string()
    certificate.issuer.rfc4514_string()
    certificate.public_key()
    return certificate, certificate.public_bytes(Encoding.DER)


def load_crl(der: bytes, what: str) -> x509.CertificateRevocationList:
    """Parse one DER revocation list of at most 1 MiB without trailing bytes; raises MalformedError."""
    if len(der) > MAX_CRL:
        raise MalformedError(f"{what}: {len(der)} bytes, the limit is {MAX_CRL}")
    try:
        revocations = x509.load_der_x509_crl(der)
        # As above; an entry's extensions are parsed one by one.
        _ = (revocations.extensions, revocations.last_update_utc, revocations.next_update_utc)
        _ = (revocations.issuer.rfc4514_string(), [revoked.extensions for revoked in revocations])
        reencoded = revocations.public_bytes(Encoding.DER)
    except UNREADABLE:
        raise MalformedError(f"{what}: not an X.509 certificate revocation list") from None
    if reencoded != der:
        raise MalformedError(f"{what}: not one DER list")
    return revocations


def from_pem(pem: bytes, what: str, *, smallest: int, largest: int) -> tuple[bytes, ...]:
    """The certificates (DER) of a PEM text with nothing but white space around them, that many.

    Only the armour is looked at. Raises MalformedError.
    """
    found = _PEM.findall(pem) if len(pem) <= MAX_PEM else []
    try:
        if smallest <= len(found) <= largest and not _PEM.sub(b"", pem).strip():
            return tuple(base64.b64decode(b"".join(each.split()), validate=True) for each in found)
    except binascii.Error:
        pass
    number = f"{smallest}" if smallest == largest else f"{smallest} to {largest}"
    raise MalformedError(f"{what}: not {number} certificates in PEM")


def common_name(name: x509.Name) -> str:
    """The one common name, empty where there is none or several."""
    found = [item.value for item in name.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return found[0] if len(found) == 1 and isinstance(found[0], str) else ""
