"""`python -m cloister.bench.evidence --vectors DIR`: times verification of real evidence, offline, on one core.

Every sample is verified again and again in this one process, in blocks that take turns, so that a busy moment of the
machine falls on each alike; printed are wall-clock medians and minima and the median of CPU time. Between two
verifications the package keeps parsed certificates and nothing else: every signature is verified every time.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cloister.tee import registry
from cloister.tee.checks import Checklist
from cloister.tee.context import Context
from cloister.tee.nvidia.evidence import Arch, Kind, pack
from cloister.trust.collateral import Collateral, Item

#: Milliseconds, warm, one core.
TARGETS: Mapping[str, float] = {
    "nitro": 3, "snp": 2, "tdx": 5, "sgx": 5, "ita": 2, "nvidia-nras": 2, "nvidia-gpu": 60,
}  # fmt: skip
NRAS_ISSUER = "https://nras.attestation.nvidia.com"
#: Not getrusage: its maximum is also that of the process which started this one.
_IMPORT = "import cloister; print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Evidence of one format with all that verifying it takes; `now` is aware."""

    name: str
    evidence: bytes
    now: datetime
    collateral: Collateral

    def verify(self) -> None:
        """Raises if it does not prove genuine: a failure would be quick."""
        form = registry.get(self.name)
        checklist = Checklist()
        checklist.plan(form.checks)
        form.verify(
            self.evidence,
            Context(
                now=self.now,
                checklist=checklist,
                max_age=timedelta(hours=1),
                max_skew=timedelta(minutes=1),
                anchors={},
                collateral=self.collateral,
            ),
        )
        assert checklist.complete()


def samples(vectors: Path) -> tuple[Sample, ...]:
    """One for each format, out of a folder of collected evidence; raises OSError where a file is missing."""

    def read(name: str) -> bytes:
        return (vectors / name).read_bytes()

    def sample(name: str, evidence: bytes, now: str, **items: bytes) -> Sample:
        found = tuple(Item(kind.rstrip("_").replace("_", "-"), data) for kind, data in items.items())
        return Sample(
            name=name, evidence=evidence, now=datetime.fromisoformat(f"{now}+00:00"), collateral=Collateral(found)
        )

    nras = json.loads(read("nvidia/nras_recovered_jwks.json"))["keys"]
    return (
        sample("nitro", read("nitro/dstack_nsm_qvl_bfmap.bin"), "2025-12-25T13:15:37"),
        sample(
            "snp", read("snp/ms_genoa_report.bin"), "2026-03-01T00:00:00",
            amd_vcek=_ders(read("snp/ms_genoa_vcek.pem"))[0],
        ),
        sample(
            "tdx", read("tdx/phala_tdx_quote.bin"), "2025-06-25T00:00:00",
            intel_collateral=read("tdx/phala_tdx_quote_collateral.json"),
        ),
        sample(
            "sgx", read("sgx/phala_sgx_quote.bin"), "2025-06-25T00:00:00",
            intel_collateral=read("sgx/phala_sgx_quote_collateral.json"),
        ),
        sample(
            "ita", read("ita/ita_prod_kbs_6_PS384_TDX.jwt").strip(), "2023-12-05T00:10:10",
            ita_certs=read("ita/ita_prod_2023_jwks.json"),
        ),
        sample(
            "nvidia-nras", read("nvidia/sdk/hopperClaimsv3_detached_eat.json"), "2025-06-11T00:31:58",
            jwks=json.dumps({"issuer": NRAS_ISSUER, "keys": nras}).encode(),
        ),
        sample(
            "nvidia-gpu",
            pack([
                (Kind.GPU, Arch.HOPPER, bytes.fromhex(read("nvidia/nvtrust_hopperAttestationReport.txt").decode()),
                 _ders(read("nvidia/nvtrust_hopperCertChain.txt")))
            ]),
            "2025-08-21T12:00:00",
            nvidia_rim=read("nvidia/google/rim_NV_GPU_DRIVER_GH100_550.90.07.xml"),
            nvidia_rim_=read("nvidia/google/rim_NV_GPU_VBIOS_1010_0200_882_96009F0001.xml"),
        ),
    )  # fmt: skip


def _ders(pem: bytes) -> tuple[bytes, ...]:
    blocks = re.findall(rb"-----BEGIN CERTIFICATE-----([^-]+)-----END", pem)
    return tuple(base64.b64decode(b"".join(block.split())) for block in blocks)


def measure(works: Mapping[str, Callable[[], object]], rounds: int, *, block: int = 20) -> dict[str, dict[str, float]]:
    """Milliseconds for each name: `median` and `minimum` of the wall clock, `cpu` the median of the process's time."""
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(-(-rounds // block)):
        for name, work in works.items():
            # Uncounted: it loads modules, and brings the processor's caches back from the one before.
            work()
            for _ in range(block):
                wall, cpu = time.perf_counter(), time.process_time()
                work()
                took[name].append((1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - cpu)))
    return {
        name: {
            "median": statistics.median(wall for wall, _ in pairs),
            "minimum": min(wall for wall, _ in pairs),
            "cpu": statistics.median(cpu for _, cpu in pairs),
        }
        for name, pairs in took.items()
    }


def importing(times: int = 7) -> tuple[float, float]:
    """The least seconds from starting an interpreter to `import cloister` done, and the process's peak MB."""
    took, size = [], 0.0
    for _ in range(times):
        began = time.perf_counter()
        shown = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, check=True).stdout  # noqa: S603
        took.append(time.perf_counter() - began)
        size = int(shown) / 1024
    return min(took), size


def peer(vectors: Path) -> Callable[[], object] | None:
    """PyPI's `tinfoil` on the same Genoa report and certificate, if it is installed here; it is no dependency.

    Report, chain and signature are checked, no revocation list, as in the sample beside it.
    """
    try:
        sev = import_module("tinfoil.attestation.verify_sev")
    except ImportError:
        return None
    report = (vectors / "snp/ms_genoa_report.bin").read_bytes()
    vcek = _ders((vectors / "snp/ms_genoa_vcek.pem").read_bytes())[0]

    def once() -> None:
        parsed = sev.Report(report)
        chain = sev.CertificateChain.from_report(parsed, vcek)
        # It returns or raises; False would be a failure too.
        assert sev.verify_attestation(chain, parsed)

    return once


def main() -> None:
    """Measure everything and print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m cloister.bench.evidence")
    parser.add_argument("--vectors", type=Path, required=True, help="a folder of collected evidence")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    works: dict[str, Callable[[], object]] = {each.name: each.verify for each in samples(options.vectors)}
    other, load = peer(options.vectors), os.getloadavg()[0]
    found = measure(works, options.rounds)
    if other is not None:
        both = {"snp, in turn with": works["snp"], "tinfoil, same report": other}
        found |= measure(both, options.rounds, block=1)
    seconds, megabytes = importing()
    result = {
        "schema": "cloister-bench-evidence/1", "rounds": options.rounds, "load": load, "milliseconds": found,
        "tinfoil": other is not None, "import_seconds": seconds, "import_mb": megabytes,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }  # fmt: skip
    if options.json:
        print(json.dumps(result))  # noqa: T201 - this is the output
        return
    console, table = Console(), Table(title=f"one core, {options.rounds} rounds in turn, load {load:.1f}; milliseconds")
    for name in ("evidence", "median", "minimum", "CPU", "at most"):
        table.add_column(name, justify="left" if name == "evidence" else "right")
    for name, row in found.items():
        target = f"{TARGETS[name]:.0f}" if name in TARGETS else ""
        table.add_row(name, *(f"{row[each]:.2f}" for each in ("median", "minimum", "cpu")), target)
    console.print(table)
    console.print("tinfoil: not installed" if other is None else "tinfoil: of PyPI, alternating with the line above it")
    console.print(f"import cloister: {seconds:.2f} s with the interpreter's start, {megabytes:.0f} MB")


if __name__ == "__main__":
    main()
