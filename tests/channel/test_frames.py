"""Frames hide what is in them: all the same size, whatever the tokens; and requests fall into buckets."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.channel.frames import FRAME, FrameShaper, _filler
from cloister.channel.padding import pad, padded_size
from cloister.wire import bhttp

HEADERS = (("content-type", "text/event-stream"),)


def _decode(frames: list[bytes]) -> tuple[bytes, bhttp.Fields]:
    decoder = bhttp.ResponseDecoder()
    events = [event for frame in frames for event in decoder.push(frame)] + decoder.finish()
    content = b"".join(event.data for event in events if isinstance(event, bhttp.Content))
    return content, next(event for event in events if isinstance(event, bhttp.End)).trailers


def _without_comments(content: bytes) -> bytes:
    return b"\n".join(line for line in content.split(b"\n") if not line.startswith(b":"))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.text("abc é\u2603", max_size=700), st.booleans()), max_size=20),
    st.sampled_from([FRAME, 64, 1024, 0]),
)
def test_every_frame_has_the_same_size_and_the_stream_comes_out_whole(
    events: list[tuple[str, bool]], size: int
) -> None:
    shaper = FrameShaper(sse=True, size=size)
    frames = shaper.head(200, HEADERS)
    sent = b""
    for text, flush in events:
        event = b"data: " + text.encode() + b"\n\n"
        sent += event
        frames += shaper.content(event)
        if flush:
            frames += shaper.flush()
            assert not shaper.flush()  # nothing is pending after a flush
    digest = shaper.content_sha256()
    final = shaper.end((("cloister-receipt", "r" * 300),))
    if size:
        assert {len(frame) for frame in frames} <= {size}
        assert len(final) % size == 0
    content, trailers = _decode([*frames, final])
    assert _without_comments(content) == sent
    assert hashlib.sha256(content).digest() == digest
    assert trailers == (("cloister-receipt", "r" * 300),)


@pytest.mark.parametrize("size", range(3, 600))
def test_filler_of_every_size(size: int) -> None:
    chunk, line = _filler(size)
    assert len(chunk) == size
    assert line.startswith(b":")
    assert line.endswith(b"\n")
    assert line.strip(b" :\n") == b""
    assert _decode([bhttp.encode_head(200, ()) + chunk + bhttp.encode_end(())])[0] == line


def test_half_an_event_cannot_be_framed() -> None:
    with pytest.raises(ValueError, match="whole events"):
        FrameShaper(sse=True).content(b"data: half")
    shaper = FrameShaper(sse=False)
    shaper.content(b"{}")
    with pytest.raises(ValueError, match="event streams"):
        shaper.flush()


@given(st.binary(max_size=40_000))
@settings(deadline=None, max_examples=30)
def test_json_answers_are_framed_too(body: bytes) -> None:
    shaper = FrameShaper(sse=False)
    frames = [*shaper.head(200, ()), *shaper.content(body)]
    final = shaper.end(())
    assert {len(frame) for frame in frames} <= {FRAME}
    assert len(final) % FRAME == 0
    assert _decode([*frames, final])[0] == body


@given(st.integers(0, 8 * 1024 * 1024))
def test_request_buckets(size: int) -> None:
    padded = padded_size(size)
    assert padded >= size
    if size <= 16384:
        assert padded % 2048 == 0
        assert padded - size <= 2048
    else:
        assert padded <= size * 1.12


def test_padding_is_zero_and_known_buckets() -> None:
    assert pad(b"x") == b"x" + bytes(2047)
    assert [padded_size(n) for n in (0, 1, 2048, 2049, 16384, 16385, 1_000_000)] == [
        2048, 2048, 2048, 4096, 16384, 17408, 1_015_808,
    ]  # fmt: skip
    # Far fewer lengths can be told apart than there are.
    assert len({padded_size(n) for n in range(16385, 1_000_000, 97)}) < 200
