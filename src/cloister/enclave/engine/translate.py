"""From our requests to llama.cpp's fields, and from its chunks back to the OpenAI's: whitelists both ways.

`cache_prompt` is forced off on every request, because a cached prefix tells one tenant how much of a prompt it shares
with another's; timings and cache counts are dropped from every answer for the same reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from cloister.api.requests import ChatRequest, CompletionRequest, EmbeddingRequest, Sampling
from cloister.errors import ApiError

_TOP = ("id", "object", "created")


def to_llama(request: ChatRequest | CompletionRequest | EmbeddingRequest) -> tuple[str, dict[str, object]]:
    """The kind of call (chat, completion, embedding) and its fields."""
    if isinstance(request, EmbeddingRequest):
        return "embedding", {"input": list(request.inputs)}
    fields = _sampling(request.sampling)
    # Progress events give prefill its only chance to be cancelled.
    fields |= {
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,
        "cache_prompt": False,
    }
    if isinstance(request, CompletionRequest):
        return "completion", fields | {"prompt": request.prompt}
    fields["messages"] = [{"role": message.role, "content": message.content} for message in request.messages]
    if request.json_object:
        fields["response_format"] = {"type": "json_object"}
    return "chat", fields


def _sampling(sampling: Sampling) -> dict[str, object]:
    fields: dict[str, object] = {
        name: value
        for name in ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "max_tokens")
        if (value := getattr(sampling, name)) is not None
    }
    if sampling.seed is not None:
        fields["seed"] = sampling.seed & 0xFFFFFFFF
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    return fields


def clean_chunk(chunk: dict[str, object], model_id: str) -> dict[str, object] | None:
    """A streamed chunk with only the API's fields, or None for what clients do not see."""
    if "prompt_progress" in chunk:
        return None
    clean: dict[str, object] = {name: chunk[name] for name in _TOP if name in chunk}
    clean["model"] = model_id
    choices = chunk.get("choices")
    clean["choices"] = [_choice(choice) for choice in choices] if isinstance(choices, list) else []
    if isinstance(chunk.get("usage"), dict):
        clean["usage"] = _usage(chunk["usage"])
    return clean


def _choice(choice: dict[str, object]) -> dict[str, object]:
    clean: dict[str, object] = {"index": choice.get("index", 0)}
    delta = choice.get("delta")
    if isinstance(delta, dict):
        clean["delta"] = {name: delta[name] for name in ("role", "content") if name in delta}
    else:
        clean["text"] = choice.get("text", "")
        clean["logprobs"] = None
    clean["finish_reason"] = choice.get("finish_reason")
    return clean


def _usage(usage: object) -> dict[str, int]:
    assert isinstance(usage, dict)
    return {
        name: usage[name]
        for name in ("prompt_tokens", "completion_tokens", "total_tokens")
        if isinstance(usage.get(name), int)
    }


def clean_embeddings(answer: dict[str, object], model_id: str) -> dict[str, object]:
    """An embedding answer with only the API's fields."""
    data = answer.get("data")
    assert isinstance(data, list)
    usage = answer.get("usage")
    return {
        "object": "list",
        "model": model_id,
        "data": [{"object": "embedding", "index": at, "embedding": item["embedding"]} for at, item in enumerate(data)],
        "usage": {
            "prompt_tokens": usage.get("prompt_tokens", 0) if isinstance(usage, dict) else 0,
            "total_tokens": usage.get("total_tokens", 0) if isinstance(usage, dict) else 0,
        },
    }


def refusal(error: object) -> ApiError:
    """What llama.cpp's error object becomes: a fixed text, because its own may quote the request."""
    kind = error.get("type") if isinstance(error, dict) else None
    message = str(error.get("message", "")) if isinstance(error, dict) else ""
    if kind == "exceed_context_size_error":
        return ApiError("The request is longer than this replica's context.", code="context_length_exceeded")
    if "too large to process" in message:
        return ApiError("An input is longer than this replica can embed at once.", code="input_too_long", param="input")
    if "does not support" in message:
        return ApiError("This replica's model does not support that.", code="unsupported", status=501)
    if kind == "invalid_request_error":
        return ApiError("The engine refused the request.")
    return ApiError("The inference engine failed on this request.", status=500, kind="server_error")


def assemble(chunks: Iterable[bytes]) -> bytes:
    """One non-streamed answer from the chunks of a streamed one."""
    first: dict[str, object] = {}
    texts: list[str] = []
    finish, usage = None, None
    chat = False
    for raw in chunks:
        chunk = json.loads(raw)
        first = first or chunk
        usage = chunk.get("usage", usage)
        for choice in chunk["choices"]:
            finish = choice["finish_reason"] or finish
            if "delta" in choice:
                chat = True
                texts.append(choice["delta"].get("content") or "")
            else:
                texts.append(choice["text"])
    text = "".join(texts)
    whole: dict[str, object] = {"index": 0, "finish_reason": finish}
    whole |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text, "logprobs": None}
    answer = {**first, "object": "chat.completion" if chat else "text_completion", "choices": [whole], "usage": usage}
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()
