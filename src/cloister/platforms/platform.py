"""What a platform does for `cloister up`, `status`, `logs` and `down`: the same verbs wherever the machine is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from cloister.image.built import Built
    from cloister.image.config import ImageConfig


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What to start."""

    name: str
    image: Path
    memory_mib: int
    cpus: int
    #: The enclave's context identifier; None lets the platform choose.
    cid: int | None = None
    #: Console attached and evidence worthless (PCR0 to 2 are zero on Nitro); every verifier refuses it.
    debug: bool = False
    #: As the build's measurements.json names it: `small`, `aws` or `own`.
    kernel: str = "small"
    #: Bytes of the sealed model's plaintext, which the enclave holds in memory; 0 where the model is in the image.
    weights: int = 0


@dataclass(frozen=True, kw_only=True)
class Running:
    """An enclave that exists now."""

    name: str
    id: str
    #: `RUNNING`, `TERMINATING` or `EMPTY`: nitro-cli's words.
    state: str
    cid: int
    cpus: int
    memory_mib: int
    #: What the platform says it measured, lower-case hex by name (`PCR0`); evidence decides, not this.
    measurements: Mapping[str, str]


class Platform(Protocol):
    """One way to run an enclave image; blocking."""

    name: str
    #: What it attests proves nothing, and every output says so.
    simulated: bool

    def settle(self, launch: Launch) -> Launch:
        """Fill in what the launch left open and others need to know before the start: its `cid`."""
        ...

    def preflight(self, launch: Launch) -> None:
        """Raises UsageError that names every rule the launch breaks, each with what to change."""
        ...

    def reach(self, launch: Launch) -> Mapping[str, object]:
        """What the parent agent's configuration says about the way to this enclave (host.agent.AgentConfig)."""
        ...

    def release(self, config: ImageConfig, built: Built, project: Path) -> Mapping[str, object]:
        """Make key release ready for a sealed model; what the parent agent has to serve for it beside store and egress.

        `project` is the folder of `cloister.toml`. Raises UsageError, UndecidedError.
        """
        ...

    def start(self, launch: Launch) -> Running:
        """Start it; raises UsageError or UndecidedError with the platform's own reason."""
        ...

    def find(self, name: str) -> Running | None:
        """The enclave of that name, if there is one."""
        ...

    def list(self) -> Sequence[Running]:
        """Every enclave that runs here now."""
        ...

    def console(self, name: str) -> Iterator[str]:
        """Console lines; raises UsageError where the platform has none (Nitro outside debug mode)."""
        ...

    def stop(self, name: str) -> None:
        """End it; no error when it is gone already."""
        ...

    def root_pem(self) -> str | None:
        """The SIMULATED root that a policy has to name; None where only the vendor's is trusted."""
        ...
