"""A replica from start to end, as numbered steps; it serves only if every one succeeded.

1. read the measured configuration   2. start the engine on the model   3. make keys and get evidence   4. serve

Whoever calls `run` brings the attester: the local platform a simulated one, an enclave its device.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import uvicorn

from cloister.api.tenants import Tenant
from cloister.channel.keyring import KeySchedule, ReplicaFacts
from cloister.enclave.engine.config import EngineConfig
from cloister.enclave.engine.protocol import EngineInfo, OnProgress
from cloister.enclave.engine.supervisor import LlamaEngine
from cloister.enclave.gateway.app import INNER_ROUTES, create_app
from cloister.enclave.gateway.ohttp import Limits
from cloister.enclave.hardening import leave_no_dump
from cloister.enclave.identity import Identity
from cloister.enclave.telemetry import Telemetry
from cloister.errors import UsageError
from cloister.tee.attester import Attester

CONFIG_VERSION = "cloister-config/1"
#: Seconds that answers in progress get when the replica is told to stop.
SHUTDOWN_SECONDS = 3


@dataclass(frozen=True, kw_only=True)
class ReplicaConfig:
    """Everything that changes what a replica does; its digest (without `host` and `port`) is in the key statement."""

    engine: EngineConfig
    schedule: KeySchedule = field(default_factory=KeySchedule)
    limits: Limits = field(default_factory=Limits)
    #: Who may ask; none: everybody.
    tenants: tuple[Tenant, ...] = ()
    host: str = "127.0.0.1"
    port: int = 0


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A serving replica."""

    host: str
    port: int
    info: EngineInfo
    config_sha256: str
    engine_pid: int | None

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"


def config_digest(config: ReplicaConfig, engine: LlamaEngine) -> str:
    """Hex SHA-256 over the canonical JSON of the configuration in force, engine version and routes included."""
    resolved, limits, schedule = engine.resolved, config.limits, config.schedule
    document: dict[str, object] = {
        "v": CONFIG_VERSION,
        "engine": {
            "version": engine.info.engine,
            **{name: getattr(resolved, name) for name in ("model_id", "context", "slots", "threads", "batch", "queue")},
        },
        "routes": sorted(f"{method} {path}" for method, path in INNER_ROUTES),
        "frame": limits.frame,
        "limits": {"request_bytes": limits.request_bytes, "in_flight": limits.in_flight},
        "keys": {name: getattr(schedule, name) for name in ("serve", "grace", "early", "capacity")},
    }
    if config.tenants:
        document["tenants"] = sorted((tenant.id, tenant.key_sha256) for tenant in config.tenants)
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


async def run(
    config: ReplicaConfig,
    attester: Attester,
    *,
    on_progress: OnProgress | None = None,
    on_ready: Callable[[Ready], None] | None = None,
    stop: asyncio.Event | None = None,
    listener: socket.socket | None = None,
    telemetry: Telemetry | None = None,
) -> None:
    """Start, serve until SIGINT, SIGTERM or `stop`, end; raises UsageError, ModelLoadError or UndecidedError.

    A `listener` of any stream family (vsock) takes the place of the configuration's address, and is closed at the end.
    """
    # 1. The configuration was checked when it was made; the address is the only part that can still fail.
    listener = listener if listener is not None else _listen(config.host, config.port)
    leave_no_dump()
    began = time.monotonic()
    engine = LlamaEngine(config.engine)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(listener.close)
        # 2.
        stack.push_async_callback(engine.stop)
        await engine.start(on_progress)
        # 3.
        digest = config_digest(config, engine)
        facts = ReplicaFacts(
            boot_id=os.urandom(16),
            model_id=engine.info.model_id,
            model_sha256=engine.info.model_sha256,
            config_sha256=digest,
        )
        identity = Identity(attester, facts, config.schedule)
        await identity.start()
        rotation = asyncio.create_task(identity.run())
        stack.callback(rotation.cancel)
        # 4.
        host, port = listener.getsockname()[:2]
        server = _Server(
            uvicorn.Config(
                create_app(
                    identity,
                    engine,
                    config.limits,
                    tenants=config.tenants,
                    counters=telemetry.counters if telemetry else None,
                ),
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                lifespan="off",
                timeout_keep_alive=75,
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            )
        )
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        stopping = asyncio.create_task(stop.wait()) if stop is not None else None
        # Ready means ready to stop in order, too: uvicorn takes over the signals before it says that it has started.
        while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.005)
        if telemetry is not None:
            telemetry.event("ready", {"seconds": time.monotonic() - began})
            stack.callback(telemetry.event, "stopping")
            stack.callback(asyncio.create_task(telemetry.run(engine)).cancel)
        if on_ready is not None:
            on_ready(Ready(host=host, port=port, info=engine.info, config_sha256=digest, engine_pid=engine.pid))
        if stopping is not None:
            await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
            server.should_exit = True
            stopping.cancel()
        await serving


class _Server(uvicorn.Server):
    """uvicorn, without raising the signal again after an orderly end: whoever called `run` goes on."""

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        with super().capture_signals():
            yield
            self._captured_signals.clear()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=1024)
        # Accepted sockets inherit it; asyncio sets it only on sockets that it made itself. Without it every answer on a
        # kept connection waits some 40 ms for the client's delayed acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the port is out of range"
        raise UsageError(f"cannot listen on {host}:{port}: {reason}", hint="Choose another address or port.") from None
