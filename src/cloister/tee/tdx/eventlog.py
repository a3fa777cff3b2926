"""Event logs that say what was measured into RTMR0 to RTMR3: the CC event log (CCEL) of firmware, and dstack's JSON.

A log is a stranger's words. What counts is which digests, in order, give the signed value of a register; an event's
name and payload count only where its digest is made of them.

CCEL: UEFI 2.10 section 38.4, in the format of `cloister.wire.tcg_log`.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloister.errors import MalformedError
from cloister.tee.tdx import measure
from cloister.wire import strict_json
from cloister.wire.strict_json import Fields
from cloister.wire.tcg_log import MAX_DATA, MAX_EVENTS, MAX_LOG, EventLog
from cloister.wire.tpm import Bank


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
    items = strict_json.loads_array(data, "event log", limit=MAX_LOG)
    if len(items) > MAX_EVENTS:
        raise _malformed(f"more than {MAX_EVENTS} events")
    events = []
    for item in items:
        if not isinstance(item, dict):
            raise _malformed("an event is not an object")
        fields = Fields(item, "event log")
        name, event_type = fields.text("event", limit=256), fields.integer("event_type", maximum=0xFFFFFFFF)
        payload = fields.hex("event_payload", limit=MAX_DATA)
        # A runtime event may come without its digest, which its text gives.
        if name and not fields.text("digest"):
            digest = measure.runtime_digest(name, payload, event_type)
        else:
            digest = fields.hex("digest", 48)
        register = fields.integer("imr", maximum=3)
        events.append(Event(register=register, event_type=event_type, digest=digest, name=name, payload=payload))
        fields.done()
    return tuple(events)


def _binary(data: bytes) -> tuple[Event, ...]:
    log = EventLog.parse(data)
    # Register 0 is MRTD, which the module measures before the TD runs; RTMR0 is register 1.
    return tuple(
        Event(
            register=event.index - 1,
            event_type=event.event_type,
            digest=event.digests[Bank.SHA384],
            name="",
            payload=event.data,
        )
        for event in log.events
        if 1 <= event.index <= 4 and Bank.SHA384 in log.banks
    )


def _malformed(what: str) -> MalformedError:
    return MalformedError(f"event log: {what}")
