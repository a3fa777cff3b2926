"""The pipe under what real peers do: resets, silence, slow readers, too many of them, and TLS that it does not open."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import resource
import secrets
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.host.test_agent import running

from cloister.bench import pipe as bench
from cloister.host import pipe
from cloister.host.pipe import Capture, Totals, join
from cloister.wire import ports

SECONDS = 20.0
Streams = tuple[socket.socket, socket.socket]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="clo-") as name:
        yield Path(name)


def tcp() -> Streams:
    """The two ends of a TCP connection; the second is the agent's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        outer = socket.create_connection(listener.getsockname())
        inner, _ = listener.accept()
    return outer, inner


@contextlib.asynccontextmanager
async def joined(far: str, **options) -> AsyncIterator[tuple[socket.socket, socket.socket, asyncio.Task[None], Totals]]:
    """A client (TCP) and an enclave (`unix`, as hybrid vsock, or `tcp`, as egress), joined by a running task."""
    client, near = tcp()
    enclave, other = socket.socketpair() if far == "unix" else tcp()
    streams, totals = (client, near, enclave, other), Totals()
    for stream in streams:
        stream.setblocking(False)

    async def carry() -> None:
        try:
            await join(near, other, totals, **options)
        finally:
            near.close()

    task = asyncio.create_task(carry())
    try:
        yield client, enclave, task, totals
    finally:
        task.cancel()
        await asyncio.wait({task})
        for stream in streams:
            stream.close()


async def until_end(stream: socket.socket) -> bytes:
    data = bytearray()
    async with asyncio.timeout(SECONDS):
        while piece := await asyncio.get_running_loop().sock_recv(stream, 1 << 18):
            data += piece
    return bytes(data)


@pytest.mark.parametrize("far", ["unix", "tcp"])
@pytest.mark.parametrize("kept", [False, True])
async def test_bytes_counters_and_copies_agree(folder: Path, far: str, kept: bool) -> None:
    up, down = secrets.token_bytes(5_000_001), secrets.token_bytes(3_000_003)
    loop = asyncio.get_running_loop()
    with Capture.open(folder if kept else None, "x") as capture:
        async with joined(far, capture=capture) as (client, enclave, task, totals):

            async def send(stream: socket.socket, data: bytes) -> None:
                await loop.sock_sendall(stream, data)
                stream.shutdown(socket.SHUT_WR)

            _, _, got_up, got_down = await asyncio.gather(
                send(client, up), send(enclave, down), until_end(enclave), until_end(client)
            )
            async with asyncio.timeout(SECONDS):
                await task
    assert (got_up, got_down) == (up, down)
    assert (totals.up, totals.down) == (len(up), len(down))
    if kept:
        assert ((folder / "x.up").read_bytes(), (folder / "x.down").read_bytes()) == (up, down)


@pytest.mark.parametrize("far", ["unix", "tcp"])
@pytest.mark.parametrize("first", ["client", "enclave"])
async def test_half_close_leaves_the_other_half(far: str, first: str) -> None:
    async with joined(far) as (client, enclave, task, _):
        one, other = (client, enclave) if first == "client" else (enclave, client)
        one.shutdown(socket.SHUT_WR)
        assert await until_end(other) == b""
        await asyncio.get_running_loop().sock_sendall(other, b"still here")
        other.shutdown(socket.SHUT_WR)
        assert await until_end(one) == b"still here"
        async with asyncio.timeout(SECONDS):
            await task


def reset(stream: socket.socket) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    stream.close()


@pytest.mark.parametrize("broken", ["client", "enclave"])
async def test_a_reset_reaches_the_other_side_as_one(broken: str) -> None:
    async with joined("tcp") as (client, enclave, task, _):
        one, other = (client, enclave) if broken == "client" else (enclave, client)
        reset(one)
        with pytest.raises(ConnectionResetError):
            await until_end(other)
        async with asyncio.timeout(SECONDS):
            await task


async def test_silence_ends_both_and_a_byte_now_and_then_does_not() -> None:
    loop = asyncio.get_running_loop()
    async with joined("tcp", idle=0.4) as (client, enclave, task, _):
        for _ in range(6):
            await asyncio.sleep(0.15)
            await loop.sock_sendall(client, b".")
        assert not task.done()
        began = loop.time()
        with pytest.raises(ConnectionResetError):
            await until_end(enclave)
        with pytest.raises(ConnectionResetError):
            await until_end(client)
        assert loop.time() - began > 0.2


@pytest.mark.parametrize(("far", "writer"), [("unix", "client"), ("unix", "enclave"), ("tcp", "client")])
async def test_a_slow_reader_costs_a_bounded_amount(far: str, writer: str) -> None:
    loop, sent, data = asyncio.get_running_loop(), 0, secrets.token_bytes(64 << 20)
    async with joined(far) as (client, enclave, task, totals):
        one, other = (client, enclave) if writer == "client" else (enclave, client)
        held = 0

        async def push() -> None:
            nonlocal sent
            view = memoryview(data)
            while sent < len(data):
                await loop.sock_sendall(one, view[sent : sent + 65536])
                sent += 65536
            one.shutdown(socket.SHUT_WR)

        pushing = asyncio.create_task(push())
        while held != sent or not sent:
            held = sent
            await asyncio.sleep(0.3)
        # What the kernel buffers on four sockets, and one holder of ours.
        assert sent < 40_000_000
        passed = totals.up if writer == "client" else totals.down
        assert sent - passed < 16_000_000
        # And when it reads at last, everything is there, in order.
        assert await until_end(other) == data
        await pushing
        other.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(SECONDS):
            await task


async def test_no_descriptors_for_a_pipe_is_no_broken_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_flags: int) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(pipe.os, "pipe2", none_left)
    monkeypatch.setattr(pipe, "_spare", pipe._Spare())
    async with joined("unix") as (client, enclave, _, _):
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(client, b"x" * 5_000_000))
        sending.add_done_callback(lambda _: client.shutdown(socket.SHUT_WR))
        assert await until_end(enclave) == b"x" * 5_000_000


@contextlib.contextmanager
def agent(folder: Path, *lines: str, descriptors: int | None = None) -> Iterator[tuple[int, int]]:
    """The agent as a process: its port and its number."""
    text = ['listen = "127.0.0.1:0"', f'uds = "{folder}/v"', f'log = "{folder}/log"', *lines]
    (folder / "host.toml").write_text("\n".join(text) + "\n")

    def limit() -> None:
        if descriptors is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    words = [sys.executable, "-m", "cloister.host.agent", "--config", str(folder / "host.toml")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, preexec_fn=limit) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline().split()[2]), process.pid
        finally:
            process.terminate()


@contextlib.contextmanager
def peer(folder: Path) -> Iterator[None]:
    """The benchmark's far end: echoes frames."""
    words = [sys.executable, "-m", "cloister.bench.pipe_peer", str(folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline()
            yield
        finally:
            process.terminate()


def echoed(stream: socket.socket) -> bool:
    """Does a frame come back?"""
    with contextlib.suppress(OSError):
        stream.sendall(bytes(bench.FRAME))
        return stream.recv(bench.FRAME, socket.MSG_WAITALL) == bytes(bench.FRAME)
    return False


async def test_out_of_descriptors_and_back(folder: Path) -> None:
    """Without a descriptor to accept with, clients wait; with one again, they are served."""
    loop = asyncio.get_running_loop()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"OK 1\n")
        writer.write(await reader.readexactly(5))
        await writer.drain()
        writer.close()

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    server = await asyncio.start_unix_server(echo, folder / "v")
    async with running(folder) as address:
        with socket.socket() as client:
            client.setblocking(False)
            hogged: list[int] = []
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 8, hard))
            try:
                with contextlib.suppress(OSError):
                    while True:
                        hogged.append(os.dup(0))
                await loop.sock_connect(client, (address.host, address.port))
                await loop.sock_sendall(client, b"hello")
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await loop.sock_recv(client, 5)
            finally:
                for number in hogged:
                    os.close(number)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            async with asyncio.timeout(SECONDS):
                assert await loop.sock_recv(client, 5) == b"hello"
    server.close()


def echoing(port: int) -> socket.socket | None:
    """A connection through which frames come back, or None when it was refused."""
    stream = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
    with contextlib.suppress(OSError):
        stream.sendall(b"E" + bench.FRAME.to_bytes(8, "big"))
        if echoed(stream):
            return stream
    stream.close()
    return None


def test_fewer_descriptors_than_clients(folder: Path) -> None:
    """The agent refuses what would starve the streams that it carries."""
    with peer(folder), agent(folder, descriptors=100) as (port, _):
        served = [stream for _ in range(60) if (stream := echoing(port)) is not None]
        assert 10 <= len(served) <= 18
        assert all(map(echoed, served))
        for stream in served:
            stream.close()
        deadline = time.monotonic() + SECONDS
        again = None
        while again is None and time.monotonic() < deadline:
            again = echoing(port)
        assert again is not None
        again.close()


def test_one_connection_too_many_is_refused_and_the_others_live(folder: Path) -> None:
    with peer(folder), agent(folder, "connections = 3") as (port, _):
        served = [stream for _ in range(3) if (stream := echoing(port)) is not None]
        assert len(served) == 3
        assert echoing(port) is None
        assert all(map(echoed, served))
        served.pop().close()
        deadline = time.monotonic() + SECONDS
        another = None
        while another is None and time.monotonic() < deadline:
            another = echoing(port)
        assert another is not None
        for stream in (*served, another):
            stream.close()


def test_idle_connections_cost_little(folder: Path) -> None:
    with peer(folder), agent(folder) as (port, number):
        result = bench.idle(port, number, 300)
        # No buffer, no task for each direction: a small fraction of one buffer.
        assert result["agent_kib_each"] < 32


@pytest.mark.skipif(bench.shutil.which("socat") is None, reason="socat is not installed: nothing to compare with")
def test_the_comparison_with_socat_runs() -> None:
    result = bench.run(rounds=1, megabytes=4, frames=60, idle_connections=20, active_connections=20)
    assert {"agent", "socat", "socat_wide", "ratio_socat", "ratio_socat_wide"} == set(result["up"])
    assert all(value > 0 for value in result["both"].values())
    assert result["frame_us"]["agent"]["p50"] > 0


def certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "enclave.test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("enclave.test")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


async def test_tls_passes_unopened(folder: Path) -> None:
    """TLS between client and enclave: the handshake, the data and close_notify pass byte for byte."""
    secret = b"PATIENT-" + secrets.token_hex(16).encode()
    cert, key = certificate(folder)
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(cert, key)
    client_context = ssl.create_default_context(cafile=str(cert))
    seen: list[bytes] = []

    async def enclave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"CONNECT %d\n" % ports.GATEWAY
        writer.write(b"OK 1\n")
        await writer.start_tls(server_context)
        seen.append(await reader.readline())
        writer.write(b"answer to " + seen[0])
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(enclave, folder / "v")
    with agent(folder, f'capture = "{folder}/seen"') as (port, _):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=client_context, server_hostname="enclave.test"
        )
        writer.write(secret + b"\n")
        async with asyncio.timeout(SECONDS):
            assert await reader.readline() == b"answer to " + secret + b"\n"
            # An orderly end: without close_notify this would raise.
            assert await reader.read() == b""
        assert writer.get_extra_info("cipher")
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()
    server.close()
    assert seen == [secret + b"\n"]
    captured = b"".join(path.read_bytes() for path in (folder / "seen").iterdir())
    assert len(captured) > 1000
    assert secret not in captured


async def test_what_a_broken_connection_left_reaches_no_other() -> None:
    """Holders are shared between connections; one that still holds bytes of a broken one must be gone."""
    loop = asyncio.get_running_loop()
    for round_ in range(30):
        mark = b"%02d" % round_
        async with joined("unix") as (client, enclave, task, _):
            # More than the enclave's socket takes, so that some stays between the two; then it breaks.
            sending = asyncio.create_task(loop.sock_sendall(client, mark * 400_000))
            await asyncio.sleep(0.01)
            enclave.close()
            sending.cancel()
            async with asyncio.timeout(SECONDS):
                await asyncio.wait({task, sending})
        async with joined("unix") as (client, enclave, _, _):
            await loop.sock_sendall(client, b"mine")
            client.shutdown(socket.SHUT_WR)
            assert await until_end(enclave) == b"mine"
