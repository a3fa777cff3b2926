"""Keys over time: published, used, kept for a while, forgotten; and no encapsulation twice."""

from __future__ import annotations

import pytest

from cloister.channel import chunked, hpke
from cloister.channel.keyconfig import decode_key_configs
from cloister.channel.keyring import Keyring, KeySchedule, ReplicaFacts, ReplicaKey, make_key
from cloister.channel.ohttp import RequestHeader
from cloister.channel.statement import KeyStatement
from cloister.errors import KeyRejectedError, ReplayError, UsageError

FACTS = ReplicaFacts(boot_id=bytes(16), model_id="m", model_sha256="0a" * 32, config_sha256="0b" * 32)
SCHEDULE = KeySchedule(serve=100, grace=20, early=10, capacity=4)


def _key(now: int = 0, key_id: int = 1) -> ReplicaKey:
    return make_key(FACTS, SCHEDULE, epoch=1, now=now, key_id=key_id, kem=hpke.KEM_X25519)


def test_a_keys_life() -> None:
    ring = Keyring(SCHEDULE)
    assert ring.due(0)
    with pytest.raises(KeyRejectedError):
        ring.current()
    first = _key()
    ring.add(first)
    assert [config.key_id for config in decode_key_configs(ring.published())] == [1]
    assert [ring.due(now) for now in (0, 89, 90)] == [False, False, True]
    second = _key(90, ring.free_key_id())
    ring.add(second)
    assert ring.current() is second
    assert ring.find(first.kid) is first
    assert ring.forget(119) == []
    assert ring.forget(120) == [first.kid]
    with pytest.raises(KeyRejectedError):
        ring.find(first.kid)


def test_the_statement_is_the_keys() -> None:
    key = _key(7)
    statement = KeyStatement.from_bytes(key.statement_bytes)
    assert (statement.not_before, statement.not_after, statement.kid) == (7, 107, key.kid)
    assert statement.key_config == key.config.encode()
    assert [key.next_receipt(), key.next_receipt()] == [1, 2]


def test_key_ids_do_not_collide() -> None:
    ring = Keyring(SCHEDULE)
    ring.add(_key())
    with pytest.raises(ValueError, match="key_id"):
        ring.add(_key(50, 1))
    assert 1 not in {ring.free_key_id() for _ in range(2000)}


def test_a_header_must_fit_a_live_key() -> None:
    ring, key = Keyring(SCHEDULE), _key()
    ring.add(key)
    good = RequestHeader.of(key.config, key.config.choose())
    assert ring.lookup(good).owner is key
    for change in ({"key_id": 2}, {"kem_id": 0x647A}, {"kdf_id": 2}, {"aead_id": 1}):
        with pytest.raises(KeyRejectedError):
            ring.lookup(RequestHeader(**{**{f: getattr(good, f) for f in good.__dataclass_fields__}, **change}))
    ring.forget(1000)
    with pytest.raises(KeyRejectedError):
        ring.lookup(good)


def test_an_encapsulation_is_admitted_once_and_a_full_key_admits_none() -> None:
    ring, key = Keyring(SCHEDULE), _key()
    ring.add(key)
    encapsulations = [chunked.RequestSealer(key.config).enc for _ in range(8)]
    for number, enc in enumerate(encapsulations):
        ring.admit(key, enc)
        with pytest.raises(ReplayError):
            ring.admit(key, enc)
        assert ring.due(0) is (number + 1 >= SCHEDULE.capacity)
    with pytest.raises(KeyRejectedError):
        ring.admit(key, b"one more")
    with pytest.raises(ReplayError):
        ring.admit(key, encapsulations[0])


@pytest.mark.parametrize("changes", [{"early": 0}, {"early": 100}, {"grace": -1}, {"capacity": 0}])
def test_impossible_schedules(changes: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        KeySchedule(**{"serve": 100, "early": 10, **changes})
