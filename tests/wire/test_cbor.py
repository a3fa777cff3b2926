"""Strict CBOR: what is accepted is small, everything else is one error."""

from __future__ import annotations

import contextlib

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import MalformedError
from cloister.wire import cbor, strict_json
from cloister.wire.reader import Reader, encode_varint

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.binary(max_size=20) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.integers(-9, 99) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(PLAIN)
def test_plain_values_round_trip(value: object) -> None:
    with contextlib.suppress(MalformedError):  # only for nesting beyond the bound
        assert cbor.loads(cbor2.dumps(value), "x", limit=1 << 20) == value


@pytest.mark.parametrize(
    "text",
    [
        "", "ff", "01 02", "f7", "f97e00", "fb3ff0000000000000", "f8ff", "a2616101616102", "c1 1a514b67b0",
        "c2 49010000000000000000", "d81c 81 d81d00", "d90102 8101", "d9d9f7 01", "d8 2a 00", "a1 80 01", "a1 f5 01",
        "a1 4161 01", "818181818181818181 01", "9f01", "bf6161", "5f41", "62c328", "1c", "fb7ff0000000000000",
    ],
)  # fmt: skip
def test_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        cbor.loads(bytes.fromhex(text), "x", limit=1000)


def test_size_and_messages_without_content() -> None:
    with pytest.raises(MalformedError):
        cbor.loads(cbor2.dumps("x" * 100), "x", limit=50)
    with pytest.raises(MalformedError) as caught:
        cbor.loads(b"\xa2\x66secret\x01\x66secret\x02", "x", limit=100)
    assert "secret" not in str(caught.value)


@given(st.binary(max_size=100))
def test_nothing_but_malformed_escapes(data: bytes) -> None:
    with contextlib.suppress(MalformedError):
        cbor.loads(data, "x", limit=1000)
    with contextlib.suppress(MalformedError):
        strict_json.loads(data, "x", limit=1000)


@given(st.integers(0, (1 << 62) - 1))
def test_varints(value: int) -> None:
    reader = Reader(encode_varint(value) + b"\xff", "x")
    assert reader.varint("v") == value
    assert reader.remaining == 1
    with pytest.raises(MalformedError):
        reader.end()


@pytest.mark.parametrize(
    "text", ["", "1", "[]", '{"a":1,"a":2}', '{"a":NaN}', '{"a":Infinity}', '{"a":"\\ud800"}', "{'a':1}", '{"a":1}x',
             '{"a":' + "[" * 32 + "]" * 32 + "}", '{"a":' + "[" * 5000 + "]" * 5000 + "}"]
)  # fmt: skip
def test_json_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        strict_json.loads(text.encode(), "x", limit=100_000)


@pytest.mark.parametrize("text", ["A", "AB", "AAA=", "A A", "AA+_", "é", "AAAA\n"])
def test_base64url_has_one_spelling(text: str) -> None:
    with pytest.raises(MalformedError):
        strict_json.decode_base64url(text, "x")


def test_json_nesting_has_one_bound_everywhere() -> None:
    for depth, accepted in ((30, True), (31, True), (32, False), (2000, False)):
        data = b'{"a":' + b"[" * (depth - 1) + b"1" + b"]" * (depth - 1) + b"}"
        if accepted:
            assert strict_json.loads(data, "x", limit=10_000)
        else:
            with pytest.raises(MalformedError):
                strict_json.loads(data, "x", limit=10_000)
