"""Binary HTTP against the examples of RFC 9292, in every split, and what it must refuse."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import MalformedError
from cloister.wire import bhttp


@pytest.fixture(scope="module")
def examples(vectors: Path) -> dict[str, dict]:
    items = json.loads((vectors / "ohttp" / "rfc9292-examples.json").read_bytes())["examples"]
    return {item["anchor"]: item for item in items}


@pytest.mark.parametrize("anchor", ["ex-bink-request", "ex-bini-request"])
def test_example_requests(examples: dict, anchor: str) -> None:
    request = bhttp.decode_request(bytes.fromhex(examples[anchor]["hex"]))
    lines = examples["ex-request"]["http"]
    assert f"{request.method} {request.path} HTTP/1.1" == lines[0]
    assert [f"{name}: {value}".lower() for name, value in request.headers] == [line.lower() for line in lines[1:]]
    assert (request.scheme, request.authority, request.content, request.trailers) == ("https", "", b"", ())


def test_example_known_request_encodes_the_same(examples: dict) -> None:
    data = bytes.fromhex(examples["ex-bink-request"]["hex"])
    assert bhttp.encode_request(bhttp.decode_request(data)) == data


def _by_bytes(data: bytes) -> bhttp.Response:
    decoder = bhttp.ResponseDecoder()
    events = [event for byte in data for event in decoder.push(bytes([byte]))] + decoder.finish()
    head = next(event for event in events if isinstance(event, bhttp.Head))
    end = next(event for event in events if isinstance(event, bhttp.End))
    content = b"".join(event.data for event in events if isinstance(event, bhttp.Content))
    return bhttp.Response(status=head.status, headers=head.headers, content=content, trailers=end.trailers)


def test_example_responses(examples: dict) -> None:
    data = bytes.fromhex(examples["ex-bini-response"]["hex"])
    response = bhttp.decode_response(data)
    assert response == _by_bytes(data)
    assert (response.status, len(response.content)) == (200, 51)
    assert dict(response.headers)["etag"] == '"34aa387-d-1568eb00"'
    data = bytes.fromhex(examples["ex-bink-chunked"]["hex"])
    response = bhttp.decode_response(data)
    assert response == _by_bytes(data)
    assert response.content == b"This content contains CRLF.\r\n"
    assert response.trailers == (("trailer", "text"),)
    assert bhttp.encode_response(response) == data


NAMES = st.from_regex(r"[a-z0-9!#$%&'*+.^_`|~-]{1,20}", fullmatch=True)
VALUES = st.from_regex(r"([!-~]([ \t!-~]{0,40}[!-~])?)?", fullmatch=True)
LINES = st.lists(st.tuples(NAMES, VALUES), max_size=5).map(tuple)


@given(LINES, st.binary(max_size=300), LINES, st.integers(0, 40))
def test_requests_round_trip(headers: bhttp.Fields, content: bytes, trailers: bhttp.Fields, padding: int) -> None:
    request = bhttp.Request(method="POST", path="/v1/x", headers=headers, content=content, trailers=trailers)
    assert bhttp.decode_request(bhttp.encode_request(request) + bytes(padding)) == request


@given(LINES, st.lists(st.binary(min_size=1, max_size=100), max_size=6), LINES, st.lists(st.integers(1, 60)))
def test_open_responses_survive_any_split(
    headers: bhttp.Fields, pieces: list[bytes], trailers: bhttp.Fields, cuts: list[int]
) -> None:
    data = bhttp.encode_head(200, headers) + b"".join(map(bhttp.encode_content, pieces)) + bhttp.encode_end(trailers)
    data += bytes(7)
    decoder = bhttp.ResponseDecoder()
    events: list[bhttp.Event] = []
    for cut in [*cuts, len(data)]:
        events += decoder.push(data[:cut])
        data = data[cut:]
    events += decoder.finish()
    assert events[0] == bhttp.Head(200, headers)
    assert events[-1] == bhttp.End(trailers)
    assert b"".join(event.data for event in events if isinstance(event, bhttp.Content)) == b"".join(pieces)


def test_an_open_response_cut_anywhere_is_refused() -> None:
    head = bhttp.encode_head(200, (("a", "b"),))
    data = head + bhttp.encode_content(b"content") + bhttp.encode_end((("c", "d"),))
    for end in range(len(data)):
        if end in (len(head), data.index(b"\x00\x01c") + 1):
            continue  # section 3.8: nothing of the content, or of the trailers, has begun
        decoder = bhttp.ResponseDecoder()
        decoder.push(data[:end])
        with pytest.raises(MalformedError):
            decoder.finish()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        b"\x04",
        b"\x00\x03GET\x05https\x00\x01/\x05\x03abc",
        b"\x00\x03GET\x05https\x00\x01/\x00\x00\x00\x01",  # padding that is not zero
        b"\x00\x03G T\x05https\x00\x01/\x00\x00\x00",
        b"\x00\x03GET\x05https\x00\x02/ \x00\x00\x00",
        b"\x00\x03GET\x05https\x00\x01/\x04\x01A\x01b\x00\x00",  # upper case
        b"\x00\x03GET\x05https\x00\x01/\x05\x02:a\x01b\x00\x00",  # pseudo field
        b"\x00\x03GET\x05https\x00\x01/\x05\x01a\x02b\n\x00\x00",
        b"\x00\x03GET\x05https\x00\x01/\x05\x01a\x02 b\x00\x00",
        b"\x00\x03GET\x05https\x00\x01/\x03\x00\x01b\x00\x00",  # empty name
        b"\x00\x03GET\x05https\x00\x01/\x00\x05abc",
        b"\x00\x03GET\x05https\x00\x01/\x00\xc0\xff\xff\xff\xff\xff\xff\xff",
    ],
)
def test_malformed_requests(data: bytes) -> None:
    with pytest.raises(MalformedError):
        bhttp.decode_request(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\x01",
        b"\x01\x40\x63",
        b"\x01\x42\x58\x00",
        b"\x01\x40\xc8",
        b"\x01\x40\xc8\x00\x02a",
        b"\x03\x40\xc8",
    ],
)
def test_malformed_responses(data: bytes) -> None:
    with pytest.raises(MalformedError):
        bhttp.decode_response(data)


def test_a_head_without_end_is_bounded() -> None:
    decoder = bhttp.ResponseDecoder()
    decoder.push(b"\x03\x40\xc8")
    line = b"\x01a" + b"\x7f\xff" + b"b" * 16383
    with pytest.raises(MalformedError):
        for _ in range(20):
            decoder.push(line)


def test_encoding_refuses_what_is_not_http() -> None:
    for name, value in (("A", "b"), ("a", "b\r\nc: d"), ("", "b"), ("a b", "c")):
        with pytest.raises(ValueError, match="HTTP field"):
            bhttp.encode_head(200, ((name, value),))


@given(st.binary(max_size=200))
def test_nothing_but_malformed_escapes(data: bytes) -> None:
    for decode in (bhttp.decode_request, bhttp.decode_response):
        with contextlib.suppress(MalformedError):
            decode(data)
