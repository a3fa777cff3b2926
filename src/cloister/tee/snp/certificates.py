"""Endorsement key certificates, VCEK and VLEK (AMD 57230, "VCEK Certificate and KDS Interface Specification").

And the table of them that a guest gets beside its report (AMD 56421, "GHCB Standardization", Extended Guest Request).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.utils import CryptographyDeprecationWarning

from cloister.errors import MalformedError, NotGenuineError
from cloister.tee.snp.evidence import Product, SigningKey, Tcb
from cloister.trust.certificates import common_name, load_certificate
from cloister.trust.chain import p384
from cloister.trust.collateral import Item

_AMD = "1.3.6.1.4.1.3704.1."
_PRODUCT_NAME, _HWID, _CSP_ID = _AMD + "2", _AMD + "4", _AMD + "5"
_BOOTLOADER, _TEE, _SNP, _MICROCODE, _FMC = (f"{_AMD}3.{part}" for part in (1, 2, 3, 8, 9))
#: Security version numbers that no product uses yet: they must be zero where they are present.
_UNUSED = tuple(f"{_AMD}3.{part}" for part in (4, 5, 6, 7))
CHIP_ID_SIZE = 64
#: Turin's identifiers have 8 bytes; a report fills its field with zeros.
HWID_SIZES = {Product.MILAN: CHIP_ID_SIZE, Product.GENOA: CHIP_ID_SIZE, Product.TURIN: 8}
_WHAT = "endorsement key certificate"


@dataclass(frozen=True, kw_only=True)
class Endorsement:
    """A VCEK or VLEK certificate as parsed: which key of which chip or cloud it is, at which TCB.

    `chip_id` (64 bytes, as in a report) is None for a VLEK, `csp_id` is None for a VCEK. `issuer` is a common name.
    """

    certificate: x509.Certificate
    serial: int
    kind: SigningKey
    product: Product
    tcb: Tcb
    chip_id: bytes | None
    csp_id: str | None
    issuer: str
    key: ec.EllipticCurvePublicKey

    @classmethod
    def parse(cls, der: bytes) -> Endorsement:
        """Raises MalformedError; NotGenuineError for a certificate that is not of AMD's shape."""
        certificate, serial = _load(der)
        name = common_name(certificate.subject)
        if certificate.version is not x509.Version.v3 or name not in {f"SEV-{kind}" for kind in SigningKey}:
            raise NotGenuineError(f"the {_WHAT} is not that of a VCEK or VLEK")
        kind = SigningKey(name.removeprefix("SEV-"))
        values = {
            extension.oid.dotted_string: extension.value.value
            for extension in certificate.extensions
            if isinstance(extension.value, x509.UnrecognizedExtension)
        }
        product = _product(values)
        if (_HWID in values) is not (kind is SigningKey.VCEK) or (_CSP_ID in values) is not (kind is SigningKey.VLEK):
            raise NotGenuineError(f"the {_WHAT} must name a chip (VCEK) or a cloud (VLEK)")
        return cls(
            certificate=certificate,
            serial=serial,
            kind=kind,
            product=product,
            tcb=_tcb(values, product),
            chip_id=_chip_id(values[_HWID], product) if _HWID in values else None,
            csp_id=_csp_id(values[_CSP_ID]) if _CSP_ID in values else None,
            issuer=common_name(certificate.issuer),
            key=p384(certificate),
        )


def _load(der: bytes) -> tuple[x509.Certificate, int]:
    """The certificate and its serial number: the one place that meets the serial number 0 of AMD's VCEKs and VLEKs.

    RFC 5280 section 4.1.2.2 wants a positive one, so `cryptography` warns, and says that a later release will refuse;
    that would end here as MalformedError.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Parsed a serial number", CryptographyDeprecationWarning)
        certificate = load_certificate(der, _WHAT)
        return certificate, certificate.serial_number


def _product(values: dict[str, bytes]) -> Product:
    """`Milan-B0` and the like: the product line, and a stepping that does not matter here."""
    name = _ia5(values, _PRODUCT_NAME).partition("-")[0]
    if name not in set(Product):
        raise NotGenuineError(f"the {_WHAT} is for a product that is not known here")
    return Product(name)


def _tcb(values: dict[str, bytes], product: Product) -> Tcb:
    if any(_integer(values, part) for part in _UNUSED if part in values):
        raise NotGenuineError(f"the {_WHAT} has a TCB part that is not known here")
    if (_FMC in values) is not (product is Product.TURIN):
        raise NotGenuineError(f"the {_WHAT} has the TCB parts of another product")
    return Tcb(
        fmc=_integer(values, _FMC) if _FMC in values else 0,
        bootloader=_integer(values, _BOOTLOADER),
        tee=_integer(values, _TEE),
        snp=_integer(values, _SNP),
        microcode=_integer(values, _MICROCODE),
    )


def _integer(values: dict[str, bytes], oid: str) -> int:
    """DER INTEGER of 0 to 255."""
    der = values.get(oid, b"")
    match list(der):
        case [2, 1, value] if value < 0x80:
            return value
        case [2, 2, 0, value] if value >= 0x80:
            return value
    raise MalformedError(f"{_WHAT}: extension {oid} is not an integer from 0 to 255")


def _ia5(values: dict[str, bytes], oid: str) -> str:
    """DER IA5String of 1 to 127 printable characters."""
    der = values.get(oid, b"")
    text = der[2:]
    if der[:1] != b"\x16" or not 0 < len(text) < 0x80 or der[1] != len(text) or not text.isascii():
        raise MalformedError(f"{_WHAT}: extension {oid} is not an IA5String")
    if not text.decode("ascii").isprintable():
        raise MalformedError(f"{_WHAT}: extension {oid} is not printable")
    return text.decode("ascii")


def _csp_id(der: bytes) -> str:
    """The cloud's name; AMD writes it as `CN=name`."""
    return _ia5({_CSP_ID: der}, _CSP_ID).removeprefix("CN=")


def _chip_id(value: bytes, product: Product) -> bytes:
    """The hardware id, bare or as an OCTET STRING (AMD has issued both), filled up to the size of a report's field."""
    size = HWID_SIZES[product]
    if len(value) == size + 2 and value[:2] == bytes((4, size)):
        value = value[2:]
    if len(value) != size:
        raise MalformedError(f"{_WHAT}: the hardware id does not have {size} bytes")
    return value.ljust(CHIP_ID_SIZE, b"\x00")


_ENTRY = 24
_MAX_TABLE = 256 * 1024
#: What verification uses; the ARK is built in, and what else a host may add is passed over.
_KINDS = {
    UUID("63da758d-e664-4564-adc5-f4b93be8accd").bytes: "amd-vcek",
    UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1").bytes: "amd-vcek",
    UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782").bytes: "amd-ask",
    UUID("92f81bc3-5811-4d3d-97ff-d19f88dc67ea").bytes: "amd-crl",
}


def from_table(table: bytes) -> tuple[Item, ...]:
    """Collateral out of the certificate table of SNP_GET_EXT_REPORT; raises MalformedError.

    Entries are GUID, offset and length (little-endian); a zero entry ends them. No two of one GUID, none inside the
    header or outside the table, no two that overlap, and nothing but zeros in between. What the items say is checked by
    whoever uses them.
    """
    if len(table) > _MAX_TABLE:
        raise _table(f"{len(table)} bytes, the limit is {_MAX_TABLE}")
    entries: dict[bytes, tuple[int, int]] = {}
    at = 0
    while any(head := table[at : at + _ENTRY]):
        guid, offset, size = head[:16], int.from_bytes(head[16:20], "little"), int.from_bytes(head[20:], "little")
        if guid in entries or not any(guid) or not size:
            raise _table("an entry is empty or occurs twice")
        entries[guid] = offset, offset + size
        at += _ENTRY
    if len(head) != _ENTRY:
        raise _table("no zero entry ends the header")
    end = at + _ENTRY
    for start, stop in sorted(entries.values()):
        if start < end or stop > len(table) or any(table[end:start]):
            raise _table("entries overlap, leave the table, or have something in between")
        end = stop
    if any(table[end:]):
        raise _table("something follows the last entry")
    return tuple(
        Item(kind=_KINDS[guid], data=table[start:stop]) for guid, (start, stop) in entries.items() if guid in _KINDS
    )


def _table(what: str) -> MalformedError:
    return MalformedError(f"certificate table: {what}")
