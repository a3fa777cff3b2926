"""Enclave Image Files (EIF version 4): read, write, sign, verify, measure.

All integers are big endian; layout after aws-nitro-enclaves-image-format `defs`. A file is a header of 548 bytes
(magic `.eif`, u16 version, u16 flags, u64 default memory, u64 default CPUs, u16 reserved, u16 section count,
u64 offsets[32], u64 sizes[32], u32 unused, u32 CRC32 of all but itself), then sections, each u16 type, u16 flags,
u64 size and its bytes.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from datetime import datetime
from enum import IntEnum

import cbor2
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from cloister.errors import MalformedError, NotGenuineError, UsageError
from cloister.tee.nitro import measure
from cloister.trust.certificates import UNREADABLE
from cloister.wire import cbor, cose

MAGIC, VERSION = b".eif", 4
MAX_SECTIONS = 32
#: The only flag of a header.
ARM64 = 1
HEADER = struct.Struct(">4sHHQQHH32Q32QII")
SECTION = struct.Struct(">HHQ")
#: nitro-cli takes no more either.
MAX_BYTES = 16 * 1024**3
MAX_SIGNATURE_SECTION = 32 * 1024
_CRC_AT = HEADER.size - 4


class Kind(IntEnum):
    """Section types."""

    KERNEL = 1
    CMDLINE = 2
    RAMDISK = 3
    SIGNATURE = 4
    METADATA = 5


_KINDS = frozenset(Kind)


@dataclass(frozen=True, kw_only=True)
class Image:
    """What an image holds; `signature` is the raw section, empty when it is not signed."""

    kernel: bytes
    cmdline: bytes
    ramdisks: tuple[bytes, ...]
    metadata: bytes = b""
    signature: bytes = b""
    default_memory: int = 0
    default_cpus: int = 0
    arm64: bool = False

    @property
    def certificate(self) -> x509.Certificate | None:
        """The signer's certificate, None when the image is not signed; raises MalformedError."""
        return None if not self.signature else _signature(self.signature)[0]

    def measurements(self) -> dict[int, bytes]:
        """PCR0, PCR1, PCR2 and, signed, PCR8 (48 bytes each)."""
        certificate = self.certificate
        return measure.registers(
            self.kernel,
            self.cmdline,
            self.ramdisks,
            signing_certificate=certificate.public_bytes(Encoding.DER) if certificate else None,
        )

    def check_signature(self) -> None:
        """Raises NotGenuineError unless the signature section signs this image's PCR0 (and there is one)."""
        if not self.signature:
            raise NotGenuineError("the image is not signed", hint="Build it with [nitro] signing_key and certificate.")
        certificate, message = _signature(self.signature)
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _ALGORITHMS:
            raise NotGenuineError("the image's signing key is not on P-256, P-384 or P-521")
        algorithm, digest, size = _ALGORITHMS[key.curve.name]
        if message.protected_header != {1: algorithm} or len(message.signature) != 2 * size:
            raise NotGenuineError("the image's signature names another algorithm than its certificate has")
        number = int.from_bytes
        signature = encode_dss_signature(
            number(message.signature[:size], "big"), number(message.signature[size:], "big")
        )
        try:
            key.verify(signature, message.to_be_signed(), ec.ECDSA(digest))
        except InvalidSignature:
            raise NotGenuineError("the image's signature does not verify") from None
        if message.payload != _pcr0_payload(self.measurements()[0]):
            raise NotGenuineError(
                "the image's signature is over another PCR0", hint="The image was changed after signing."
            )

    def check_signer(self, now: datetime) -> None:
        """Raises NotGenuineError unless the signer's certificate is valid at `now` (aware), as nitro-cli demands."""
        certificate = self.certificate
        if certificate is None or not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise NotGenuineError("the signer's certificate is not valid now", hint="Sign the image with a new one.")


_ALGORITHMS: dict[str, tuple[int, HashAlgorithm, int]] = {
    "secp256r1": (-7, SHA256(), 32),
    "secp384r1": (-35, SHA384(), 48),
    "secp521r1": (-36, SHA512(), 66),
}


def write(image: Image) -> bytes:
    """The file's bytes, in AWS's order: kernel, command line, metadata, ramdisks, signature."""
    sections = [(Kind.KERNEL, image.kernel), (Kind.CMDLINE, image.cmdline)]
    if image.metadata:
        sections.append((Kind.METADATA, image.metadata))
    sections += [(Kind.RAMDISK, ramdisk) for ramdisk in image.ramdisks]
    if image.signature:
        sections.append((Kind.SIGNATURE, image.signature))
    if len(sections) > MAX_SECTIONS:
        raise UsageError(f"an image has at most {MAX_SECTIONS} sections", hint="Use fewer ramdisks.")
    offsets, at = [], HEADER.size
    for _, data in sections:
        offsets.append(at)
        at += SECTION.size + len(data)
    sizes = [len(data) for _, data in sections]
    padding = [0] * (MAX_SECTIONS - len(sections))
    header = HEADER.pack(
        MAGIC,
        VERSION,
        ARM64 if image.arm64 else 0,
        image.default_memory,
        image.default_cpus,
        0,
        len(sections),
        *offsets,
        *padding,
        *sizes,
        *padding,
        0,
        0,
    )
    body = b"".join(SECTION.pack(kind, 0, len(data)) + data for kind, data in sections)
    return header[:_CRC_AT] + struct.pack(">I", zlib.crc32(body, zlib.crc32(header[:_CRC_AT]))) + body


def parse(data: bytes) -> Image:
    """The image in `data`; raises MalformedError.

    Sections may not overlap, leave gaps or, but for ramdisks, repeat. The measured ones are in AWS's order (kernel,
    command line, ramdisks), because the registers are over the sections as the file has them: nitro-cli and QEMU would
    measure another order otherwise than `measure.registers`. Flags and fields without a meaning are zero.
    """
    if len(data) > MAX_BYTES:
        raise MalformedError("the image is longer than nitro-cli takes")
    if len(data) < HEADER.size or data[:4] != MAGIC:
        raise MalformedError(
            "not an enclave image file", hint="It should have been made by cloister build or nitro-cli."
        )
    _, version, flags, memory, cpus, reserved, count, *rest = HEADER.unpack_from(data)
    if not 2 <= version <= VERSION:
        raise MalformedError(f"enclave image files of version {version} are not known")
    if not 0 < count <= MAX_SECTIONS:
        raise MalformedError("the image's section count is out of range")
    offsets, sizes, crc = rest[:count], rest[MAX_SECTIONS : MAX_SECTIONS + count], rest[-1]
    unused = [*rest[count:MAX_SECTIONS], *rest[MAX_SECTIONS + count : -1]]
    if flags & ~ARM64 or reserved or any(unused):
        raise MalformedError("the image's header has flags or fields that are not known")
    if zlib.crc32(data[HEADER.size :], zlib.crc32(data[:_CRC_AT])) != crc:
        raise MalformedError("the image's checksum is wrong", hint="It was damaged on the way; fetch it again.")
    found: dict[Kind, list[bytes]] = {kind: [] for kind in Kind}
    order: list[Kind] = []
    at = HEADER.size
    for offset, size in zip(offsets, sizes, strict=True):
        if offset != at or at + SECTION.size > len(data):
            raise MalformedError("the image's sections overlap or leave gaps")
        number, marks, length = SECTION.unpack_from(data, at)
        at += SECTION.size
        if length != size or at + length > len(data):
            raise MalformedError("an image section is longer than the file says")
        if number not in _KINDS or marks:
            raise MalformedError("the image has a section of an unknown type or with flags")
        kind = Kind(number)
        found[kind].append(data[at : at + length])
        order.append(kind)
        at += length
    if at != len(data):
        raise MalformedError("the image goes on after its last section")
    if len(found[Kind.KERNEL]) != 1 or len(found[Kind.CMDLINE]) != 1 or not found[Kind.RAMDISK]:
        raise MalformedError("an image needs one kernel, one command line and a ramdisk")
    if len(found[Kind.METADATA]) > 1 or len(found[Kind.SIGNATURE]) > 1:
        raise MalformedError("the image has two metadata or signature sections")
    measured = [kind for kind in order if kind in (Kind.KERNEL, Kind.CMDLINE, Kind.RAMDISK)]
    if measured != sorted(measured):
        raise MalformedError("the image's kernel, command line and ramdisks are in another order")
    return Image(
        kernel=found[Kind.KERNEL][0],
        cmdline=found[Kind.CMDLINE][0],
        ramdisks=tuple(found[Kind.RAMDISK]),
        metadata=b"".join(found[Kind.METADATA]),
        signature=b"".join(found[Kind.SIGNATURE]),
        default_memory=memory,
        default_cpus=cpus,
        arm64=bool(flags & ARM64),
    )


def signed(image: Image, key_pem: bytes, certificate_pem: bytes) -> Image:
    """The image with a signature over its PCR0 (COSE_Sign1); raises UsageError for keys that do not fit.

    ECDSA is deterministic here (RFC 6979), so that two builds give the same bytes.
    """
    try:
        key = load_pem_private_key(key_pem, None)
        certificate = x509.load_pem_x509_certificate(certificate_pem)
    except UNREADABLE:
        raise UsageError(
            "the signing key or certificate is not readable PEM", hint="The key must not be encrypted."
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _ALGORITHMS:
        raise UsageError("the signing key must be on P-256, P-384 or P-521", hint="AWS recommends P-384.")
    if certificate.public_key() != key.public_key():
        raise UsageError("the signing certificate belongs to another key")
    algorithm, digest, size = _ALGORITHMS[key.curve.name]
    values = measure.registers(image.kernel, image.cmdline, image.ramdisks)
    protected, payload = cbor2.dumps({1: algorithm}), _pcr0_payload(values[0])
    structure = cbor2.dumps(["Signature1", protected, b"", payload])
    r, s = decode_dss_signature(key.sign(structure, ec.ECDSA(digest, deterministic_signing=True)))
    message = cbor2.dumps([protected, {}, payload, r.to_bytes(size, "big") + s.to_bytes(size, "big")])
    # AWS's tools write byte vectors as arrays of integers.
    section = cbor2.dumps([{"signing_certificate": list(certificate_pem), "signature": list(message)}])
    return replace(image, signature=section)


def _pcr0_payload(pcr0: bytes) -> bytes:
    return cbor2.dumps({"register_index": 0, "register_value": list(pcr0)})


def _signature(section: bytes) -> tuple[x509.Certificate, cose.Sign1]:
    outer = cbor.loads(section, "image signature", limit=MAX_SIGNATURE_SECTION)
    if not isinstance(outer, list) or len(outer) != 1 or not isinstance(outer[0], dict):
        raise MalformedError("the image's signature section does not hold one signature")
    pem, message = _octets(outer[0].get("signing_certificate")), _octets(outer[0].get("signature"))
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        # A certificate that parses lazily fails here and not later.
        certificate.public_key()
    except UNREADABLE:
        raise MalformedError("the image's signing certificate is not readable") from None
    return certificate, cose.Sign1.parse(message, "image signature", limit=MAX_SIGNATURE_SECTION)


def _octets(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, list) or not all(isinstance(octet, int) and 0 <= octet < 256 for octet in value):
        raise MalformedError("the image's signature section holds something else than octets")
    return bytes(value)
