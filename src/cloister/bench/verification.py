"""How long verification takes: one document in memory, and a cold connection on loopback."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from cloister.client.transport import SealedTransport
from cloister.platforms.local import replica
from cloister.policy.document import Policy
from cloister.tee.checks import Checklist
from cloister.tee.nitro import verify
from cloister.tee.sim.attest import SimulatedNitro
from cloister.tee.sim.root import SimulatedRoot
from cloister.trust.anchors import Anchor


def _median_ms(work: Callable[[], object], times: int) -> float:
    took = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return 1000 * statistics.median(took)


def document(times: int = 200) -> float:
    """Milliseconds to verify one Nitro document: five certificates, one signature."""
    root = SimulatedRoot.create()
    evidence = SimulatedNitro(root, replica.measure()).attest(bytes(32), bytes(32))
    anchors = (Anchor.simulated(root.pem),)

    def once() -> object:
        checklist = Checklist()
        checklist.plan(verify.CHECKS)
        return verify.verify(
            evidence, now=datetime.now(UTC), anchors=anchors, max_age=timedelta(hours=1), max_skew=timedelta(hours=1),
            checklist=checklist,
        )  # fmt: skip

    return _median_ms(once, times)


def cold_connect(url: str, policy: Policy, times: int = 20) -> float:
    """Milliseconds from nothing to an accepted verdict: connection, fresh evidence, every check."""

    def once() -> None:
        transport = SealedTransport(url, policy)
        transport.verify()
        transport.close()

    return _median_ms(once, times)
