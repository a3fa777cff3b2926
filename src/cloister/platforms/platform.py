"""What a platform does for `cloister up`, `status`, `logs` and `down`: the same verbs wherever the machine is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


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

    def preflight(self, launch: Launch) -> None:
        """Raises UsageError that names every rule the launch breaks, each with what to change."""
        ...

    def start(self, launch: Launch) -> Running:
        """Start it; raises UsageError or UndecidedError with the platform's own reason."""
        ...

    def find(self, name: str) -> Running | None:
        """The enclave of that name, if there is one."""
        ...

    def console(self, name: str) -> Iterator[str]:
        """Console lines; raises UsageError where the platform has none (Nitro outside debug mode)."""
        ...

    def stop(self, name: str) -> None:
        """End it; no error when it is gone already."""
        ...
