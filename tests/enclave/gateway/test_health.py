"""The health route, and what the gateway counts for telemetry."""

from __future__ import annotations

import types

import httpx2
import pytest

from cloister.enclave.gateway.app import create_app
from cloister.enclave.gateway.ohttp import Limits
from cloister.enclave.telemetry import Counters
from cloister.wire import telemetry


@pytest.mark.parametrize(("state", "status"), [("ready", 200), ("restarting", 200), ("failed", 503), ("stopped", 503)])
async def test_health_and_counters(state: str, status: int) -> None:
    engine, counters = types.SimpleNamespace(state=state, info=types.SimpleNamespace(model_id="m")), Counters()
    app = create_app(types.SimpleNamespace(), engine, Limits(), counters=counters)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://replica") as client:
        for _ in range(3):
            answer = await client.get("/healthz")
            assert (answer.status_code, answer.content) == (status, b"")
        # A look at the health is no refused request; a clear API request is one.
        assert counters.take() == []
        assert (await client.post("/v1/chat/completions", json={"messages": []})).status_code == 426
        assert (await client.post("/healthz")).status_code == 405
    (line,) = counters.take()
    assert telemetry.decode(line[:-1]).values == {"kind": "plaintext", "count": 1}
