"""Makes attestation documents under a simulated root, right and wrong, for tests of verifier and policy."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import cbor2

from cloister.errors import CloisterError
from cloister.tee.checks import Checklist
from cloister.tee.claims import Claims
from cloister.tee.nitro import verify as nitro
from cloister.tee.sim.attest import PROTECTED, SimulatedNitro, sign
from cloister.tee.sim.root import Issued, SimulatedRoot, issue
from cloister.trust.anchors import Anchor

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
ROOT = SimulatedRoot.create(NOW)
ANCHOR = Anchor.simulated(ROOT.pem)
PCRS = {0: b"\x01" * 48, 1: b"\x02" * 48, 2: b"\x03" * 48}


def attester(pcrs: dict[int, bytes] | None = None) -> SimulatedNitro:
    """A simulated attester whose clock stands at NOW."""
    return SimulatedNitro(ROOT, PCRS if pcrs is None else pcrs, clock=lambda: NOW)


def chain(root: SimulatedRoot = ROOT, **leaf: object) -> list[Issued]:
    """Region, zone, instance and leaf under a root; `leaf` overrides issue()'s arguments for the last."""
    start = NOW - timedelta(minutes=5)
    region = issue("SIMULATED region", root.issued, start=start, life=timedelta(days=20), ca=True, path_length=2)
    zone = issue("SIMULATED zone", region, start=start, life=timedelta(days=6), ca=True, path_length=1)
    instance = issue("SIMULATED instance", zone, start=start, life=timedelta(days=1), ca=True, path_length=0)
    options = {"start": start, "life": timedelta(hours=3), "ca": False, **leaf}
    return [region, zone, instance, issue("SIMULATED leaf", instance, **options)]


CHAIN = chain()


def payload(links: list[Issued] = CHAIN, root: SimulatedRoot = ROOT, **changes: object) -> dict[str, object]:
    """A payload map; a change to ... removes the member."""
    fields: dict[str, object] = {
        "module_id": "i-0-enc0",
        "digest": "SHA384",
        "timestamp": int(NOW.timestamp() * 1000),
        "pcrs": {index: PCRS.get(index, bytes(48)) for index in range(16)},
        "certificate": links[-1].der,
        "cabundle": [root.issued.der, *(link.der for link in links[:-1])],
        "public_key": None,
        "user_data": b"u" * 32,
        "nonce": None,
    }
    fields |= changes
    return {name: value for name, value in fields.items() if value is not ...}


def signed(fields: object, links: list[Issued] = CHAIN, *, protected: bytes = PROTECTED) -> bytes:
    """A document over any payload, signed by the leaf."""
    data = fields if isinstance(fields, bytes) else cbor2.dumps(fields)
    return sign(data, links[-1].key, protected=protected)


def verify(
    document: bytes, *, now: datetime = NOW, anchors: tuple[Anchor, ...] = (ANCHOR,), **options: object
) -> Claims:
    """nitro.verify with the usual bounds."""
    checklist = Checklist()
    checklist.plan(nitro.CHECKS)
    return nitro.verify(
        document,
        now=now,
        anchors=anchors,
        checklist=checklist,
        **{"max_age": timedelta(minutes=5), "max_skew": timedelta(minutes=1), **options},
    )


def refused(document: bytes, **options: object) -> CloisterError | None:
    """The error that the verifier raises, None if it accepts."""
    try:
        verify(document, **options)
    except CloisterError as error:
        return error
    return None
