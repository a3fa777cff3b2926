"""HPKE against the published vectors, and what it must refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cloister.channel import hpke
from cloister.errors import MalformedError

FILES = ("rfc9180-selected.json", "hpke-pq-test-vectors.json")
AEADS = (hpke.AEAD_AES_128_GCM, hpke.AEAD_AES_256_GCM, hpke.AEAD_CHACHA20_POLY1305)


def _ours(vector: dict) -> bool:
    """Base mode, a KEM, KDF and AEAD of this implementation (others in the files: PSK mode, P curves, SHAKE)."""
    return (
        vector["mode"] == 0
        and vector["kem_id"] in hpke.KEMS
        and vector["kdf_id"] == hpke.KDF_HKDF_SHA256
        and vector["aead_id"] in AEADS
    )


@pytest.mark.parametrize(("file", "expected"), list(zip(FILES, (3, 1), strict=True)))
def test_published_vectors(vectors: Path, file: str, expected: int) -> None:
    applicable = [v for v in json.loads((vectors / "ohttp" / file).read_bytes())["vectors"] if _ours(v)]
    assert len(applicable) == expected
    for vector in applicable:
        suite = hpke.Suite(kem_id=vector["kem_id"], kdf_id=vector["kdf_id"], aead_id=vector["aead_id"])
        key = hpke.kem(suite.kem_id).load_private(bytes.fromhex(vector["skRm"]))
        assert key.public_bytes().hex() == vector["pkRm"]
        enc = bytes.fromhex(vector["enc"])
        assert key.decap(enc).hex() == vector["shared_secret"]
        context = hpke.setup_recipient(suite, key, enc, bytes.fromhex(vector["info"]))
        for item in vector["encryptions"]:
            assert context.open(bytes.fromhex(item["ct"]), bytes.fromhex(item["aad"])).hex() == item["pt"]
        for item in vector["exports"]:
            assert context.export(bytes.fromhex(item["exporter_context"]), item["L"]).hex() == item["exported_value"]


def test_published_sender_vectors(vectors: Path) -> None:
    """With the vector's ephemeral key, our encapsulation and ciphertexts are the vector's."""
    file = vectors / "ohttp" / "rfc9180-selected.json"
    kem = hpke._DhkemX25519()
    done = 0
    for vector in filter(_ours, json.loads(file.read_bytes())["vectors"]):
        ephemeral = X25519PrivateKey.from_private_bytes(bytes.fromhex(vector["skEm"]))
        secret, enc = kem._encap(bytes.fromhex(vector["pkRm"]), ephemeral)
        assert enc.hex() == vector["enc"]
        suite = hpke.Suite(kem_id=vector["kem_id"], kdf_id=vector["kdf_id"], aead_id=vector["aead_id"])
        context = hpke.Context(suite, secret, bytes.fromhex(vector["info"]))
        for item in vector["encryptions"]:
            assert context.seal(bytes.fromhex(item["pt"]), bytes.fromhex(item["aad"])).hex() == item["ct"]
            done += 1
    assert done > 10


@pytest.mark.parametrize("kem_id", list(hpke.KEMS))
@pytest.mark.parametrize("aead_id", AEADS)
def test_round_trip_and_every_way_to_fail(kem_id: int, aead_id: int) -> None:
    suite = hpke.Suite(kem_id=kem_id, kdf_id=1, aead_id=aead_id)
    key = hpke.kem(kem_id).generate()
    enc, sender = hpke.setup_sender(suite, key.public_bytes(), b"info")
    recipient = hpke.setup_recipient(suite, key, enc, b"info")
    first, second = sender.seal(b"one", b"aad"), sender.seal(b"two", b"aad")
    for wrong, aad in ((second, b"aad"), (first, b""), (first[:-1], b"aad"), (b"", b"aad")):
        with pytest.raises(hpke.OpenError):
            recipient.open(wrong, aad)
    assert recipient.open(first, b"aad") == b"one"
    with pytest.raises(hpke.OpenError):
        recipient.open(first, b"aad")
    assert recipient.open(second, b"aad") == b"two"
    assert sender.export(b"x", 32) == recipient.export(b"x", 32) != recipient.export(b"y", 32)
    for other in (hpke.setup_recipient(suite, key, enc, b"other info"), _other(suite, enc)):
        with pytest.raises(hpke.OpenError):
            other.open(first, b"aad")


def _other(suite: hpke.Suite, enc: bytes) -> hpke.Context:
    return hpke.setup_recipient(suite, hpke.kem(suite.kem_id).generate(), enc, b"info")


@pytest.mark.parametrize("kem_id", list(hpke.KEMS))
def test_wrong_lengths_and_low_order_points(kem_id: int) -> None:
    kem = hpke.kem(kem_id)
    key = kem.generate()
    for size in (0, kem.public_size - 1, kem.public_size + 1):
        with pytest.raises(MalformedError):
            kem.encap(bytes(size))
    for size in (0, kem.enc_size - 1, kem.enc_size + 1):
        with pytest.raises(MalformedError):
            key.decap(bytes(size))
    with pytest.raises(MalformedError):  # an all-zero X25519 share gives an all-zero secret
        kem.encap(key.public_bytes()[:-32] + bytes(32))
    with pytest.raises(MalformedError):
        key.decap(bytes(kem.enc_size))


@pytest.mark.parametrize("ids", [(0x10, 1, 2), (0x20, 2, 2), (0x20, 1, 0xFFFF), (0x647A, 0x11, 2)])
def test_unknown_algorithms(ids: tuple[int, int, int]) -> None:
    with pytest.raises(MalformedError):
        hpke.Suite(kem_id=ids[0], kdf_id=ids[1], aead_id=ids[2])
