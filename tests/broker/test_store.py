"""Data keys at rest: bound to their names, private, never overwritten."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cloister.broker import store
from cloister.broker.ledger import verify
from cloister.broker.store import BrokerWrapper, KeyStore
from cloister.errors import UndecidedError, UsageError
from cloister.weights import manifest
from cloister.weights.kbs import Resource

SEVEN, EIGHT = (Resource(model="notes", version=version) for version in (7, 8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store.create(tmp_path / "b")
    return tmp_path / "b"


def test_what_is_kept_comes_back(folder: Path) -> None:
    kept = KeyStore(folder)
    kept.deposit(SEVEN, b"k" * 32)
    assert kept.get(SEVEN) == b"k" * 32
    assert kept.get(EIGHT) is None
    assert KeyStore(folder).get(SEVEN) == b"k" * 32
    for path in (folder / store.KEY, *(folder / store.KEYS).iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert b"kkkk" not in path.read_bytes()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_key_is_never_overwritten(folder: Path) -> None:
    kept = KeyStore(folder)
    kept.deposit(SEVEN, b"k" * 32)
    with pytest.raises(UsageError, match="has a key"):
        kept.deposit(SEVEN, b"x" * 32)
    assert kept.get(SEVEN) == b"k" * 32
    assert [path.name for path in (folder / store.KEYS).iterdir()] == ["notes@7.json"]
    kept.remove(SEVEN)
    assert kept.get(SEVEN) is None
    with pytest.raises(UsageError):
        kept.remove(SEVEN)
    with pytest.raises(UsageError):
        store.create(folder)


def test_a_file_under_another_name_does_not_open(folder: Path) -> None:
    kept = KeyStore(folder)
    kept.deposit(SEVEN, b"k" * 32)
    there = folder / store.KEYS / "notes@7.json"
    (folder / store.KEYS / "notes@8.json").write_bytes(there.read_bytes())
    with pytest.raises(UndecidedError):
        kept.get(EIGHT)
    # Nor with the name in it changed too: the name is authenticated.
    (folder / store.KEYS / "notes@8.json").write_bytes(there.read_bytes().replace(b"/7", b"/8"))
    with pytest.raises(UndecidedError):
        kept.get(EIGHT)


def test_every_changed_byte_is_seen(folder: Path) -> None:
    kept = KeyStore(folder)
    kept.deposit(SEVEN, b"k" * 32)
    path = folder / store.KEYS / "notes@7.json"
    whole = path.read_bytes()
    for at in range(len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(UndecidedError):
            kept.get(SEVEN)
    for size in range(len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UndecidedError):
            kept.get(SEVEN)


def test_another_brokers_key_opens_nothing(folder: Path, tmp_path: Path) -> None:
    KeyStore(folder).deposit(SEVEN, b"k" * 32)
    (folder / store.KEY).unlink()
    store._write(folder / store.KEY, os.urandom(32))
    with pytest.raises(UndecidedError, match="does not open"):
        KeyStore(folder).get(SEVEN)


def test_the_brokers_key_may_lie_elsewhere(tmp_path: Path) -> None:
    store.create(tmp_path / "b", tmp_path / "secret")
    assert not (tmp_path / "b" / store.KEY).exists()
    KeyStore(tmp_path / "b", tmp_path / "secret").deposit(SEVEN, b"k" * 32)
    with pytest.raises(UsageError, match="broker's key"):
        KeyStore(tmp_path / "b")


def test_sealing_deposits_and_is_told(folder: Path) -> None:
    wrapper = BrokerWrapper(folder)
    key, wrapped = wrapper.generate(manifest.context("notes", 7))
    assert (wrapped.service, wrapped.key_id, wrapped.ciphertext) == ("kbs", "notes/data-key/7", b"")
    assert KeyStore(folder).get(SEVEN) == key
    with pytest.raises(UsageError, match="has a key"):
        wrapper.generate(manifest.context("notes", 7))
    with pytest.raises(UsageError):
        wrapper.generate({"cloister:model": "No", "cloister:version": "7"})
    assert verify(folder / store.LEDGER).entries == 1
