"""Oblivious HTTP, single-shot and chunked, against the published examples; tampering of every kind is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.channel import chunked, hpke, ohttp
from cloister.channel.keyconfig import KeyConfig, decode_key_configs, encode_key_configs
from cloister.errors import CloisterError, KeyRejectedError, MalformedError, OverLimitError, TruncatedResponse
from cloister.wire.reader import encode_varint

SUITES = ((1, hpke.AEAD_AES_256_GCM), (1, hpke.AEAD_CHACHA20_POLY1305))


class Peer:
    """A key pair and a lookup for it."""

    def __init__(self, kem_id: int = hpke.KEM_MLKEM768_X25519, key_id: int = 7) -> None:
        self.private = hpke.kem(kem_id).generate()
        self.config = KeyConfig(key_id=key_id, kem_id=kem_id, public_key=self.private.public_bytes(), suites=SUITES)

    def lookup(self, header: ohttp.RequestHeader) -> ohttp.KeyMaterial:
        if header.key_id != self.config.key_id or header.kem_id != self.config.kem_id:
            raise KeyRejectedError("no")
        return ohttp.KeyMaterial(private_key=self.private, owner=self)


PEER = Peer()
FAST = Peer(hpke.KEM_X25519)


def _hex(example: dict, name: str) -> bytes:
    return bytes.fromhex(example[name])


def _fixed_sender(monkeypatch: pytest.MonkeyPatch, private: bytes) -> None:
    """Make the next X25519 encapsulation use the example's ephemeral key."""
    kem = hpke.KEMS[hpke.KEM_X25519]
    ephemeral = X25519PrivateKey.from_private_bytes(private)
    monkeypatch.setattr(kem, "encap", lambda public: kem._encap(public, ephemeral))


def test_rfc9458_example(vectors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = json.loads((vectors / "ohttp" / "rfc9458-appendix-a.json").read_bytes())
    config = KeyConfig.decode(_hex(example, "key_config"))
    assert config.encode() == _hex(example, "key_config")
    private = hpke.kem(config.kem_id).load_private(_hex(example, "skR"))
    opened = ohttp.open_request(
        _hex(example, "encapsulated_request"), lambda _h: ohttp.KeyMaterial(private_key=private)
    )
    assert opened.message == _hex(example, "request")
    assert opened._seal(_hex(example, "response"), _hex(example, "salt")[32:]) == _hex(example, "encapsulated_response")
    # The example uses AES-128-GCM, which `choose` never picks: seal with that suite by hand.
    _fixed_sender(monkeypatch, _hex(example, "skE"))
    suite = hpke.Suite(kem_id=config.kem_id, kdf_id=1, aead_id=hpke.AEAD_AES_128_GCM)
    monkeypatch.setattr(KeyConfig, "choose", lambda _self: suite)
    exchange = ohttp.seal_request(config, _hex(example, "request"))
    assert exchange.body == _hex(example, "encapsulated_request")
    assert exchange.open(_hex(example, "encapsulated_response")) == _hex(example, "response")


@pytest.fixture(scope="module")
def draft(vectors: Path) -> dict:
    return json.loads((vectors / "ohttp" / "chunked-ohttp-appendix.json").read_bytes())


def _draft_opener(draft: dict) -> chunked.RequestOpener:
    private = hpke.kem(hpke.KEM_X25519).load_private(_hex(draft, "skR"))
    return chunked.RequestOpener(lambda _h: ohttp.KeyMaterial(private_key=private))


@pytest.mark.parametrize("step", [1, 2, 7, 10_000])
def test_chunked_example_request(draft: dict, step: int) -> None:
    opener = _draft_opener(draft)
    body = _hex(draft, "encapsulated_request")
    plain = [piece for at in range(0, len(body), step) for piece in opener.push(body[at : at + step])]
    plain.append(opener.finish())
    assert [len(piece) for piece in plain] == draft["request_chunk_plain_lengths"]
    assert b"".join(plain) == _hex(draft, "request")
    assert opener.export(chunked.RESPONSE_LABEL, 16) == _hex(draft, "exported_secret")


def test_chunked_example_sealed_again(draft: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the example's ephemeral key, nonce and chunk sizes both directions come out byte for byte."""
    _fixed_sender(monkeypatch, _hex(draft, "skE"))
    config = KeyConfig.decode(_hex(draft, "key_config"))
    suite = hpke.Suite(kem_id=config.kem_id, kdf_id=1, aead_id=hpke.AEAD_AES_128_GCM)
    sealer = chunked.RequestSealer(config, suite)
    first, second, _last = draft["request_chunk_plain_lengths"]
    request = _hex(draft, "request")
    body = sealer.start() + sealer.chunk(request[:first]) + sealer.chunk(request[first : first + second])
    assert body + sealer.final(request[first + second :]) == _hex(draft, "encapsulated_request")
    opener = _draft_opener(draft)
    opener.push(_hex(draft, "encapsulated_request"))
    opener.finish()
    assert opener.transcript() == sealer.transcript()
    answer = opener._response_sealer(_hex(draft, "salt")[32:])
    response, sizes = _hex(draft, "response"), draft["response_chunk_plain_lengths"]
    sealed = answer.start()
    for size in sizes[:-1]:
        sealed += answer.chunk(response[:size])
        response = response[size:]
    assert sealed + answer.final(response) == _hex(draft, "encapsulated_response")


@pytest.mark.parametrize("step", [1, 3, 10_000])
def test_chunked_example_response(draft: dict, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    _fixed_sender(monkeypatch, _hex(draft, "skE"))
    config = KeyConfig.decode(_hex(draft, "key_config"))
    suite = hpke.Suite(kem_id=config.kem_id, kdf_id=1, aead_id=hpke.AEAD_AES_128_GCM)
    body = _hex(draft, "encapsulated_response")
    for end in range(len(body) + 1):
        opener = chunked.RequestSealer(config, suite).response_opener()
        plain = [piece for at in range(0, end, step) for piece in opener.push(body[at : min(end, at + step)])]
        if end == len(body):
            assert b"".join([*plain, opener.finish()]) == _hex(draft, "response")
        else:
            with pytest.raises(TruncatedResponse):
                opener.finish()


# --- Our own exchanges ------------------------------------------------------------------------------------------------


def _exchange(peer: Peer, pieces: list[bytes]) -> tuple[chunked.RequestSealer, chunked.ResponseSealer, list[bytes]]:
    """A request sealed and opened, and the response's wire pieces: start, chunks, final."""
    sealer = chunked.RequestSealer(peer.config)
    opener = chunked.RequestOpener(peer.lookup)
    assert opener.push(sealer.seal(b"request")) == []
    assert opener.finish() == b"request"
    answer = opener.response_sealer()
    return sealer, answer, [answer.start(), *map(answer.chunk, pieces[:-1]), answer.final(pieces[-1])]


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=70_000), st.lists(st.integers(1, 5000), max_size=8), st.sampled_from([PEER, FAST]))
def test_any_request_survives_any_split(message: bytes, cuts: list[int], peer: Peer) -> None:
    sealer = chunked.RequestSealer(peer.config)
    body = sealer.seal(message)
    opener = chunked.RequestOpener(peer.lookup)
    plain: list[bytes] = []
    for cut in [*cuts, len(body)]:
        plain += opener.push(body[:cut])
        body = body[cut:]
    assert b"".join([*plain, opener.finish()]) == message
    assert opener.transcript() == sealer.transcript()
    assert opener.export(b"cloister receipt", 32) == sealer.export(b"cloister receipt", 32)
    assert opener.key.owner is peer


@pytest.mark.parametrize("peer", [PEER, FAST])
def test_every_flipped_byte_of_a_request_is_refused(peer: Peer) -> None:
    sealer = chunked.RequestSealer(peer.config)
    body = sealer.start() + sealer.chunk(b"first") + sealer.final(b"last")
    for at in range(0, len(body), 1 if peer is FAST else 5):
        opener = chunked.RequestOpener(peer.lookup)
        changed = body[:at] + bytes([body[at] ^ 0x01]) + body[at + 1 :]
        with pytest.raises((KeyRejectedError, MalformedError)):
            opener.push(changed)
            opener.finish()
        # Up to the first chunk's end there is one shape of failure (a length that no longer fits is Malformed).
        assert not opener.authenticated or at > len(sealer.start()) + 5


@pytest.mark.parametrize("peer", [PEER, FAST])
def test_a_request_cut_anywhere_is_refused(peer: Peer) -> None:
    body = chunked.RequestSealer(peer.config).seal(b"m" * 20_000)
    for end in {0, 3, 7, 20, len(body) // 2, len(body) - 17, len(body) - 1}:
        opener = chunked.RequestOpener(peer.lookup)
        with pytest.raises(CloisterError):
            opener.push(body[:end])
            opener.finish()


def test_wrong_key_wrong_id_wrong_algorithm_look_the_same() -> None:
    seen = set()
    body = chunked.RequestSealer(PEER.config).seal(b"x")
    other = Peer()  # same key_id, another key
    for data, lookup in (
        (body, other.lookup),
        (b"\x08" + body[1:], PEER.lookup),
        (body[:1] + b"\x12\x34" + body[3:], PEER.lookup),
        (body[:3] + b"\x00\x07" + body[5:], PEER.lookup),
        (body[:5] + b"\x00\x07" + body[7:], PEER.lookup),
        (body[:7] + bytes(1120) + body[1127:], PEER.lookup),
    ):
        with pytest.raises(KeyRejectedError) as caught:
            opener = chunked.RequestOpener(lookup)
            opener.push(data)
            opener.finish()
        seen.add(str(caught.value))
        with pytest.raises(KeyRejectedError) as caught:
            ohttp.open_request(data, lookup)
        seen.add(str(caught.value))
    assert len(seen) == 1


def test_limits_of_a_request() -> None:
    sealer = chunked.RequestSealer(FAST.config)
    start = sealer.start()
    with pytest.raises(OverLimitError):
        chunked.RequestOpener(FAST.lookup, limit=100).push(start + bytes(100))
    for size in (1, hpke.TAG_SIZE, chunked.MAX_CHUNK + hpke.TAG_SIZE + 1, 1 << 40):
        with pytest.raises(MalformedError):
            chunked.RequestOpener(FAST.lookup).push(start + encode_varint(size))
    with pytest.raises(MalformedError):
        chunked.RequestOpener(FAST.lookup).push(start + b"\x00" + bytes(chunked.MAX_CHUNK + hpke.TAG_SIZE + 1))
    for data in (b"", bytes(chunked.MAX_CHUNK + 1)):
        with pytest.raises(ValueError, match="chunk"):
            sealer.chunk(data)


def test_lengths_may_be_any_width() -> None:
    sealer = chunked.RequestSealer(FAST.config)
    narrow = sealer.chunk(b"hello")
    wide = b"\xc0" + bytes(6) + narrow
    opener = chunked.RequestOpener(FAST.lookup)
    assert opener.push(sealer.start() + wide + b"\x40" + sealer.final(b"")) == [b"hello"]
    assert opener.finish() == b""
    assert opener.transcript() == sealer.transcript()


def test_a_response_cut_reordered_repeated_or_dropped_is_refused() -> None:
    pieces = [b"a" * 40, b"b" * 40, b"c" * 40, b"end"]
    sealer, _answer, wire = _exchange(FAST, pieces)
    start, one, two, three, final = wire
    opener = sealer.response_opener()
    assert opener.push(b"".join(wire)) == pieces[:-1]
    assert opener.finish() == b"end"
    assert opener.transcript() == _answer.transcript()
    for tampered in (
        [start, two, one, three, final],
        [start, one, one, two, three, final],
        [start, one, three, final],
        [start, one, two, three, final, b"x"],
        [start, one, two, final],
        [start, final],
        [start[::-1], one, two, three, final],
    ):
        with pytest.raises(TruncatedResponse):
            again = sealer.response_opener()
            again.push(b"".join(tampered))
            again.finish()
    whole = b"".join(wire)
    for end in range(len(whole)):
        again = sealer.response_opener()
        again.push(whole[:end])
        with pytest.raises(TruncatedResponse):
            again.finish()
    for at in range(len(whole)):
        again = sealer.response_opener()
        with pytest.raises((TruncatedResponse, MalformedError)):
            again.push(whole[:at] + bytes([whole[at] ^ 0x80]) + whole[at + 1 :])
            again.finish()


def test_an_ordinary_chunk_cannot_pass_for_the_final_one() -> None:
    sealer, _, (start, one, _final) = _exchange(FAST, [b"a" * 40, b"end"])
    opener = sealer.response_opener()
    opener.push(start + b"\x00" + one[1:])
    with pytest.raises(TruncatedResponse):
        opener.finish()


def test_an_answer_to_another_request_is_refused() -> None:
    _, _, wire = _exchange(FAST, [b"end"])
    other = chunked.RequestSealer(FAST.config).response_opener()
    other.push(b"".join(wire))
    with pytest.raises(TruncatedResponse):
        other.finish()


@pytest.mark.parametrize("peer", [PEER, FAST])
def test_single_shot_round_trip_and_tampering(peer: Peer) -> None:
    exchange = ohttp.seal_request(peer.config, b"question")
    opened = ohttp.open_request(exchange.body, peer.lookup)
    assert opened.message == b"question"
    answer = opened.seal(b"answer")
    assert exchange.open(answer) == b"answer"
    for wrong in (b"", answer[:-1], answer + b"x", bytes([answer[0] ^ 1]) + answer[1:]):
        with pytest.raises(TruncatedResponse):
            exchange.open(wrong)
    for end in (0, 6, 7, 20, len(exchange.body) - 1):
        with pytest.raises((MalformedError, KeyRejectedError)):
            ohttp.open_request(exchange.body[:end], peer.lookup)


# --- Key configurations -----------------------------------------------------------------------------------------------


def test_key_configurations_round_trip_and_skip_unknown_kems() -> None:
    configs = [PEER.config, FAST.config]
    assert len(PEER.config.encode()) == 1229
    foreign = b"\x09\x00\x10" + bytes(65) + b"\x00\x04\x00\x01\x00\x01"
    listed = encode_key_configs(configs) + len(foreign).to_bytes(2, "big") + foreign
    assert decode_key_configs(listed) == configs


@pytest.mark.parametrize(
    "data",
    [
        b"",
        FAST.config.encode()[:-1],
        FAST.config.encode() + b"\x00",
        FAST.config.encode()[:35] + b"\x00\x00",
        FAST.config.encode()[:35] + b"\x00\x03abc",
        b"\x01\xff\xff" + bytes(40),
    ],
)
def test_malformed_key_configurations(data: bytes) -> None:
    with pytest.raises(MalformedError):
        KeyConfig.decode(data)


def test_a_key_with_no_acceptable_algorithm() -> None:
    config = KeyConfig(key_id=1, kem_id=0x20, public_key=bytes(32), suites=((1, 1), (2, 2)))
    with pytest.raises(MalformedError):
        config.choose()
