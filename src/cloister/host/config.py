"""The parent's configuration: one TOML file for the agent's doors and for keeping the enclave up (docs/parent.md)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from cloister.errors import UsageError
from cloister.host.credentials import METADATA
from cloister.host.pipe import IDLE_SECONDS, MAX_CONNECTIONS
from cloister.host.relay import Address

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class EnclaveConfig:
    """How `cloister.host.supervise` starts and watches the enclave."""

    #: The command that starts it. Without `stop` it is the enclave: it ends when the enclave ends, and ends it.
    start: tuple[str, ...]
    #: The command that ends an enclave which outlives `start`, as with nitro-cli.
    stop: tuple[str, ...] = ()
    #: From its start to the first answer.
    boot_seconds: float = 300.0
    #: Between two health requests.
    check_seconds: float = 5.0
    #: For the answer to one.
    answer_seconds: float = 5.0
    #: Health requests in a row without an answer before it is started again.
    misses: int = 3
    #: Starts again, of enclave or agent, within `window_seconds` before the supervisor gives up.
    restarts: int = 5
    window_seconds: float = 600.0
    #: Where the state is written as JSON.
    status: Path | None = None

    def __post_init__(self) -> None:
        if not self.start or self.misses < 1:
            raise UsageError("[enclave] needs a command to start, and at least one miss")


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Either `cid` (kernel vsock) or `uds` (hybrid unix sockets), and what to serve."""

    #: Where clients connect.
    listen: Address
    #: The enclave's context identifier.
    cid: int | None = None
    #: The path of hybrid vsock sockets (an emulated enclave).
    uds: Path | None = None
    #: The folder of sealed models.
    store: Path | None = None
    #: What the enclave may connect to, `host:port` each.
    egress: tuple[str, ...] = ()
    #: Addresses for entries of `egress` in place of their public ones.
    resolve: Mapping[str, Address] = field(default_factory=dict)
    #: `instance`, `environment`, a path of a file, or None for no credentials.
    credentials: str | None = None
    #: The instance metadata service.
    metadata: Address = METADATA
    #: Answer init's heartbeat, where no nitro-cli does.
    heartbeat: bool = False
    #: Accept the enclave's telemetry.
    telemetry: bool = False
    #: Keep a copy of all bytes that pass in this folder; for audits.
    capture: Path | None = None
    #: The enclave's name in log lines and metrics.
    name: str = "enclave"
    #: `stderr`, `stdout` or a file.
    log: str = "stderr"
    #: Size of a log file before it is rotated, and how many old ones are kept.
    log_bytes: int = 10_000_000
    log_files: int = 5
    #: Connections at once through each door.
    connections: int = MAX_CONNECTIONS
    #: Silence in both directions after which a connection is reset.
    idle_seconds: float = IDLE_SECONDS
    #: For streams in progress when the agent is told to end.
    drain_seconds: float = 30.0
    #: The table `[enclave]`.
    enclave: EnclaveConfig | None = None

    def __post_init__(self) -> None:
        if (self.cid is None) == (self.uds is None):
            raise UsageError("the agent needs either cid or uds", hint="On EC2 it is the enclave's cid.")
        if not _NAME.fullmatch(self.name):
            raise UsageError("the enclave's name is 1 to 64 letters, digits, dots, dashes and underscores")

    @classmethod
    def load(cls, path: Path) -> AgentConfig:
        """Read a TOML file; raises UsageError."""
        try:
            document = tomllib.loads(path.read_text("utf-8"))
            if "enclave" in document:
                document["enclave"] = _table(EnclaveConfig, document["enclave"])
            return _table(cls, document)
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, KeyError, ValueError, TypeError, AttributeError) as error:
            why = f": {error.args[0]}" if isinstance(error, _Wrong) else ""
            raise UsageError(f"{path} is not a parent's configuration{why}", hint="See docs/parent.md.") from None


class _Wrong(ValueError):
    """What is wrong, in our own words."""


def _table(kind: type[T], document: Mapping[str, object]) -> T:
    annotations = {each.name: str(each.type) for each in fields(kind)}  # type: ignore[arg-type]
    if unknown := set(document) - set(annotations):
        raise _Wrong(f"unknown: {', '.join(sorted(unknown))}")
    return kind(**{name: _value(name, annotations[name], value) for name, value in document.items()})


def _value(name: str, annotation: str, value: object) -> object:
    match annotation.partition(" |")[0], value:
        case ("bool", bool()) | ("str", str()) | ("EnclaveConfig", EnclaveConfig()):
            return value
        case "int", int() if not isinstance(value, bool) and value >= 0:
            return value
        case "float", int() | float() if not isinstance(value, bool) and value > 0:
            return float(value)
        case "Path", str():
            return Path(value)
        case "Address", str():
            return Address.parse(value)
        case "tuple[str, ...]", list() if all(isinstance(each, str) for each in value):
            return tuple(value)
        case "Mapping[str, Address]", dict():
            return MappingProxyType({str(each): Address.parse(address) for each, address in value.items()})
    raise _Wrong(f"{name} is of the wrong kind")
