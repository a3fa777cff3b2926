"""Sealed weights through a real parent agent over unix sockets: whole, cut, forged."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.enclave import boot, model, net
from cloister.errors import CloisterError, MalformedError, NotGenuineError, RefusedError, UndecidedError
from cloister.host.agent import Agent, AgentConfig
from cloister.host.relay import Address
from cloister.weights import manifest
from cloister.weights.keys import WrappedKey
from cloister.weights.seal import seal
from cloister.weights.stream import SEGMENT, Sealer
from cloister.wire.ports import STORE

OWNER, KEY = Ed25519PrivateKey.generate(), secrets.token_bytes(32)
PLAINTEXT = secrets.token_bytes(5 * SEGMENT + 12345)


class Service:
    """Wraps and releases one key."""

    def __init__(self, key: bytes = KEY) -> None:
        self.key = key

    def generate(self, context: dict[str, str]) -> tuple[bytes, WrappedKey]:
        return self.key, WrappedKey(service="aws-kms", key_id="arn", ciphertext=b"w", context=context)

    def release(self, wrapped: WrappedKey) -> bytes:
        return self.key


@pytest.fixture
def parent() -> Iterator[tuple[Path, net.Dial]]:
    """The agent's store with one sealed model, in a thread of its own, and the way to it."""
    with tempfile.TemporaryDirectory(prefix="clo-") as name:
        folder = Path(name)
        store = folder / "store"
        store.mkdir()
        (folder / "plain").write_bytes(PLAINTEXT)
        seal(folder / "plain", store / "m.sealed", model="m", version=2, owner=OWNER, wrapper=Service())
        (folder / "plain").unlink()
        agent = Agent(AgentConfig(listen=Address("127.0.0.1", 0), uds=folder / "v", store=store))
        agent.open()
        loop = asyncio.new_event_loop()
        running = loop.create_task(agent.run())

        def serve() -> None:
            with pytest.raises(asyncio.CancelledError):
                loop.run_until_complete(running)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield store / "m.sealed", net.hybrid(folder / "v")
        finally:
            loop.call_soon_threadsafe(running.cancel)
            thread.join()
            loop.close()


def fetch(dial: net.Dial, **changes: object) -> model.Opened:
    values = {"model": "m", "owner": OWNER.public_key(), "minimum_version": 1, "release": Service(), **changes}
    return model.fetch(dial, "m.sealed", **values)


def test_whole(parent: tuple[Path, net.Dial]) -> None:
    done: list[float] = []
    opened = fetch(parent[1], progress=done.append)
    try:
        assert Path(opened.path).read_bytes() == PLAINTEXT
        assert done[-1] == 1
        assert done == sorted(done)
        with pytest.raises(OSError, match="not permitted"):
            os.write(opened.descriptor, b"x")
        with pytest.raises(OSError, match="not permitted"):
            os.ftruncate(opened.descriptor, 1)
    finally:
        os.close(opened.descriptor)


class Cutting:
    """A dialer whose streams end after a number of bytes, a new number for each stream."""

    def __init__(self, dial: net.Dial, limits: list[int]) -> None:
        self.dial, self.limits, self.opened = dial, limits, 0

    def __call__(self, port: int) -> socket.socket:
        assert port == STORE
        self.opened += 1
        limit = self.limits.pop(0) if self.limits else None
        stream = self.dial(port)
        if limit is None:
            return stream
        near, far = socket.socketpair()
        near.settimeout(20)

        def carry() -> None:
            left = limit
            with stream, far:
                far.settimeout(20)
                stream.sendall(far.recv(65536))
                while left and (data := stream.recv(min(left, 65536))):
                    left -= len(data)
                    try:
                        far.sendall(data)
                    except OSError:
                        return

        threading.Thread(target=carry, daemon=True).start()
        return near


@pytest.mark.parametrize("cut", [10, 5000, SEGMENT, SEGMENT + 200, 3 * SEGMENT + 77])
def test_a_cut_goes_on_from_the_last_whole_segment(parent: tuple[Path, net.Dial], cut: int) -> None:
    # The head and the stream's header come in two streams of their own; then the segments.
    dial = Cutting(parent[1], [10**9, 10**9, cut, cut])
    opened = fetch(dial)
    try:
        assert Path(opened.path).read_bytes() == PLAINTEXT
        assert dial.opened == 5
    finally:
        os.close(opened.descriptor)


def test_a_store_that_always_cuts(parent: tuple[Path, net.Dial], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "BACKOFF_SECONDS", 0)
    with pytest.raises(UndecidedError, match="after 0 of 6"):
        fetch(Cutting(parent[1], [10**9, 10**9, *[5000] * 50]))


def test_a_parent_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "BACKOFF_SECONDS", 0)
    with pytest.raises(UndecidedError, match="does not answer"):
        fetch(net.hybrid(tmp_path / "v"))


def test_a_missing_model(parent: tuple[Path, net.Dial], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "BACKOFF_SECONDS", 0)
    parent[0].unlink()
    with pytest.raises(UndecidedError, match="answered 404"):
        fetch(parent[1])


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"release": Service(bytes(32))}, RefusedError),
        ({"model": "other"}, RefusedError),
        ({"minimum_version": 3}, RefusedError),
        ({"owner": Ed25519PrivateKey.generate().public_key()}, NotGenuineError),
    ],
)
def test_what_is_refused(parent: tuple[Path, net.Dial], changes: dict, error: type[CloisterError]) -> None:
    with pytest.raises(error):
        fetch(parent[1], **changes)
    assert not [link for link in map(_target, Path("/proc/self/fd").iterdir()) if "memfd:weights" in link]


def test_a_changed_segment(parent: tuple[Path, net.Dial]) -> None:
    path, dial = parent
    data = bytearray(path.read_bytes())
    data[-SEGMENT] ^= 1
    path.write_bytes(data)
    with pytest.raises(RefusedError, match="does not open"):
        fetch(dial)


@pytest.mark.parametrize("change", [-SEGMENT, -1, 1])
def test_a_file_of_another_length(parent: tuple[Path, net.Dial], change: int) -> None:
    path, dial = parent
    os.truncate(path, path.stat().st_size + change)
    with pytest.raises(RefusedError, match="by its manifest"):
        fetch(dial)


def test_an_owner_who_signs_another_digest(parent: tuple[Path, net.Dial]) -> None:
    path, dial = parent
    key = WrappedKey(service="aws-kms", key_id="arn", ciphertext=b"w", context=manifest.context("m", 2))
    lie = manifest.Manifest(model="m", version=2, size=4, sha256="0" * 64, key=key)
    sealer = Sealer(KEY, hashlib.sha256(lie.payload()).digest(), 4)
    path.write_bytes(manifest.sign(lie, OWNER) + sealer.header + sealer.seal(0, b"text"))
    with pytest.raises(RefusedError, match="another digest"):
        fetch(dial)
