"""Binary HTTP messages (RFC 9292): requests whole, responses whole or piece by piece.

Decoders accept known-length and indeterminate-length framing and any width of variable-length integer; encoders write
known-length requests and either kind of response.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from cloister.errors import MalformedError
from cloister.wire.reader import Reader, encode_varint

Fields = tuple[tuple[str, str], ...]
"""Header or trailer fields in order; names in lower case."""

MAX_HEAD = 64 * 1024
MAX_FIELDS = 128

_KNOWN_REQUEST, _KNOWN_RESPONSE, _OPEN_REQUEST, _OPEN_RESPONSE = range(4)
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+\Z")
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_VALUE = re.compile(rb"(?:[!-~\x80-\xff](?:[ \t!-~\x80-\xff]*[!-~\x80-\xff])?)?\Z")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request with its whole content."""

    method: str
    path: str
    scheme: str = "https"
    authority: str = ""
    headers: Fields = ()
    content: bytes = b""
    trailers: Fields = ()

    def header(self, name: str) -> str | None:
        """The value of the only header of that name; raises MalformedError if there are several."""
        return single(self.headers, name)


@dataclass(frozen=True, kw_only=True)
class Response:
    """A final response with its whole content; informational ones before it are dropped."""

    status: int
    headers: Fields = ()
    content: bytes = b""
    trailers: Fields = ()


@dataclass(frozen=True)
class Head:
    """Event: final status and headers."""

    status: int
    headers: Fields


@dataclass(frozen=True)
class Content:
    """Event: some bytes of the content."""

    data: bytes


@dataclass(frozen=True)
class End:
    """Event: the message is complete."""

    trailers: Fields


Event = Head | Content | End


def single(fields: Fields, name: str) -> str | None:
    """The value of the only field of that name, None without one; raises MalformedError if there are several."""
    values = [value for key, value in fields if key == name]
    if len(values) > 1:
        raise MalformedError(f"binary HTTP: more than one {name}")
    return values[0] if values else None


# --- Encoding ---------------------------------------------------------------------------------------------------------


def _vector(data: bytes) -> bytes:
    return encode_varint(len(data)) + data


def _lines(fields: Iterable[tuple[str, str]]) -> bytes:
    lines = bytearray()
    for name, value in fields:
        raw_name, raw_value = name.encode("ascii"), value.encode("latin-1")
        if not _TOKEN.match(raw_name) or not _VALUE.match(raw_value):
            raise ValueError("not an HTTP field")
        lines += _vector(raw_name) + _vector(raw_value)
    return bytes(lines)


def encode_request(request: Request) -> bytes:
    """A known-length request (section 3.1)."""
    control = b"".join(
        _vector(part.encode("ascii")) for part in (request.method, request.scheme, request.authority, request.path)
    )
    return b"".join(
        (
            encode_varint(_KNOWN_REQUEST),
            control,
            _vector(_lines(request.headers)),
            _vector(request.content),
            _vector(_lines(request.trailers)),
        )
    )


def encode_response(response: Response) -> bytes:
    """A known-length response (section 3.1)."""
    return b"".join(
        (
            encode_varint(_KNOWN_RESPONSE),
            encode_varint(response.status),
            _vector(_lines(response.headers)),
            _vector(response.content),
            _vector(_lines(response.trailers)),
        )
    )


def encode_head(status: int, headers: Fields) -> bytes:
    """The beginning of an indeterminate-length response (section 3.2)."""
    return encode_varint(_OPEN_RESPONSE) + encode_varint(status) + _lines(headers) + b"\x00"


def encode_content(data: bytes) -> bytes:
    """One non-empty content chunk of an indeterminate-length message."""
    if not data:
        raise ValueError("an empty chunk ends the content")
    return _vector(data)


def encode_end(trailers: Fields) -> bytes:
    """Content terminator, trailers and their terminator."""
    return b"\x00" + _lines(trailers) + b"\x00"


# --- Decoding ---------------------------------------------------------------------------------------------------------


def _fields(reader: Reader) -> Fields:
    """Fields until the reader is at its end."""
    lines: list[tuple[str, str]] = []
    while reader.remaining:
        lines.append(_line(reader, reader.varint("field name")))
        if len(lines) > MAX_FIELDS:
            raise MalformedError("binary HTTP: too many fields")
    return tuple(lines)


def _fields_until_zero(reader: Reader) -> Fields:
    lines: list[tuple[str, str]] = []
    while size := reader.varint("field name"):
        lines.append(_line(reader, size))
        if len(lines) > MAX_FIELDS:
            raise MalformedError("binary HTTP: too many fields")
    return tuple(lines)


def _line(reader: Reader, name_size: int) -> tuple[str, str]:
    if name_size > MAX_HEAD:
        raise MalformedError("binary HTTP: field name too long")
    name = reader.take(name_size, "field name")
    value = reader.vector("field value", limit=MAX_HEAD)
    if not _TOKEN.match(name) or not _VALUE.match(value):
        raise MalformedError("binary HTTP: not an HTTP field")
    return name.decode("ascii"), value.decode("latin-1")


def _padding(data: bytes) -> None:
    if data.strip(b"\x00"):
        raise MalformedError("binary HTTP: padding is not zero")


def decode_request(data: bytes) -> Request:
    """A whole request of either framing; raises MalformedError."""
    reader = Reader(data, "binary HTTP")
    framing = reader.varint("framing indicator")
    if framing not in (_KNOWN_REQUEST, _OPEN_REQUEST):
        raise MalformedError("binary HTTP: not a request")
    method, scheme, authority, path = (
        reader.vector(name, limit=8192) for name in ("method", "scheme", "authority", "path")
    )
    if not _METHOD.match(method) or not all(_printable(part) for part in (scheme, authority, path)):
        raise MalformedError("binary HTTP: bad control data")
    content = b""
    trailers: Fields = ()
    if framing == _KNOWN_REQUEST:
        headers = _fields(Reader(reader.vector("headers", limit=MAX_HEAD), "binary HTTP"))
        # Section 3.8: empty last sections may be left out.
        if reader.remaining:
            content = reader.vector("content", limit=len(data))
        if reader.remaining:
            trailers = _fields(Reader(reader.vector("trailers", limit=MAX_HEAD), "binary HTTP"))
    else:
        headers = _fields_until_zero(reader)
        pieces: list[bytes] = []
        if reader.remaining:
            while size := reader.varint("content chunk"):
                pieces.append(reader.take(size, "content chunk"))
        if reader.remaining:
            trailers = _fields_until_zero(reader)
        content = b"".join(pieces)
    _padding(reader.rest())
    return Request(
        method=method.decode("ascii"),
        scheme=scheme.decode("ascii"),
        authority=authority.decode("ascii"),
        path=path.decode("ascii"),
        headers=headers,
        content=content,
        trailers=trailers,
    )


def _printable(data: bytes) -> bool:
    return all(0x21 <= byte <= 0x7E for byte in data)


def decode_response(data: bytes) -> Response:
    """A whole response of either framing; raises MalformedError."""
    decoder = ResponseDecoder()
    events = [*decoder.push(data), *decoder.finish()]
    head = next(event for event in events if isinstance(event, Head))
    return Response(
        status=head.status,
        headers=head.headers,
        content=b"".join(event.data for event in events if isinstance(event, Content)),
        trailers=next(event for event in events if isinstance(event, End)).trailers,
    )


class _Short(Exception):
    """More bytes are needed; never leaves this module."""


class _Cursor(Reader):
    """A reader for which running out of bytes means waiting, not a malformed message."""

    def take(self, size: int, field: str) -> bytes:
        if size > self.remaining:
            raise _Short
        return super().take(size, field)


@dataclass(eq=False)
class ResponseDecoder:
    """Decodes a response from pieces of any size: `push` each, then `finish`."""

    _buffer: bytes = b""
    _state: str = "framing"
    _open: bool = False
    _left: int = 0
    _any_content: bool = False

    def push(self, data: bytes) -> list[Event]:
        """What the next bytes complete; raises MalformedError."""
        self._buffer += data
        events: list[Event] = []
        try:
            while self._step(events):
                pass
        except _Short:
            if len(self._buffer) > MAX_HEAD + 16:
                raise MalformedError("binary HTTP: head too long") from None
        return events

    def finish(self) -> list[Event]:
        """The End event, if it did not come yet and the message may end here (section 3.8); else raises."""
        if self._state == "padding":
            return []
        # Empty last sections may be left out; half a section may not.
        if not self._buffer and (self._state in ("content", "trailers") and not self._left and not self._any_content):
            self._state = "padding"
            return [End(())]
        raise MalformedError("binary HTTP: the response is cut short")

    def _step(self, events: list[Event]) -> bool:
        if self._state == "padding":
            _padding(self._buffer)
            self._buffer = b""
            return False
        if self._left:
            return self._content_bytes(events)
        if not self._buffer:
            return False
        cursor = _Cursor(self._buffer, "binary HTTP")
        getattr(self, f"_read_{self._state}")(cursor, events)
        self._buffer = self._buffer[cursor.position :]
        return True

    def _content_bytes(self, events: list[Event]) -> bool:
        piece, self._buffer = self._buffer[: self._left], self._buffer[self._left :]
        if not piece:
            return False
        self._left -= len(piece)
        events.append(Content(piece))
        if not self._left and not self._open:
            self._state = "trailers"
            self._any_content = False
        return True

    def _read_framing(self, cursor: _Cursor, _events: list[Event]) -> None:
        framing = cursor.varint("framing indicator")
        if framing not in (_KNOWN_RESPONSE, _OPEN_RESPONSE):
            raise MalformedError("binary HTTP: not a response")
        self._open = framing == _OPEN_RESPONSE
        self._state = "head"

    def _read_head(self, cursor: _Cursor, events: list[Event]) -> None:
        status = cursor.varint("status")
        if not 100 <= status <= 599:
            raise MalformedError("binary HTTP: bad status")
        headers = self._section(cursor)
        if status >= 200:
            events.append(Head(status, headers))
            self._state = "content"

    def _section(self, cursor: _Cursor) -> Fields:
        if self._open:
            return _fields_until_zero(cursor)
        return _fields(Reader(cursor.vector("fields", limit=MAX_HEAD), "binary HTTP"))

    def _read_content(self, cursor: _Cursor, _events: list[Event]) -> None:
        self._left = cursor.varint("content length")
        # In open framing a started content must be ended; a known length says so itself.
        self._any_content = self._open
        if not self._left:
            self._state = "trailers"
            self._any_content = False

    def _read_trailers(self, cursor: _Cursor, events: list[Event]) -> None:
        events.append(End(self._section(cursor)))
        self._state = "padding"
