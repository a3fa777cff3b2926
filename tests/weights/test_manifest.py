"""The signed head: who may say what a container holds, and what a changed, foreign or old one does."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.weights.samples import OWNER, make, open_all

from cloister.errors import CloisterError, MalformedError, NotGenuineError, RefusedError
from cloister.weights import manifest
from cloister.weights.keys import WrappedKey

PUBLIC = OWNER.public_key()
KEY = WrappedKey(
    service="aws-kms", key_id="arn:aws:kms:us-east-1:111122223333:key/k", ciphertext=b"\x01wrapped",
    context=manifest.context("notes", 7),
)  # fmt: skip
MANIFEST = manifest.Manifest(model="notes", version=7, size=1000, sha256="0a" * 32, key=KEY)
SEALED = manifest.sign(MANIFEST, OWNER)
HEAD = manifest.HEAD.size


def envelope(data: bytes = SEALED) -> dict:
    return json.loads(data[HEAD:])


def framed(value: object) -> bytes:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return manifest.HEAD.pack(manifest.MAGIC, len(text)) + text


def signed(change: Callable[[dict], object]) -> bytes:
    """A payload as it was changed, well signed by the owner."""
    document = json.loads(MANIFEST.payload())
    change(document)
    payload = json.dumps(document).encode()
    outer = envelope()
    outer["payload"] = base64.b64encode(payload).decode()
    outer["signatures"] = [{"sig": base64.b64encode(OWNER.sign(manifest.pae(payload))).decode()}]
    return framed(outer)


def test_round_trip() -> None:
    head = manifest.read(SEALED + b"the stream", PUBLIC)
    assert head.manifest == MANIFEST
    assert SEALED[head.stream_at :] == b""
    assert manifest.length(SEALED[:HEAD]) == head.stream_at
    manifest.check(head.manifest, model="notes", minimum_version=7)


def test_the_encoding_that_is_signed() -> None:
    """The example of DSSE's protocol.md, with our type; and the same bytes without our code."""
    payload = base64.b64decode(envelope()["payload"])
    kind = "application/vnd.cloister.sealed-model+json"
    signature = base64.b64decode(envelope()["signatures"][0]["sig"])
    PUBLIC.verify(signature, f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload)


@pytest.mark.parametrize("cut", [0, 1, HEAD - 1, HEAD, HEAD + 1, len(SEALED) - 1])
def test_truncated(cut: int) -> None:
    with pytest.raises(MalformedError):
        manifest.read(SEALED[:cut], PUBLIC)


@pytest.mark.parametrize("size", [0, manifest.MAX_ENVELOPE + 1, 2**32 - 1])
def test_impossible_lengths(size: int) -> None:
    with pytest.raises(MalformedError):
        manifest.length(manifest.HEAD.pack(manifest.MAGIC, size))


def test_another_magic() -> None:
    with pytest.raises(MalformedError, match="not sealed weights"):
        manifest.read(b"GGUF" + SEALED[4:], PUBLIC)


def test_another_owner() -> None:
    other = Ed25519PrivateKey.generate()
    with pytest.raises(NotGenuineError):
        manifest.read(SEALED, other.public_key())
    with pytest.raises(NotGenuineError):
        manifest.read(manifest.sign(MANIFEST, other), PUBLIC)


def test_a_changed_payload_under_the_old_signature() -> None:
    for change in ({"version": 8}, {"model": "other"}, {"size": 999}, {"sha256": "0b" * 32}):
        outer = envelope()
        payload = replace(MANIFEST, **change).payload()
        outer["payload"] = base64.b64encode(payload).decode()
        with pytest.raises(NotGenuineError):
            manifest.read(framed(outer), PUBLIC)


def test_a_signature_over_the_bare_payload_is_none() -> None:
    outer = envelope()
    outer["signatures"] = [{"sig": base64.b64encode(OWNER.sign(MANIFEST.payload())).decode()}]
    with pytest.raises(NotGenuineError):
        manifest.read(framed(outer), PUBLIC)


@pytest.mark.parametrize(
    "change",
    [
        {"payloadType": "application/vnd.in-toto+json"}, {"signatures": []}, {"signatures": ["x"]}, {"payload": "?"},
        {"signatures": envelope()["signatures"] * 2}, {"payload": 7}, {"more": 1}, {"signatures": [{"sig": "ä"}]},
        {"signatures": [{}]}, {"payload": "AA=A"},
    ],
    ids=str,
)  # fmt: skip
def test_malformed_envelopes(change: dict) -> None:
    with pytest.raises(MalformedError):
        manifest.read(framed(envelope() | change), PUBLIC)


@pytest.mark.parametrize("text", [b"[]", b"{", b'{"a":1,"a":2}', b"\xff", b"{}"], ids=repr)
def test_envelopes_that_are_no_objects(text: bytes) -> None:
    with pytest.raises(MalformedError):
        manifest.read(framed(text), PUBLIC)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(type="cloister.sealed-model/2"),
        lambda d: d.update(more=1),
        lambda d: d.pop("size"),
        lambda d: d.update(size=0),
        lambda d: d.update(size=manifest.MAX_SIZE + 1),
        lambda d: d.update(size=1.5),
        lambda d: d.update(version=-1),
        lambda d: d.update(version=True),
        lambda d: d.update(version="7"),
        lambda d: d.update(sha256="0A" * 32),
        lambda d: d.update(sha256="0a" * 31),
        lambda d: d.update(model=""),
        lambda d: d.update(model="../notes"),
        lambda d: d.update(model="a\x1b[2J"),
        lambda d: d.update(model="n" * 64),
        lambda d: d.update(key=None),
        lambda d: d["key"].update(more=1),
        lambda d: d["key"].update(ciphertext="?"),
        lambda d: d["key"].update(key_id="k\nk"),
        lambda d: d["key"].update(service="\u202e"),
        lambda d: d["key"].update(context={"cloister:model": 7}),
    ],
)
def test_well_signed_but_malformed(change: Callable[[dict], object]) -> None:
    with pytest.raises(MalformedError):
        manifest.read(signed(change), PUBLIC)


@pytest.mark.parametrize(
    ("change", "model", "minimum"),
    [
        (lambda d: d, "other", 7),
        (lambda d: d, "notes", 8),
        (lambda d: d["key"]["context"].update({"cloister:model": "other"}), "notes", 7),
        (lambda d: d["key"]["context"].update({"cloister:version": "6"}), "notes", 7),
        (lambda d: d["key"]["context"].pop("cloister:version"), "notes", 7),
        (lambda d: d["key"]["context"].update(more="x"), "notes", 7),
    ],
    ids=["another model", "rollback", "key of another model", "key of another version", "unbound key", "more bound"],
)
def test_genuine_but_refused(change: Callable[[dict], object], model: str, minimum: int) -> None:
    head = manifest.read(signed(change), PUBLIC)
    with pytest.raises(RefusedError):
        manifest.check(head.manifest, model=model, minimum_version=minimum)


def test_a_newer_version_is_accepted() -> None:
    manifest.check(MANIFEST, model="notes", minimum_version=6)


def test_heads_cannot_be_exchanged(tmp_path: Path) -> None:
    """Two versions under one data key: each stream opens under its own manifest only."""
    sample = make(tmp_path, b"x" * 5000)
    older = manifest.read(manifest.sign(replace(sample.head.manifest, version=6), OWNER), PUBLIC)
    assert open_all(sample.stream, sample.key, sample.head.associated, 5000) == sample.plain
    with pytest.raises(RefusedError):
        open_all(sample.stream, sample.key, older.associated, 5000)


@settings(max_examples=500)
@given(st.integers(0, 8 * len(SEALED) - 1))
def test_every_bit_of_the_head_counts(bit: int) -> None:
    """Most changes are refused; the few that are not (a key's spelling, a space) leave the signed bytes as they were."""
    data = bytearray(SEALED)
    data[bit // 8] ^= 1 << bit % 8
    try:
        head = manifest.read(bytes(data), PUBLIC)
    except CloisterError:
        return
    assert head.manifest == MANIFEST
    assert head.associated == manifest.read(SEALED, PUBLIC).associated


@given(st.binary(max_size=300))
def test_strangers_bytes_raise_our_errors_only(data: bytes) -> None:
    for text in (data, framed(data)):
        with pytest.raises(CloisterError):
            manifest.read(text, PUBLIC)
