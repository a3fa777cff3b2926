"""The first code of an enclave after its init: from the measured configuration to `main.run`.

1. read /etc/cloister/replica.json   2. open the vsock listener   3. fetch and open sealed weights, if the model is sealed
4. hand over to main.run with the Nitro security module as the attester
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cloister.channel.keyring import KeySchedule
from cloister.enclave import main, net
from cloister.enclave.engine.config import BUNDLED_MODEL, EngineConfig
from cloister.errors import MalformedError, UsageError
from cloister.tee.nitro.attest import NitroSecurityModule
from cloister.wire import ports, strict_json

CONFIG = Path("/etc/cloister/replica.json")
ROOTS = Path("/etc/cloister/roots.pem")
SCHEMA = "cloister-replica/1"
MAX_CONFIG = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """Weights that have to be fetched and opened first."""

    name: str
    owner: bytes
    minimum_version: int


@dataclass(frozen=True, kw_only=True)
class Release:
    """The service that releases the data key."""

    service: str
    host: str
    port: int
    region: str = ""
    key: str = ""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The image's configuration, as the build wrote it."""

    name: str
    model: Path | Sealed
    model_id: str | None
    engine: dict[str, int]
    keys: dict[str, int]
    egress: tuple[str, ...]
    release: Release | None


def read(data: bytes) -> Measured:
    """Parse the measured configuration; raises MalformedError."""
    fields = strict_json.Fields(strict_json.loads(data, "replica.json", limit=MAX_CONFIG), "replica.json")
    if fields.text("schema") != SCHEMA:
        raise MalformedError("replica.json: another schema", hint="Image and package are of different versions.")
    model = fields.member("model")
    if model.has("bundled"):
        weights: Path | Sealed = BUNDLED_MODEL
    elif model.has("file"):
        weights = Path(model.text("file"))
    else:
        weights = Sealed(
            name=model.text("sealed"),
            owner=model.octets("owner", size=32),
            minimum_version=model.integer("minimum_version"),
        )
    measured = Measured(
        name=fields.text("name"),
        model=weights,
        model_id=model.text("id", limit=128) if model.has("id") else None,
        engine=_numbers(fields.member("engine")),
        keys=_numbers(fields.member("keys")),
        egress=tuple(str(each) for each in fields.array("egress", limit=64)),
        release=_release(fields),
    )
    model.done()
    fields.done()
    return measured


def _numbers(fields: strict_json.Fields) -> dict[str, int]:
    return {name: fields.integer(name) for name in fields.names()}


def _release(fields: strict_json.Fields) -> Release | None:
    if fields.is_null("release"):
        return None
    member = fields.member("release")
    if member.text("service") == "aws-kms":
        region = member.text("region")
        release = Release(
            service="aws-kms", region=region, key=member.text("key"), host=f"kms.{region}.amazonaws.com", port=443
        )
    else:
        release = Release(service=member.text("service"), host=member.text("host"), port=member.integer("port"))
    member.done()
    return release


def listen(port: int = ports.GATEWAY) -> socket.socket:
    """The gateway's vsock listener; raises UsageError outside a virtual machine with vsock."""
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        listener.bind((socket.VMADDR_CID_ANY, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise UsageError(f"cannot listen on vsock port {port}: {error.strerror}") from None
    return listener


def start(measured: Measured, say: Callable[[str], None]) -> None:
    """Run the replica that `measured` describes until it ends; raises whatever a step raises."""
    attester = NitroSecurityModule()
    model = measured.model
    if isinstance(model, Sealed):
        raise UsageError("sealed weights are not supported by this image")
    config = main.ReplicaConfig(
        engine=EngineConfig(model=model, model_id=measured.model_id, **measured.engine),
        schedule=KeySchedule(**measured.keys),
    )

    def on_ready(ready: main.Ready) -> None:
        say(f"serving {ready.info.model_id} on vsock port {ready.port}, configuration {ready.config_sha256}")

    asyncio.run(main.run(config, attester, on_ready=on_ready, listener=listen()))


DIAL = net.vsock
