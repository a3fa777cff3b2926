"""The blind parent agent with real sockets: every door, and what it refuses."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import MalformedError, UsageError
from cloister.host import credentials, head
from cloister.host.agent import Agent, AgentConfig
from cloister.host.relay import Address
from cloister.wire import ports

LIST = "kms.test:443"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="clo-") as name:
        yield Path(name)


@contextlib.asynccontextmanager
async def running(folder: Path, **changes: object) -> AsyncIterator[Address]:
    """An agent in this loop."""
    agent = Agent(AgentConfig(**{"listen": Address("127.0.0.1", 0), "uds": folder / "v", **changes}))
    address = agent.open()
    task = asyncio.create_task(agent.run())
    try:
        yield address
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def guest(folder: Path, serve) -> AsyncIterator[None]:
    """What a vsock device offers for the guest's gateway: `CONNECT port`, `OK n`, then the guest's own bytes."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"CONNECT %d\n" % ports.GATEWAY
        writer.write(b"OK 1073741824\n")
        with contextlib.suppress(ConnectionError):
            await serve(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_unix_server(greet, folder / "v", limit=2**20)
    try:
        yield
    finally:
        server.close()


async def dial(folder: Path, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(f"{folder}/v_{port}")


async def asked(folder: Path, port: int, request: bytes, *, end: bool = True) -> bytes:
    """Everything that comes back."""
    reader, writer = await dial(folder, port)
    writer.write(request)
    if end:
        writer.write_eof()
    data = await reader.read()
    writer.close()
    await writer.wait_closed()
    return data


async def test_bytes_and_half_close_both_ways(folder: Path) -> None:
    up, down = secrets.token_bytes(3_000_000), secrets.token_bytes(3_000_000)
    got = b""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal got
        # Answers only after the client ended its half: the other half must still be open.
        got = await reader.read()
        writer.write(down)
        await writer.drain()

    async with guest(folder, serve), running(folder) as address:
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(up)
        writer.write_eof()
        assert await reader.read() == down
        writer.close()
        await writer.wait_closed()
    assert got == up


async def test_a_slow_reader_holds_the_sender_back(folder: Path) -> None:
    sent = 0
    stuck = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.transport.set_write_buffer_limits(0)
        while sent < 200_000_000:
            writer.write(bytes(100_000))
            try:
                await asyncio.wait_for(writer.drain(), 1.0)
            except TimeoutError:
                stuck.set()
                return
            sent += 100_000

    async with guest(folder, serve), running(folder) as address:
        reader, writer = await asyncio.open_connection(address.host, address.port)
        async with asyncio.timeout(30):
            await stuck.wait()
        # Sockets' own buffers and one chunk; not what was never read.
        assert sent < 40_000_000
        writer.transport.abort()
        del reader


async def test_many_connections_at_once(folder: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = 1000
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16384), hard))
    try:

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(8))

        async def client(address: Address) -> bool:
            reader, writer = await asyncio.open_connection(address.host, address.port)
            await gate.wait()
            word = secrets.token_bytes(8)
            writer.write(word)
            same = await reader.readexactly(8) == word
            writer.close()
            return same

        gate = asyncio.Event()
        async with guest(folder, serve), running(folder) as address:
            clients = [asyncio.create_task(client(address)) for _ in range(count)]
            await asyncio.sleep(1)
            gate.set()
            assert all(await asyncio.gather(*clients))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_no_guest_is_a_closed_connection(folder: Path) -> None:
    async with running(folder) as address:
        reader, writer = await asyncio.open_connection(address.host, address.port)
        assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("other.test:443", 403),
        ("kms.test:444", 403),
        ("KMS.test:443", 400),
        ("kms.test.:443", 400),
        ("user@kms.test:443", 400),
        ("[::1]:443", 400),
        ("127.0.0.1:443", 403),
        ("kms.test:0", 400),
        ("kms.test:65536", 400),
        ("kms.test", 400),
        ("http://kms.test:443/", 400),
    ],
)
async def test_egress_that_is_refused(folder: Path, target: str, status: int) -> None:
    async with running(folder, egress=(LIST,)):
        answer = await asked(folder, ports.EGRESS, f"CONNECT {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "169.254.169.254", "10.0.0.1"])
async def test_egress_never_leads_into_the_instance(folder: Path, name: str) -> None:
    async with running(folder, egress=(f"{name}:80",)):
        answer = await asked(folder, ports.EGRESS, f"CONNECT {name}:80 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 502 ")


async def test_egress_carries_bytes(folder: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"<" + await reader.read() + b">")
        writer.close()

    service = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = service.sockets[0].getsockname()[1]
    async with running(folder, egress=(LIST,), resolve={LIST: Address("127.0.0.1", port)}):
        request = f"CONNECT {LIST} HTTP/1.1\r\nHost: {LIST}\r\n\r\n".encode()
        # What follows the head in the same packet belongs to the service.
        assert await asked(folder, ports.EGRESS, request + b"hello") == b"HTTP/1.1 200 OK\r\n\r\n<hello>"
    service.close()
    async with running(folder, egress=(LIST,), resolve={LIST: Address("127.0.0.1", port)}):
        assert (await asked(folder, ports.EGRESS, request)).startswith(b"HTTP/1.1 502 ")


CONTENT = bytes(range(256)) * 40


@pytest.mark.parametrize(
    ("span", "status", "body"),
    [
        (None, 200, CONTENT),
        ("bytes=0-9", 206, CONTENT[:10]),
        ("bytes=10-", 206, CONTENT[10:]),
        (f"bytes={len(CONTENT) - 1}-99999999", 206, CONTENT[-1:]),
        (f"bytes={len(CONTENT)}-", 416, b""),
        ("bytes=9-5", 416, b""),
        ("bytes=-5", 416, b""),
        ("bytes=0-1,3-4", 416, b""),
        ("bytes=a-", 416, b""),
        ("items=0-1", 416, b""),
    ],
)
async def test_store_ranges(folder: Path, span: str | None, status: int, body: bytes) -> None:
    store = folder / "store"
    store.mkdir()
    (store / "m.sealed").write_bytes(CONTENT)
    field = f"Range: {span}\r\n" if span else ""
    async with running(folder, store=store):
        request = f"GET /models/m.sealed HTTP/1.1\r\n{field}\r\n".encode()
        top, _, data = (await asked(folder, ports.STORE, request)).partition(b"\r\n\r\n")
        assert top.startswith(f"HTTP/1.1 {status} ".encode())
        assert data == body
        first = (await asked(folder, ports.STORE, request.replace(b"GET", b"HEAD"))).partition(b"\r\n\r\n")
        assert first[2] == b""


@pytest.mark.parametrize(
    "target",
    [
        "/models/../secret",
        "/models/..",
        "/models/.hidden",
        "/models/link",
        "/models/sub/x",
        "/models/",
        "/models/%2e%2e/secret",
        "/x",
        "/models/missing",
    ],
)
async def test_store_gives_nothing_else(folder: Path, target: str) -> None:
    store = folder / "store"
    (store / "sub").mkdir(parents=True)
    (folder / "secret").write_bytes(b"secret")
    (store / "link").symlink_to(folder / "secret")
    for name in (".hidden", "sub/x"):
        (store / name).write_bytes(b"secret")
    async with running(folder, store=store):
        answer = await asked(folder, ports.STORE, f"GET {target} HTTP/1.1\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 404 ")
        assert b"secret" not in answer


@pytest.mark.parametrize(
    "request_",
    [b"GET\r\n\r\n", b"GET /models/a HTTP/2\r\n\r\n", b"GET /models/a HTTP/1.1\r\nA: b\r\nA: c\r\n\r\n", b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n", b"GET /a HTTP/1.1\r\nContent-Length: 5\r\n\r\n", b"GET /a"],
)  # fmt: skip
async def test_heads_that_are_refused(folder: Path, request_: bytes) -> None:
    (folder / "store").mkdir()
    async with running(folder, store=folder / "store"):
        # Of a request that is too long the rest stays unread: its sender may see a reset instead of the answer.
        with contextlib.suppress(ConnectionResetError):
            assert (await asked(folder, ports.STORE, request_)).startswith(b"HTTP/1.1 400 ")


@given(st.binary(max_size=200))
def test_any_head(data: bytes) -> None:
    with contextlib.suppress(MalformedError):
        assert head.parse(data).method.isupper()


class Metadata(http.server.BaseHTTPRequestHandler):
    """The instance metadata service, version 2: nothing without a token from PUT."""

    values: ClassVar = {
        "AccessKeyId": "ASIA",
        "SecretAccessKey": "s",
        "Token": "t",
        "Expiration": "2030-01-01T00:00:00Z",
    }

    def do_PUT(self) -> None:
        assert self.path == "/latest/api/token"
        assert self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self.reply(200, b"token-1")

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != "token-1":
            self.reply(401, b"")
        elif self.path == "/latest/meta-data/iam/security-credentials/":
            self.reply(200, b"the-role")
        elif self.path == "/latest/meta-data/iam/security-credentials/the-role":
            self.reply(200, json.dumps({"Code": "Success", **self.values}).encode())
        else:
            self.reply(404, b"")

    def reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


async def test_credentials_of_the_instance(folder: Path) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        metadata = Address("127.0.0.1", server.server_port)
        async with running(folder, credentials="instance", metadata=metadata, capture=folder / "capture"):
            answer = await asked(folder, ports.CREDENTIALS, b"GET /credentials HTTP/1.1\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert json.loads(answer.partition(b"\r\n\r\n")[2]) == Metadata.values
            other = await asked(folder, ports.CREDENTIALS, b"GET /other HTTP/1.1\r\n\r\n")
            assert other.startswith(b"HTTP/1.1 404 ")
        assert all(not path.stat().st_size for path in (folder / "capture").iterdir())
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_no_credentials(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    (folder / "broken.json").write_text("{}")
    for source in ("environment", str(folder / "missing.json"), str(folder / "broken.json")):
        async with running(folder, credentials=source):
            answer = await asked(folder, ports.CREDENTIALS, b"GET /credentials HTTP/1.1\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 502 ")
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        address = Address("127.0.0.1", nobody.getsockname()[1])
    with pytest.raises(Exception, match="does not answer"):
        credentials.instance(address)()


async def test_heartbeat(folder: Path) -> None:
    async with running(folder, heartbeat=True):
        assert await asked(folder, ports.HEARTBEAT, b"\xb7") == b"\xb7"
        assert await asked(folder, ports.HEARTBEAT, b"x") == b""


async def test_idle_connections_end(folder: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with guest(folder, serve), running(folder, idle_seconds=0.2) as address:
        reader, writer = await asyncio.open_connection(address.host, address.port)
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "listen = 1",
        'listen = "x"',
        'listen = "127.0.0.1:0"',
        'listen = "127.0.0.1:0"\ncid = 16\nuds = "x"',
        'listen = "127.0.0.1:0"\ncid = 16\nmore = 1',
        "[",
    ],
)
def test_configurations_that_are_refused(folder: Path, text: str) -> None:
    (folder / "host.toml").write_text(text)
    with pytest.raises(UsageError):
        AgentConfig.load(folder / "host.toml")


def test_a_process_that_ends_in_order(folder: Path) -> None:
    (folder / "host.toml").write_text(f'listen = "127.0.0.1:0"\nuds = "{folder}/v"\nheartbeat = true\n')
    words = [sys.executable, "-m", "cloister.host.agent", "--config", str(folder / "host.toml")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("listening 127.0.0.1 ")
        os.kill(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    # The last counters, and nothing else.
    assert json.loads(errors)["event"] == "traffic"
