"""Did this TPM key sign these PCR values, and does this event log explain them? (TPM 2.0 Library, Part 2 and 3.)"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm

from cloister.errors import MalformedError, NotGenuineError
from cloister.trust import signatures
from cloister.trust.signatures import MAX_RSA_BITS, MIN_RSA_BITS, Algorithm
from cloister.wire.tcg_log import EV_SEPARATOR, Event, EventLog
from cloister.wire.tpm import Bank, EccKey, PublicArea, Quote, RsaKey, Scheme, Signature

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

MAX_PCR = 24
_ALGORITHMS: Mapping[tuple[Scheme, Bank], Algorithm] = {
    (Scheme.RSASSA, Bank.SHA256): Algorithm.RSA_PKCS1_SHA256,
    (Scheme.RSASSA, Bank.SHA384): Algorithm.RSA_PKCS1_SHA384,
    (Scheme.RSASSA, Bank.SHA512): Algorithm.RSA_PKCS1_SHA512,
    (Scheme.ECDSA, Bank.SHA256): Algorithm.ECDSA_P256_SHA256,
    (Scheme.ECDSA, Bank.SHA384): Algorithm.ECDSA_P384_SHA384,
}
_PSS: Mapping[Bank, HashAlgorithm] = {Bank.SHA256: SHA256(), Bank.SHA384: SHA384(), Bank.SHA512: SHA512()}
#: TPM_ECC_CURVE (Part 4 of the TCG Algorithm Registry).
_CURVES: Mapping[int, ec.EllipticCurve] = {0x0003: ec.SECP256R1(), 0x0004: ec.SECP384R1()}


@dataclass(frozen=True, kw_only=True)
class Quoted:
    """A genuine quote of one bank, and the values that it covers, by index."""

    quote: Quote
    bank: Bank
    pcrs: Mapping[int, bytes]

    def measurements(self) -> dict[str, str]:
        """The values by register name, as claims hold them."""
        return {f"pcr{index}": value.hex() for index, value in sorted(self.pcrs.items())}


def public_key(area: PublicArea) -> PublicKey:
    """The key of a public area; raises MalformedError for one that is none."""
    return of_numbers(area.key)


def of_numbers(key: RsaKey | EccKey) -> PublicKey:
    """A key from its numbers (a public area's, or a JWK's); raises MalformedError."""
    try:
        if isinstance(key, RsaKey):
            return rsa.RSAPublicNumbers(key.exponent, key.modulus).public_key()
        curve = _CURVES.get(key.curve)
        if curve is None:
            raise MalformedError("TPM public area: a curve that is not known")
        return ec.EllipticCurvePublicNumbers(key.x, key.y, curve).public_key()
    except ValueError:
        raise MalformedError("TPM public area: not a key") from None


def verify_quote(
    message: bytes, signature: Signature, key: CertificatePublicKeyTypes, pcrs: Mapping[int, bytes], bank: Bank
) -> Quoted:
    """Check that `key` signed `message`, a quote of exactly `pcrs` of `bank` and nothing else.

    Nonces are not looked at: `extra_data` of the result is the caller's to compare. SHA-1 is refused as a signature's
    hash. Raises MalformedError or NotGenuineError.
    """
    check_signature(message, signature, key)
    quote = Quote.parse(message)
    check_pcrs(quote, pcrs, bank, digest=signature.bank)
    return Quoted(quote=quote, bank=bank, pcrs=dict(pcrs))


def check_signature(message: bytes, signature: Signature, key: CertificatePublicKeyTypes) -> None:
    """Raises NotGenuineError unless `key` made `signature` over `message` (a marshalled TPMS_ATTEST)."""
    what = "the TPM quote"
    if signature.scheme is Scheme.RSAPSS and signature.bank in _PSS:
        _check_pss(message, signature, key, what)
        return
    algorithm = _ALGORITHMS.get((signature.scheme, signature.bank))
    if algorithm is None:
        raise NotGenuineError(f"{what} is not signed with an algorithm that is accepted here")
    value = signature.value
    if signature.scheme is Scheme.ECDSA:
        half = len(value) // 2
        value = encode_dss_signature(int.from_bytes(value[:half], "big"), int.from_bytes(value[half:], "big"))
    signatures.check(key, algorithm, value, message, what)


def _check_pss(message: bytes, signature: Signature, key: CertificatePublicKeyTypes, what: str) -> None:
    """TPMs differ in the length of the salt: the largest that fits, or the digest's (Part 1, annex B.7)."""
    if not isinstance(key, rsa.RSAPublicKey) or not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        raise NotGenuineError(f"{what}: the key does not fit its signature")
    digest = _PSS[signature.bank]
    try:
        key.verify(signature.value, message, padding.PSS(padding.MGF1(digest), padding.PSS.AUTO), digest)
    except InvalidSignature:
        raise NotGenuineError(f"{what}: the signature does not verify") from None


def check_pcrs(quote: Quote, pcrs: Mapping[int, bytes], bank: Bank, *, digest: Bank) -> None:
    """Raises NotGenuineError unless the quote covers exactly these values of this bank.

    `digest` is the hash of the signing scheme, with which a TPM digests the values in order of their index.
    """
    if len(quote.selections) != 1 or quote.selections[0].bank is not bank:
        raise NotGenuineError(f"the TPM quote is not of the {bank.name} bank alone")
    selected = quote.selections[0].indices
    if not selected or set(selected) != set(pcrs):
        raise NotGenuineError("the TPM quote covers other registers than the values that came with it")
    if any(len(value) != bank.size for value in pcrs.values()):
        raise MalformedError(f"TPM quote: a value that is no {bank.name} digest")
    if not hmac.compare_digest(quote.pcr_digest, digest.digest(b"".join(pcrs[index] for index in selected))):
        raise NotGenuineError("the values of the registers are not those that the TPM signed")


def replay(log: EventLog, quoted: Quoted) -> tuple[Event, ...]:
    """The events of quoted registers, if they give the quoted values; raises NotGenuineError.

    Every quoted register that the log speaks of must come out. Events of registers outside the quote are left out:
    nobody signed them. A register without events may hold anything (what ran later extends it too).
    """
    bank = quoted.bank
    if bank not in log.banks:
        raise NotGenuineError(f"the event log has no {bank.name} digests")
    values = dict[int, bytes]()
    kept = []
    for event in log.events:
        if event.index not in quoted.pcrs:
            continue
        before = values.get(event.index, _start(log, event.index, bank))
        values[event.index] = bank.digest(before + event.digests[bank])
        kept.append(event)
    for index, value in values.items():
        if not hmac.compare_digest(value, quoted.pcrs[index]):
            raise NotGenuineError(f"the event log does not give the value of PCR {index}")
    return tuple(kept)


def _start(log: EventLog, index: int, bank: Bank) -> bytes:
    return (log.locality if index == 0 else 0).to_bytes(bank.size, "big")


def before_separator(events: Sequence[Event], index: int, bank: Bank) -> tuple[Event, ...]:
    """The events of a register that firmware made, in order: those before its separator.

    What ran later can extend any register with anything, of any type: without a separator nothing is believed. A
    separator's digest under another type is a forgery. Raises NotGenuineError.
    """
    separators = {bank.digest(data) for data in (bytes(4), b"\xff" * 4)}
    found = list[Event]()
    for event in events:
        if event.index != index:
            continue
        looks = event.digests[bank] in separators
        if looks != (event.event_type == EV_SEPARATOR) or (looks and not event.honest(bank)):
            raise NotGenuineError(f"the event log hides the separator of PCR {index}")
        if looks:
            return tuple(found)
        found.append(event)
    return ()
