"""The allow-list of telemetry: the only lines that an enclave may send to its parent, one JSON object each.

One table for both ends. A line carries the name of an event, words of short lists and numbers of the series 0, 1, 2, 5,
10, 20, 50 ...; it has one spelling, so that nothing can hide in spaces, order, escapes or digits. `symbols` says how
many different lines there are, which bounds what a hostile enclave could signal through them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from cloister.errors import MalformedError
from cloister.wire import strict_json

#: Bytes of a line without its newline.
MAX_LINE = 192
#: Lines that a parent writes: so many at once, and then so many a minute.
BURST, PER_MINUTE = 30, 12

Unit = Literal["Count", "Seconds"]


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number of the series up to `maximum`; `unit` is CloudWatch's."""

    unit: Unit
    maximum: int

    def values(self) -> tuple[int, ...]:
        """All of them."""
        steps = (step * 10**power for power in range(len(str(self.maximum))) for step in (1, 2, 5))
        return (0, *(value for value in steps if value <= self.maximum))

    def round_down(self, value: float) -> int:
        """The largest number of the series that is not more than `value`."""
        return max((each for each in self.values() if each <= value), default=0)


@dataclass(frozen=True, kw_only=True)
class Word:
    """One of these."""

    words: tuple[str, ...]

    def values(self) -> tuple[str, ...]:
        """All of them."""
        return self.words


Field = Number | Word

EVENTS: Mapping[str, Mapping[str, Field]] = MappingProxyType(
    {
        "ready": {"seconds": Number(unit="Seconds", maximum=1000)},
        "failed": {
            "kind": Word(words=("usage", "malformed", "undecided", "release_denied", "model", "engine", "other"))
        },
        "stopping": {},
        "engine_restarted": {"count": Number(unit="Count", maximum=100)},
        "engine_failed": {},
        "usage": {
            "requests": Number(unit="Count", maximum=10_000),
            "prompt_tokens": Number(unit="Count", maximum=10_000_000),
            "completion_tokens": Number(unit="Count", maximum=10_000_000),
        },
        "refused": {
            "kind": Word(
                words=(
                    "malformed", "key_rejected", "replay", "too_large", "plaintext", "busy", "invalid", "engine",
                    "internal",
                )
            ),
            "count": Number(unit="Count", maximum=10_000),
        },
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Event:
    """One allowed line."""

    name: str
    values: Mapping[str, int | str]


def encode(name: str, values: Mapping[str, float | str]) -> bytes:
    """The line of an event, newline included; numbers are rounded down. Raises KeyError or ValueError off the list."""
    fields = EVENTS[name]
    line: dict[str, float | str] = {"event": name}
    if set(fields) != set(values):
        raise ValueError("other fields than the event has")
    for key, field in fields.items():
        value = values[key]
        if isinstance(field, Number) and not isinstance(value, str):
            value = field.round_down(value)
        if value not in field.values():
            raise ValueError("not on the list")
        line[key] = value
    return json.dumps(line, separators=(",", ":")).encode("ascii") + b"\n"


def decode(line: bytes) -> Event:
    """A line without its newline, if it is one that `encode` makes; raises MalformedError that quotes nothing."""
    members = strict_json.loads(line, "telemetry", limit=MAX_LINE)
    name = members.pop("event", None)
    fields = EVENTS.get(name) if isinstance(name, str) else None
    if not isinstance(name, str) or fields is None or list(members) != list(fields):
        raise MalformedError("telemetry: not an event of the list")
    values: dict[str, int | str] = {}
    for key, field in fields.items():
        value = members[key]
        if isinstance(value, bool) or not isinstance(value, int | str) or value not in field.values():
            raise MalformedError("telemetry: not a value of the list")
        values[key] = value
    if encode(name, values) != line + b"\n":
        raise MalformedError("telemetry: another spelling")
    return Event(name=name, values=values)


def symbols() -> int:
    """How many different lines there are."""
    return sum(math.prod(len(field.values()) for field in fields.values()) for fields in EVENTS.values())
