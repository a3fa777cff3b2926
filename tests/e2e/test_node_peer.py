"""A peer in node, on other people's HPKE, talks to the real replica; and notices a cut answer."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.conftest import Replica
from tests.e2e.test_faults import cutting_relay

from cloister.channel import hpke

FOLDER = Path(__file__).parent / "node_peer"
ASK = {
    "messages": [{"role": "user", "content": "Redact: Patient Anna Linden, MRN 5512093. Plan: rest and fluids."}],
    "stream": True,
    "temperature": 0,
    "max_tokens": 60,
}


@pytest.fixture(scope="module")
def peer() -> Path:
    """The peer with its packages, installed once in the user's cache."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    lock = (FOLDER / "package-lock.json").read_bytes()
    home = Path.home() / ".cache" / "cloister-tests" / f"node-peer-{hashlib.sha256(lock).hexdigest()[:16]}"
    if not (home / "node_modules" / "hpke").is_dir():
        home.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(FOLDER / name, home / name)
        result = subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund"], cwd=home, capture_output=True, text=True, timeout=100, check=False
        )
        if result.returncode:
            pytest.skip("npm could not install the peer's packages")
    shutil.copy(FOLDER / "peer.mjs", home / "peer.mjs")
    return home / "peer.mjs"


def _run(peer: Path, url: str, body: Path, kem: str = "mlkem") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["node", str(peer), url, str(body), kem], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def body(tmp_path: Path) -> Path:
    path = tmp_path / "body.json"
    path.write_text(json.dumps(ASK))
    return path


def test_the_node_peer_gets_a_streamed_answer(replica: Replica, peer: Path, body: Path) -> None:
    result = _run(peer, replica.url, body)
    assert result.returncode == 0, result.stderr
    assert "status 200" in result.stderr
    events = [line[6:] for line in result.stdout.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    text = "".join(json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1])
    assert "[NAME]" in text
    assert "Linden" not in text


async def test_the_node_peer_notices_a_cut_answer(replica: Replica, peer: Path, body: Path) -> None:
    async with cutting_relay(replica.port, 4000) as url:
        result = await asyncio.to_thread(_run, peer, url, body)
    assert result.returncode != 0
    assert "[DONE]" not in result.stdout


async def test_the_node_peer_over_x25519(peer: Path, body: Path) -> None:
    """The optional suite, against our own opener: the replica publishes the hybrid key only."""
    from cloister.channel import chunked, keyconfig, ohttp
    from cloister.wire import bhttp

    private = hpke.kem(hpke.KEM_X25519).generate()
    config = keyconfig.KeyConfig(
        key_id=9, kem_id=hpke.KEM_X25519, public_key=private.public_bytes(), suites=((1, hpke.AEAD_AES_256_GCM),)
    )
    received: list[bhttp.Request] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET"):
            kind, answer = b"application/ohttp-keys", keyconfig.encode_key_configs([config])
        else:
            size = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
            opener = chunked.RequestOpener(lambda _header: ohttp.KeyMaterial(private_key=private))
            message = b"".join([*opener.push(await reader.readexactly(size)), opener.finish()])
            received.append(bhttp.decode_request(message))
            sealer = opener.response_sealer()
            kind = b"message/ohttp-chunked-res"
            answer = sealer.start() + sealer.chunk(bhttp.encode_head(200, ()) + bhttp.encode_content(b"hello"))
            answer += sealer.final(bhttp.encode_end(()))
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: %b\r\n\r\n" % kind + answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    result = await asyncio.to_thread(_run, peer, url, body, "x25519")
    server.close()
    await server.wait_closed()
    assert (result.returncode, result.stdout) == (0, "hello"), result.stderr
    assert json.loads(received[0].content) == ASK
