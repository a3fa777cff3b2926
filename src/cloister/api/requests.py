"""Requests of the OpenAI API that a replica answers: parsed, range-checked, and nothing else let through.

A client's JSON is never handed to the engine. What is not offered is refused by name, so that nobody believes a setting
took effect that did not; fields that change nothing about the answer are accepted and ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cloister.errors import ApiError
from cloister.wire import strict_json

MAX_BODY = 8 * 1024 * 1024
MAX_MESSAGES = 512
MAX_TEXT = 4 * 1024 * 1024
MAX_INPUTS = 256
MAX_TOKENS = 1 << 20

Role = Literal["system", "user", "assistant"]
_ROLES: dict[object, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

#: Accepted and ignored: they change nothing about the answer here.
_IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "verbosity"}
#: In the API's vocabulary and not offered: named in the refusal.
_NOT_OFFERED = {
    "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "logprobs", "top_logprobs",
    "logit_bias", "audio", "modalities", "prediction", "web_search_options", "reasoning_effort", "best_of", "echo",
    "suffix", "dimensions", "grammar", "json_schema", "n_probs", "cache_prompt", "id_slot", "samplers",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen and when generation ends; None leaves the engine's default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation, text only."""

    role: Role
    content: str


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """POST /v1/chat/completions. `json_object` asks for an answer that is a JSON object."""

    model: str | None
    messages: tuple[Message, ...]
    sampling: Sampling
    stream: bool
    include_usage: bool
    json_object: bool


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """POST /v1/completions with one prompt."""

    model: str | None
    prompt: str
    sampling: Sampling
    stream: bool
    include_usage: bool


@dataclass(frozen=True, kw_only=True)
class EmbeddingRequest:
    """POST /v1/embeddings; `base64` asks for little-endian float32 in base64 instead of numbers."""

    model: str | None
    inputs: tuple[str, ...]
    base64: bool


Generation = ChatRequest | CompletionRequest


def _bad(param: str, what: str) -> ApiError:
    return ApiError(f"'{param}' {what}.", param=param, code="invalid_value")


class _Body:
    """The members of a request body, typed and bounded; `done` refuses what was not asked for."""

    def __init__(self, data: bytes) -> None:
        self._members = strict_json.loads(data, "request body", limit=MAX_BODY)
        self._asked: set[str] = set(_IGNORED)

    def get(self, name: str) -> object:
        self._asked.add(name)
        return self._members.get(name)

    def text(self, name: str, limit: int = MAX_TEXT) -> str | None:
        value = self.get(name)
        if value is not None and (not isinstance(value, str) or len(value) > limit):
            raise _bad(name, f"must be a string of at most {limit} characters")
        return value if isinstance(value, str) else None

    def number(self, name: str, low: float, high: float) -> float | None:
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise _bad(name, f"must be a number from {low:g} to {high:g}")
        return float(value)

    def integer(self, name: str, low: int, high: int) -> int | None:
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _bad(name, f"must be an integer from {low} to {high}")
        return value

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise _bad(name, "must be true or false")
        return bool(value)

    def done(self) -> None:
        for name, value in self._members.items():
            if name in self._asked or value is None:
                continue
            if name in _NOT_OFFERED:
                raise ApiError(f"'{name}' is not offered by this replica.", param=name, code="unsupported_parameter")
            # The name itself may be content: it is not repeated.
            raise ApiError("The request has a parameter that this replica does not know.", code="unknown_parameter")


def _sampling(body: _Body) -> Sampling:
    if body.integer("n", 1, 128) not in (None, 1):
        raise ApiError("'n' must be 1 on this replica.", param="n", code="unsupported_parameter")
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(stops, list) or len(stops) > 4:
        raise _bad("stop", "must be a string or a list of at most 4 strings")
    if not all(isinstance(item, str) and 0 < len(item) <= 256 for item in stops):
        raise _bad("stop", "must hold strings of 1 to 256 characters")
    longest = body.integer("max_completion_tokens", 1, MAX_TOKENS)
    older = body.integer("max_tokens", 1, MAX_TOKENS)
    return Sampling(
        temperature=body.number("temperature", 0, 2),
        top_p=body.number("top_p", 0, 1),
        top_k=body.integer("top_k", 0, 1000),
        min_p=body.number("min_p", 0, 1),
        presence_penalty=body.number("presence_penalty", -2, 2),
        frequency_penalty=body.number("frequency_penalty", -2, 2),
        seed=body.integer("seed", -(2**63), 2**63 - 1),
        max_tokens=longest if longest is not None else older,
        stop=tuple(stops),
    )


def _stream(body: _Body) -> tuple[bool, bool]:
    """stream and stream_options.include_usage."""
    stream, options = body.flag("stream"), body.get("stream_options")
    if options is None:
        return stream, False
    if not stream or not isinstance(options, dict) or options.keys() - {"include_usage", "include_obfuscation"}:
        raise _bad("stream_options", "may hold include_usage, and only with stream")
    usage = options.get("include_usage")
    if not (usage is None or isinstance(usage, bool)):
        raise _bad("stream_options", "include_usage must be true or false")
    return stream, bool(usage)


def _content(value: object) -> str:
    """A message's content: a string, or a list of text parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        parts: list[str] = []
        for part in value:
            match part:
                case {"type": "text", "text": str(text)} if len(part) == 2:
                    parts.append(text)
                case _:
                    raise _bad("messages", "may hold text only")
        return "".join(parts)
    raise _bad("messages", "need content that is a string or a list of text parts")


def _messages(body: _Body) -> tuple[Message, ...]:
    value = body.get("messages")
    if not isinstance(value, list) or not 0 < len(value) <= MAX_MESSAGES:
        raise _bad("messages", f"must be a list of 1 to {MAX_MESSAGES} messages")
    messages: list[Message] = []
    for item in value:
        if not isinstance(item, dict):
            raise _bad("messages", "must hold objects")
        if any(item[name] is not None for name in item.keys() - {"role", "content", "name"}):
            raise _bad("messages", "may hold role, content and name only")
        role = item.get("role")
        known = _ROLES.get(role) if isinstance(role, str) else None
        if known is None:
            raise _bad("messages", "may have the roles system, developer, user and assistant")
        messages.append(Message(role=known, content=_content(item.get("content"))))
    return tuple(messages)


def parse_chat(data: bytes) -> ChatRequest:
    """Parse a chat completion request; raises ApiError or MalformedError."""
    body = _Body(data)
    wanted = body.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) and len(wanted) == 1 else None
    if wanted is not None and kind not in ("text", "json_object"):
        # A client's own schema becomes a grammar, and a large grammar stops the engine for everybody.
        raise _bad("response_format", "may be of type text or json_object")
    stream, usage = _stream(body)
    request = ChatRequest(
        model=body.text("model", 256),
        messages=_messages(body),
        sampling=_sampling(body),
        stream=stream,
        include_usage=usage,
        json_object=kind == "json_object",
    )
    body.done()
    return request


def parse_completion(data: bytes) -> CompletionRequest:
    """Parse a text completion request; raises ApiError or MalformedError."""
    body = _Body(data)
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise _bad("prompt", "must be one string")
    stream, usage = _stream(body)
    request = CompletionRequest(
        model=body.text("model", 256), prompt=prompt, sampling=_sampling(body), stream=stream, include_usage=usage
    )
    body.done()
    return request


def parse_embedding(data: bytes) -> EmbeddingRequest:
    """Parse an embedding request; raises ApiError or MalformedError."""
    body = _Body(data)
    value = body.get("input")
    inputs = [value] if isinstance(value, str) else value
    if not isinstance(inputs, list) or not 0 < len(inputs) <= MAX_INPUTS:
        raise _bad("input", f"must be a string or a list of 1 to {MAX_INPUTS} strings")
    if not all(isinstance(item, str) and item for item in inputs):
        raise _bad("input", "must hold strings that are not empty")
    encoding = body.text("encoding_format", 16)
    if encoding not in (None, "float", "base64"):
        raise _bad("encoding_format", "must be float or base64")
    request = EmbeddingRequest(model=body.text("model", 256), inputs=tuple(inputs), base64=encoding == "base64")
    body.done()
    return request
