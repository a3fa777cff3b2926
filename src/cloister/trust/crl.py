"""Certificate revocation lists (RFC 5280 section 5), checked at a time that the caller gives."""

from __future__ import annotations

from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from cloister.errors import NotGenuineError
from cloister.trust.certificates import load_crl
from cloister.trust.chain import Profile, check_signed


def load(
    der: bytes, issuer_name: x509.Name | str, issuer_key: CertificatePublicKeyTypes, profile: Profile, *, now: datetime
) -> x509.CertificateRevocationList:
    """A current list of that issuer; raises MalformedError, or NotGenuineError for a foreign, forged or stale one.

    `issuer_name` is an X.509 name or its RFC 4514 string; `now` is aware. A list without nextUpdate, one of the future,
    or one with a critical extension (an indirect or delta list) is refused.
    """
    revocations = load_crl(der, "CRL")
    expected = issuer_name if isinstance(issuer_name, str) else issuer_name.rfc4514_string()
    if revocations.issuer.rfc4514_string() != expected:
        raise NotGenuineError("the CRL is of another issuer")
    check_signed(revocations, issuer_key, profile, "the CRL")
    if any(extension.critical for extension in revocations.extensions):
        raise NotGenuineError("the CRL has a critical extension that is not understood")
    if revocations.last_update_utc > now:
        raise NotGenuineError("the CRL is from the future", hint="Check this machine's clock.")
    if revocations.next_update_utc is None or revocations.next_update_utc < now:
        raise NotGenuineError("the CRL is stale", hint="Get a newer one from the vendor.")
    return revocations


def issuer(der: bytes) -> str:
    """The name (RFC 4514) that a list gives itself, to choose by; raises MalformedError."""
    return load_crl(der, "CRL").issuer.rfc4514_string()


def check_not_revoked(revocations: x509.CertificateRevocationList, certificate: x509.Certificate, what: str) -> None:
    """Raises NotGenuineError for a certificate whose serial number is on the list."""
    if revocations.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
        raise NotGenuineError(f"{what} was revoked")
