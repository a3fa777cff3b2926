"""The blind parent agent: everything an enclave needs from its instance, none of it trusted with a plaintext.

ingress TCP -> gateway   egress -> listed hosts   model store   credentials   heartbeat (where no nitro-cli answers it)

    python -m cloister.host.agent --config host.toml

The first line on standard output is `listening HOST PORT`; SIGTERM and SIGINT end it in order.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import sys
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cloister.errors import CloisterError, UsageError
from cloister.host import credentials as instance_credentials
from cloister.host.egress import Egress
from cloister.host.pipe import CONNECT_SECONDS, Capture, Door, join
from cloister.host.relay import Address
from cloister.host.store import Store
from cloister.host.vsock import HybridVsock, KernelVsock, Vsock
from cloister.wire import ports

HEARTBEAT_BYTE = b"\xb7"
#: Seconds between two lines of counters on standard error.
REPORT_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Either `cid` (kernel vsock) or `uds` (hybrid unix sockets), and what to serve."""

    listen: Address
    cid: int | None = None
    uds: Path | None = None
    store: Path | None = None
    egress: tuple[str, ...] = ()
    resolve: Mapping[str, Address] = field(default_factory=dict)
    #: `instance`, `environment`, a path of a file, or None for no credentials.
    credentials: str | None = None
    metadata: Address = instance_credentials.METADATA
    heartbeat: bool = False
    capture: Path | None = None

    def __post_init__(self) -> None:
        if (self.cid is None) == (self.uds is None):
            raise UsageError("the agent needs either cid or uds", hint="On EC2 it is the enclave's cid.")

    @classmethod
    def load(cls, path: Path) -> AgentConfig:
        """Read a TOML file; raises UsageError."""
        try:
            document = tomllib.loads(path.read_text("utf-8"))
            unknown = set(document) - set(cls.__dataclass_fields__)
            if unknown:
                raise UsageError(f"{path}: unknown: {', '.join(sorted(unknown))}")
            return cls(
                listen=Address.parse(document["listen"]),
                cid=document.get("cid"),
                uds=Path(document["uds"]) if "uds" in document else None,
                store=Path(document["store"]) if "store" in document else None,
                egress=tuple(document.get("egress", ())),
                resolve={name: Address.parse(each) for name, each in document.get("resolve", {}).items()},
                credentials=document.get("credentials"),
                metadata=Address.parse(document["metadata"])
                if "metadata" in document
                else instance_credentials.METADATA,
                heartbeat=bool(document.get("heartbeat", False)),
                capture=Path(document["capture"]) if "capture" in document else None,
            )
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError, UnicodeDecodeError):
            raise UsageError(f"{path} is not an agent's configuration", hint="See docs/parent.md.") from None


class Agent:
    """All doors of one enclave; `open`, then `run` until cancelled."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._vsock: Vsock
        if config.uds is not None:
            self._vsock = HybridVsock(config.uds)
        else:
            assert config.cid is not None
            self._vsock = KernelVsock(config.cid)
        self.doors: list[Door] = []

    def open(self) -> Address:
        """Bind every listener and return the ingress address it really has; raises UsageError."""
        config = self._config
        if config.capture is not None:
            config.capture.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            family = socket.AF_INET6 if ":" in config.listen.host else socket.AF_INET
            listener = socket.create_server((config.listen.host, config.listen.port), family=family, backlog=1024)
            listener.setblocking(False)
            self._ingress(listener)
            if config.egress:
                door = self._door(ports.EGRESS, "egress")
                door.serve = Egress(frozenset(config.egress), door.totals, resolve=config.resolve).serve
            if config.store is not None:
                door = self._door(ports.STORE, "store")
                door.serve = Store(config.store, door.totals).serve
            if config.credentials is not None:
                self._door(ports.CREDENTIALS, "credentials").serve = instance_credentials.Credentials(
                    self._source()
                ).serve
            if config.heartbeat:
                self._door(ports.HEARTBEAT, "heartbeat").serve = _heartbeat
        except OSError as error:
            self.close()
            raise UsageError(f"the agent cannot listen: {error.strerror}", hint="Is another agent running?") from None
        host, port = listener.getsockname()[:2]
        return Address(host, port)

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for door in self.doors:
                    group.create_task(door.run())
                group.create_task(self._report())
        finally:
            self.close()

    def close(self) -> None:
        """Close every listener."""
        for door in self.doors:
            door.listener.close()

    def _door(self, port: int, name: str) -> Door:
        door = Door(self._vsock.listen(port), _nobody, name, capture=self._config.capture)
        self.doors.append(door)
        return door

    def _ingress(self, listener: socket.socket) -> None:
        door = Door(listener, _nobody, "ingress", capture=self._config.capture)

        async def serve(near: socket.socket, capture: Capture | None) -> None:
            async with asyncio.timeout(CONNECT_SECONDS):
                far = await self._vsock.connect(ports.GATEWAY)
            await join(near, far, door.totals, capture)

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
            print(json.dumps(emf(self.doors)), file=sys.stderr, flush=True)  # noqa: T201 - the agent's own log


def emf(doors: list[Door]) -> dict[str, object]:
    """The counters in CloudWatch's embedded metric format: numbers by name of the door, and nothing else."""
    values = {
        f"{door.name}_{name}": getattr(door.totals, name) for door in doors for name in ("connections", "up", "down")
    }
    metrics = [{"Name": name, "Unit": "Count" if name.endswith("connections") else "Bytes"} for name in values]
    directive = {"Namespace": "Cloister/Parent", "Dimensions": [[]], "Metrics": metrics}
    return {"_aws": {"Timestamp": int(time.time() * 1000), "CloudWatchMetrics": [directive]}, **values}


async def _nobody(near: socket.socket, capture: Capture | None) -> None:
    del near, capture


async def _heartbeat(near: socket.socket, capture: Capture | None) -> None:
    """What nitro-cli answers on EC2: the byte back."""
    del capture
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(CONNECT_SECONDS):
        if await loop.sock_recv(near, 1) == HEARTBEAT_BYTE:
            await loop.sock_sendall(near, HEARTBEAT_BYTE)


async def serve(agent: Agent, address: Address) -> None:
    """Run until SIGINT or SIGTERM."""
    loop, running = asyncio.get_running_loop(), asyncio.create_task(agent.run())
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, running.cancel)
    print("listening", address.host, address.port, flush=True)  # noqa: T201 - the line that whoever started us waits for
    await asyncio.wait({running})
    if not running.cancelled() and (error := running.exception()) is not None:
        raise error


def main(arguments: list[str] | None = None) -> int:
    """The agent as a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m cloister.host.agent", description="The blind parent agent.")
    parser.add_argument("--config", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        agent = Agent(AgentConfig.load(options.config))
        asyncio.run(serve(agent, agent.open()))
    except CloisterError as error:
        print(f"{error.message}. {error.hint}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
