"""Certificate revocation lists (RFC 5280 section 5), checked at a time that the caller gives."""

from __future__ import annotations

from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.errors import MalformedError, NotGenuineError
from cloister.trust.chain import Profile, check_signed

#: AMD, Intel and NVIDIA publish lists of a few kB.
MAX_CRL = 1024 * 1024


def load(
    der: bytes, issuer_name: x509.Name | str, issuer_key: CertificatePublicKeyTypes, profile: Profile, *, now: datetime
) -> x509.CertificateRevocationList:
    """A current list of that issuer; raises MalformedError, or NotGenuineError for a foreign, forged or stale one.

    `issuer_name` is an X.509 name or its RFC 4514 string; `now` is aware. A list without nextUpdate, one of the future,
    or one with a critical extension (an indirect or delta list) is refused.
    """
    if len(der) > MAX_CRL:
        raise MalformedError(f"CRL: {len(der)} bytes, the limit is {MAX_CRL}")
    try:
        revocations = x509.load_der_x509_crl(der)
        names = revocations.issuer.rfc4514_string()
        critical = any(extension.critical for extension in revocations.extensions)
        whole = revocations.public_bytes(Encoding.DER) == der
        for revoked in revocations:
            _ = revoked.extensions
    except (ValueError, TypeError, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise MalformedError("CRL: not an X.509 certificate revocation list") from None
    if not whole:
        raise MalformedError("CRL: not one DER list")
    expected = issuer_name if isinstance(issuer_name, str) else issuer_name.rfc4514_string()
    if names != expected:
        raise NotGenuineError("the CRL is of another issuer")
    check_signed(revocations, issuer_key, profile, "the CRL")
    if critical:
        raise NotGenuineError("the CRL has a critical extension that is not understood")
    if revocations.last_update_utc > now:
        raise NotGenuineError("the CRL is from the future", hint="Check this machine's clock.")
    if revocations.next_update_utc is None or revocations.next_update_utc < now:
        raise NotGenuineError("the CRL is stale", hint="Get a newer one from the vendor.")
    return revocations


def issuer(der: bytes) -> str:
    """The name (RFC 4514) that a list gives itself, to choose by; raises MalformedError."""
    if len(der) > MAX_CRL:
        raise MalformedError(f"CRL: {len(der)} bytes, the limit is {MAX_CRL}")
    try:
        return x509.load_der_x509_crl(der).issuer.rfc4514_string()
    except (ValueError, TypeError, x509.InvalidVersion):
        raise MalformedError("CRL: not an X.509 certificate revocation list") from None


def check_not_revoked(revocations: x509.CertificateRevocationList, certificate: x509.Certificate, what: str) -> None:
    """Raises NotGenuineError for a certificate whose serial number is on the list."""
    if revocations.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
        raise NotGenuineError(f"{what} was revoked")
