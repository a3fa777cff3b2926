"""A parent instance as files: an m6i.xlarge with one core of two threads set aside, and huge pages."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Tree:
    """What to lay out; every field can be changed before `write`."""

    instance_type: str = "m6i.xlarge"
    vendor: str = "Amazon EC2"
    present: str = "0-3"
    siblings: str = "0,2"
    pool: str | None = "1,3"
    device: bool = True
    #: NUMA node of each CPU, and free huge pages by kB.
    nodes: dict[int, int] = field(default_factory=lambda: dict.fromkeys(range(4), 0))
    pages: dict[int, int] = field(default_factory=lambda: {1048576: 1, 2048: 512})

    def write(self, root: Path) -> Path:
        def put(path: str, text: str) -> None:
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n")

        put("sys/class/dmi/id/product_name", self.instance_type)
        put("sys/class/dmi/id/sys_vendor", self.vendor)
        put("sys/devices/system/cpu/present", self.present)
        put("sys/devices/system/cpu/cpu0/topology/thread_siblings_list", self.siblings)
        for cpu, node in self.nodes.items():
            (root / f"sys/devices/system/cpu/cpu{cpu}").mkdir(exist_ok=True)
            os.symlink(f"../../node/node{node}", root / f"sys/devices/system/cpu/cpu{cpu}/node{node}")
        for kb, free in self.pages.items():
            put(f"sys/devices/system/node/node0/hugepages/hugepages-{kb}kB/free_hugepages", str(free))
        if self.pool is not None:
            put("sys/module/nitro_enclaves/parameters/ne_cpus", self.pool)
        if self.device:
            put("dev/nitro_enclaves", "")
        return root
