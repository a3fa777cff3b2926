"""POST /v1/chat/completions and POST /v1/completions: one answer, or a stream of events."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator

from cloister.api import errors, requests, sse
from cloister.enclave.engine.protocol import Engine
from cloister.enclave.gateway.inner import Answer, check_model
from cloister.errors import CloisterError
from cloister.wire import bhttp


async def chat(request: bhttp.Request, engine: Engine) -> Answer:
    """Chat completion."""
    return await _generate(requests.parse_chat(request.content), engine)


async def completion(request: bhttp.Request, engine: Engine) -> Answer:
    """Text completion."""
    return await _generate(requests.parse_completion(request.content), engine)


async def _generate(request: requests.Generation, engine: Engine) -> Answer:
    check_model(request.model, engine)
    if not request.stream:
        content = await engine.call(request)
        return Answer(content=content, usage=json.loads(content).get("usage") or {})
    batches = engine.stream(request)
    try:
        # What is wrong with the request shows here, while the status can still say so.
        first = await anext(batches)
    except BaseException:
        await batches.aclose()
        raise
    answer = Answer()
    answer.events = _events(first, batches, answer, include_usage=request.include_usage)
    return answer


async def _events(
    first: list[bytes], batches: AsyncGenerator[list[bytes], None], answer: Answer, *, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(batches):
        try:
            yield _encode(first, answer, include_usage=include_usage)
            async for batch in batches:
                if data := _encode(batch, answer, include_usage=include_usage):
                    yield data
            yield sse.DONE
        except CloisterError as error:
            yield sse.error_event(errors.to_json(errors.as_api_error(error)))


def _encode(batch: list[bytes], answer: Answer, *, include_usage: bool) -> bytes:
    events = []
    for chunk in batch:
        if b'"choices":[]' in chunk and not (parsed := json.loads(chunk))["choices"]:
            # The engine always reports usage; a client that did not ask must not meet a chunk without choices.
            answer.usage.update(parsed.get("usage") or {})
            if not include_usage:
                continue
        events.append(sse.event(chunk))
    return b"".join(events)
