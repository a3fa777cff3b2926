"""The telemetry door: lines of the allow-list become log lines and metrics; all else is counted and forgotten."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

from cloister.errors import MalformedError
from cloister.host.log import Log, Unit
from cloister.host.pipe import Capture
from cloister.wire import telemetry

#: An enclave needs one; more are left over from its earlier lives.
CONNECTIONS = 4
#: Seconds for which a sender that is too fast is not read.
PAUSE_SECONDS = 1.0


class Telemetry:
    """Serves lines of `wire.telemetry`; `accepted`, `malformed` and `over_rate` count them."""

    def __init__(self, log: Log, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock = log, clock
        self._room, self._filled = float(telemetry.BURST), clock()
        self.accepted = 0
        self.malformed = 0
        self.over_rate = 0

    async def serve(self, near: socket.socket, capture: Capture | None) -> None:
        """One connection of the enclave; a line that is too long ends it."""
        del capture  # what is not on the list is kept nowhere, not even here
        loop, held = asyncio.get_running_loop(), b""
        while data := await loop.sock_recv(near, telemetry.MAX_LINE):
            *lines, held = (held + data).split(b"\n")
            before = self.over_rate
            for line in lines:
                self.take(line)
            if len(held) > telemetry.MAX_LINE:
                self.malformed += 1
                return
            if self.over_rate > before:
                await asyncio.sleep(PAUSE_SECONDS)
        self.malformed += bool(held)

    def take(self, line: bytes) -> None:
        """Write one line, or count why not."""
        now = self._clock()
        grown = (now - self._filled) * telemetry.PER_MINUTE / 60
        self._room, self._filled = min(float(telemetry.BURST), self._room + grown), now
        if self._room < 1:
            self.over_rate += 1
            return
        self._room -= 1
        try:
            event = telemetry.decode(line)
        except MalformedError:
            self.malformed += 1
            return
        self.accepted += 1
        words: dict[str, str] = {}
        metrics: dict[str, tuple[float, Unit]] = {}
        for name, field in telemetry.EVENTS[event.name].items():
            value = event.values[name]
            if isinstance(field, telemetry.Number) and isinstance(value, int):
                metrics[f"enclave_{event.name}_{name}"] = value, field.unit
            else:
                words[name] = str(value)
        self._log.write(event.name, words, metrics or {f"enclave_{event.name}": (1, "Count")})
