"""Targets for SGX and TDX: quotes, Intel's collateral, event logs."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

from tests.tee.dcap.signer import World, claims
from tests.tee.tdx.test_eventlog import D1, GOOD, ccel

from cloister.tee.tdx import eventlog
from cloister.trust.dcap.collateral import Endorsements


@cache
def _world(tdx: bool) -> World:
    return World(tdx=tdx, version=4 if tdx else 3)


@cache
def _collateral(tdx: bool) -> bytes:
    return _world(tdx).collateral()


def _quote(tdx: bool) -> Callable[[bytes], object]:
    return lambda data: claims(_world(tdx), evidence=data, collateral=_collateral(tdx))


#: Name, corpus, decoder.
TARGETS: tuple[tuple[str, Callable[[], list[bytes]], Callable[[bytes], object]], ...] = (
    ("tdx-quote", lambda: [_world(True).quote, _world(True).quote + bytes(70)], _quote(True)),
    ("sgx-quote", lambda: [_world(False).quote], _quote(False)),
    ("intel-collateral", lambda: [_collateral(True), _collateral(False)], Endorsements.parse),
    (
        "intel-collateral-checked",
        lambda: [_collateral(True)],
        lambda data: claims(_world(True), collateral=data),
    ),
    ("tdx-event-log", lambda: [json.dumps(GOOD).encode(), ccel((1, D1), (2, D1))], eventlog.parse),
)
