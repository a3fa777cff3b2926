"""What a TPM signs and how it describes its keys: quotes, signatures and public areas (TPM 2.0 Library, Part 2).

Everything is big-endian. Nothing here is checked beyond its shape: `cloister.trust.tpm` does that.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum

from cloister.errors import MalformedError
from cloister.wire.reader import Reader

MAGIC = 0xFF544347
ATTEST_QUOTE = 0x8018
MAX_ATTEST = 2048
MAX_SIGNATURE = 2048
MAX_PUBLIC = 2048
#: TPM2B_DATA holds up to a TPMT_HA of the largest digest.
MAX_EXTRA_DATA = 66
MAX_NAME = 66
MAX_SELECTIONS = 16
#: PC Client TPMs have 24 registers, in three bytes; a fourth is allowed.
MAX_SELECT = 4
_NULL = 0x0010
_RSA, _ECC = 0x0001, 0x0023


class Bank(IntEnum):
    """A hash algorithm by its TPM_ALG_ID, and so a bank of PCRs."""

    SHA1 = 0x0004
    SHA256 = 0x000B
    SHA384 = 0x000C
    SHA512 = 0x000D

    @property
    def size(self) -> int:
        """Bytes of a digest."""
        return int(hashlib.new(self.label).digest_size)

    @property
    def label(self) -> str:
        """The name that hashlib knows it by."""
        return self.name.lower()

    def digest(self, data: bytes) -> bytes:
        """The digest of `data`."""
        return hashlib.new(self.label, data, usedforsecurity=self is not Bank.SHA1).digest()

    @classmethod
    def of(cls, algorithm: int, what: str) -> Bank:
        """The bank of that TPM_ALG_ID; raises MalformedError for one that is not known here."""
        try:
            return cls(algorithm)
        except ValueError:
            raise MalformedError(f"{what}: a hash algorithm that is not known") from None


class Scheme(IntEnum):
    """A signature scheme by its TPM_ALG_ID."""

    RSASSA = 0x0014
    RSAPSS = 0x0016
    ECDSA = 0x0018


@dataclass(frozen=True, kw_only=True)
class Selection:
    """PCRs of one bank, in ascending order (TPMS_PCR_SELECTION)."""

    bank: Bank
    indices: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Quote:
    """A TPMS_ATTEST of type TPM_ST_ATTEST_QUOTE (Part 2, sections 10.12.8 and 10.12.1).

    `extra_data` is the caller's. `clock` is in milliseconds; with the two counts it tells boots apart.
    """

    qualified_signer: bytes
    extra_data: bytes
    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: int
    selections: tuple[Selection, ...]
    pcr_digest: bytes

    @classmethod
    def parse(cls, data: bytes) -> Quote:
        """Read exactly one quote; raises MalformedError, also for what a TPM signs for other purposes."""
        what = "TPM quote"
        if len(data) > MAX_ATTEST:
            raise MalformedError(f"{what}: {len(data)} bytes, the limit is {MAX_ATTEST}")
        reader = Reader(data, what)
        if reader.uint(4, "magic") != MAGIC:
            raise MalformedError(f"{what}: it does not say that a TPM made it")
        if reader.uint(2, "type") != ATTEST_QUOTE:
            raise MalformedError(f"{what}: an attestation of another kind")
        quote = cls(
            qualified_signer=_sized(reader, "qualified signer", MAX_NAME),
            extra_data=_sized(reader, "extra data", MAX_EXTRA_DATA),
            clock=reader.uint(8, "clock"),
            reset_count=reader.uint(4, "reset count"),
            restart_count=reader.uint(4, "restart count"),
            safe=_flag(reader, what),
            firmware_version=reader.uint(8, "firmware version"),
            selections=_selections(reader, what),
            pcr_digest=_sized(reader, "PCR digest", Bank.SHA512.size),
        )
        reader.end()
        return quote


@dataclass(frozen=True, kw_only=True)
class Signature:
    """A TPMT_SIGNATURE. `value` is the RSA signature, or r ‖ s of `bank`'s curve size for ECDSA."""

    scheme: Scheme
    bank: Bank
    value: bytes

    @classmethod
    def parse(cls, data: bytes) -> Signature:
        """Read exactly one signature (Part 2, section 11.3.4); raises MalformedError."""
        what = "TPM signature"
        if len(data) > MAX_SIGNATURE:
            raise MalformedError(f"{what}: {len(data)} bytes, the limit is {MAX_SIGNATURE}")
        reader = Reader(data, what)
        try:
            scheme = Scheme(reader.uint(2, "scheme"))
        except ValueError:
            raise MalformedError(f"{what}: a scheme that is not known") from None
        bank = Bank.of(reader.uint(2, "hash"), what)
        if scheme is Scheme.ECDSA:
            parts = [_sized(reader, name, 66) for name in ("r", "s")]
            size = max(map(len, parts))
            value = b"".join(part.rjust(size, b"\x00") for part in parts)
        else:
            value = _sized(reader, "signature", 1024)
        reader.end()
        return cls(scheme=scheme, bank=bank, value=value)


@dataclass(frozen=True, kw_only=True)
class RsaKey:
    """The unique part of an RSA public area."""

    modulus: int
    exponent: int


@dataclass(frozen=True, kw_only=True)
class EccKey:
    """The unique part of an ECC public area: a TPM_ECC_CURVE (3 is P-256, 4 P-384) and a point."""

    curve: int
    x: int
    y: int


@dataclass(frozen=True, kw_only=True)
class PublicArea:
    """A TPMT_PUBLIC of an asymmetric key (Part 2, section 12.2.4): its attributes are the owner's words alone."""

    attributes: int
    name_bank: Bank
    key: RsaKey | EccKey
    raw: bytes

    @classmethod
    def parse(cls, data: bytes) -> PublicArea:
        """Read exactly one public area; raises MalformedError."""
        what = "TPM public area"
        if len(data) > MAX_PUBLIC:
            raise MalformedError(f"{what}: {len(data)} bytes, the limit is {MAX_PUBLIC}")
        reader = Reader(data, what)
        kind = reader.uint(2, "type")
        if kind not in (_RSA, _ECC):
            raise MalformedError(f"{what}: neither an RSA nor an ECC key")
        bank = Bank.of(reader.uint(2, "name algorithm"), what)
        attributes = reader.uint(4, "attributes")
        _sized(reader, "policy", Bank.SHA512.size)
        if reader.uint(2, "symmetric algorithm") != _NULL:
            reader.take(4, "symmetric parameters")
        scheme = reader.uint(2, "scheme")
        if scheme != _NULL:
            # ECDAA, the one scheme with more than a hash, is not for quotes that we read.
            Bank.of(reader.uint(2, "scheme's hash"), what)
        key = _rsa(reader, what) if kind == _RSA else _ecc(reader, what)
        reader.end()
        return cls(attributes=attributes, name_bank=bank, key=key, raw=data)

    @property
    def name(self) -> bytes:
        """The key's Name: the algorithm's identifier and the digest of the area (Part 1, section 16)."""
        return self.name_bank.to_bytes(2, "big") + self.name_bank.digest(self.raw)

    @property
    def restricted_signing(self) -> bool:
        """Does it claim to be a key that signs only what a TPM made: restricted, sign, and bound to its TPM?"""
        wanted = (1 << 1) | (1 << 16) | (1 << 18)
        return self.attributes & wanted == wanted


def _rsa(reader: Reader, what: str) -> RsaKey:
    bits = reader.uint(2, "key bits")
    exponent = reader.uint(4, "exponent") or 65537
    modulus = _sized(reader, "modulus", 1024)
    if len(modulus) * 8 != bits or not modulus or not modulus[0] & 0x80:
        raise MalformedError(f"{what}: the modulus has another size than stated")
    return RsaKey(modulus=int.from_bytes(modulus, "big"), exponent=exponent)


def _ecc(reader: Reader, what: str) -> EccKey:
    curve = reader.uint(2, "curve")
    if reader.uint(2, "kdf") != _NULL:
        Bank.of(reader.uint(2, "kdf's hash"), what)
    x, y = (int.from_bytes(_sized(reader, name, 66), "big") for name in ("x", "y"))
    return EccKey(curve=curve, x=x, y=y)


def _selections(reader: Reader, what: str) -> tuple[Selection, ...]:
    count = reader.uint(4, "selections")
    if count > MAX_SELECTIONS:
        raise MalformedError(f"{what}: {count} PCR selections, the limit is {MAX_SELECTIONS}")
    found = []
    for _ in range(count):
        bank = Bank.of(reader.uint(2, "PCR bank"), what)
        size = reader.uint(1, "size of selection")
        if size > MAX_SELECT:
            raise MalformedError(f"{what}: a PCR selection of {size} bytes")
        bits = int.from_bytes(reader.take(size, "selection"), "little")
        indices = tuple(index for index in range(8 * size) if bits >> index & 1)
        found.append(Selection(bank=bank, indices=indices))
    return tuple(found)


def _sized(reader: Reader, field: str, limit: int) -> bytes:
    """A TPM2B: a 16-bit length and that many bytes."""
    size = reader.uint(2, field)
    if size > limit:
        raise MalformedError(f"TPM structure: {field} has {size} bytes, the limit is {limit}")
    return reader.take(size, field)


def _flag(reader: Reader, what: str) -> bool:
    value = reader.uint(1, "safe")
    if value > 1:
        raise MalformedError(f"{what}: a flag that is neither yes nor no")
    return value == 1
