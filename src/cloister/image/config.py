"""`cloister.toml`: what an image is to be. Strict: unknown names are errors, because a misspelt limit is no limit."""

from __future__ import annotations

import base64
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from cloister.api import tenants
from cloister.api.tenants import Tenant
from cloister.errors import MalformedError, UsageError
from cloister.trust.certificates import UNREADABLE

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
EGRESS = re.compile(r"[a-z0-9.-]{1,253}:[0-9]{1,5}")
REPLICA_SCHEMA = "cloister-replica/1"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ModelInImage:
    """Weights that are part of the image, in clear: for public models."""

    #: None: the model that comes with the package.
    path: Path | None
    id: str | None


@dataclass(frozen=True, kw_only=True)
class SealedModel:
    """Weights that come through the parent, opened only with a released key."""

    name: str
    #: The owner's Ed25519 public key (32 bytes), which signs the container's manifest.
    owner: bytes
    minimum_version: int
    id: str | None


@dataclass(frozen=True, kw_only=True)
class KmsSettings:
    """AWS KMS as the service that releases the data key."""

    region: str
    key: str
    #: PEM of the roots that its TLS certificate must chain to; None: Amazon's, from Debian's ca-certificates.
    roots: bytes | None


@dataclass(frozen=True, kw_only=True)
class BrokerSettings:
    """A KBS-protocol broker as the service that releases the data key."""

    host: str
    port: int
    roots: bytes


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """One `cloister.toml`, checked."""

    name: str
    version: str
    model: ModelInImage | SealedModel
    engine: Mapping[str, int] = field(default_factory=dict)
    keys: Mapping[str, int] = field(default_factory=dict)
    egress: tuple[str, ...] = ()
    release: KmsSettings | BrokerSettings | None = None
    #: Who may ask; none: everybody.
    tenants: tuple[Tenant, ...] = ()
    memory_mib: int = 1024
    cpus: int = 2
    #: `small`: compiled from Debian's source; `aws`: the files of aws-nitro-enclaves-cli; else a path to a kernel.
    kernel: str = "small"
    signing_key: Path | None = None
    certificate: Path | None = None

    def replica(self) -> bytes:
        """`/etc/cloister/replica.json`: the part that the replica reads, measured with the image."""
        match self.model:
            case SealedModel(name=name, owner=owner, minimum_version=version):
                model: dict[str, object] = {
                    "sealed": name,
                    "owner": base64.urlsafe_b64encode(owner).rstrip(b"=").decode("ascii"),
                    "minimum_version": version,
                }
            case ModelInImage(path=path):
                model = {"bundled": True} if path is None else {"file": "/models/model.gguf"}
        if self.model.id is not None:
            model["id"] = self.model.id
        match self.release:
            case KmsSettings(region=region, key=key):
                release: dict[str, object] | None = {"service": "aws-kms", "region": region, "key": key}
            case BrokerSettings(host=host, port=port):
                release = {"service": "kbs", "host": host, "port": port}
            case None:
                release = None
        document: dict[str, object] = {
            "schema": REPLICA_SCHEMA,
            "name": self.name,
            "model": model,
            "engine": dict(self.engine),
            "keys": dict(self.keys),
            "egress": list(self.egress),
            "release": release,
        }
        if self.tenants:
            document["tenants"] = [asdict(tenant) for tenant in self.tenants]
        return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode("utf-8")


def load(path: Path) -> ImageConfig:
    """Read and check a `cloister.toml`; its paths are relative to it. Raises UsageError that names the wrong place."""
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="cloister build reads cloister.toml.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from None
    folder = path.parent
    top = _Table(document, "")
    image, model, nitro = top.table("image"), top.table("model", {}), top.table("nitro", {})
    name = image.get("name", str)
    if not NAME.fullmatch(name):
        raise UsageError("image.name must be lower-case letters, digits, dot, dash, underscore")
    release = _release(top, folder)
    kernel = nitro.get("kernel", str, "small")
    config = ImageConfig(
        name=name,
        version=image.get("version", str, "0"),
        model=_model(model, folder),
        engine=_numbers(top.table("engine", {}), ("context", "slots", "threads", "batch", "queue")),
        keys=_numbers(top.table("keys", {}), ("serve", "grace", "early")),
        egress=_egress(top.table("egress", {}), release),
        release=release,
        tenants=_tenants(top),
        memory_mib=nitro.get("memory_mib", int, 1024),
        cpus=nitro.get("cpus", int, 2),
        kernel=kernel if kernel in ("small", "aws") else str(folder / kernel),
        signing_key=_path(nitro, "signing_key", folder),
        certificate=_path(nitro, "certificate", folder),
    )
    for table in (image, model, nitro, top):
        table.done()
    if (config.signing_key is None) != (config.certificate is None):
        raise UsageError("nitro.signing_key and nitro.certificate go together")
    if isinstance(config.model, SealedModel) and config.release is None:
        raise UsageError("a sealed model needs [release]: who gives its key?", hint='service = "aws-kms" or "kbs".')
    return config


class _Table:
    """Typed access to one TOML table; `done` rejects what nobody asked for."""

    def __init__(self, members: Mapping[str, object], name: str) -> None:
        self._members, self._name, self._seen = members, name, set[str]()

    def has(self, name: str) -> bool:
        return name in self._members

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        self._seen.add(name)
        value = self._members.get(name, default)
        if value is None:
            raise UsageError(f"{self._name}{name} is missing")
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise UsageError(f"{self._name}{name} must be a {kind.__name__}")
        return value

    def table(self, name: str, default: Mapping[str, object] | None = None) -> _Table:
        return _Table(self.get(name, dict, dict(default) if default is not None else None), f"{self._name}{name}.")

    def done(self) -> None:
        unknown = sorted(set(self._members) - self._seen)
        if unknown:
            raise UsageError(f"unknown in cloister.toml: {', '.join(self._name + each for each in unknown)}")


def _path(table: _Table, name: str, folder: Path) -> Path | None:
    return folder / table.get(name, str) if table.has(name) else None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None


def _roots(path: Path) -> bytes:
    """Certificates in PEM: what does not parse here would only be noticed by an enclave that does not start."""
    data = _read(path)
    try:
        x509.load_pem_x509_certificates(data)
    except UNREADABLE:
        raise UsageError(f"release.roots: {path} does not hold certificates in PEM") from None
    return data


def _numbers(table: _Table, names: tuple[str, ...]) -> dict[str, int]:
    values = {name: table.get(name, int) for name in names if table.has(name)}
    table.done()
    return values


def _model(table: _Table, folder: Path) -> ModelInImage | SealedModel:
    name = table.get("id", str) if table.has("id") else None
    if not table.has("sealed"):
        return ModelInImage(path=_path(table, "file", folder), id=name)
    try:
        owner = load_pem_public_key(_read(folder / table.get("owner", str)))
    except (ValueError, UnsupportedAlgorithm):
        owner = None
    if not isinstance(owner, Ed25519PublicKey):
        raise UsageError(
            "model.owner must be a file with an Ed25519 public key in PEM", hint="cloister seal makes one."
        )
    sealed = table.get("sealed", str)
    if not NAME.fullmatch(sealed):
        raise UsageError("model.sealed must be lower-case letters, digits, dot, dash, underscore")
    return SealedModel(
        name=sealed,
        owner=owner.public_bytes(Encoding.Raw, PublicFormat.Raw),
        minimum_version=table.get("minimum_version", int, 1),
        id=name,
    )


def _release(top: _Table, folder: Path) -> KmsSettings | BrokerSettings | None:
    if not top.has("release"):
        return None
    table = top.table("release")
    roots = _path(table, "roots", folder)
    match table.get("service", str):
        case "aws-kms":
            settings: KmsSettings | BrokerSettings = KmsSettings(
                region=table.get("region", str), key=table.get("key", str), roots=_roots(roots) if roots else None
            )
        case "kbs":
            if roots is None:
                raise UsageError("release.roots is missing", hint="PEM of the root of the broker's certificate.")
            host, port = table.get("host", str), table.get("port", int, 443)
            if not EGRESS.fullmatch(f"{host}:{port}") or port > 65535:
                raise UsageError("release.host must be a host name in lower case, and release.port a TCP port")
            settings = BrokerSettings(host=host, port=port, roots=_roots(roots))
        case _:
            raise UsageError("release.service must be aws-kms or kbs")
    table.done()
    return settings


def _tenants(top: _Table) -> tuple[Tenant, ...]:
    if not top.has("tenant"):
        return ()
    try:
        return tenants.read(top.get("tenant", list))
    except MalformedError as error:
        raise UsageError(error.message, hint=error.hint) from None


def _egress(table: _Table, release: KmsSettings | BrokerSettings | None) -> tuple[str, ...]:
    listed = table.get("allow", list, [])
    table.done()
    if not all(isinstance(each, str) and EGRESS.fullmatch(each) for each in listed):
        raise UsageError('egress.allow must list "host:port" in lower case')
    match release:
        case KmsSettings(region=region):
            listed = [*listed, f"kms.{region}.amazonaws.com:443"]
        case BrokerSettings(host=host, port=port):
            listed = [*listed, f"{host}:{port}"]
    return tuple(dict.fromkeys(listed))
