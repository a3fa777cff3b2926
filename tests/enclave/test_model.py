"""Weights from an untrusted store: cut, stalled, lying, swapped, old; and what is left of them afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import mmap
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.weights.samples import FIRST, FULL, MIB, OWNER, Sample, Service, make, sha256

from cloister.api import requests
from cloister.bench import sealed_load
from cloister.enclave import model, net
from cloister.enclave.engine.config import BUNDLED_MODEL, EngineConfig
from cloister.enclave.engine.supervisor import LlamaEngine
from cloister.errors import (
    CloisterError,
    MalformedError,
    NotGenuineError,
    RefusedError,
    ReleaseDeniedError,
    UndecidedError,
)
from cloister.weights import manifest
from cloister.weights.stream import HEADER, Layout, Sealer
from cloister.wire.ports import STORE

#: Three segments, the last one short.
SIZE = FIRST + FULL + 1000
CANARY = b"zanzibarquokka-weights"


@dataclass
class Shop:
    """A store on a unix socket that answers range requests as it is told: one of `moods` for each request, then well."""

    folder: Path
    data: bytes
    moods: list[Callable[[Shop, socket.socket, int, int], None]] = field(default_factory=list)
    asked: list[tuple[int, int]] = field(default_factory=list)

    def dial(self, port: int) -> socket.socket:
        stream = net.hybrid(self.folder / "v")(port)
        stream.settimeout(2)
        return stream

    def answer(
        self, stream: socket.socket, start: int, end: int, *, sent: int | None = None, status: str = "206 Partial Content",
        total: int | None = None, first: int | None = None, length: int | None = None,
    ) -> None:  # fmt: skip
        body = self.data[start:end]
        span = f"bytes {start if first is None else first}-{end - 1}/{len(self.data) if total is None else total}"
        head = f"HTTP/1.1 {status}\r\nContent-Range: {span}\r\nContent-Length: {len(body) if length is None else length}\r\nConnection: close\r\n\r\n"
        stream.sendall(head.encode() + body[:sent])

    def run(self, listener: socket.socket) -> None:
        while True:
            try:
                stream, _ = listener.accept()
            except OSError:
                return
            with stream, contextlib.suppress(OSError):
                head = b""
                while b"\r\n\r\n" not in head:
                    head += stream.recv(4096)
                match = re.search(rb"GET /models/notes\.sealed HTTP/1\.1\r\n(?s:.*)Range: bytes=(\d+)-(\d+)\r\n", head)
                assert match is not None
                start, end = int(match[1]), min(int(match[2]) + 1, len(self.data))
                self.asked.append((start, end))
                mood = self.moods.pop(0) if self.moods else Shop.answer
                mood(self, stream, start, end)


@contextlib.contextmanager
def shop(data: bytes, *moods: Callable[..., None]) -> Iterator[Shop]:
    # Not pytest's folder: the path of a unix socket has 107 bytes.
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/v_{STORE}")
        listener.listen()
        keeper = Shop(Path(folder), data, list(moods))
        thread = threading.Thread(target=keeper.run, args=(listener,))
        thread.start()
        try:
            yield keeper
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def cut(after: int) -> Callable[..., None]:
    return lambda keeper, *request: keeper.answer(*request, sent=after)


def wrong(**how: object) -> Callable[..., None]:
    return lambda keeper, *request: keeper.answer(*request, **how)


def fetch(keeper: Shop, service: Service, **changes: object) -> model.Opened:
    wanted = {"model": "notes", "owner": OWNER.public_key(), "minimum_version": 7, **changes}
    return model.fetch(keeper.dial, "notes.sealed", release=service, **wanted)


def memory_files() -> int:
    links = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if name.isdigit()
             and os.path.lexists(f"/proc/self/fd/{name}")]  # fmt: skip
    return sum(link.startswith("/memfd:weights") for link in links)


def contents(opened: model.Opened) -> bytes:
    try:
        return os.pread(opened.descriptor, 1 << 30, 0)
    finally:
        os.close(opened.descriptor)


@pytest.fixture(autouse=True)
def _quick_and_tidy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(model, "BACKOFF_SECONDS", 0.01)
    yield
    assert memory_files() == 0


@pytest.fixture(scope="module")
def service() -> Service:
    return Service()


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory, service: Service) -> Sample:
    return make(tmp_path_factory.mktemp("sealed"), os.urandom(SIZE), service=service)


def test_opened_once_and_never_written_again(sample: Sample, service: Service) -> None:
    service.calls = 0
    seen: list[float] = []
    with shop(sample.sealed) as keeper:
        opened = model.fetch(
            keeper.dial, "notes.sealed", model="notes", owner=OWNER.public_key(), minimum_version=1, release=service,
            progress=seen.append,
        )  # fmt: skip
    assert opened.manifest == sample.head.manifest
    assert service.calls == 1
    assert seen == [1 / 3, 2 / 3, 1]
    for write in (
        lambda: os.pwrite(opened.descriptor, b"x", 0),
        lambda: os.ftruncate(opened.descriptor, 1),
        lambda: os.ftruncate(opened.descriptor, SIZE + 1),
        lambda: mmap.mmap(opened.descriptor, SIZE),
        lambda: fcntl.fcntl(opened.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK),
        lambda: os.pwrite(os.open(opened.path, os.O_RDWR), b"x", 0),
    ):
        with pytest.raises(OSError, match="not permitted|ermission"):
            write()
    assert not os.get_inheritable(opened.descriptor)
    assert contents(opened) == sample.plain
    # The last of the writers above opened it a second time.
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("/memfd:weights"):
                os.close(int(name))


def test_from_the_parent_agents_own_store(tmp_path: Path, sample: Sample, service: Service) -> None:
    (tmp_path / "notes.sealed").write_bytes(sample.sealed)
    with tempfile.TemporaryDirectory() as folder, sealed_load.agent(Path(folder), tmp_path) as dial:
        opened = model.fetch(
            dial, "notes.sealed", model="notes", owner=OWNER.public_key(), minimum_version=7, release=service
        )
        assert contents(opened) == sample.plain
        with pytest.raises(UndecidedError, match="404"):
            model.fetch(dial, "no.sealed", model="no", owner=OWNER.public_key(), minimum_version=7, release=service)


# --- Cuts -------------------------------------------------------------------------------------------------------------

LAYOUT = Layout(SIZE)
ENDS = [LAYOUT.sealed(index)[1] - HEADER for index in range(3)]


@pytest.mark.parametrize(
    "after", sorted({0, 1, 500_000, *(end + d for end in ENDS for d in (-1, 0, 1))} - {ENDS[-1] + 1})
)
def test_goes_on_from_the_last_whole_segment(sample: Sample, service: Service, after: int) -> None:
    service.calls = 0
    good = Shop.answer
    with shop(sample.sealed, good, good, cut(after)) as keeper:
        opened = fetch(keeper, service)
    assert contents(opened) == sample.plain
    whole = sum(end <= after for end in ENDS)
    assert opened.transfer.connections == (2 if whole < 3 else 1)
    assert 0 < opened.transfer.waited < opened.transfer.seconds
    starts = [start - sample.head.stream_at for start, _ in keeper.asked[2:]]
    assert starts == [HEADER, *([LAYOUT.sealed(whole)[0]] if whole < 3 else [])]
    assert service.calls == 1


def test_any_number_of_cuts_that_bring_a_segment_each(tmp_path: Path) -> None:
    service = Service()
    long = make(tmp_path, os.urandom(9 * MIB), service=service)
    with shop(long.sealed, Shop.answer, Shop.answer, *[cut(MIB)] * 9) as keeper:
        assert contents(fetch(keeper, service)) == long.plain
    assert len(keeper.asked) == 2 + 10


def test_a_cut_head_is_asked_for_again(sample: Sample, service: Service) -> None:
    with shop(sample.sealed, cut(5), cut(0), Shop.answer, cut(7)) as keeper:
        assert contents(fetch(keeper, service)) == sample.plain


def test_gives_up_without_progress(sample: Sample, service: Service) -> None:
    with (
        shop(sample.sealed, Shop.answer, Shop.answer, *[cut(1000)] * 50) as keeper,
        pytest.raises(UndecidedError, match="0 of 3 segments"),
    ):
        fetch(keeper, service)
    assert len(keeper.asked) == 2 + model.ATTEMPTS


def test_a_stalled_store_is_cut(sample: Sample, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def stall(keeper: Shop, stream: socket.socket, start: int, end: int) -> None:
        keeper.answer(stream, start, end, sent=MIB + 7)
        released.wait(10)

    with shop(sample.sealed, Shop.answer, Shop.answer, stall) as keeper:
        # The next request comes over a new connection, which this one-at-a-time store takes up after the stalled one.
        monkeypatch.setattr(model.time, "sleep", lambda _seconds: released.set())
        assert contents(fetch(keeper, service)) == sample.plain


def test_nobody_there(service: Service) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.raises(UndecidedError, match="does not answer"):
        model.fetch(
            net.hybrid(Path(folder) / "v"), "notes.sealed", model="notes", owner=OWNER.public_key(), minimum_version=1,
            release=service,
        )  # fmt: skip


# --- Lies -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_number", [0, 1, 2], ids=["head", "stream header", "segments"])
@pytest.mark.parametrize(
    "lie",
    [
        wrong(status="200 OK"), wrong(status="404 Not Found"), wrong(status="500 Oops"), wrong(first=1), wrong(total="*"),
        wrong(status="x"), lambda _keeper, stream, *_: stream.sendall(b"\x00" * 100_000),
        lambda _keeper, stream, *_: stream.sendall(b"HTTP/1.1 206 P\r\nContent-Length: 1\r\n\r\nx"),
    ],
    ids=["200", "404", "500", "other range", "no total", "no status", "no HTTP", "no range"],
)  # fmt: skip
def test_answers_that_are_no_range(
    sample: Sample, service: Service, lie: Callable[..., None], request_number: int
) -> None:
    with shop(sample.sealed, *[Shop.answer] * request_number, *[lie] * model.ATTEMPTS) as keeper:
        with pytest.raises(UndecidedError):
            fetch(keeper, service)
        # Once is only a hiccup.
        keeper.moods[:] = [*[Shop.answer] * request_number, lie]
        assert contents(fetch(keeper, service)) == sample.plain


@pytest.mark.parametrize("length", [0, 7, 1 << 40], ids=["empty", "short", "terabyte"])
@pytest.mark.parametrize("request_number", [0, 1])
def test_answers_of_another_length(sample: Sample, service: Service, request_number: int, length: int) -> None:
    lies = [wrong(length=length)] * model.ATTEMPTS
    with (
        shop(sample.sealed, *[Shop.answer] * request_number, *lies) as keeper,
        pytest.raises((UndecidedError, MalformedError)),
    ):
        fetch(keeper, service)


def test_a_long_answer_is_read_no_further_than_asked(sample: Sample, service: Service) -> None:
    with shop(sample.sealed, Shop.answer, Shop.answer, wrong(length=1 << 40)) as keeper:
        assert contents(fetch(keeper, service)) == sample.plain


def _resigned(sample: Sample, service: Service, **changes: object) -> bytes:
    """A container that its owner made with a manifest that is not true."""
    described = replace(sample.head.manifest, **changes)
    sealer = Sealer(sample.key, bytes.fromhex(sha256(described.payload())), described.size)
    plain = sample.plain.ljust(described.size, b"\x00")
    pieces = [sealer.seal(i, plain[slice(*sealer.layout.plain(i))]) for i in range(sealer.layout.segments)]
    return manifest.sign(described, OWNER) + sealer.header + b"".join(pieces)


def _segment(sample: Sample, index: int) -> slice:
    start, end = LAYOUT.sealed(index)
    return slice(sample.head.stream_at + start, sample.head.stream_at + end)


def _swapped(sample: Sample) -> bytes:
    """The second segment in the place of the first, as far as it reaches."""
    data, first = bytearray(sample.sealed), _segment(sample, 0)
    data[first] = sample.sealed[_segment(sample, 1)][: first.stop - first.start]
    return bytes(data)


def _flipped(at: Callable[[Sample], int]) -> Callable[..., bytes]:
    def change(sample: Sample, _service: Service) -> bytes:
        data = bytearray(sample.sealed)
        data[at(sample)] ^= 1
        return bytes(data)

    return change


@pytest.mark.parametrize(
    ("change", "error", "released"),
    [
        (lambda s, _: b"", UndecidedError, 0),
        (lambda s, _: s.sealed[:100], MalformedError, 0),
        (lambda s, _: b"GGUF" + s.plain, MalformedError, 0),
        (lambda s, _: s.sealed[:-1], RefusedError, 0),
        (lambda s, _: s.sealed[: s.head.stream_at + MIB], RefusedError, 0),
        (lambda s, _: s.sealed + b"\x00", RefusedError, 0),
        (lambda s, _: s.sealed + s.sealed[-MIB:], RefusedError, 0),
        (lambda s, _: manifest.sign(s.head.manifest, Ed25519PrivateKey.generate()) + s.stream, NotGenuineError, 0),
        (lambda s, k: _resigned(s, k, version=6), RefusedError, 0),
        (lambda s, k: _resigned(s, k, model="other"), RefusedError, 0),
        (lambda s, _: manifest.sign(replace(s.head.manifest, sha256="0a" * 32), OWNER) + s.stream, RefusedError, 1),
        (lambda s, k: _resigned(s, k, sha256="0a" * 32), RefusedError, 1),
        (lambda s, _: _swapped(s), RefusedError, 1),
        (_flipped(lambda s: s.head.stream_at), MalformedError, 1),
        (_flipped(lambda s: s.head.stream_at + 1), RefusedError, 1),
        (_flipped(lambda s: s.head.stream_at + HEADER - 1), RefusedError, 1),
        (_flipped(lambda s: _segment(s, 0).start), RefusedError, 1),
        (_flipped(lambda s: _segment(s, 1).start + 1000), RefusedError, 1),
        (_flipped(lambda s: len(s.sealed) - 1), RefusedError, 1),
    ],
    ids=[
        "empty", "cut head", "a bare model", "cut", "cut at a segment", "a byte appended", "a segment appended",
        "another owner", "older version", "another model", "changed manifest", "untrue digest", "swapped segments",
        "header's length", "salt", "nonce prefix", "first byte", "middle", "last tag",
    ],
)  # fmt: skip
def test_must_fail(
    sample: Sample,
    service: Service,
    change: Callable[[Sample, Service], bytes],
    error: type[CloisterError],
    released: int,
) -> None:
    """Nothing opens, nothing stays behind, and the key is not even asked for where the head tells."""
    service.calls = 0
    with shop(change(sample, service)) as keeper, pytest.raises(error) as caught:
        fetch(keeper, service)
    assert service.calls == released
    assert sample.key.hex() not in str(caught.value)


def test_expectations_that_do_not_fit(sample: Sample, service: Service) -> None:
    with shop(sample.sealed) as keeper:
        with pytest.raises(RefusedError, match="older"):
            fetch(keeper, service, minimum_version=8)
        with pytest.raises(RefusedError, match="another model"):
            fetch(keeper, service, model="other")
        with pytest.raises(NotGenuineError):
            fetch(keeper, service, owner=Ed25519PrivateKey.generate().public_key())


def test_keys_that_are_not_given_or_wrong(sample: Sample) -> None:
    name = sample.head.manifest.key.key_id
    with shop(sample.sealed) as keeper:
        with pytest.raises(ReleaseDeniedError):
            fetch(keeper, Service())
        for key in (bytes(32), bytes(16), b""):
            with pytest.raises(RefusedError):
                fetch(keeper, Service({name: key}))


# --- The engine on top ------------------------------------------------------------------------------------------------


async def test_the_engine_maps_it_and_does_not_hash_it_again(tmp_path: Path) -> None:
    service = Service()
    small = make(tmp_path, BUNDLED_MODEL.read_bytes(), service=service)
    with shop(small.sealed) as keeper:
        opened = fetch(keeper, service)
    stages: list[str] = []
    ask = requests.parse_chat(b'{"messages":[{"role":"user","content":"hello"}],"temperature":0,"max_tokens":12}')
    engine = LlamaEngine(
        EngineConfig(model=Path(opened.path), model_sha256=opened.manifest.sha256, model_id="notes", one_copy=True)
    )
    await engine.start(lambda progress: stages.append(progress.stage))
    os.close(opened.descriptor)
    answer = json.loads(await engine.call(ask))
    assert engine.info.model_sha256 == sha256(small.plain)
    assert "hashing" not in stages
    if os.geteuid() == 0:  # only root can look into a process that forbids it
        maps = Path(f"/proc/{engine.pid}/maps").read_text()
        assert [line.split()[1] for line in maps.splitlines() if "/memfd:weights" in line] == ["r--s"]
    # A worker that died gets the same memory again.
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        while engine.state == "ready":
            await asyncio.sleep(0.01)
    assert json.loads(await engine.call(ask))["choices"] == answer["choices"]
    await engine.stop()
    plain = LlamaEngine(EngineConfig(model=BUNDLED_MODEL, model_id="notes", one_copy=True))
    await plain.start()
    assert json.loads(await plain.call(ask))["choices"] == answer["choices"]
    await plain.stop()


def test_one_copy_in_memory(gpt2: Path) -> None:
    """Everything from the first byte to an answer, in a process of its own, with the real agent and engine."""
    done = subprocess.run(
        [sys.executable, "-m", "cloister.bench.sealed_load", "--model", str(gpt2), "--rounds", "1"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    figures = json.loads(done.stdout)
    print(figures)
    assert figures["weights_mb"] < figures["steady_mb"]
    # A second copy of the matrices would show here.
    assert figures["steady_mb"] < 1.15 * figures["weights_mb"] + 80
    assert figures["peak_mb"] <= 1.15 * figures["weights_mb"] + 300


def test_no_plaintext_on_any_disk(tmp_path: Path, service: Service) -> None:
    """Whatever is written while weights are opened and loaded, in the folders that a process may write to by habit."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    make(outside, BUNDLED_MODEL.read_bytes() + CANARY * 100_000, service=service)
    (outside / "plain.gguf").unlink()
    [key] = list(service.keys.values())[-1:]
    code = f"""
import asyncio, os, shutil, subprocess, sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cloister.enclave import model, net
from cloister.enclave.engine.config import EngineConfig
from cloister.enclave.engine.supervisor import LlamaEngine
class Release:
    def release(self, wrapped): return bytes.fromhex({key.hex()!r})
opened = model.fetch(net.hybrid(Path(sys.argv[1]) / "v"), "notes.sealed", model="notes", minimum_version=7,
    owner=Ed25519PublicKey.from_public_bytes(bytes.fromhex({OWNER.public_key().public_bytes_raw().hex()!r})), release=Release())
async def main():
    engine = LlamaEngine(EngineConfig(model=Path(opened.path), model_sha256=opened.manifest.sha256, one_copy=True))
    await engine.start()
    print(os.getpid(), engine.pid, flush=True)
    sys.stdin.read()
    await engine.stop()
asyncio.run(main())
"""
    env = {**os.environ, "TMPDIR": str(inside), "HOME": str(inside), "XDG_CACHE_HOME": str(inside)}
    with tempfile.TemporaryDirectory() as sockets, sealed_load.agent(Path(sockets), outside):
        process = subprocess.Popen(
            [sys.executable, "-c", code, sockets],
            cwd=inside,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        pids = process.stdout.readline().split()
        assert len(pids) == 2
        # Nothing that these processes hold open for writing is a file on a disk.
        for pid in map(int, pids if os.geteuid() == 0 else ()):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                flags = int((Path(f"/proc/{pid}/fdinfo") / entry.name).read_text().split("flags:")[1].split()[0], 8)
                assert not entry.is_file() or not flags & os.O_ACCMODE or os.readlink(entry).startswith("/memfd:")
        process.stdin.close()
        process.wait(30)
        process.stdout.close()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert CANARY not in path.read_bytes(), path
