"""Protocol Buffers: what a lenient decoder would let through is refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tee.google.signer import proto, varint

from cloister.errors import MalformedError
from cloister.wire.protobuf import Message


def test_fields_by_number() -> None:
    message = Message(proto((1, 300), (2, b"bytes"), (4, proto((1, 1))), (5, b"a"), (5, b"bc"), (200, 1)), "test")
    assert message.integer(1) == 300
    assert message.octets(2) == b"bytes"
    assert (message.integer(3), message.octets(3), message.has(3), message.message(3, "x")) == (0, b"", False, None)
    inner = message.message(4, "inner")
    assert inner is not None
    assert inner.flag(1)
    inner.done()
    assert message.every(5, count=2) == (b"a", b"bc")
    with pytest.raises(MalformedError, match="unknown"):
        message.done()
    assert message.flag(200)
    message.done()


def test_maps() -> None:
    entries = [(1, proto((2, b"zero"))), (1, proto((1, 7), (2, b"seven")))]
    assert Message(proto(*entries), "test").mapping(1, lambda each: each.octets(2), count=2, maximum=7) == {
        0: b"zero", 7: b"seven",
    }  # fmt: skip
    for wrong in ([*entries, entries[1]], [(1, proto((1, 8), (2, b"x")))], [(1, proto((3, b"x")))], [(1, 1)]):
        with pytest.raises(MalformedError):
            Message(proto(*wrong), "test").mapping(1, lambda each: each.octets(2), count=3, maximum=7)


def test_fixed_fields_are_read() -> None:
    assert Message(b"\x09" + (5).to_bytes(8, "little") + b"\x15" + (6).to_bytes(4, "little"), "test").integer(1) == 5


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01",  # field 0
        b"\x0b",  # a group
        b"\x0a\x05abc",  # a length beyond the end
        b"\x08",  # no value
        b"\x08" + b"\x80" * 10 + b"\x01",  # a varint of eleven bytes
        b"\x08" + b"\xff" * 9 + b"\x7f",  # more than 64 bits
        varint(1 << 33) + b"\x00",  # a field number beyond 29 bits
        b"\x08\x01" * 4097,
    ],
)
def test_malformed(data: bytes) -> None:
    with pytest.raises(MalformedError):
        Message(data, "test")


def test_types_sizes_and_repetition() -> None:
    message = Message(proto((1, 300), (2, b"bytes"), (3, 1), (3, 2)), "test")
    for read in (
        lambda: message.octets(1), lambda: message.integer(2), lambda: message.integer(1, maximum=299),
        lambda: message.octets(2, size=4), lambda: message.octets(2, limit=4), lambda: message.integer(3),
        lambda: message.flag(1), lambda: message.octets(9, size=1), lambda: message.every(2, count=0),
        lambda: message.message(1, "x"),
    ):  # fmt: skip
        with pytest.raises(MalformedError):
            read()


@given(st.binary(max_size=100))
def test_arbitrary_bytes(data: bytes) -> None:
    with contextlib.suppress(MalformedError):
        message = Message(data, "test")
        message.integer(1)
        message.every(2, count=4)
        message.done()
