"""The blind relay carries bytes both ways, half-closes, captures, and can import nothing that could read them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from cloister.errors import UsageError
from cloister.host.relay import Address, Relay


async def _echo_after_eof(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    data = await reader.read()
    writer.write(data[::-1])
    await writer.drain()
    writer.close()


async def test_carries_both_ways_through_a_half_close_and_captures(tmp_path: Path) -> None:
    server = await asyncio.start_server(_echo_after_eof, "127.0.0.1", 0)
    target = Address(*server.sockets[0].getsockname()[:2])
    relay = Relay(Address("127.0.0.1", 0), target, capture=tmp_path / "seen")
    address = await relay.start()
    sent = bytes(range(256)) * 4096
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(sent)
    writer.write_eof()
    assert await reader.read() == sent[::-1]
    writer.close()
    await writer.wait_closed()
    await relay.aclose()
    server.close()
    await server.wait_closed()
    assert (tmp_path / "seen" / "000001.up").read_bytes() == sent
    assert (tmp_path / "seen" / "000001.down").read_bytes() == sent[::-1]
    assert (relay.totals.up, relay.totals.down, relay.totals.connections) == (len(sent), len(sent), 1)


async def test_an_unreachable_target_closes_the_connection() -> None:
    server = await asyncio.start_server(_echo_after_eof, "127.0.0.1", 0)
    target = Address(*server.sockets[0].getsockname()[:2])
    server.close()
    await server.wait_closed()
    relay = Relay(Address("127.0.0.1", 0), target)
    address = await relay.start()
    reader, writer = await asyncio.open_connection(address.host, address.port)
    assert await reader.read() == b""
    writer.close()
    await relay.aclose()


async def test_closing_the_relay_cuts_a_connection_in_progress() -> None:
    arrived = asyncio.Event()

    async def never_answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(5)
        arrived.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(never_answers, "127.0.0.1", 0)
    relay = Relay(Address("127.0.0.1", 0), Address(*server.sockets[0].getsockname()[:2]))
    address = await relay.start()
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(b"hello")
    await arrived.wait()
    await relay.aclose()
    try:
        ended = await reader.read() == b""
    except ConnectionError:
        ended = True
    assert ended
    writer.close()
    server.close()


@pytest.mark.parametrize("text", ["", "host", "host:", ":80", "host:x", "host:99999"])
def test_bad_addresses_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError):
        Address.parse(text)


def test_the_relay_process_loads_nothing_that_could_read_the_bytes() -> None:
    """In a fresh interpreter, importing the relay brings in no channel, policy, verifier, TLS or cryptography."""
    code = (
        "import sys, cloister.host.relay; "
        "bad = [m for m in sys.modules if m.split('.')[0] in {'cryptography', 'cbor2', 'httpx2', 'xllamacpp'} "
        "or m.startswith(('cloister.channel', 'cloister.policy', 'cloister.tee', 'cloister.enclave'))]; "
        "sys.exit(repr(bad) if bad else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
