"""Segments: the format by two independent readers, and everything that must not open."""

from __future__ import annotations

import functools
import io
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.weights.samples import FIRST, FULL, open_all, tink_decrypt

from cloister.errors import MalformedError, RefusedError
from cloister.weights.stream import HEADER, SEGMENT, TAG, Layout, Opener, Sealer

KEY, ASSOCIATED = bytes(range(32)), b"associated"
#: Written by Tink 1.16.1 for Python: key type AesGcmHkdfStreamingKey with KEY, 1 MiB segments, SHA256, ASSOCIATED.
TINK = bytes.fromhex(
    "28ea49a42a6d2dc94ded65ef357eb2d53a4a1b56ae3cca9ee402a0e863b6c06a29615e4978bfd21e982f5c87ef8b425385c875daef668e84"
    "1109bdacfa6e1526d0fa8f91410b04f7"
)
#: One byte to either side of every boundary.
SIZES = (1, FIRST - 1, FIRST, FIRST + 1, FIRST + FULL - 1, FIRST + FULL, FIRST + FULL + 1, FIRST + 2 * FULL)


@functools.cache
def sealed(size: int) -> tuple[bytes, bytes]:
    plain = os.urandom(size)
    sealer = Sealer(KEY, ASSOCIATED, size)
    pieces = [sealer.seal(index, plain[slice(*sealer.layout.plain(index))]) for index in range(sealer.layout.segments)]
    return plain, sealer.header + b"".join(pieces)


def refused(stream: bytes, size: int, key: bytes = KEY, associated: bytes = ASSOCIATED) -> None:
    with pytest.raises((RefusedError, MalformedError)):
        open_all(stream, key, associated, size)


@pytest.mark.parametrize("size", SIZES)
def test_round_trip_and_an_independent_reader(size: int) -> None:
    plain, stream = sealed(size)
    assert len(stream) == Layout(size).ciphertext
    assert open_all(stream, KEY, ASSOCIATED, size) == plain
    assert tink_decrypt(stream, KEY, ASSOCIATED) == plain


def test_opens_what_tink_wrote() -> None:
    assert open_all(TINK, KEY, ASSOCIATED, 16) == tink_decrypt(TINK, KEY, ASSOCIATED) == b"Tink wrote this."


@pytest.mark.parametrize("size", SIZES)
def test_both_ways_with_tink_itself(size: int) -> None:
    tink = pytest.importorskip(
        "tink", reason="Google's tink is not installed: checked only against a stream that it wrote"
    )
    from tink import secret_key_access, streaming_aead
    from tink.proto import aes_gcm_hkdf_streaming_pb2, common_pb2, tink_pb2

    streaming_aead.register()
    params = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingParams(
        ciphertext_segment_size=SEGMENT, derived_key_size=32, hkdf_hash_type=common_pb2.SHA256
    )
    key = tink_pb2.KeyData(
        type_url="type.googleapis.com/google.crypto.tink.AesGcmHkdfStreamingKey",
        value=aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey(key_value=KEY, params=params).SerializeToString(),
        key_material_type=tink_pb2.KeyData.SYMMETRIC,
    )
    entry = tink_pb2.Keyset.Key(key_data=key, status=tink_pb2.ENABLED, key_id=1, output_prefix_type=tink_pb2.RAW)
    keyset = tink_pb2.Keyset(primary_key_id=1, key=[entry]).SerializeToString()
    handle = tink.proto_keyset_format.parse(keyset, secret_key_access.TOKEN)
    primitive = handle.primitive(streaming_aead.StreamingAead)
    plain, stream = sealed(size)
    with primitive.new_decrypting_stream(io.BytesIO(stream), ASSOCIATED) as reader:
        assert reader.read() == plain

    class Kept(io.BytesIO):
        def close(self) -> None:
            pass

    theirs = Kept()
    with primitive.new_encrypting_stream(theirs, ASSOCIATED) as writer:
        writer.write(plain)
    assert open_all(theirs.getvalue(), KEY, ASSOCIATED, size) == plain


@given(st.integers(1, 1 << 42))
def test_layout_leaves_no_gap(size: int) -> None:
    layout = Layout(size)
    last = layout.segments - 1
    assert layout.plain(0)[0] == 0
    assert layout.sealed(0)[0] == HEADER
    assert layout.plain(last)[1] == size
    assert layout.sealed(last)[1] == layout.ciphertext
    for index in {0, 1, last // 2, last - 1} & set(range(last)):
        assert layout.plain(index)[1] == layout.plain(index + 1)[0]
        # Segment ends lie on multiples of 1 MiB from the header's first byte.
        assert layout.sealed(index)[1] == layout.sealed(index + 1)[0] == (index + 1) * SEGMENT
        start, end = layout.plain(index)
        assert layout.sealed(index)[1] - layout.sealed(index)[0] == end - start + TAG


def test_segments_open_in_any_order() -> None:
    size = FIRST + FULL + 5
    plain, stream = sealed(size)
    opener = Opener(KEY, stream[:HEADER], ASSOCIATED, size)
    for index in (2, 0, 1, 1):
        start, end = opener.layout.plain(index)
        target = bytearray(end - start)
        opener.open_into(index, memoryview(stream)[slice(*opener.layout.sealed(index))], memoryview(target))
        assert target == plain[start:end]


SIZE = FIRST + FULL + 1000  # three segments, the last one short
ENDS = (HEADER, SEGMENT, 2 * SEGMENT, HEADER + SIZE + 3 * TAG)


@pytest.mark.parametrize(
    ("key", "associated"),
    [(bytes(32), ASSOCIATED), (KEY[::-1], ASSOCIATED), (KEY, b""), (KEY, ASSOCIATED + b"\x00")],
    ids=["zero key", "other key", "no manifest", "other manifest"],
)
def test_wrong_key_or_manifest(key: bytes, associated: bytes) -> None:
    refused(sealed(SIZE)[1], SIZE, key, associated)


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_released_key_of_another_length(length: int) -> None:
    with pytest.raises(RefusedError, match="32 bytes"):
        Opener(bytes(length), sealed(1)[1][:HEADER], ASSOCIATED, 1)


@pytest.mark.parametrize("header", [b"", bytes(HEADER), bytes([HEADER]) * (HEADER - 1), bytes([HEADER]) * (HEADER + 1)])
def test_a_damaged_header(header: bytes) -> None:
    with pytest.raises(MalformedError):
        Opener(KEY, header, ASSOCIATED, 1)


@pytest.mark.parametrize(
    "cut", sorted({max(0, end + delta) for end in ENDS for delta in (-1, 0, 1)} - {ENDS[-1], ENDS[-1] + 1})
)
def test_truncated_around_every_boundary(cut: int) -> None:
    refused(sealed(SIZE)[1][:cut], SIZE)


@pytest.mark.parametrize("size", [1000, FIRST, FIRST + FULL, FIRST + 1000, SIZE - 1, SIZE + 1])
def test_a_cut_stream_with_a_manifest_to_match(size: int) -> None:
    """What is left is whole segments, yet none of them is marked as the last."""
    refused(sealed(SIZE)[1][: Layout(size).ciphertext], size)


def test_swapped_repeated_and_foreign_segments() -> None:
    size = FIRST + 2 * FULL + 10
    plain, stream = sealed(size)
    first, one, two, last = (stream[slice(*Layout(size).sealed(index))] for index in range(4))
    header = stream[:HEADER]
    assert open_all(header + first + one + two + last, KEY, ASSOCIATED, size) == plain
    refused(header + first + two + one + last, size)
    refused(header + first + one + one + last, size)
    # Another file under the same key and manifest has another salt.
    other = sealed(size + 1)[1]
    refused(header + first + other[slice(*Layout(size).sealed(1))] + two + last, size)
    refused(other[:HEADER] + stream[HEADER:], size)


@settings(max_examples=300)
@given(st.integers(0, 8 * Layout(1000).ciphertext - 1))
def test_every_bit_counts(bit: int) -> None:
    stream = bytearray(sealed(1000)[1])
    stream[bit // 8] ^= 1 << bit % 8
    refused(bytes(stream), 1000)


@given(st.data())
def test_bits_of_a_long_stream(data: st.DataObject) -> None:
    stream = bytearray(sealed(SIZE)[1])
    bit = data.draw(st.integers(0, 8 * len(stream) - 1))
    stream[bit // 8] ^= 1 << bit % 8
    refused(bytes(stream), SIZE)


def test_two_seals_of_one_file_share_nothing() -> None:
    one, two = (Sealer(KEY, ASSOCIATED, 100) for _ in range(2))
    assert one.header != two.header
    assert one.seal(0, bytes(100)) != two.seal(0, bytes(100))
