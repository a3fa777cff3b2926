"""Key statement, binding, challenge batches, bundles and receipts: the project's own example and must-fail cases."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from cloister.channel import challenge
from cloister.channel.bundle import Bundle
from cloister.channel.receipt import Receipt, commitment
from cloister.channel.statement import KeyStatement, binding, key_identifier
from cloister.errors import MalformedError, NotGenuineError, ReceiptError
from cloister.tee.evidence import Offers
from cloister.wire.strict_json import decode_base64url, encode_base64url

VECTORS = Path(os.environ.get("CLOISTER_VECTORS", Path(__file__).parents[2].parent / "shared" / "vectors"))

STATEMENT = KeyStatement(
    scope="replica",
    key_config=bytes(range(200)),
    receipt_key=Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw(),
    tls_spki_sha256=(b"\x07" * 32,),
    boot_id=b"b" * 16,
    epoch=3,
    not_before=1_760_000_000,
    not_after=1_760_003_600,
    model_id="cloister-notes",
    model_sha256="0a" * 32,
    config_sha256="0b" * 32,
)


@pytest.fixture(scope="module")
def example() -> dict[str, object]:
    path = VECTORS / "ohttp" / "ours-binding-example.json"
    if not path.exists():
        pytest.skip(f"the example vectors are not at {VECTORS}")
    loaded: dict[str, object] = json.loads(path.read_bytes())
    return loaded


def test_the_example_statement_binding_and_kid(example: dict) -> None:
    text = example["statement"].encode()
    label = b"cllm-binding-v1"  # the example was made under the protocol's working name
    assert binding(text, None, label=label).hex() == example["binding_no_challenge"]
    root = bytes.fromhex(example["merkle_root"])
    assert binding(text, root, label=label).hex() == example["binding_with_challenge"]
    statement = KeyStatement.from_bytes(text.replace(b'"cllm-keys/1"', b'"cloister-keys/1"'))
    assert hashlib.sha256(statement.key_config).hexdigest() == example["key_config_sha256"]
    assert statement.kid == example["kid"] == key_identifier(statement.key_config)
    assert (statement.scope, statement.epoch, statement.model_id) == ("replica", 1, "gpt2-q4_k_m")


def test_the_example_challenge_batch(example: dict) -> None:
    nonces = [bytes.fromhex(nonce) for nonce in example["nonces"]]
    root, paths = challenge.gather(nonces)
    assert root.hex() == example["merkle_root"]
    assert [[[side, sibling.hex()] for side, sibling in path] for path in paths] == example["paths"]
    assert challenge.gather(nonces[:1])[0].hex() == example["single_nonce_root"]


@given(st.lists(st.binary(min_size=16, max_size=64), min_size=1, max_size=40))
def test_every_nonce_of_a_batch_reaches_the_root(nonces: list[bytes]) -> None:
    root, paths = challenge.gather(nonces)
    for nonce, path in zip(nonces, paths, strict=True):
        assert challenge.root_from(nonce, path) == root
        assert challenge.decode_path(json.loads(json.dumps(challenge.encode_path(path)))) == path
        assert challenge.root_from(nonce + b"x" if len(nonce) < 64 else nonce[1:], path) != root


def test_a_leaf_cannot_pass_for_a_node() -> None:
    """Leaves and nodes are separated: two siblings concatenated are not a nonce with the same root."""
    root, _ = challenge.gather([b"a" * 32, b"b" * 32])
    forged = hashlib.sha256(b"\x00" + b"a" * 32).digest() + hashlib.sha256(b"\x00" + b"b" * 32).digest()
    assert challenge.root_from(forged, ()) != root


@pytest.mark.parametrize("size", [0, 15, 65])
def test_nonce_sizes(size: int) -> None:
    with pytest.raises(MalformedError):
        challenge.gather([bytes(size)])


@pytest.mark.parametrize(
    "path", [[["L"]], [["X", "A" * 43]], ["L"], [["L", "AA"]], [["L", 5]], [["L", encode_base64url(bytes(32))]] * 17]
)
def test_bad_paths(path: list[object]) -> None:
    with pytest.raises(MalformedError):
        challenge.decode_path(path)


def test_an_answer_to_another_nonce() -> None:
    challenge.check_answer(b"n" * 32, b"n" * 32)
    with pytest.raises(NotGenuineError):
        challenge.check_answer(b"n" * 32, b"m" * 32)


def test_statement_round_trip() -> None:
    assert KeyStatement.from_bytes(STATEMENT.to_bytes()) == STATEMENT


def _edited(**changes: object) -> bytes:
    document = json.loads(STATEMENT.to_bytes())
    for path, value in changes.items():
        where = document
        *parents, last = path.split("__")
        for parent in parents:
            where = where[parent]
        if value is ...:
            del where[last]
        else:
            where[last] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff{}",
        STATEMENT.to_bytes()[:-1],
        STATEMENT.to_bytes() + b" {}",
        STATEMENT.to_bytes().replace(b'"epoch":3', b'"epoch":3,"epoch":4'),
        STATEMENT.to_bytes().replace(b'"epoch":3', b'"epoch":NaN'),
        _edited(v="cloister-keys/2"),
        _edited(scope="everyone"),
        _edited(scope=...),
        _edited(extra=1),
        _edited(model__extra=1),
        _edited(receipt_key__alg="none"),
        _edited(receipt_key__pub=encode_base64url(bytes(31))),
        _edited(key_config="not base64!"),
        _edited(key_config="AB=="),
        _edited(key_config="AB"),  # two spare bits are set
        _edited(boot_id=encode_base64url(bytes(15))),
        _edited(tls_spki_sha256=[1]),
        _edited(tls_spki_sha256=[encode_base64url(bytes(32))] * 9),
        _edited(model__sha256="0A" * 32),
        _edited(config_sha256="00"),
        _edited(not_after=STATEMENT.not_before),
        _edited(not_after=True),
        _edited(not_after=1e9),
        _edited(epoch=-1),
        _edited(model__id="two\nlines"),
        _edited(model__id="x" * 17000),
    ],
)
def test_malformed_statements(data: bytes) -> None:
    with pytest.raises(MalformedError):
        KeyStatement.from_bytes(data)


def test_the_binding_separates_its_parts() -> None:
    text, root = STATEMENT.to_bytes(), bytes(32)
    seen = {
        binding(text, None),
        binding(text, root),
        binding(text + root, None),
        binding(text[:-1], None),
        binding(text, bytes(31) + b"\x01"),
    }
    assert len(seen) == 5


def _bundle(nonce: bytes | None = b"n" * 32) -> Bundle:
    _, paths = challenge.gather([b"x" * 20, nonce or b"y" * 20])
    return Bundle(
        statement_bytes=STATEMENT.to_bytes(),
        statement=STATEMENT,
        nonce=nonce,
        path=paths[1] if nonce else (),
        offers=Offers.one("application/vnd.cloister.nitro-doc", b"evidence"),
    )


@pytest.mark.parametrize("nonce", [None, b"n" * 32])
def test_bundle_round_trip(nonce: bytes | None) -> None:
    bundle = _bundle(nonce)
    assert Bundle.from_bytes(bundle.to_bytes()) == bundle
    assert bundle.binding == binding(STATEMENT.to_bytes(), bundle.challenge)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"fresh"', b'"fresh2"'),
        (b'"path"', b'"Path"'),
        (b'"cpu"', b'"gpu"'),
        (b",4]", b",5]"),
        (b",4]", b"]"),
        (b",4]", b",true]"),
        (b",4]", b',4],"npu":["a","AA",4]'),
        (b",4]", b',4],"gpu":["a","AA",2]'),
        (b",4]", b',4],"amd-crl.0":["application/pkix-cert","AA",2]'),
        (b",4]", b',4],"amd-crl.00":["application/pkix-crl","AA",2]'),
        (b",4]", b',4],"amd-crl":["application/pkix-crl","AA",2]'),
        (b",4]", b',4],"jwks.0":["application/jwk-set+json","AA",2]'),
        (b"tag:cloister", b"tag:else"),
        (b'"statement"', b'"stmt"'),
        (b"application/vnd", b"application\\n/vnd"),
    ],
)
def test_malformed_bundles(old: bytes, new: bytes) -> None:
    data = _bundle().to_bytes()
    assert old in data
    with pytest.raises(MalformedError):
        Bundle.from_bytes(data.replace(old, new))


KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
RECEIPT = Receipt(
    kid="k" * 22,
    binding=b"B" * 32,
    number=7,
    request=b"q" * 32,
    response=b"r" * 32,
    commitment=commitment(b"e" * 32, b"c" * 32),
    model="cloister-notes",
    time=1_760_000_001,
    usage={"prompt_tokens": 3, "completion_tokens": 5},
)
EXCHANGE = {
    "kid": "k" * 22,
    "binding": b"B" * 32,
    "request": b"q" * 32,
    "response": b"r" * 32,
    "commitment": commitment(b"e" * 32, b"c" * 32),
}


def test_the_example_receipt(example: dict) -> None:
    """The signature of the example verifies under its statement's key, with the working name's label."""
    body, mark = example["receipt_example"].split(".")
    public = json.loads(example["statement"])["receipt_key"]["pub"]
    payload = decode_base64url(body, "payload")
    Ed25519PublicKey.from_public_bytes(decode_base64url(public, "key")).verify(
        decode_base64url(mark, "signature"), b"cllm-receipt-v1\x00" + payload
    )


def test_receipt_round_trip_and_fit() -> None:
    receipt = Receipt.verify(RECEIPT.sign(KEY), KEY.public_key().public_bytes_raw())
    assert receipt == RECEIPT
    receipt.check(**EXCHANGE)


@pytest.mark.parametrize("field", list(EXCHANGE))
def test_a_receipt_for_something_else(field: str) -> None:
    other = "x" * 22 if field == "kid" else b"x" * 32
    with pytest.raises(ReceiptError):
        RECEIPT.check(**{**EXCHANGE, field: other})


def test_every_changed_character_of_a_receipt_is_refused() -> None:
    text, public = RECEIPT.sign(KEY), KEY.public_key().public_bytes_raw()
    for at in range(len(text)):
        changed = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
        with pytest.raises(ReceiptError):
            Receipt.verify(changed, public)


def test_a_receipt_under_another_key() -> None:
    with pytest.raises(ReceiptError):
        Receipt.verify(RECEIPT.sign(Ed25519PrivateKey.generate()), KEY.public_key().public_bytes_raw())
    with pytest.raises(ReceiptError):
        Receipt.verify("", KEY.public_key().public_bytes_raw())


@given(st.text(max_size=200))
def test_receipt_text_from_a_stranger(text: str) -> None:
    with pytest.raises(ReceiptError):
        Receipt.verify(text, KEY.public_key().public_bytes_raw())


def test_a_signed_receipt_with_a_foreign_member_is_refused() -> None:
    payload = json.dumps({**json.loads('{"v":"cloister-receipt/1"}'), "more": 1}).encode()
    text = encode_base64url(payload) + "." + encode_base64url(KEY.sign(b"cloister-receipt-v1\x00" + payload))
    with pytest.raises(ReceiptError):
        Receipt.verify(text, KEY.public_key().public_bytes_raw())
