"""GET /v1/models and GET /healthz."""

from __future__ import annotations

from cloister.enclave.engine.protocol import Engine
from cloister.enclave.gateway.inner import Answer, json_answer
from cloister.wire import bhttp


async def models(_request: bhttp.Request, engine: Engine) -> Answer:
    """The one model of this replica, in the OpenAI list shape; its digest is what the key statement says."""
    info = engine.info
    return json_answer(
        {
            "object": "list",
            "data": [
                {
                    "id": info.model_id,
                    "object": "model",
                    "created": 0,
                    "owned_by": "cloister",
                    "sha256": info.model_sha256,
                    "architecture": info.architecture,
                    "parameters": info.parameters,
                    "context_length": info.context,
                }
            ],
        }
    )


async def healthz(_request: bhttp.Request, engine: Engine) -> Answer:
    """200 while the engine can answer, 503 while it cannot."""
    answer = json_answer({"status": "ok" if engine.state == "ready" else "unavailable", "engine": engine.state})
    answer.status = 200 if engine.state == "ready" else 503
    return answer
