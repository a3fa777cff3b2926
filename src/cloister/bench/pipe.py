"""The parent agent's ingress against `socat` relaying the same streams: TCP in, unix socket out, in turns in one run.

    python -m cloister.bench.pipe [--json]

Throughput in MB/s (10^6 bytes), latency of a 512-byte frame there and back in microseconds beside a direct connection,
memory of idle connections, and many connections that all talk. Without `socat` only the agent is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cloister.bench.pipe_peer import PIECE, exactly
from cloister.errors import UsageError

FRAME = 512
SOCAT_SECONDS = 10.0
#: socat's own block size, and the agent's. With the latter two full directions block each other for ever in socat.
SOCAT_BLOCK, SOCAT_WIDE = 8192, 262144


@dataclass(frozen=True, kw_only=True)
class Ways:
    """TCP ports to the same peer, and the agent's process."""

    agent: int
    socat: int | None
    socat_wide: int | None
    direct: int
    agent_pid: int


@contextlib.contextmanager
def _process(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(  # noqa: S603 - our own modules
        [sys.executable, "-m", *words], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise UsageError(f"{words[0]} did not start")
        yield process, line
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


@contextlib.contextmanager
def _socat(folder: Path, block: int) -> Iterator[int | None]:
    program = shutil.which("socat")
    if program is None:
        yield None
        return
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    listen = f"TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,nodelay,backlog=4096"
    words = [program, "-b", str(block), listen, f"UNIX-CONNECT:{folder / 'plain'}"]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:  # noqa: S603 - found on the path, for comparison
        limit = time.monotonic() + SOCAT_SECONDS
        while time.monotonic() < limit:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.02)
        try:
            yield port
        finally:
            process.terminate()


@contextlib.contextmanager
def ways() -> Iterator[Ways]:
    """The peer, the agent and socat as processes of their own; end with the block."""
    with tempfile.TemporaryDirectory(prefix="clo-") as name:
        folder = Path(name)
        (folder / "host.toml").write_text(f'listen = "127.0.0.1:0"\nuds = "{folder / "v"}"\nlog = "{folder / "log"}"\n')
        with (
            _process("cloister.bench.pipe_peer", name) as (_, direct),
            _process("cloister.host.agent", "--config", str(folder / "host.toml")) as (agent, line),
            _socat(folder, SOCAT_BLOCK) as socat,
            _socat(folder, SOCAT_WIDE) as wide,
        ):
            yield Ways(
                agent=int(line.split()[2]), socat=socat, socat_wide=wide, direct=int(direct), agent_pid=agent.pid
            )


def _open(port: int, letter: bytes, size: int) -> socket.socket:
    stream = socket.create_connection(("127.0.0.1", port), timeout=60)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.sendall(letter + size.to_bytes(8, "big"))
    return stream


def bulk(port: int, letter: bytes, size: int) -> float:
    """MB/s of one stream: up (`U`), down (`D`) or both ways at once (`B`, bytes of both counted)."""
    began = time.perf_counter()
    with _open(port, letter, size) as stream:

        def up() -> None:
            for _ in range(size // len(PIECE)):
                stream.sendall(PIECE)

        sender = threading.Thread(target=up)
        if letter != b"D":
            sender.start()
        expected = {b"U": 1, b"D": size, b"B": size + 1}[letter]
        buffer = bytearray(len(PIECE))
        while expected and (got := stream.recv_into(buffer)):
            expected -= got
        if letter != b"D":
            sender.join()
        if expected:
            raise UsageError("the stream was cut")
    return size * (2 if letter == b"B" else 1) / 1e6 / (time.perf_counter() - began)


def latency(port: int, count: int) -> list[float]:
    """Microseconds of each frame there and back on one connection."""
    frame, taken = bytes(FRAME), []
    with _open(port, b"E", FRAME) as stream:
        for number in range(count + 50):
            began = time.perf_counter()
            stream.sendall(frame)
            got = 0
            while got < FRAME:
                got += len(stream.recv(FRAME - got))
            if number >= 50:
                taken.append(1e6 * (time.perf_counter() - began))
    return taken


async def active(port: int, connections: int, frames: int) -> float:
    """Frames each second over so many connections that all talk at once."""
    loop, gate, all_open = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    opened = 0

    async def one() -> None:
        nonlocal opened
        with socket.socket() as stream:
            stream.setblocking(False)
            await loop.sock_connect(stream, ("127.0.0.1", port))
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_sendall(stream, b"E" + FRAME.to_bytes(8, "big") + bytes(FRAME))
            await exactly(stream, FRAME)
            opened += 1
            if opened == connections:
                all_open.set()
            await gate.wait()
            for _ in range(frames):
                await loop.sock_sendall(stream, bytes(FRAME))
                await exactly(stream, FRAME)

    tasks = [asyncio.create_task(one()) for _ in range(connections)]
    await asyncio.wait((asyncio.ensure_future(all_open.wait()), *tasks), return_when=asyncio.FIRST_COMPLETED)
    began = time.perf_counter()
    gate.set()
    await asyncio.gather(*tasks)
    return connections * frames / (time.perf_counter() - began)


def idle(port: int, pid: int, connections: int) -> dict[str, float]:
    """Open that many connections through the agent and hold them: its memory for each, and a frame meanwhile."""
    before = _private(pid)
    with contextlib.ExitStack() as stack:
        for _ in range(connections):
            stream = stack.enter_context(_open(port, b"E", FRAME))
            stream.sendall(bytes(FRAME))
            if len(stream.recv(FRAME, socket.MSG_WAITALL)) < FRAME:
                raise UsageError("an idle connection was cut")
        grown = _private(pid) - before
        taken = latency(port, 200)
    return {
        "connections": connections,
        "agent_kib_each": grown / connections,
        "agent_mb": grown / 1000,
        "p50_us_meanwhile": statistics.median(taken),
    }


def _private(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1])


def _in_turn(rounds: int, ports: dict[str, int]) -> Iterator[tuple[str, int]]:
    """Who goes first alternates, so that a drift of the machine favours nobody."""
    names = list(ports)
    for number in range(rounds):
        for name in names if number % 2 else reversed(names):
            yield name, ports[name]


def run(
    *, rounds: int, megabytes: int, frames: int, idle_connections: int, active_connections: int
) -> dict[str, object]:
    """All of it; ratios are medians of the rounds' ratios, agent over socat."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    size = megabytes * 1_000_000 // len(PIECE) * len(PIECE)
    result: dict[str, object] = {"schema": "cloister-bench-pipe/1", "rounds": rounds}
    with ways() as found:
        ports = {"agent": found.agent} | ({"socat": found.socat} if found.socat else {})
        wide = {"socat_wide": found.socat_wide} if found.socat_wide else {}
        for letter, what, others in ((b"U", "up", wide), (b"D", "down", wide), (b"B", "both", {})):
            rates: dict[str, list[float]] = {name: [] for name in (*ports, *others)}
            for name, port in _in_turn(rounds, ports | others):
                rates[name].append(bulk(port, letter, size))
            result[what] = _rates(rates)
        taken: dict[str, list[float]] = {name: [] for name in ("direct", *ports)}
        for name, port in _in_turn(rounds, {"direct": found.direct, **ports}):
            taken[name] += latency(port, frames)
        centiles = {name: statistics.quantiles(values, n=100) for name, values in taken.items()}
        result["frame_us"] = {
            name: {"p50": each[49], "p99": each[98], "added_p50": each[49] - centiles["direct"][49]}
            for name, each in centiles.items()
        }
        result["idle"] = idle(found.agent, found.agent_pid, idle_connections)
        talking: dict[str, list[float]] = {name: [] for name in ports}
        for name, port in _in_turn(max(3, rounds // 2), ports):
            talking[name].append(asyncio.run(active(port, active_connections, 10)))
        result["active"] = {"connections": active_connections, **_rates(talking)}
    return result


def _rates(rates: dict[str, list[float]]) -> dict[str, float]:
    row = {name: statistics.median(values) for name, values in rates.items()}
    for other in set(rates) - {"agent"}:
        pairs = zip(rates["agent"], rates[other], strict=True)
        row[f"ratio_{other}"] = statistics.median(agent / rate for agent, rate in pairs)
    return row


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(prog="python -m cloister.bench.pipe")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--idle", type=int, default=4000)
    parser.add_argument("--active", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = run(
        rounds=options.rounds, megabytes=options.megabytes, frames=options.frames,
        idle_connections=options.idle, active_connections=options.active,
    )  # fmt: skip
    if options.json:
        print(json.dumps(result))  # noqa: T201 - this is the output
        return
    if "ratio" not in str(result):
        print("socat is not here: the agent alone was measured")  # noqa: T201
    for name, value in result.items():
        if isinstance(value, dict):
            numbers = {
                each: round(number, 2) if isinstance(number, float) else number for each, number in value.items()
            }
            print(f"{name:10}", json.dumps(numbers))  # noqa: T201


if __name__ == "__main__":
    main()
