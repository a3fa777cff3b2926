"""Tenants: configurations that are refused, keys that are, and what both say about it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cloister.api import tenants
from cloister.enclave import boot
from cloister.errors import ApiError, CloisterError, MalformedError, UsageError
from cloister.image import config

KEY, OTHER = tenants.new_key(), tenants.new_key()
GOOD = [
    {"id": "clinic-1", "key_sha256": tenants.fingerprint(KEY)},
    {"id": "clinic-2", "key_sha256": tenants.fingerprint(OTHER)},
]
ALLOWED = tenants.read(GOOD)
SECRET = "sk-pasted-by-mistake"


def _toml(entries: list[dict]) -> str:
    return "".join(f"[[tenant]]\n{''.join(f'{name} = {json.dumps(value)}{chr(10)}' for name, value in entry.items())}"
                   for entry in entries)  # fmt: skip


def test_keys_are_long_random_and_told_apart() -> None:
    assert len({tenants.new_key() for _ in range(50)}) == 50
    assert len(KEY) == len(tenants.KEY_PREFIX) + 43
    assert tenants.identify(ALLOWED, f"Bearer {KEY}").id == "clinic-1"
    assert tenants.identify(ALLOWED, f"bearer  {OTHER}").id == "clinic-2"
    assert tenants.fingerprint(KEY) == hashlib.sha256(KEY.encode()).hexdigest()
    assert KEY not in repr(ALLOWED)
    assert ALLOWED[0].key_sha256 not in repr(ALLOWED)


@pytest.mark.parametrize(
    "field",
    [None, "", "Bearer", "Bearer ", KEY, f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Bearer {KEY.upper()}",
     f"Bearer {KEY} {OTHER}", f"Bearer\t{KEY}", f"Bearer {ALLOWED[0].key_sha256}", "Bearer \udcff", f"Bearer, {KEY}"],
)  # fmt: skip
def test_keys_that_are_refused(field: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        tenants.identify(ALLOWED, field)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    assert KEY[:12] not in str(caught.value)


def test_no_tenants_let_nobody_in() -> None:
    with pytest.raises(ApiError):
        tenants.identify((), f"Bearer {KEY}")


BAD = {
    "empty list": [],
    "too many": [{"id": f"t{n}", "key_sha256": f"{n:064x}"} for n in range(tenants.MAX_TENANTS + 1)],
    "no id": [{"key_sha256": "0a" * 32}],
    "no hash": [{"id": "a"}],
    "one more member": [{"id": "a", "key_sha256": "0a" * 32, "limit": 1}],
    "upper-case id": [{"id": "A", "key_sha256": "0a" * 32}],
    "empty id": [{"id": "", "key_sha256": "0a" * 32}],
    "id with a line": [{"id": "a\nb", "key_sha256": "0a" * 32}],
    "id of 64": [{"id": "a" * 64, "key_sha256": "0a" * 32}],
    "id is a number": [{"id": 1, "key_sha256": "0a" * 32}],
    "a key for a hash": [{"id": "a", "key_sha256": SECRET}],
    "upper-case hash": [{"id": "a", "key_sha256": "0A" * 32}],
    "short hash": [{"id": "a", "key_sha256": "0a" * 31}],
    "hash of nothing": [{"id": "a", "key_sha256": hashlib.sha256(b"").hexdigest()}],
    "id twice": [GOOD[0], {"id": "clinic-1", "key_sha256": "0a" * 32}],
    "key twice": [GOOD[0], {"id": "clinic-2", "key_sha256": GOOD[0]["key_sha256"]}],
}


@pytest.mark.parametrize("entries", BAD.values(), ids=BAD)
def test_tenants_that_are_refused_everywhere(entries: list[dict], tmp_path: Path) -> None:
    """In `cloister.toml`, in the measured configuration, and in the file of `cloister serve`; none quotes a value."""
    measured = {"schema": "cloister-replica/1", "name": "n", "model": {"bundled": True}, "engine": {}, "keys": {},
                "egress": [], "release": None}  # fmt: skip
    assert boot.read(json.dumps(measured).encode()).tenants == ()
    errors: list[CloisterError] = []
    with pytest.raises(MalformedError) as caught:
        boot.read(json.dumps({**measured, "tenants": entries}).encode())
    errors.append(caught.value)
    with pytest.raises(MalformedError) as caught:
        tenants.from_toml((_toml(entries) or "tenant = []").encode())
    errors.append(caught.value)
    file = tmp_path / "cloister.toml"
    file.write_text(("" if entries else "tenant = []\n") + '[image]\nname = "n"\n' + _toml(entries))
    with pytest.raises(UsageError) as refused:
        config.load(file)
    errors.append(refused.value)
    for error in errors:
        assert SECRET not in f"{error.message} {error.hint}"


@pytest.mark.parametrize(
    "data",
    [b"", b"[[tenant]", b"\xff", b"tenant = 1", b'[tenant]\nid = "a"', b"tenant = [1]", b"x" * (tenants.MAX_FILE + 1),
     _toml(GOOD).encode() + b"[image]\n", SECRET.encode()],
)  # fmt: skip
def test_files_that_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        tenants.from_toml(data)
    assert SECRET not in str(caught.value)


def test_tenants_are_measured(tmp_path: Path) -> None:
    file = tmp_path / "cloister.toml"
    file.write_text('[image]\nname = "n"\n')
    without = config.load(file).replica()
    assert b"tenants" not in without
    file.write_text('[image]\nname = "n"\n' + _toml(GOOD))
    chosen = config.load(file)
    assert chosen.tenants == ALLOWED
    assert boot.read(chosen.replica()).tenants == ALLOWED
    file.write_text('[image]\nname = "n"\n' + _toml(GOOD[:1]))
    assert len({without, chosen.replica(), config.load(file).replica()}) == 3


def test_a_new_tenant(tmp_path: Path) -> None:
    """Standard output is the entry, fit to be appended; the key is on standard error, once."""
    done = subprocess.run(
        [sys.executable, "-m", "cloister", "tenant", "new", "clinic-1"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (tenant,) = tenants.from_toml(done.stdout.encode())
    (key,) = [word for word in done.stderr.split() if word.startswith(tenants.KEY_PREFIX)]
    assert tenants.identify([tenant], f"Bearer {key}").id == "clinic-1"
    assert key not in done.stdout
    assert set(tomllib.loads(done.stdout)) == {"tenant"}
    refused = subprocess.run(
        [sys.executable, "-m", "cloister", "tenant", "new", "Clinic 1"], capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert not refused.stdout
