"""Requests are whitelisted: what is not offered is refused by name, and no refusal repeats what was sent."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.api import errors, requests, sse
from cloister.errors import ApiError, CloisterError, EngineCrashed, EngineError, MalformedError

HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields: object) -> requests.ChatRequest:
    return requests.parse_chat(json.dumps({"messages": HELLO, **fields}).encode())


def test_what_is_offered() -> None:
    request = chat(
        model="m", temperature=0.5, top_p=0.9, top_k=40, min_p=0.05, presence_penalty=1, frequency_penalty=-1, seed=7,
        max_tokens=5, max_completion_tokens=9, stop=["a", "b"], stream=True, n=1, user="me", metadata={"a": "b"},
        stream_options={"include_usage": True, "include_obfuscation": False}, response_format={"type": "json_object"},
        tools=None,
    )  # fmt: skip
    assert request.sampling == requests.Sampling(
        temperature=0.5, top_p=0.9, top_k=40, min_p=0.05, presence_penalty=1, frequency_penalty=-1, seed=7, max_tokens=9,
        stop=("a", "b"),
    )  # fmt: skip
    assert (request.stream, request.include_usage, request.json_object) == (True, True, True)


def test_message_forms() -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "name": "ann", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "tool_calls": None},
    ]
    parsed = chat(messages=messages).messages
    assert [(message.role, message.content) for message in parsed] == [
        ("system", "be brief"), ("user", "ab"), ("assistant", "c"),
    ]  # fmt: skip


SECRET = "zanzibarquokka"
BAD = [
    {"messages": []},
    {"messages": SECRET},
    {"messages": [SECRET]},
    {"messages": [{"role": SECRET, "content": "x"}]},
    {"messages": [{"role": "tool", "content": "x"}]},
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": SECRET}]}]},
    {"messages": [{"role": "user", "content": "x", "tool_calls": [SECRET]}]},
    {"messages": HELLO * 600},
    {"temperature": SECRET}, {"temperature": -1}, {"temperature": 2.1}, {"temperature": True},
    {"top_p": 1.1}, {"top_k": 1.5}, {"max_tokens": 0}, {"max_tokens": 1.5}, {"max_tokens": 1 << 30},
    {"n": 2}, {"n": 0}, {"stop": ""}, {"stop": ["a"] * 5}, {"stop": [SECRET * 30]}, {"stop": [1]},
    {"stream": "yes"}, {"stream_options": {"include_usage": True}}, {"stream": True, "stream_options": {SECRET: 1}},
    {"response_format": {"type": "json_schema", "json_schema": {}}}, {"response_format": SECRET},
    {"tools": [SECRET]}, {"logprobs": True}, {"logit_bias": {SECRET: 1}}, {"grammar": SECRET}, {"cache_prompt": True},
    {"id_slot": 1}, {"n_probs": 100000}, {SECRET: SECRET}, {"model": 7}, {"model": SECRET * 30},
]  # fmt: skip


@pytest.mark.parametrize("fields", BAD, ids=lambda fields: next(iter(fields)))
def test_refused_without_repeating_anything(fields: dict) -> None:
    with pytest.raises(ApiError) as caught:
        chat(**fields)
    body = errors.to_json(caught.value)
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert SECRET.encode() not in body
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("parse", "body"),
    [
        (requests.parse_completion, {}), (requests.parse_completion, {"prompt": ["a", "b"]}),
        (requests.parse_completion, {"prompt": "a", "echo": True}), (requests.parse_completion, {"prompt": [1, 2]}),
        (requests.parse_embedding, {}), (requests.parse_embedding, {"input": ""}), (requests.parse_embedding, {"input": []}),
        (requests.parse_embedding, {"input": ["a"] * 257}), (requests.parse_embedding, {"input": "a", "dimensions": 3}),
        (requests.parse_embedding, {"input": "a", "encoding_format": "hex"}),
    ],
)  # fmt: skip
def test_other_requests_refused(parse: object, body: dict) -> None:
    with pytest.raises(ApiError):
        parse(json.dumps(body).encode())


@given(
    st.dictionaries(
        st.sampled_from(
            ["messages", "stream", "stop", "n", "temperature", "seed", "stream_options", "prompt", "input"]
        ),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=8,
        ),
    )
)
def test_nothing_but_our_errors_escape(body: dict) -> None:
    data = json.dumps(body).encode("utf-8", "surrogatepass")
    for parse in (requests.parse_chat, requests.parse_completion, requests.parse_embedding):
        with contextlib.suppress(ApiError, MalformedError):
            parse(data)


def test_errors_become_fixed_answers() -> None:
    for error, status in (
        (MalformedError(SECRET), 400), (EngineCrashed(SECRET), 503), (EngineError(SECRET), 500), (CloisterError(SECRET), 500),
    ):  # fmt: skip
        answer = errors.as_api_error(error)
        assert answer.status == status
        assert SECRET.encode() not in errors.to_json(answer)


@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=30)),
    st.lists(st.integers(1, 9)),
)
def test_events_survive_any_split(texts: list[str], cuts: list[int]) -> None:
    wire = b"".join(sse.event(text.encode()) + b":   \n" for text in texts) + sse.DONE
    decoder, got = sse.Decoder(), []
    for cut in [*cuts, len(wire)]:
        got += decoder.push(wire[:cut])
        wire = wire[cut:]
    assert got == [("message", text) for text in [*texts, "[DONE]"]]


def test_event_stream_forms_and_limits() -> None:
    assert sse.Decoder().push(b"event: error\r\ndata: a\r\ndata: b\r\n\r\nid: 1\n\n") == [("error", "a\nb")]
    with pytest.raises(MalformedError):
        sse.Decoder().push(b"data: \xff\n")
    decoder = sse.Decoder()
    with pytest.raises(MalformedError):
        for _ in range(30):
            decoder.push(b"data: " + b"x" * 65536)
