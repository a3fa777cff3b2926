"""A real enclave image under a parent that breaks off, dies or lies: it goes on where it can, refuses where it must."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from tests.e2e import nitro_lab
from tests.e2e.nitro_lab import NAME, Enclave, Parts
from tests.weights.samples import Service

from cloister.bench import sealed_load
from cloister.cli.chat import stream_chat
from cloister.client.transport import SealedTransport
from cloister.enclave import model
from cloister.enclave.engine.config import BUNDLED_MODEL
from cloister.errors import CloisterError, RefusedError, ReleaseDeniedError
from cloister.weights import manifest
from cloister.weights.seal import seal
from cloister.weights.stream import Layout

pytestmark = nitro_lab.marks
#: Of what the project seals, and the least that its image takes.
VERSION = 1


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with bytes behind it that llama.cpp leaves alone: long to carry, quick to ask."""
    path = tmp_path_factory.mktemp("padded") / "padded.gguf"
    path.write_bytes(BUNDLED_MODEL.read_bytes() + os.urandom(40 * 1024 * 1024))
    return path


@pytest.fixture(scope="module")
def enclave(padded: Path) -> Iterator[Enclave]:
    with nitro_lab.project(NAME, "--model", str(padded)) as made:
        yield made


@pytest.fixture(scope="module")
def parts(enclave: Enclave) -> Iterator[Parts]:
    with nitro_lab.parts(enclave) as made:
        yield made


@pytest.fixture
def ended(parts: Parts) -> Iterator[None]:
    """Nothing runs afterwards but KMS, and the store and the key policy are as before."""
    whole = parts.sealed.read_bytes()
    yield
    parts.stop()
    parts.sealed.write_bytes(whole)
    parts.allow(parts.built.registers[0].hex())


class CutOnce:
    """A way to KMS that breaks its first connection after the first bytes of the answer."""

    def __init__(self, target: int) -> None:
        self.target, self.carried = target, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            self.carried += 1
            far = socket.create_connection(("127.0.0.1", self.target))
            if self.carried == 1:
                far.sendall(near.recv(65536))
                near.sendall(far.recv(100))
                near.close()
                far.close()
                continue
            threading.Thread(target=self._carry, args=(near, far), daemon=True).start()

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        with near, far:
            back = threading.Thread(target=self._pump, args=(far, near), daemon=True)
            back.start()
            self._pump(near, far)
            back.join()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@pytest.mark.usefixtures("ended")
def test_both_pipes_cut_while_the_weights_come(parts: Parts) -> None:
    """The way to KMS once, then the agent killed in mid-stream: nothing is fetched twice, and the replica serves."""
    way = CutOnce(parts.kms_port)
    agent = parts.agent(kms_port=way.port)
    parts.boot()
    size = parts.sealed.stat().st_size
    nitro_lab.until(lambda: nitro_lab.written(agent) > size // 3, every=0.005)
    os.kill(agent, signal.SIGKILL)
    sent = size // 3
    again = parts.agent(kms_port=way.port)
    parts.says("cloister: serving ")
    way.listener.shutdown(socket.SHUT_RDWR)
    way.listener.close()
    assert way.carried == 2
    came = re.search(r"over (\d+) connection\(s\)", parts.console())
    assert came is not None
    assert int(came[1]) == 2
    # What had come whole did not come again: the socket's and the device's buffers are all that was lost.
    assert nitro_lab.written(again) < size - sent + 4 * 1024 * 1024
    url = f"http://127.0.0.1:{parts.port}"
    measurements = {f"pcr{index}": value.hex() for index, value in parts.built.registers.items()}
    transport = SealedTransport(url, parts.policy(measurements))
    assert "".join(stream_chat(transport, [{"role": "user", "content": "hello"}], max_tokens=3, temperature=0))
    transport.close()


# --- Lies, told to a real guest ---------------------------------------------------------------------------------------


def _older(parts: Parts) -> None:
    """An earlier version of the same model, by the same owner, under the same key, sealed the way an owner does it."""
    who = parts.project._identities()["owner"]
    small = parts.enclave.home / "older.gguf"
    small.write_bytes(b"GGUF" + bytes(1000))
    done = parts.enclave.run(
        "seal", str(small), "--name", NAME, "--version", str(VERSION - 1), "--owner", "owner.pem", "--kms-key", parts.key,
        "--endpoint", f"localhost:{parts.kms_port}", "--endpoint-roots", "kms/ca.pem", "--out", str(parts.sealed),
        AWS_ACCESS_KEY_ID=who["AccessKeyId"], AWS_SECRET_ACCESS_KEY=who["SecretAccessKey"], AWS_SESSION_TOKEN=who["Token"],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def _segment(data: bytes, parts: Parts, index: int) -> slice:
    owner = load_pem_public_key((parts.enclave.project / "owner.pub.pem").read_bytes())
    head = manifest.read(data, owner)
    start, end = Layout(head.manifest.size).sealed(index)
    return slice(head.stream_at + start, head.stream_at + end)


def _swapped(parts: Parts) -> None:
    data = bytearray(parts.sealed.read_bytes())
    first, second = (_segment(bytes(data), parts, index) for index in (1, 2))
    data[first], data[second] = data[second], data[first]
    parts.sealed.write_bytes(data)


def _another_image(parts: Parts) -> None:
    parts.allow("ab" * 48)


@pytest.mark.usefixtures("ended")
@pytest.mark.parametrize(
    ("lie", "words", "status"),
    [
        (_older, "older", RefusedError.exit_code),
        (_swapped, "segment 1 does not open", RefusedError.exit_code),
        (_another_image, "the key policy does not allow it", ReleaseDeniedError.exit_code),
    ],
    ids=["rollback", "swapped segments", "KMS denies"],
)
def test_a_lie_is_refused_on_the_console(parts: Parts, lie, words: str, status: int) -> None:
    """The enclave ends, says why in a line, and nobody can reach a gateway."""
    lie(parts)
    parts.agent()
    parts.boot()
    said = parts.refuses()
    assert words in said, said
    assert f"init: stopped: the command ended: status 0x{status << 8:x}" in said
    # The console is no place for keys, tokens or what the guest could not open.
    console = parts.console()
    for who in parts.project._identities().values():
        assert who["SecretAccessKey"] not in console
        assert who["Token"] not in console
    assert "Traceback" not in console
    with pytest.raises(CloisterError):
        parts.policy({"pcr0": "01" * 48})


@pytest.mark.usefixtures("ended")
def test_too_little_memory_stops_the_start(parts: Parts) -> None:
    """Registers would be those of the whole image. On a ramfs the kernel gives up; what it leaves out of a tmpfs, init
    notices (tests/platforms/qemu_nitro/test_init.py)."""
    parts.agent()
    # nitro-cli demands four times the image, and so does `cloister up`; a parent of its own can give less.
    parts.boot(memory_mib=224)
    # The kernel waits half a minute before it restarts.
    nitro_lab.until(lambda: "Kernel panic" in parts.console())
    console = parts.console()
    assert "Out of memory" in console
    assert not [line for line in console.splitlines() if line.startswith(("init: ", "cloister: "))]


# --- Lies that a guest adds nothing to: the same loader and agent, without one ----------------------------------------


def test_a_cut_file_is_refused_before_the_key_is_asked_for(parts: Parts, tmp_path: Path) -> None:
    owner = load_pem_public_key((parts.enclave.project / "owner.pub.pem").read_bytes())
    whole, service = parts.sealed.read_bytes(), Service()
    for data in (whole[:-1], whole[: len(whole) // 2], whole + b"\x00"):
        (tmp_path / f"{NAME}.sealed").write_bytes(data)
        with sealed_load.agent(parts.enclave.home, tmp_path) as dial, pytest.raises(RefusedError):
            model.fetch(dial, f"{NAME}.sealed", model=NAME, owner=owner, minimum_version=VERSION, release=service)
    assert service.calls == 0


def test_another_key_opens_nothing(parts: Parts, tmp_path: Path, padded: Path) -> None:
    owner = load_pem_private_key((parts.enclave.project / "owner.pem").read_bytes(), None)
    service = Service()
    made = seal(padded, tmp_path / f"{NAME}.sealed", model=NAME, version=VERSION, owner=owner, wrapper=service)
    service.keys[made.key.key_id] = bytes(32)
    with sealed_load.agent(parts.enclave.home, tmp_path) as dial, pytest.raises(RefusedError, match="segment 0"):
        model.fetch(
            dial, f"{NAME}.sealed", model=NAME, owner=owner.public_key(), minimum_version=VERSION, release=service
        )
