"""One image that a policy names: registers of a TD, and what an event log may say about them.

MRTD covers only the firmware. The firmware measures the boot loader or kernel into RTMR1, and what that loads (kernel,
command line, initrd) goes into RTMR2. Whoever leaves one of them open lets any kernel run, and any kernel can extend
RTMR2 and RTMR3 as it likes. So all three must be stated: a value, or for RTMR1 and RTMR2 what was measured first.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cloister.errors import PolicyDocumentError
from cloister.tee.tdx.eventlog import Event
from cloister.tee.tdx.evidence import TdReport
from cloister.wire.toml import Table

REGISTERS = ("rtmr0", "rtmr1", "rtmr2", "rtmr3")


@dataclass(frozen=True, kw_only=True)
class RuntimeEvent:
    """A named event (dstack's form) that must be in RTMR2 or RTMR3 exactly once, with this payload (hex)."""

    rtmr: int
    name: str
    payload: str


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Expected values (hex of 48 bytes); every one stated must match.

    `first` maps a register (0 to 3) to the digests with which its event log must begin. `events` must occur in the log.
    Both count only in a log that replays to the signed register. Raises PolicyDocumentError when an image is left open.
    """

    mrtd: str
    rtmrs: Mapping[int, str]
    first: Mapping[int, tuple[str, ...]]
    events: tuple[RuntimeEvent, ...] = ()
    label: str = ""

    def __post_init__(self) -> None:
        for index in (1, 2):
            if index not in self.rtmrs and index not in self.first:
                raise PolicyDocumentError(
                    f"a measurement must state rtmr{index}, or rtmr{index}_first",
                    hint="MRTD is the firmware alone; RTMR1 and RTMR2 are the boot loader, kernel and command line.",
                )

    def names(self) -> list[str]:
        """What is stated."""
        return [
            "mrtd",
            *(f"rtmr{index}" for index in sorted(self.rtmrs)),
            *(f"rtmr{index}_first" for index in sorted(self.first)),
            *(event.name for event in self.events),
        ]

    def wrong(self, report: TdReport, logs: Mapping[int, Sequence[Event]]) -> list[str]:
        """What does not match; `logs` holds the events of registers that a log replays to."""
        found = [] if hmac.compare_digest(report.mr_td.hex(), self.mrtd) else ["mrtd"]
        for index, value in self.rtmrs.items():
            if not hmac.compare_digest(report.rtmrs[index].hex(), value):
                found.append(f"rtmr{index}")
        for index, digests in self.first.items():
            measured = tuple(event.digest.hex() for event in logs.get(index, ()))
            if measured[: len(digests)] != digests:
                found.append(f"rtmr{index}_first")
        found.extend(event.name for event in self.events if not _measured_once(event, logs.get(event.rtmr, ())))
        return found


def _measured_once(expected: RuntimeEvent, log: Sequence[Event]) -> bool:
    """Once, and every runtime event of the register is what it says it is.

    An event whose digest is not that of its text could hide an earlier one of the same name.
    """
    runtime = [event for event in log if event.name]
    if len(runtime) != len(log) or not all(event.honest for event in runtime):
        return False
    return [event.payload.hex() for event in runtime if event.name == expected.name] == [expected.payload]


def read(table: Table) -> tuple[Measurement, ...] | None:
    """The tables [[tdx.measurement]]; None if there is none. Raises PolicyDocumentError."""
    return tuple(_one(each) for each in table.tables("measurement")) or None


def _one(table: Table) -> Measurement:
    mrtd = table.hex("mrtd", 48)
    rtmrs = {index: value for index, name in enumerate(REGISTERS) if (value := table.hex(name, 48))}
    first = {
        index: digests
        for index, name in enumerate(REGISTERS)
        if (digests := table.hexes(f"{name}_first", 48, what="a SHA-384 digest"))
    }
    events = tuple(_event(each) for each in table.tables("event"))
    label = table.line("label") or ""
    table.done()
    if mrtd is None:
        raise PolicyDocumentError(f"{table.path}: a measurement must state mrtd", hint="It names the TD's firmware.")
    try:
        return Measurement(mrtd=mrtd, rtmrs=rtmrs, first=first, events=events, label=label)
    except PolicyDocumentError as error:
        raise PolicyDocumentError(f"{table.path}: {error.message}", hint=error.hint) from None


def _event(table: Table) -> RuntimeEvent:
    rtmr, name, payload = table.number("rtmr", 2, 3), table.line("name"), table.text("payload")
    table.done()
    if rtmr is None or not name or payload is None:
        raise PolicyDocumentError(f"{table.path} must state rtmr, name and payload", hint="See docs/policy.md.")
    if len(payload) % 2 or set(payload) - set("0123456789abcdef"):
        raise PolicyDocumentError(f"{table.name('payload')} must be lower-case hex", hint="Copy it from the log.")
    return RuntimeEvent(rtmr=rtmr, name=name, payload=payload)
