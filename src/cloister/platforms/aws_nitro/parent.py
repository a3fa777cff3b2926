"""What the parent instance is and has free, read from /sys, /dev and nitro-cli; every path hangs under one root.

Sources: Documentation/ABI of Linux (CPU topology, NUMA nodes, huge pages); drivers/virt/nitro_enclaves (the device, the
CPU pool in /sys/module/nitro_enclaves/parameters/ne_cpus); on Nitro instances DMI names the instance type.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cloister.errors import CloisterError
from cloister.platforms.aws_nitro.nitro_cli import Described, NitroCli

ROOT = Path("/")
DEVICE = "dev/nitro_enclaves"
POOL = "sys/module/nitro_enclaves/parameters/ne_cpus"
CPUS = "sys/devices/system/cpu"
NODES = "sys/devices/system/node"
INSTANCE_TYPE, VENDOR = "sys/class/dmi/id/product_name", "sys/class/dmi/id/sys_vendor"
_HUGE = re.compile(r"hugepages-(\d{1,9})kB")
MAX_CPU = 8192


@dataclass(frozen=True, kw_only=True)
class Parent:
    """One look at the instance; what could not be read is None or empty, and the rules say so."""

    nitro_cli: bool
    #: `missing`, `closed` (no right to read and write it) or `open`.
    device: str
    architecture: str
    #: As AWS writes it, for example `m6i.xlarge`; None where DMI does not say Amazon EC2.
    instance_type: str | None
    cpus: int
    #: CPUs set aside for enclaves; None where the driver's file is missing or unreadable.
    pool: frozenset[int] | None
    threads_per_core: int
    #: NUMA nodes of the pool.
    nodes: frozenset[int]
    #: Free huge pages by size in bytes, on the pool's node.
    free_pages: Mapping[int, int] = field(default_factory=dict)
    enclaves: tuple[Described, ...] = ()
    #: Why nitro-cli could not list them.
    trouble: str | None = None

    @property
    def free_cpus(self) -> int:
        """CPUs of the pool that no enclave has."""
        used = {cpu for each in self.enclaves for cpu in each.cpu_ids}
        return len((self.pool or frozenset()) - used)


def look(cli: NitroCli, root: Path | None = None, *, architecture: str | None = None) -> Parent:
    """Read everything once; what cannot be read is for the rules to tell."""
    base = ROOT if root is None else root
    device = base / DEVICE
    pool = _cpu_list(_text(base / POOL))
    nodes = frozenset(node for cpu in pool or () if (node := _node(base, cpu)) is not None)
    present = cli.present()
    vendor = _text(base / VENDOR)
    enclaves: tuple[Described, ...] = ()
    trouble: str | None = None
    if present:
        try:
            enclaves = cli.describe()
        except CloisterError as error:
            trouble = f"{error.message}: {error.hint}"
    return Parent(
        nitro_cli=present,
        device="missing" if not device.exists() else "open" if os.access(device, os.R_OK | os.W_OK) else "closed",
        architecture=architecture or platform.machine(),
        instance_type=_text(base / INSTANCE_TYPE) if vendor == "Amazon EC2" else None,
        cpus=len(_cpu_list(_text(base / CPUS / "present")) or ()),
        pool=pool,
        # CPUs of the pool are offline and have no topology; CPU 0 always stays with the parent.
        threads_per_core=len(_cpu_list(_text(base / CPUS / "cpu0/topology/thread_siblings_list")) or (0,)),
        nodes=nodes,
        free_pages=_free_pages(base, next(iter(nodes))) if len(nodes) == 1 else {},
        enclaves=enclaves,
        trouble=trouble,
    )


def take(free: Mapping[int, int], wanted: int) -> int | None:
    """Bytes of huge pages that nitro-cli would take for `wanted` bytes, None if they do not suffice.

    Large pages first while they fit whole, the rest from the smallest that are left (ResourceAllocator::allocate).
    """
    left, taken, needed = dict(free), 0, wanted
    for size in sorted(left, reverse=True):
        count = min(left[size], needed // size)
        left[size] -= count
        taken, needed = taken + count * size, needed - count * size
    for size in sorted(left):
        count = min(left[size], -(-needed // size))
        taken, needed = taken + count * size, needed - count * size
        if needed <= 0:
            break
    return taken if needed <= 0 else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text("ascii", "replace").strip()
    except OSError:
        return None


def _cpu_list(text: str | None) -> frozenset[int] | None:
    """`1-3,7` (cpu lists of the kernel); empty for an empty list, None for no list."""
    if text is None:
        return None
    found: set[int] = set()
    for part in text.split(",") if text else ():
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal() or int(last or first) > MAX_CPU:
            return None
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _node(base: Path, cpu: int) -> int | None:
    names = [each.name[4:] for each in (base / CPUS / f"cpu{cpu}").glob("node*")]
    return int(names[0]) if names and names[0].isdecimal() else None


def _free_pages(base: Path, node: int) -> dict[int, int]:
    found = {}
    for each in (base / NODES / f"node{node}" / "hugepages").glob("hugepages-*kB"):
        match, free = _HUGE.fullmatch(each.name), _text(each / "free_hugepages")
        if match and free and free.isdecimal():
            found[int(match[1]) * 1024] = int(free)
    return found
