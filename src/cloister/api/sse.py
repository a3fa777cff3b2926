"""Server-sent events (WHATWG HTML section 9.2): the encoder of the replica, and a decoder for clients."""

from __future__ import annotations

import re

from cloister.errors import MalformedError

MEDIA_TYPE = "text/event-stream"
DONE = b"data: [DONE]\n\n"
MAX_EVENT = 1024 * 1024

_LINE_END = re.compile(rb"\r\n|\n|\r(?=.)", re.DOTALL)


def event(data: bytes) -> bytes:
    """One event whose data is a single line."""
    return b"data: " + data + b"\n\n"


def error_event(data: bytes) -> bytes:
    """One event of type `error`."""
    return b"event: error\ndata: " + data + b"\n\n"


class Decoder:
    """Reads events from pieces of any size; `push` returns (event type, data) pairs, comments are dropped."""

    def __init__(self) -> None:
        self._buffer = b""
        self._type = ""
        self._data: list[str] = []

    def push(self, piece: bytes) -> list[tuple[str, str]]:
        """Events that the piece completes; raises MalformedError for text that is not UTF-8 or an endless event."""
        self._buffer += piece
        events: list[tuple[str, str]] = []
        at = 0
        while found := _LINE_END.search(self._buffer, at):
            line = self._buffer[at : found.start()]
            at = found.end()
            if complete := self._line(line):
                events.append(complete)
        self._buffer = self._buffer[at:]
        if len(self._buffer) + sum(map(len, self._data)) > MAX_EVENT:
            raise MalformedError("event stream: an event is too large")
        return events

    def _line(self, line: bytes) -> tuple[str, str] | None:
        if not line:
            kind, data, self._type = self._type, self._data, ""
            self._data = []
            return (kind or "message", "\n".join(data)) if data else None
        try:
            name, _, value = line.decode("utf-8").partition(":")
        except UnicodeDecodeError:
            raise MalformedError("event stream: not UTF-8") from None
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._type = value
        return None
