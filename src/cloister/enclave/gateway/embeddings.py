"""POST /v1/embeddings."""

from __future__ import annotations

import base64
import json
import struct

from cloister.api import requests
from cloister.enclave.engine.protocol import Engine
from cloister.enclave.gateway.inner import Answer, check_model, json_answer
from cloister.wire import bhttp


async def embeddings(request: bhttp.Request, engine: Engine) -> Answer:
    """Embeddings of one or more inputs."""
    parsed = requests.parse_embedding(request.content)
    check_model(parsed.model, engine)
    content = await engine.call(parsed)
    document = json.loads(content)
    usage = document["usage"]
    if parsed.base64:
        for item in document["data"]:
            vector = item["embedding"]
            item["embedding"] = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
        answer = json_answer(document)
    else:
        answer = Answer(content=content)
    answer.usage = usage
    return answer
