"""What Compute Engine's firmware measured, read from events that a quote vouches for.

Only events before a register's separator, whose digest is that of their data, say anything: a guest can extend a
register later with whatever it likes, and nothing measures an event's type.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from cloister.errors import MalformedError, NotGenuineError
from cloister.trust.tpm import before_separator
from cloister.wire.reader import Reader
from cloister.wire.tcg_log import EV_EFI_VARIABLE_DRIVER_CONFIG, EV_NONHOST_INFO, EV_S_CRTM_VERSION, Event
from cloister.wire.tpm import Bank

T = TypeVar("T")

_NONHOST = b"GCE NonHostInfo\x00"
_VERSION = re.compile(r"GCE Virtual Firmware v([0-9]{1,9})\x00\Z")
#: EFI_GLOBAL_VARIABLE, as a GUID lies in memory.
_GLOBAL = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
_BOOT_CODE = 4
_SECURE_BOOT = 7
#: What PC firmware writes into PCR 4 beside the digests of what it loads.
_ACTIONS = (
    b"Calling EFI Application from Boot Option",
    b"Returning from EFI Application from Boot Option",
    b"\x00\x00\x00\x00",
)


class Technology(StrEnum):
    """How the machine is isolated, as its firmware was told."""

    NONE = "NONE"
    AMD_SEV = "AMD_SEV"
    AMD_SEV_ES = "AMD_SEV_ES"
    INTEL_TDX = "INTEL_TDX"
    AMD_SEV_SNP = "AMD_SEV_SNP"


#: By the byte in the event.
_TECHNOLOGIES = tuple(Technology)
#: Which evidence proves it; the older two have none.
EVIDENCE = {Technology.INTEL_TDX: "tdx", Technology.AMD_SEV_SNP: "snp"}


@dataclass(frozen=True, kw_only=True)
class Firmware:
    """None where the log does not say. `boot_code` are the digests in PCR 4 that are not well-known words, in order."""

    version: int | None
    technology: Technology | None
    secure_boot: bool | None
    boot_code: tuple[bytes, ...]

    @classmethod
    def read(cls, events: Sequence[Event], bank: Bank) -> Firmware:
        """From replayed events; raises MalformedError or NotGenuineError for what contradicts itself."""
        version: int | None = None
        technology: Technology | None = None
        for event in before_separator(events, 0, bank):
            if event.event_type == EV_S_CRTM_VERSION:
                version = _once(version, _version(_data(event, bank)))
            elif event.event_type == EV_NONHOST_INFO:
                technology = _once(technology, _technology(_data(event, bank)))
        secure_boot: bool | None = None
        for event in before_separator(events, _SECURE_BOOT, bank):
            if event.event_type == EV_EFI_VARIABLE_DRIVER_CONFIG:
                value = _variable(_data(event, bank), "SecureBoot")
                if value is not None:
                    secure_boot = _once(secure_boot, value == b"\x01")
        words = {bank.digest(word) for word in _ACTIONS}
        digests = (event.digests[bank] for event in events if event.index == _BOOT_CODE)
        return cls(
            version=version,
            technology=technology,
            secure_boot=secure_boot,
            boot_code=tuple(digest for digest in digests if digest not in words),
        )


def _data(event: Event, bank: Bank) -> bytes:
    if not event.honest(bank):
        raise NotGenuineError("the event log holds an event of the firmware whose digest is not that of its data")
    return event.data


def _once(before: T | None, now: T | None) -> T | None:
    if before is not None:
        raise NotGenuineError("the event log says the same thing about the firmware twice")
    return now


def _version(data: bytes) -> int | None:
    """UTF-16 with a terminator; another vendor's firmware has another text."""
    found = _VERSION.match(data.decode("utf-16-le", errors="replace"))
    return int(found[1]) if found is not None else None


def _technology(data: bytes) -> Technology | None:
    if not data.startswith(_NONHOST):
        return None
    if len(data) != 32 or data[16] >= len(_TECHNOLOGIES):
        raise MalformedError("event log: a technology that is not known")
    return _TECHNOLOGIES[data[16]]


def _variable(data: bytes, name: str) -> bytes | None:
    """The value of a global UEFI variable of that name (UEFI_VARIABLE_DATA), None for another one."""
    reader = Reader(data, "UEFI variable")
    vendor = reader.take(16, "vendor")
    characters, size = (int.from_bytes(reader.take(8, "length"), "little") for _ in range(2))
    if characters > 256:
        raise MalformedError("UEFI variable: a name of more than 256 characters")
    found = reader.take(2 * characters, "name")
    value = reader.take(size, "value")
    reader.end()
    return value if vendor == _GLOBAL and found == name.encode("utf-16-le") else None
