"""The blind parent agent: everything an enclave needs from its instance, none of it trusted with a plaintext.

ingress TCP -> gateway   egress -> listed hosts   model store   credentials   telemetry by allow-list   heartbeat

    python -m cloister.host.agent --config host.toml

The first line on standard output is `listening HOST PORT`. SIGTERM and SIGINT let streams in progress end, for a time;
a second one ends them.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

from cloister.errors import CloisterError, UsageError
from cloister.host import credentials as instance_credentials
from cloister.host.config import AgentConfig as AgentConfig
from cloister.host.egress import Egress
from cloister.host.log import Log, Unit
from cloister.host.pipe import CONNECT_SECONDS, Capture, Door, join
from cloister.host.relay import Address
from cloister.host.store import Store
from cloister.host.telemetry import CONNECTIONS, Telemetry
from cloister.host.vsock import Vsock, chosen
from cloister.wire import ports

HEARTBEAT_BYTE = b"\xb7"
#: Seconds between two lines of counters in the log.
REPORT_SECONDS = 60.0
#: For a client, and at times for a pipe between its two streams; for the process itself and its other doors.
DESCRIPTORS_EACH, OWN_DESCRIPTORS = 3, 64


class Agent:
    """All doors of one enclave; `open`, then `run` until cancelled."""

    def __init__(self, config: AgentConfig, listener: socket.socket | None = None) -> None:
        """`listener` takes the place of the address in the configuration."""
        self._config, self._listener = config, listener
        self._vsock: Vsock = chosen(config.cid, config.uds)
        self.doors: list[Door] = []
        self._told: dict[str, int] = {}

    def open(self) -> Address:
        """Bind every listener and return the ingress address it really has; raises UsageError."""
        config = self._config
        try:
            if config.capture is not None:
                config.capture.mkdir(mode=0o700, parents=True, exist_ok=True)
            listener = self._listener or ingress(config.listen)
            listener.setblocking(False)
            self._ingress(listener)
            self._log = Log(config.name, config.log, size=config.log_bytes, files=config.log_files)
            self._telemetry = Telemetry(self._log)
            if config.egress:
                door = self._door(ports.EGRESS, "egress")
                allow = frozenset(config.egress)
                door.serve = Egress(allow, door.totals, resolve=config.resolve, idle=config.idle_seconds).serve
            if config.store is not None:
                door = self._door(ports.STORE, "store")
                door.serve = Store(config.store, door.totals).serve
            if config.credentials is not None:
                door = self._door(ports.CREDENTIALS, "credentials")
                door.serve = instance_credentials.Credentials(self._source()).serve
            if config.telemetry:
                door = self._door(ports.TELEMETRY, "telemetry")
                door.serve, door.limit = self._telemetry.serve, CONNECTIONS
            if config.heartbeat:
                self._door(ports.HEARTBEAT, "heartbeat").serve = _heartbeat
        except OSError as error:
            self.close()
            raise UsageError(f"the agent cannot listen: {error.strerror}", hint="Is another agent running?") from None
        host, port = listener.getsockname()[:2]
        return Address(host, port)

    async def run(self) -> None:
        """Serve until drained or cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                clients, *others = [group.create_task(door.run()) for door in self.doors]
                others.append(group.create_task(self._report()))
                # What the enclave needs of its parent stays until the last client has its answer.
                await clients
                for task in others:
                    task.cancel()
        finally:
            self.close()
            self.report()
            self._log.close()

    def drain(self) -> None:
        """Accept no more clients; `run` ends with the last one."""
        self.doors[0].drain()

    def close(self) -> None:
        """Close every listener."""
        for door in self.doors:
            door.listener.close()

    def _door(self, port: int, name: str) -> Door:
        limit, capture = self._config.connections, self._config.capture
        door = Door(self._vsock.listen(port), _nobody, name, limit=limit, capture=capture)
        self.doors.append(door)
        return door

    def _ingress(self, listener: socket.socket) -> None:
        limit, capture = self._config.connections, self._config.capture
        door = Door(listener, _nobody, "ingress", limit=limit, capture=capture)

        async def serve(near: socket.socket, capture: Capture | None) -> None:
            async with asyncio.timeout(CONNECT_SECONDS):
                far = await self._vsock.connect(ports.GATEWAY)
            await join(near, far, door.totals, capture, idle=self._config.idle_seconds)

        door.serve = serve
        self.doors.append(door)

    def _source(self) -> instance_credentials.Source:
        match self._config.credentials:
            case "instance":
                return instance_credentials.instance(self._config.metadata)
            case "environment":
                return instance_credentials.environment()
            case path:
                return instance_credentials.file(Path(str(path)))

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            self.report()

    def report(self) -> None:
        """Write what went through since the last report: numbers by name of the door, and nothing else."""
        names: tuple[tuple[str, Unit], ...] = (
            ("connections", "Count"), ("refused", "Count"), ("up", "Bytes"), ("down", "Bytes"),
        )  # fmt: skip
        totals: dict[str, tuple[int, Unit]] = {
            f"{door.name}_{name}": (getattr(door.totals, name), unit) for door in self.doors for name, unit in names
        }
        for name in ("accepted", "malformed", "over_rate"):
            totals[f"telemetry_{name}"] = getattr(self._telemetry, name), "Count"
        metrics: dict[str, tuple[float, Unit]] = {
            name: (total - self._told.get(name, 0), unit) for name, (total, unit) in totals.items()
        }
        self._told = {name: total for name, (total, _) in totals.items()}
        self._log.write("traffic", metrics={**metrics, "ingress_open": (self.doors[0].open, "Count")})


def ingress(address: Address) -> socket.socket:
    """The listener for clients; raises OSError."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    return socket.create_server((address.host, address.port), family=family, backlog=1024)


async def _nobody(near: socket.socket, capture: Capture | None) -> None:
    del near, capture


async def _heartbeat(near: socket.socket, capture: Capture | None) -> None:
    """What nitro-cli answers on EC2: the byte back."""
    del capture
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(CONNECT_SECONDS):
        if await loop.sock_recv(near, 1) == HEARTBEAT_BYTE:
            await loop.sock_sendall(near, HEARTBEAT_BYTE)


async def serve(agent: Agent, address: Address, drain_seconds: float, *, until_input_ends: bool = False) -> None:
    """Run until SIGINT or SIGTERM (or the end of standard input), then let streams end within `drain_seconds`."""
    loop, running = asyncio.get_running_loop(), asyncio.create_task(agent.run())
    told = False

    def end() -> None:
        nonlocal told
        if told:
            running.cancel()
        told = True
        agent.drain()
        loop.call_later(drain_seconds, running.cancel)

    def parent_gone() -> None:
        loop.remove_reader(sys.stdin)
        end()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    if until_input_ends:
        loop.add_reader(sys.stdin, parent_gone)
    print("listening", address.host, address.port, flush=True)  # noqa: T201 - the line that whoever started us waits for
    await asyncio.wait({running})
    if not running.cancelled() and (error := running.exception()) is not None:
        raise error


def main(arguments: list[str] | None = None) -> int:
    """The agent as a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m cloister.host.agent", description="The blind parent agent.")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--listener", type=int, help="an open listening socket; the agent ends with its standard input")
    options = parser.parse_args(arguments)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        config = AgentConfig.load(options.config)
        # More clients than descriptors would end streams in progress; so they are refused before.
        room = max(1, (hard - OWN_DESCRIPTORS) // DESCRIPTORS_EACH)
        config = replace(config, connections=min(config.connections, room))
        listener = None if options.listener is None else socket.socket(fileno=options.listener)
        agent = Agent(config, listener)
        supervised = listener is not None
        asyncio.run(serve(agent, agent.open(), config.drain_seconds, until_input_ends=supervised))
    except CloisterError as error:
        print(f"{error.message}. {error.hint}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
