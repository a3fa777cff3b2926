"""Event logs that say what was measured into RTMR0 to RTMR3: the CC event log (CCEL) of firmware, and dstack's JSON.

A log is a stranger's words. What counts is which digests, in order, give the signed value of a register; an event's
name and payload count only where its digest is made of them.

CCEL: UEFI 2.10 section 38.4 over the crypto-agile format of the TCG PC Client Platform Firmware Profile, section 10.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cloister.errors import MalformedError
from cloister.tee.tdx import measure
from cloister.wire import strict_json
from cloister.wire.reader import Reader
from cloister.wire.strict_json import Fields

MAX_LOG = 1024 * 1024
MAX_EVENTS = 16384
MAX_PAYLOAD = 256 * 1024
EV_NO_ACTION = 3
SHA384 = 0x000C
#: Digest algorithms a log may carry beside it (TCG Algorithm Registry), with their sizes.
_SIZES = {0x0004: 20, 0x000B: 32, SHA384: 48, 0x000D: 64, 0x0012: 32}
_SPEC_ID = b"Spec ID Event03\x00"
_HEX = re.compile(r"(?:[0-9a-f]{2})*\Z")


@dataclass(frozen=True, kw_only=True)
class Event:
    """One extension of RTMR `register` (0 to 3) by `digest` (48 bytes). `name` is empty outside runtime events."""

    register: int
    event_type: int
    digest: bytes
    name: str
    payload: bytes

    @property
    def honest(self) -> bool:
        """Is the digest that of the name and payload, as runtime events are measured?"""
        return bool(self.name) and self.digest == measure.runtime_digest(self.name, self.payload, self.event_type)


def parse(data: bytes) -> tuple[Event, ...]:
    """The events of a log in either form, in order; raises MalformedError.

    A log without SHA-384 digests (that of a vTPM) has none for a TD.
    """
    if len(data) > MAX_LOG:
        raise _malformed(f"{len(data)} bytes, the limit is {MAX_LOG}")
    return _json(data) if data.lstrip()[:1] == b"[" else _binary(data)


def of_register(events: tuple[Event, ...], index: int, value: bytes) -> tuple[Event, ...] | None:
    """The events of one register if they replay to its signed value, else None."""
    mine = tuple(event for event in events if event.register == index)
    return mine if measure.replay(event.digest for event in mine) == value else None


def _json(data: bytes) -> tuple[Event, ...]:
    # The decoder takes objects only; `done` leaves room for one value.
    whole = Fields(strict_json.loads(b'{"log":' + data + b"}", "event log", limit=MAX_LOG + 8), "event log")
    items = whole.array("log", limit=MAX_EVENTS)
    whole.done()
    events = []
    for item in items:
        if not isinstance(item, dict):
            raise _malformed("an event is not an object")
        fields = Fields(item, "event log")
        name, event_type = fields.text("event", limit=256), fields.integer("event_type", maximum=0xFFFFFFFF)
        payload = _octets(fields, "event_payload")
        # A runtime event may come without its digest, which its text gives.
        if name and not fields.text("digest"):
            digest = measure.runtime_digest(name, payload, event_type)
        else:
            digest = _octets(fields, "digest", 48)
        register = fields.integer("imr", maximum=3)
        events.append(Event(register=register, event_type=event_type, digest=digest, name=name, payload=payload))
        fields.done()
    return tuple(events)


def _binary(data: bytes) -> tuple[Event, ...]:
    reader = Reader(data, "event log")
    algorithms = _header(reader)
    # Firmware hands over the whole area of the log: what is not used is 0xff, or zero.
    end = min(len(data.rstrip(b"\xff")), len(data.rstrip(b"\x00")))
    events: list[Event] = []
    seen = 0
    while reader.position < end:
        seen += 1
        if seen > MAX_EVENTS:
            raise _malformed(f"more than {MAX_EVENTS} events")
        register, event_type, digests = _uint(reader), _uint(reader), {}
        for _ in range(_uint(reader, limit=len(algorithms))):
            algorithm = _uint(reader, 2)
            if algorithm not in algorithms or algorithm in digests:
                raise _malformed("a digest of an algorithm that the header does not name once")
            digests[algorithm] = reader.take(_SIZES[algorithm], "digest")
        payload = reader.take(_uint(reader, limit=MAX_PAYLOAD), "event")
        if event_type == EV_NO_ACTION or SHA384 not in algorithms:
            continue
        if SHA384 not in digests:
            raise _malformed("an event without its SHA-384 digest")
        # Register 0 is MRTD, which the module measures before the TD runs; RTMR0 is register 1.
        if not 1 <= register <= 4:
            continue
        events.append(
            Event(register=register - 1, event_type=event_type, digest=digests[SHA384], name="", payload=payload)
        )
    return tuple(events)


def _header(reader: Reader) -> frozenset[int]:
    """The algorithms of all other events: the first one names them, and has the old format."""
    _uint(reader)  # the register that the firmware writes here differs, and nothing is extended
    if _uint(reader) != EV_NO_ACTION or any(reader.take(20, "digest")):
        raise _malformed("no Spec ID event in front")
    spec = Reader(reader.take(_uint(reader, limit=1024), "Spec ID event"), "event log")
    if spec.take(16, "signature") != _SPEC_ID:
        raise _malformed("no Spec ID event in front")
    spec.take(8, "platform class and versions")
    algorithms: dict[int, int] = {}
    for _ in range(_uint(spec, limit=len(_SIZES))):
        algorithm = _uint(spec, 2)
        algorithms[algorithm] = _uint(spec, 2)
        if algorithms[algorithm] != _SIZES.get(algorithm):
            raise _malformed("an algorithm that is not known, or of another size")
    spec.take(_uint(spec, 1), "vendor information")
    spec.end()
    return frozenset(algorithms)


def _octets(fields: Fields, name: str, size: int | None = None) -> bytes:
    text = fields.text(name, limit=2 * MAX_PAYLOAD)
    if not _HEX.match(text) or (size is not None and len(text) != 2 * size):
        raise _malformed(f"{name} is not lower-case hex{f' of {size} bytes' if size else ''}")
    return bytes.fromhex(text)


def _uint(reader: Reader, size: int = 4, *, limit: int | None = None) -> int:
    value = int.from_bytes(reader.take(size, "number"), "little")
    if limit is not None and value > limit:
        raise _malformed("a length beyond its limit")
    return value


def _malformed(what: str) -> MalformedError:
    return MalformedError(f"event log: {what}")
