"""The signed report of a GPU or NVSwitch: one SPDM 1.1 GET_MEASUREMENTS exchange (DMTF DSP0274, section 10.11).

Integers of SPDM are little-endian. The signature covers the request and all of the response before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from cloister.errors import MalformedError
from cloister.wire.reader import Reader

MAX_REPORT = 16 * 1024
NONCE_SIZE = 32
SIGNATURE_SIZE = 96
MEASUREMENT_SIZE = 48
FWID_SIZE = 48
PDI_SIZE = 8
SWITCH_GPUS = 8
#: Version 1.1, GET_MEASUREMENTS, a signature requested, all measurements.
REQUEST = bytes.fromhex("11e001ff")
#: Version 1.1, MEASUREMENTS.
RESPONSE = bytes.fromhex("1160")
#: The measurement block follows the DMTF specification (bit 0); NVIDIA's firmware sends this value.
DMTF = 0x01


class Opaque(IntEnum):
    """The types of NVIDIA's opaque data that are read here."""

    DRIVER_VERSION = 3
    VBIOS_VERSION = 6
    NVDEC0_STATUS = 11
    CHIP_SKU = 15
    PROJECT = 17
    PROJECT_SKU = 18
    FWID = 20
    PPCIE_STATUS = 21
    #: Of a GPU: the switches at the other end of its links. Of a switch: the switch itself.
    SWITCH_PDI = 22
    SWITCH_GPU_PDIS = 26
    CHIP_INFO = 35
    FEATURE_FLAG = 36


@dataclass(frozen=True, kw_only=True)
class Report:
    """The exchange as parsed; nothing in it is trusted before the signature is checked.

    `nonce` is the request's (32 bytes), `measurements` maps a zero-based index to 48 bytes, `opaque` a type to a value,
    `signed` is what `signature` (r ‖ s, 96 bytes) covers.
    """

    nonce: bytes
    measurements: Mapping[int, bytes]
    opaque: Mapping[int, bytes]
    signed: bytes
    signature: bytes

    @classmethod
    def parse(cls, data: bytes) -> Report:
        """Parse a request and its response, without anything after them; raises MalformedError."""
        if len(data) > MAX_REPORT:
            raise MalformedError(f"SPDM report: {len(data)} bytes, the limit is {MAX_REPORT}")
        reader = Reader(data, "SPDM report")
        if reader.take(len(REQUEST), "request") != REQUEST:
            raise MalformedError("SPDM report: the request is not one for all measurements, signed")
        nonce = reader.take(NONCE_SIZE, "request nonce")
        reader.take(1, "slot")
        if reader.take(len(RESPONSE), "response") != RESPONSE:
            raise MalformedError("SPDM report: the response is not MEASUREMENTS of version 1.1")
        reader.take(2, "parameters")
        blocks = reader.uint(1, "number of blocks")
        record = reader.take(_little(reader, 3, "record length"), "measurement record")
        reader.take(NONCE_SIZE, "response nonce")
        opaque = reader.take(_little(reader, 2, "opaque length"), "opaque data")
        signed = data[: reader.position]
        signature = reader.take(SIGNATURE_SIZE, "signature")
        reader.end()
        return cls(
            nonce=nonce, measurements=_measurements(record, blocks), opaque=_opaque(opaque), signed=signed,
            signature=signature,
        )  # fmt: skip

    def text(self, kind: Opaque) -> str | None:
        """A value that is text, cut at its terminating zeros; raises MalformedError."""
        value = self.opaque.get(kind)
        if value is None:
            return None
        stripped = value.rstrip(b"\x00")
        if not stripped.isascii() or not (text := stripped.decode("ascii")).isprintable():
            raise MalformedError(f"SPDM report: {kind.name} is not text")
        return text

    def stated(self, kind: Opaque) -> str:
        """Text that must be there; raises MalformedError."""
        text = self.text(kind)
        if not text:
            raise MalformedError(f"SPDM report: {kind.name} is missing")
        return text

    def octets(self, kind: Opaque, size: int) -> bytes | None:
        """A value of exactly `size` bytes; raises MalformedError."""
        value = self.opaque.get(kind)
        if value is not None and len(value) != size:
            raise MalformedError(f"SPDM report: {kind.name} is {len(value)} bytes, not {size}")
        return value

    def switch_pdis(self) -> frozenset[bytes]:
        """The switches that a GPU is linked to, without the zeros of unused links; raises MalformedError."""
        return _pdis(self.opaque.get(Opaque.SWITCH_PDI, b""))

    def gpu_pdis(self) -> frozenset[bytes]:
        """The GPUs that a switch is linked to: up to eight identities, before a table of links; MalformedError."""
        value = self.octets(Opaque.SWITCH_GPU_PDIS, 2 * SWITCH_GPUS * PDI_SIZE) or b""
        return _pdis(value[: SWITCH_GPUS * PDI_SIZE])


def vbios_version(value: bytes) -> str:
    """A GPU's VBIOS version as its RIM writes it, XX.XX.XX.XX.XX: a little-endian word and a fifth byte."""
    if len(value) != 8 or any(value[5:]):
        raise MalformedError("SPDM report: VBIOS_VERSION is not five bytes and zeros")
    return ".".join(f"{byte:02X}" for byte in (*reversed(value[:4]), value[4]))


def _pdis(value: bytes) -> frozenset[bytes]:
    if len(value) % PDI_SIZE:
        raise MalformedError("SPDM report: not whole device identities")
    parts = (value[at : at + PDI_SIZE] for at in range(0, len(value), PDI_SIZE))
    return frozenset(part for part in parts if any(part))


def _little(reader: Reader, size: int, field: str) -> int:
    return int.from_bytes(reader.take(size, field), "little")


def _measurements(record: bytes, blocks: int) -> dict[int, bytes]:
    """Blocks of index (from one), specification, size; then type, value size, value (DSP0274 tables 43 and 44)."""
    reader = Reader(record, "SPDM measurement")
    found: dict[int, bytes] = {}
    for _ in range(blocks):
        index, specification = reader.uint(1, "index"), reader.uint(1, "specification")
        block = Reader(reader.take(_little(reader, 2, "size"), "block"), "SPDM measurement")
        block.take(1, "type")
        value = block.take(_little(block, 2, "value size"), "value")
        block.end()
        if specification != DMTF or index == 0 or index - 1 in found or len(value) != MEASUREMENT_SIZE:
            raise MalformedError("SPDM measurement: not one DMTF block of 48 bytes for each index")
        found[index - 1] = value
    reader.end()
    return found


def _opaque(data: bytes) -> dict[int, bytes]:
    reader = Reader(data, "SPDM opaque data")
    found: dict[int, bytes] = {}
    while reader.remaining:
        kind = _little(reader, 2, "type")
        value = reader.take(_little(reader, 2, "size"), "value")
        if kind in found:
            raise MalformedError("SPDM opaque data: a type occurs twice")
        found[kind] = value
    return found
