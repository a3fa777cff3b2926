"""Sealed containers: what the owner sealed opens, anything else does not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import secrets
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import CloisterError, MalformedError, NotGenuineError, RefusedError, UsageError
from cloister.weights import manifest
from cloister.weights.keys import WrappedKey
from cloister.weights.seal import seal
from cloister.weights.stream import HEADER, SEGMENT, TAG, Layout, Opener, Sealer

OWNER = Ed25519PrivateKey.generate()
KEY = secrets.token_bytes(32)
FIRST = SEGMENT - HEADER - TAG


class Wrapper:
    """A key service that keeps no secret."""

    def generate(self, context: dict[str, str]) -> tuple[bytes, WrappedKey]:
        return KEY, WrappedKey(service="aws-kms", key_id="arn", ciphertext=b"wrapped", context=context)


def made(**changes: object) -> manifest.Manifest:
    key = WrappedKey(service="aws-kms", key_id="arn", ciphertext=b"w", context=manifest.context("m", 2))
    values = {"model": "m", "version": 2, "size": 5, "sha256": "0" * 64, "key": key, **changes}
    return manifest.Manifest(**values)


@pytest.mark.parametrize(
    "size", [1, FIRST - 1, FIRST, FIRST + 1, FIRST + SEGMENT - TAG, FIRST + SEGMENT - TAG + 1, 5 * SEGMENT]
)
def test_layout_covers_everything_once(size: int) -> None:
    layout = Layout(size)
    plain = [layout.plain(index) for index in range(layout.segments)]
    assert plain[0][0] == 0
    assert plain[-1][1] == size
    assert all(before[1] == after[0] for before, after in itertools.pairwise(plain))
    sealed = [layout.sealed(index) for index in range(layout.segments)]
    assert sealed[0][0] == HEADER
    assert sealed[-1][1] == layout.ciphertext
    assert all(before[1] == after[0] for before, after in itertools.pairwise(sealed))
    assert all(end > start for start, end in plain)
    # Every segment but the last ends on a border of 1 MiB of the ciphertext, its header included.
    assert all(end % SEGMENT == 0 for _, end in sealed[:-1])


def independent(key: bytes, associated: bytes, stream: bytes) -> bytes:
    """AES256_GCM_HKDF_1MB from its description alone."""
    salt, prefix = stream[1:33], stream[33:40]
    inner = hmac.new(hmac.new(salt, key, hashlib.sha256).digest(), associated + b"\1", hashlib.sha256).digest()
    pieces = [stream[40:SEGMENT]] + [stream[at : at + SEGMENT] for at in range(SEGMENT, len(stream), SEGMENT)]
    last = len(pieces) - 1
    return b"".join(
        AESGCM(inner).decrypt(prefix + struct.pack(">IB", index, index == last), piece, None)
        for index, piece in enumerate(pieces)
    )


@pytest.mark.parametrize("size", [1, FIRST, FIRST + 1, 2 * SEGMENT + 77])
def test_an_independent_reader_opens_it(size: int) -> None:
    plaintext = secrets.token_bytes(size)
    sealer, layout = Sealer(KEY, b"context", size), Layout(size)
    stream = sealer.header + b"".join(
        sealer.seal(n, plaintext[slice(*layout.plain(n))]) for n in range(layout.segments)
    )
    assert stream[0] == 40
    assert len(stream) == layout.ciphertext
    assert independent(KEY, b"context", stream) == plaintext


def opened(key: bytes, associated: bytes, stream: bytes, size: int) -> bytes:
    opener = Opener(key, stream[:HEADER], associated, size)
    room = bytearray(size)
    view = memoryview(room)
    for index in range(opener.layout.segments):
        start, end = opener.layout.plain(index)
        opener.open_into(index, memoryview(stream)[slice(*opener.layout.sealed(index))], view[start:end])
    return bytes(room)


def test_what_must_not_open() -> None:
    size = 2 * SEGMENT + 77
    plaintext = secrets.token_bytes(size)
    sealer, layout = Sealer(KEY, b"context", size), Layout(size)
    segments = [sealer.seal(n, plaintext[slice(*layout.plain(n))]) for n in range(layout.segments)]
    stream = sealer.header + b"".join(segments)
    assert opened(KEY, b"context", stream, size) == plaintext
    start, _ = layout.sealed(1)
    with pytest.raises(RefusedError):
        opened(bytes(32), b"context", stream, size)
    with pytest.raises(RefusedError):
        opened(KEY, b"other", stream, size)
    with pytest.raises(RefusedError, match="segment 1"):
        opened(KEY, b"context", stream[:start] + bytes([stream[start] ^ 1]) + stream[start + 1 :], size)
    # Full segments change places; then one is dropped and the end moves up.
    same = Sealer(KEY, b"context", 4 * SEGMENT)
    pieces = [same.seal(n, bytes(slice_[1] - slice_[0])) for n in range(5) for slice_ in [Layout(4 * SEGMENT).plain(n)]]
    swapped = same.header + pieces[0] + pieces[2] + pieces[1] + pieces[3] + pieces[4]
    with pytest.raises(RefusedError, match="segment 1"):
        opened(KEY, b"context", swapped, 4 * SEGMENT)
    for count in range(1, 5):
        shorter = Layout(4 * SEGMENT).plain(count - 1)[1]
        with pytest.raises(RefusedError, match=f"segment {count - 1}"):
            opened(KEY, b"context", same.header + b"".join(pieces[:count]), shorter)
    with pytest.raises(MalformedError):
        Opener(KEY, b"\0" + stream[1:HEADER], b"context", size)
    with pytest.raises(RefusedError):
        Opener(KEY[:16], stream[:HEADER], b"context", size)


def test_head_round_trip() -> None:
    data = manifest.sign(made(), OWNER)
    head = manifest.read(data + b"stream", OWNER.public_key())
    assert head.manifest == made()
    assert head.stream_at == len(data)
    assert head.associated == hashlib.sha256(made().payload()).digest()
    assert manifest.read(data, None).manifest == made()


def test_another_owner_is_refused() -> None:
    with pytest.raises(NotGenuineError):
        manifest.read(manifest.sign(made(), OWNER), Ed25519PrivateKey.generate().public_key())


def test_every_flipped_bit_of_the_head_is_refused() -> None:
    data = manifest.sign(made(), OWNER)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1
        try:
            head = manifest.read(bytes(changed), OWNER.public_key())
        except CloisterError:
            continue
        # White space or unused bits of the envelope may change; what was signed may not.
        assert head.manifest == made(), at


def test_every_cut_of_the_head_is_refused() -> None:
    data = manifest.sign(made(), OWNER)
    for length in range(len(data)):
        with pytest.raises(MalformedError):
            manifest.read(data[:length], OWNER.public_key())


def enveloped(payload: bytes, /, **changes: object) -> bytes:
    envelope = {
        "payloadType": manifest.PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"sig": base64.b64encode(OWNER.sign(manifest.pae(payload))).decode()}],
        **changes,
    }
    text = json.dumps(envelope).encode()
    return manifest.HEAD.pack(manifest.MAGIC, len(text)) + text


def without(name: str) -> bytes:
    return json.dumps({key: value for key, value in json.loads(made().payload()).items() if key != name}).encode()


def replaced(**changes: object) -> bytes:
    return json.dumps({**json.loads(made().payload()), **changes}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF" + bytes(100),
        manifest.HEAD.pack(manifest.MAGIC, 0),
        manifest.HEAD.pack(manifest.MAGIC, manifest.MAX_ENVELOPE + 1) + bytes(100),
        enveloped(made().payload(), payloadType="other"),
        enveloped(made().payload(), signatures=[]),
        enveloped(made().payload(), signatures=[1]),
        enveloped(made().payload(), payload="!"),
        enveloped(made().payload(), more=1),
        *(enveloped(without(name)) for name in ("type", "model", "version", "size", "sha256", "key")),
        enveloped(replaced(type="cloister.sealed-model/2")),
        enveloped(replaced(more=1)),
        enveloped(replaced(version=-1)),
        enveloped(replaced(version="2")),
        enveloped(replaced(size=0)),
        enveloped(replaced(size=1 << 60)),
        enveloped(replaced(sha256="0" * 63)),
        enveloped(replaced(sha256="G" * 64)),
        enveloped(replaced(key={})),
    ],
)
def test_heads_that_must_fail(data: bytes) -> None:
    with pytest.raises(MalformedError):
        manifest.read(data, OWNER.public_key())


@given(st.binary(max_size=400))
def test_any_head(data: bytes) -> None:
    with pytest.raises(MalformedError):
        manifest.read(data, OWNER.public_key())


def test_rollback_and_exchange_are_refused() -> None:
    manifest.check(made(), model="m", minimum_version=2)
    with pytest.raises(RefusedError, match="older"):
        manifest.check(made(), model="m", minimum_version=3)
    with pytest.raises(RefusedError, match="another model"):
        manifest.check(made(), model="n", minimum_version=1)
    key = WrappedKey(service="aws-kms", key_id="arn", ciphertext=b"w", context=manifest.context("m", 1))
    with pytest.raises(RefusedError, match="bound to another"):
        manifest.check(made(key=key), model="m", minimum_version=1)


def test_sealing_a_file(tmp_path: Path) -> None:
    source, target = tmp_path / "model", tmp_path / "sealed"
    plaintext = secrets.token_bytes(SEGMENT + 1000)
    source.write_bytes(plaintext)
    described = seal(source, target, model="m", version=3, owner=OWNER, wrapper=Wrapper())
    data = target.read_bytes()
    head = manifest.read(data, OWNER.public_key())
    assert head.manifest == described
    assert described.sha256 == hashlib.sha256(plaintext).hexdigest()
    assert opened(KEY, head.associated, data[head.stream_at :], described.size) == plaintext
    assert plaintext[:64] not in data
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "sealed"]


def test_sealing_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name in ("empty", "missing"):
        with pytest.raises(UsageError):
            seal(tmp_path / name, tmp_path / "out", model="m", version=1, owner=OWNER, wrapper=Wrapper())
    assert not (tmp_path / "out").exists()
