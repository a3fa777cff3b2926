"""The first code of an enclave after its init: from the measured configuration to `main.run`.

1. read /etc/cloister/replica.json   2. open the vsock listener   3. fetch and open the weights, if sealed
4. hand over to main.run with the Nitro security module as the attester
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cloister.api import tenants
from cloister.api.tenants import Tenant
from cloister.channel.keyring import KeySchedule
from cloister.enclave import main, memory, model, net
from cloister.enclave.engine.config import BUNDLED_MODEL, EngineConfig
from cloister.enclave.release.credentials import from_parent
from cloister.enclave.release.kbs import KbsRelease
from cloister.enclave.release.kms import KmsRelease
from cloister.enclave.telemetry import Telemetry
from cloister.errors import MalformedError, UsageError
from cloister.tee.nitro.attest import NitroSecurityModule
from cloister.weights import kbs
from cloister.weights.keys import KeyRelease
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
    #: Who may ask; none: everybody.
    tenants: tuple[Tenant, ...]


def read(data: bytes) -> Measured:
    """Parse the measured configuration; raises MalformedError."""
    fields = strict_json.Fields(strict_json.loads(data, "replica.json", limit=MAX_CONFIG), "replica.json")
    if fields.text("schema") != SCHEMA:
        raise MalformedError("replica.json: another schema", hint="Image and package are of different versions.")
    chosen = fields.member("model")
    if chosen.has("bundled"):
        weights: Path | Sealed = BUNDLED_MODEL
    elif chosen.has("file"):
        weights = Path(chosen.text("file"))
    else:
        weights = Sealed(
            name=chosen.text("sealed"),
            owner=chosen.octets("owner", size=32),
            minimum_version=chosen.integer("minimum_version"),
        )
    measured = Measured(
        name=fields.text("name"),
        model=weights,
        model_id=chosen.text("id", limit=128) if chosen.has("id") else None,
        engine=_numbers(fields.member("engine")),
        keys=_numbers(fields.member("keys")),
        egress=tuple(str(each) for each in fields.array("egress", limit=64)),
        release=_release(fields),
        tenants=tenants.read(fields.array("tenants", limit=tenants.MAX_TENANTS)) if fields.has("tenants") else (),
    )
    chosen.done()
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
        port = member.integer("port", minimum=1, maximum=65535)
        release = Release(service=member.text("service"), host=member.text("host"), port=port)
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


def start(measured: Measured, say: Callable[[str], None], telemetry: Telemetry) -> None:
    """Run the replica that `measured` describes until it ends; raises whatever a step raises."""
    attester = NitroSecurityModule()
    listener = listen()
    numbers = EngineConfig(model=BUNDLED_MODEL, **measured.engine)  # type: ignore[arg-type]
    engine = replace(numbers, model_id=measured.model_id)
    watch = memory.Watch()
    if isinstance(measured.model, Sealed):
        opened = open_sealed(measured, measured.model, net.vsock, attester)
        made, came = opened.manifest, opened.transfer
        say(
            f"opened sealed weights {made.model} version {made.version}: {made.size / 1e6:.1f} MB in "
            f"{came.seconds:.2f} s, {came.waited:.2f} s of them waiting, over {came.connections} connection(s)"
        )
        engine = replace(engine, model=Path(opened.path), model_sha256=opened.manifest.sha256, one_copy=True)
    else:
        engine = replace(engine, model=measured.model)
    config = main.ReplicaConfig(engine=engine, schedule=KeySchedule(**measured.keys), tenants=measured.tenants)

    def on_ready(ready: main.Ready) -> None:
        say(f"starting took {watch.end() / 1e6:.1f} MB of memory at most")
        say(f"serving {ready.info.model_id} on vsock port {ready.port}, configuration {ready.config_sha256}")

    asyncio.run(main.run(config, attester, on_ready=on_ready, listener=listener, telemetry=telemetry))


def open_sealed(measured: Measured, sealed: Sealed, dial: net.Dial, module: NitroSecurityModule) -> model.Opened:
    """Fetch the sealed weights through the parent and open them with the key that the service releases."""
    return model.fetch(
        dial,
        f"{sealed.name}.sealed",
        model=sealed.name,
        owner=Ed25519PublicKey.from_public_bytes(sealed.owner),
        minimum_version=sealed.minimum_version,
        release=key_release(measured, dial, module),
    )


def key_release(measured: Measured, dial: net.Dial, module: NitroSecurityModule) -> KeyRelease:
    """The service that the measured configuration names; raises UsageError when there is none."""
    match measured.release:
        case Release(service="aws-kms", region=region, key=key):
            return KmsRelease(
                dial,
                region=region,
                key_arn=key,
                attest=lambda public_key: module.attest(None, None, public_key),
                credentials=lambda: from_parent(dial),
                tls_roots=ROOTS.read_text("ascii"),
            )
        case Release(service=kbs.SERVICE, host=host, port=port):
            return KbsRelease(dial, host=host, port=port, attest=module.attest, tls_roots=ROOTS.read_text("ascii"))
    raise UsageError("the image names no key-release service that this version has", hint="[release] in cloister.toml")
