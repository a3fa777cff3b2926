"""What a replica tells its parent about itself: events of the allow-list, never content, never at the replica's cost.

Lines wait in a bounded queue for a thread of their own. A parent that does not listen, stalls or cuts the stream loses
lines; the replica notices nothing. Usage is told in groups of requests, so that no number is about one of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import select
import socket
import threading
from collections.abc import Mapping
from typing import Protocol

from cloister.enclave.engine.protocol import State
from cloister.enclave.net import Dial
from cloister.errors import (
    CloisterError,
    EngineError,
    MalformedError,
    ModelLoadError,
    ReleaseDeniedError,
    UndecidedError,
    UsageError,
)
from cloister.wire import ports, telemetry

#: Seconds between two looks at the counters.
EVERY = 60.0
#: Usage of fewer requests waits for more.
GROUP = 8
MAX_WAITING = 64
#: Of one request.
MOST_TOKENS = 1_000_000
#: Seconds for the last lines at the end.
CLOSE_SECONDS = 1.0

_OUTER = {
    400: "malformed", 404: "malformed", 405: "malformed", 415: "malformed", 409: "replay", 413: "too_large",
    422: "key_rejected", 426: "plaintext", 503: "busy",
}  # fmt: skip
_KINDS: tuple[tuple[type[CloisterError], str], ...] = (
    (UsageError, "usage"),
    (MalformedError, "malformed"),
    (UndecidedError, "undecided"),
    (ReleaseDeniedError, "release_denied"),
    (ModelLoadError, "model"),
    (EngineError, "engine"),
)


class Watched(Protocol):
    """What telemetry looks at of an engine."""

    @property
    def state(self) -> State:
        """Where the engine is in its life."""
        ...

    @property
    def restarts(self) -> int:
        """How often its worker was started again."""
        ...


class Counters:
    """Totals since they were last told; what rounding left over is told later."""

    def __init__(self) -> None:
        self._usage = {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0}
        self._refused: dict[str, int] = {}

    def answered(self, status: int, usage: Mapping[str, object]) -> None:
        """One sealed answer was given to its end; of what the engine says about it only plausible numbers count."""
        if status >= 400:
            self._refuse("busy" if status == 429 else "invalid" if status < 500 else "engine")
            return
        self._usage["requests"] += 1
        for name in ("prompt_tokens", "completion_tokens"):
            value = usage.get(name)
            if isinstance(value, int) and 0 <= value <= MOST_TOKENS:
                self._usage[name] += value

    def outer(self, status: int) -> None:
        """An answer outside the sealed channel has begun."""
        if status >= 400:
            self._refuse(_OUTER.get(status, "internal"))

    def _refuse(self, kind: str) -> None:
        self._refused[kind] = self._refused.get(kind, 0) + 1

    def take(self) -> list[bytes]:
        """The lines to send now."""
        lines = []
        if self._usage["requests"] >= GROUP:
            lines.append(self._told("usage", self._usage))
        for kind, count in self._refused.items():
            if count:
                left = {"count": count}
                lines.append(self._told("refused", left, kind=kind))
                self._refused[kind] = left["count"]
        return lines

    @staticmethod
    def _told(event: str, numbers: dict[str, int], **words: str) -> bytes:
        line = telemetry.encode(event, {**numbers, **words})
        for name, value in telemetry.decode(line[:-1]).values.items():
            if isinstance(value, int):
                numbers[name] -= value
        return line


class Telemetry:
    """Sends through `dial`; `event` and the counters never wait and never raise."""

    def __init__(self, dial: Dial, *, every: float = EVERY) -> None:
        self.counters = Counters()
        self._dial, self._every = dial, every
        self._queue: queue.Queue[bytes | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._send, name="telemetry", daemon=True)
        self._thread.start()

    def event(self, name: str, values: Mapping[str, float | str] | None = None) -> None:
        """Queue one event of the list."""
        self._put(telemetry.encode(name, values or {}))

    def failed(self, error: CloisterError) -> None:
        """Queue why the replica does not serve: the kind of error, nothing of its text."""
        self.event("failed", {"kind": next((word for kind, word in _KINDS if isinstance(error, kind)), "other")})

    async def run(self, engine: Watched) -> None:
        """Tell the counters and the engine's restarts until cancelled."""
        restarts, failed = engine.restarts, False
        while True:
            await asyncio.sleep(self._every)
            if engine.restarts > restarts:
                self.event("engine_restarted", {"count": engine.restarts - restarts})
                restarts = engine.restarts
            if engine.state == "failed" and not failed:
                failed = True
                self.event("engine_failed")
            for line in self.counters.take():
                self._put(line)

    def close(self) -> None:
        """Give the last lines a moment."""
        self._put(None)
        self._thread.join(CLOSE_SECONDS)

    def _put(self, line: bytes | None) -> None:
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(line)

    def _send(self) -> None:
        stream: socket.socket | None = None
        while (line := self._queue.get()) is not None:
            try:
                if stream is not None and _gone(stream):
                    stream.close()
                    stream = None
                if stream is None:
                    stream = self._dial(ports.TELEMETRY)
                stream.sendall(line)
            except (OSError, CloisterError):
                if stream is not None:
                    stream.close()
                stream = None
        if stream is not None:
            stream.close()


def _gone(stream: socket.socket) -> bool:
    """Has the parent closed it? It never sends anything."""
    look = select.poll()
    look.register(stream, select.POLLIN | select.POLLRDHUP)
    return bool(look.poll(0))
