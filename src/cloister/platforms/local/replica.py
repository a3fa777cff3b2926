"""A replica on this machine: the real engine, gateway and channel, with a simulated attester."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import cloister
from cloister.tee.sim.attest import SimulatedNitro
from cloister.tee.sim.measure import extend, measure_strings, measure_tree
from cloister.tee.sim.root import SimulatedRoot

PACKAGE = Path(cloister.__file__).parent


def measure() -> dict[int, bytes]:
    """PCR0 (all), PCR1 (runtime) and PCR2 (this package) of what runs here: honest digests, vouched for by nobody."""
    runtime = measure_strings((platform.python_version(), f"xllamacpp {version('xllamacpp')}"))
    package = measure_tree(PACKAGE)
    return {0: extend(runtime + package), 1: extend(runtime), 2: extend(package)}


def attester(state: Path | None) -> tuple[SimulatedNitro, SimulatedRoot]:
    """A simulated attester under a root kept in `state`, or under one that ends with the process."""
    root = SimulatedRoot.load_or_create(state / "simulated-root.pem") if state is not None else SimulatedRoot.create()
    return SimulatedNitro(root, measure()), root
