"""The crypto-agile event log of firmware (TCG PC Client Platform Firmware Profile, section 10), little-endian.

A log is a stranger's words: what counts is that its digests, in order, give the values that a TPM signed
(`cloister.trust.tpm.replay`), and then an event's data only where its digest is that of the data. An event's type is
never measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloister.errors import MalformedError
from cloister.wire.reader import Reader
from cloister.wire.tpm import Bank

MAX_LOG = 1024 * 1024
MAX_EVENTS = 16384
MAX_DATA = 256 * 1024

EV_NO_ACTION = 0x00000003
EV_SEPARATOR = 0x00000004
EV_S_CRTM_VERSION = 0x00000008
EV_NONHOST_INFO = 0x00000011
EV_EFI_VARIABLE_DRIVER_CONFIG = 0x80000001

_SPEC_ID = b"Spec ID Event03\x00"
_LOCALITY = b"StartupLocality\x00"
#: SM3-256 may be in a log; nothing here checks it.
_SIZES: Mapping[int, int] = {**{int(bank): bank.size for bank in Bank}, 0x0012: 32}


@dataclass(frozen=True, kw_only=True)
class Event:
    """One extension of a register. `index` is the PCR, or the register as a log of another kind counts them."""

    index: int
    event_type: int
    digests: Mapping[Bank, bytes]
    data: bytes

    def honest(self, bank: Bank) -> bool:
        """Is the bank's digest that of `data`, so that the data is measured too?"""
        return self.digests.get(bank) == bank.digest(self.data)


@dataclass(frozen=True, kw_only=True)
class EventLog:
    """The events of a log in order, without those that extend nothing. `locality` is where PCR 0 starts (0, 3 or 4)."""

    banks: tuple[Bank, ...]
    locality: int
    events: tuple[Event, ...]

    @classmethod
    def parse(cls, data: bytes) -> EventLog:
        """Read a log of at most 1 MiB; raises MalformedError, also for the SHA-1 format of TPM 1.2.

        Padding after the last event is allowed where it is all zero or all 0xff: firmware hands over whole areas.
        """
        if len(data) > MAX_LOG:
            raise _malformed(f"{len(data)} bytes, the limit is {MAX_LOG}")
        reader = Reader(data, "event log")
        sizes = _header(reader)
        end = min(len(data.rstrip(b"\xff")), len(data.rstrip(b"\x00")))
        events, locality = list[Event](), 0
        for _ in range(MAX_EVENTS):
            if reader.position >= end:
                break
            event = _event(reader, sizes)
            if event.event_type != EV_NO_ACTION:
                events.append(event)
            elif event.data.startswith(_LOCALITY) and event.index == 0:
                if events or locality or len(event.data) != len(_LOCALITY) + 1 or event.data[-1] not in (0, 3, 4):
                    raise _malformed("a startup locality that is not one, or not at the start")
                locality = event.data[-1]
        else:
            raise _malformed(f"more than {MAX_EVENTS} events")
        banks = tuple(Bank(algorithm) for algorithm in sizes if algorithm in set(Bank))
        return cls(banks=banks, locality=locality, events=tuple(events))

    def of(self, index: int) -> tuple[Event, ...]:
        """The events of one register."""
        return tuple(event for event in self.events if event.index == index)


def _event(reader: Reader, sizes: Mapping[int, int]) -> Event:
    index, event_type = _uint(reader), _uint(reader)
    digests = dict[int, bytes]()
    for _ in range(_uint(reader, limit=len(sizes))):
        algorithm = _uint(reader, 2)
        if algorithm not in sizes or algorithm in digests:
            raise _malformed("a digest of an algorithm that the header does not name once")
        digests[algorithm] = reader.take(sizes[algorithm], "digest")
    if len(digests) != len(sizes):
        raise _malformed("an event without a digest of each algorithm")
    return Event(
        index=index,
        event_type=event_type,
        digests={Bank(algorithm): digest for algorithm, digest in digests.items() if algorithm in set(Bank)},
        data=reader.take(_uint(reader, limit=MAX_DATA), "event"),
    )


def _header(reader: Reader) -> Mapping[int, int]:
    """The algorithms of all other events: the first one names them, and has the old format."""
    _uint(reader)  # firmware writes various registers here; nothing is extended
    if _uint(reader) != EV_NO_ACTION or any(reader.take(20, "digest")):
        raise _malformed("no Spec ID event in front")
    spec = Reader(reader.take(_uint(reader, limit=1024), "Spec ID event"), "event log")
    if spec.take(16, "signature") != _SPEC_ID:
        raise _malformed("not in the crypto-agile format")
    spec.take(8, "platform class and versions")
    sizes = dict[int, int]()
    for _ in range(_uint(spec, limit=len(_SIZES))):
        algorithm, size = _uint(spec, 2), _uint(spec, 2)
        if size != _SIZES.get(algorithm) or algorithm in sizes:
            raise _malformed("an algorithm that is not known, of another size, or named twice")
        sizes[algorithm] = size
    spec.take(_uint(spec, 1), "vendor information")
    spec.end()
    return sizes


def _uint(reader: Reader, size: int = 4, *, limit: int | None = None) -> int:
    value = int.from_bytes(reader.take(size, "number"), "little")
    if limit is not None and value > limit:
        raise _malformed("a length beyond its limit")
    return value


def _malformed(what: str) -> MalformedError:
    return MalformedError(f"event log: {what}")
