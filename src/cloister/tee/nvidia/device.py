"""What a verified report says of one GPU or NVSwitch, and how its facts are drawn from report and certificate."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from cryptography import x509
from cryptography.x509.oid import NameOID

from cloister.errors import MalformedError, NotGenuineError
from cloister.tee.nvidia.evidence import Arch, Kind
from cloister.tee.nvidia.spdm import FWID_SIZE, PDI_SIZE, Opaque, Report, vbios_version
from cloister.trust.ocsp import Answer
from cloister.wire.reader import Reader

#: DICE TCB information of a certificate (TCG DICE Attestation Architecture, section 6.1); Blackwell adds an arc.
DICE = frozenset({x509.ObjectIdentifier("2.23.133.5.4.1"), x509.ObjectIdentifier("2.23.133.5.4.1.1")})
_SHA384_OID = bytes.fromhex("0609608648016503040202")
_LEAF = re.compile(r"(GH100|GB[0-9][0-9A-Z]{2}|LS_10) [A-Z][0-9]{2} (?:GSP|FSP) FMC LF\Z")
_MEASUREMENTS: Mapping[Arch, int] = {Arch.HOPPER: 64, Arch.BLACKWELL: 64, Arch.LS10: 31}
NVDEC0_DISABLED = b"\x55"
#: The one measurement that says nothing where NVDEC0 is disabled.
NVDEC0_INDEX = 35


class Mode(StrEnum):
    """How a GPU is shared (opaque type 36): alone, several over encrypted NVLink, or protected PCIe with switches."""

    SPT = "spt"
    MPT = "mpt"
    PPCIE = "ppcie"


_MODES: Mapping[bytes, Mode] = {b"\x00\x00": Mode.SPT, b"\x01\x00": Mode.MPT, b"\x02\x00": Mode.PPCIE}
_PPCIE: Mapping[bytes, bool] = {b"\x55": False, b"\xaa": True}


@dataclass(frozen=True, kw_only=True)
class Certified:
    """A certificate that can be revoked, by its subject, and what OCSP says of it; None where nothing is at hand."""

    subject: str
    answer: Answer | None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A genuine RIM that was compared: which version it is of, when its first certificate ends, its certificates."""

    version: str
    ends: datetime
    certificates: tuple[Certified, ...]


@dataclass(frozen=True, kw_only=True)
class Golden:
    """The comparison with the golden measurements of the device's own driver and VBIOS.

    `missing` names manifests that are not at hand: then nothing was compared. `wrong` are indices (from zero) that
    differ, out of `compared`.
    """

    missing: tuple[str, ...]
    manifests: tuple[Manifest, ...] = ()
    compared: int = 0
    wrong: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a signed report and its certificate say. `ueid` is the leaf's serial number in decimal, as NVIDIA prints it.

    `driver` is None for a switch; `mode` is None where the report does not tell. `fwid`: the report's firmware identity
    is the certificate's, False where the report has none. `pdis` are a GPU's switches or a switch's GPUs, `pdi` a
    switch's own identity.
    """

    kind: Kind
    arch: Arch
    chip: str
    ueid: str
    driver: str | None
    vbios: str
    board: str
    mode: Mode | None
    fwid: bool
    pdi: bytes | None
    pdis: frozenset[bytes]


@dataclass(frozen=True, kw_only=True)
class Device:
    """One verified device."""

    facts: Facts
    certificates: tuple[Certified, ...]
    golden: Golden


@dataclass(frozen=True, kw_only=True)
class Devices:
    """All of them, and when that was checked."""

    devices: tuple[Device, ...]
    now: datetime

    def gpus(self) -> tuple[Device, ...]:
        """The GPUs."""
        return tuple(device for device in self.devices if device.facts.kind is Kind.GPU)

    def switches(self) -> tuple[Device, ...]:
        """The NVSwitches."""
        return tuple(device for device in self.devices if device.facts.kind is Kind.SWITCH)


def read(kind: Kind, arch: Arch, report: Report, leaf: x509.Certificate) -> Facts:
    """The facts of a report whose signature by `leaf` was checked; raises NotGenuineError where they contradict."""
    chip = _chip(leaf)
    expected = {"GH100": Arch.HOPPER, "LS_10": Arch.LS10}.get(chip, Arch.BLACKWELL)
    if expected is not arch:
        raise NotGenuineError(f"the certificate is of a {chip}, which is not {arch}")
    if len(report.measurements) != _MEASUREMENTS[arch]:
        raise NotGenuineError(f"the report has {len(report.measurements)} measurements, {arch} has another number")
    info = report.text(Opaque.CHIP_INFO)
    if info is not None and info != chip:
        raise NotGenuineError("the report names another chip than the certificate")
    gpu = kind is Kind.GPU
    return Facts(
        kind=kind,
        arch=arch,
        chip=chip,
        ueid=str(leaf.serial_number),
        driver=report.stated(Opaque.DRIVER_VERSION) if gpu else None,
        vbios=_vbios(report) if gpu else report.stated(Opaque.VBIOS_VERSION).upper(),
        board="/".join(report.text(kind) or "-" for kind in (Opaque.PROJECT, Opaque.PROJECT_SKU, Opaque.CHIP_SKU)),
        mode=_mode(report) if gpu else None,
        fwid=_fwid(report, leaf),
        pdi=None if gpu else report.octets(Opaque.SWITCH_PDI, PDI_SIZE),
        pdis=report.switch_pdis() if gpu else report.gpu_pdis(),
    )


def _chip(leaf: x509.Certificate) -> str:
    """The chip that the device's own certificate names; raises NotGenuineError for any other kind of certificate."""
    names = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    match = _LEAF.match(str(names[0].value)) if len(names) == 1 else None
    if match is None:
        raise NotGenuineError("the report's certificate is not that of a GPU or NVSwitch whose reports are understood")
    return match[1]


def _vbios(report: Report) -> str:
    value = report.opaque.get(Opaque.VBIOS_VERSION)
    if value is None:
        raise MalformedError("SPDM report: VBIOS_VERSION is missing")
    return vbios_version(value)


def _mode(report: Report) -> Mode | None:
    """The feature flag, or what firmware before it says of protected PCIe; both where both are there."""
    flag, status = report.octets(Opaque.FEATURE_FLAG, 2), report.octets(Opaque.PPCIE_STATUS, 1)
    protected = None
    if status is not None:
        protected = _PPCIE.get(status)
        if protected is None:
            raise NotGenuineError("the report's protected PCIe status has no meaning")
    if flag is None:
        return None if protected is None else Mode.PPCIE if protected else Mode.SPT
    mode = _MODES.get(flag)
    if protected is not None and protected != (mode is Mode.PPCIE):
        raise NotGenuineError("the report contradicts itself on protected PCIe")
    return mode


def _fwid(report: Report, leaf: x509.Certificate) -> bool:
    """Is the firmware that the report names the one that the certificate was made for? False: it names none."""
    value = report.octets(Opaque.FWID, FWID_SIZE)
    if value is None:
        return False
    if not any(value) or value not in _certified_fwids(leaf):
        raise NotGenuineError("the report's firmware identity is not the one in its certificate")
    return True


def _certified_fwids(leaf: x509.Certificate) -> frozenset[bytes]:
    """Every SHA-384 FWID in the DICE extension: Hopper has one at its end, Blackwell a list within the structure."""
    found = [each.value for each in leaf.extensions if each.oid in DICE]
    if len(found) != 1 or not isinstance(found[0], x509.UnrecognizedExtension):
        raise NotGenuineError("the report's certificate has no DICE identity")
    return frozenset(_fwids(found[0].value, 0))


def _fwids(der: bytes, depth: int) -> Iterator[bytes]:
    """FWID ::= SEQUENCE { hashAlg OID, digest OCTET STRING }, wherever it stands; raises MalformedError."""
    reader = Reader(der, "DICE identity")
    while reader.remaining:
        tag, size = reader.uint(1, "tag"), reader.uint(1, "length")
        if size & 0x80:
            if size not in (0x81, 0x82):
                raise MalformedError("DICE identity: a length that is not DER")
            size = reader.uint(size & 0x7F, "length")
        content = reader.take(size, "content")
        if tag == 0x30 and content.startswith(_SHA384_OID) and len(content) == len(_SHA384_OID) + 2 + FWID_SIZE:
            yield content[-FWID_SIZE:]
        elif tag & 0x20:
            if depth == 8:
                raise MalformedError("DICE identity: nested too deep")
            yield from _fwids(content, depth + 1)
