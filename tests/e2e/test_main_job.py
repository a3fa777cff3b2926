"""The main job against a real replica process: verify, chat, connect, the official SDK, curl, and a foreign peer."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest
from tests.conftest import Replica

import cloister
from cloister.channel import chunked, ohttp
from cloister.channel.keyconfig import decode_key_configs
from cloister.client.transport import SealedTransport
from cloister.wire import bhttp

NOTE = "Redact this note: Patient Anna Linden, MRN 5512093. 47-year-old woman with asthma. Plan: review in two weeks."
ASK = {"messages": [{"role": "user", "content": NOTE}], "temperature": 0, "max_tokens": 80}
GATEWAY = "/.well-known/ohttp-gateway"


def cli(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cloister", *arguments], capture_output=True, text=True, timeout=60, check=False,
        stdin=subprocess.DEVNULL, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def sealed(replica: Replica) -> Iterator[httpx2.Client]:
    """An HTTP client over the sealed channel."""
    with cloister.http_client(replica.url, policy=replica.policy) as client:
        yield client


# --- Command line -----------------------------------------------------------------------------------------------------


def test_verify_prints_every_check_and_says_simulated(replica: Replica, tmp_path: Path) -> None:
    saved = tmp_path / "bundle.json"
    result = cli("verify", replica.url, "--policy", str(replica.policy_file), "--save", str(saved))
    assert result.returncode == 0, result.stderr
    assert "SIMULATED" in result.stdout
    for check in ("bundle.format", "nitro.chain", "nitro.signature", "policy.binding", "policy.model", "policy.config"):
        assert check in result.stdout
    result = cli("verify", replica.url, "-p", str(replica.policy_file), "--json")
    verdict = json.loads(result.stdout)
    assert (verdict["outcome"], verdict["simulated"]) == ("accepted", True)
    assert {check["status"] for check in verdict["checks"]} == {"passed"}
    # The same bundle from a file answers nobody's nonce any more.
    result = cli("verify", str(saved), "-p", str(replica.policy_file))
    assert result.returncode == 4
    assert "FAILED" in result.stdout
    nonce = json.loads(saved.read_bytes())["fresh"]["nonce"]
    assert cli("verify", str(saved), "-p", str(replica.policy_file), "--nonce", nonce).returncode == 0
    late = cli("verify", str(saved), "-p", str(replica.policy_file), "--nonce", nonce, "--at", "2031-01-01T00:00:00Z")
    assert late.returncode == 4


def test_exit_codes_of_verify(replica: Replica, tmp_path: Path) -> None:
    text = replica.policy_file.read_text()
    pcr0 = next(line for line in text.splitlines() if line.startswith("pcr0"))
    for name, changed, code in (
        ("another image", text.replace(pcr0, f'pcr0 = "{"ab" * 48}"'), 5),
        ("another model", text.replace(replica.ready["model_sha256"], "cd" * 32), 5),
        ("another configuration", text.replace(replica.ready["config_sha256"], "cd" * 32), 5),
        ("no simulation", text[: text.index("allow_simulated")] + text[text.index('"""\n\n[nitro]') + 4 :], 4),
        ("a hole", text.replace("[model]", "[modell]"), 2),
        ("not TOML", "= =", 2),
    ):
        policy = tmp_path / "policy.toml"
        policy.write_text(changed)
        for verb in (("verify", replica.url), ("chat", replica.url, "hello"), ("connect", replica.url, "--check")):
            result = cli(*verb, "-p", str(policy))
            assert result.returncode == code, (name, verb, result.stdout, result.stderr)
    good = str(replica.policy_file)
    assert cli("verify", "http://127.0.0.1:1", "-p", good).returncode == 6
    assert cli("verify", str(tmp_path / "missing"), "-p", good).returncode == 2
    (tmp_path / "junk").write_bytes(b"junk")
    assert cli("verify", str(tmp_path / "junk"), "-p", good).returncode == 3
    assert cli("verify").returncode == 2


def test_chat_streams_an_answer(replica: Replica) -> None:
    result = cli("chat", replica.url, "-p", str(replica.policy_file), "--temperature", "0", NOTE)
    assert result.returncode == 0, result.stderr
    assert "SIMULATED" in result.stderr
    assert "[NAME]" in result.stdout
    assert "Linden" not in result.stdout
    result = cli("chat", replica.url, "-p", str(replica.policy_file), "--json", "--temperature", "0", NOTE)
    document = json.loads(result.stdout)
    assert "[NAME]" in document["answer"]
    assert document["verdict"]["simulated"] is True
    assert document["receipt"]["usage"]["completion_tokens"] > 5


def test_an_interactive_conversation_remembers(replica: Replica) -> None:
    """Over a terminal of its own: two questions, the second about the first."""
    import pty

    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cloister", "chat", replica.url, "-p", str(replica.policy_file), "--temperature", "0"],
        stdin=child, stdout=child, stderr=child,
    )  # fmt: skip
    os.close(child)
    seen = ""

    def until(text: str) -> None:
        nonlocal seen
        while text not in seen:
            seen += os.read(parent, 4096).decode()

    until("> ")
    os.write(parent, NOTE.encode() + b"\n")
    until("Plan: review in two weeks.\r\n> ")
    seen = ""
    os.write(parent, b"And a one line summary?\n")
    until("asthma")
    os.write(parent, b"\x04")
    assert process.wait(20) == 0
    os.close(parent)


# --- The official SDK -------------------------------------------------------------------------------------------------


def test_openai_sync(replica: Replica, sealed: httpx2.Client) -> None:
    client = openai.OpenAI(base_url=f"{replica.url}/v1", api_key="none", http_client=sealed)
    stream = client.chat.completions.create(model="cloister-notes", stream=True, **ASK)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text.startswith("Patient [NAME], MRN [MRN].")
    whole = client.chat.completions.create(model="cloister-notes", **ASK)
    assert whole.choices[0].message.content == text
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert whole.usage.completion_tokens > 5
    with_usage = list(
        client.chat.completions.create(
            model="cloister-notes", stream=True, stream_options={"include_usage": True}, **ASK
        )
    )
    assert with_usage[-1].usage is not None
    assert with_usage[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [model.id for model in client.models.list()] == ["cloister-notes"]
    vector = client.embeddings.create(model="cloister-notes", input=["asthma", "gout"])
    assert [len(item.embedding) for item in vector.data] == [160, 160]
    plain = client.embeddings.create(model="cloister-notes", input="asthma", encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(vector.data[0].embedding, abs=1e-6)
    completion = client.completions.create(model="cloister-notes", prompt="Patient", max_tokens=5, temperature=0)
    assert completion.choices[0].text
    transport = sealed._transport
    assert isinstance(transport, SealedTransport)
    assert transport.last is not None
    assert transport.last.receipt.usage["completion_tokens"] == 5


async def test_openai_async(replica: Replica) -> None:
    async with cloister.async_http_client(replica.url, policy=replica.policy) as http:
        client = openai.AsyncOpenAI(base_url=f"{replica.url}/v1", api_key="none", http_client=http)
        stream = await client.chat.completions.create(model="cloister-notes", stream=True, **ASK)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert "[MRN]" in text


def test_openai_errors_have_the_shape_sdks_read(replica: Replica, sealed: httpx2.Client) -> None:
    client = openai.OpenAI(base_url=f"{replica.url}/v1", api_key="none", http_client=sealed, max_retries=0)
    for error, options in (
        (openai.NotFoundError, {"model": "gpt-4o", **ASK}),
        (openai.BadRequestError, {"model": "cloister-notes", **ASK, "temperature": 9}),
        (openai.BadRequestError, {"model": "cloister-notes", **ASK, "n": 2}),
        (openai.BadRequestError, {"model": "cloister-notes", **ASK, "tools": [{"type": "function"}]}),
        (openai.BadRequestError, {"model": "cloister-notes", "messages": [{"role": "user", "content": "x " * 9000}]}),
    ):
        with pytest.raises(error) as caught:
            client.chat.completions.create(**options)
        assert caught.value.body is not None
        with pytest.raises(error):
            client.chat.completions.create(stream=True, **options)
    assert sealed.get(f"{replica.url}/v1/nothing").status_code == 404
    assert sealed.get(f"{replica.url}/v1/chat/completions").status_code == 405
    assert sealed.get(f"{replica.url}/healthz").json()["status"] == "ok"


def test_a_policy_refusal_is_raised_before_anything_is_sent(replica: Replica) -> None:
    text = replica.policy_file.read_text().replace(replica.ready["model_sha256"], "cd" * 32)
    with pytest.raises(cloister.RefusedError) as caught:
        cloister.http_client(replica.url, policy=cloister.Policy.from_toml(text.encode()))
    assert caught.value.verdict is not None
    assert not caught.value.verdict.accepted


def test_the_client_speaks_to_its_replica_only(sealed: httpx2.Client) -> None:
    with pytest.raises(cloister.UsageError):
        sealed.get("http://127.0.0.1:9/v1/models")


# --- The proxy --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proxy(replica: Replica) -> Iterator[str]:
    """`cloister connect` as a process; its base_url."""
    process = subprocess.Popen(
        [
            sys.executable, "-m", "cloister", "connect", replica.url, "-p", str(replica.policy_file),
            "--listen", "127.0.0.1:0", "--json",
        ],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    yield json.loads(process.stdout.readline())["base_url"]
    process.terminate()
    process.wait(20)
    process.stdout.close()


def test_curl_gets_a_streamed_answer_through_connect(proxy: str) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    result = subprocess.run(
        [curl, "-sN", f"{proxy}/chat/completions", "-H", "content-type: application/json", "-d",
         json.dumps({"model": "cloister-notes", "stream": True, **ASK})],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    events = [line[6:] for line in result.stdout.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    text = "".join(json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1])
    assert text.startswith("Patient [NAME]")


def test_plain_openai_through_connect(proxy: str) -> None:
    client = openai.OpenAI(base_url=proxy, api_key="none")
    assert "[NAME]" in (client.chat.completions.create(model="cloister-notes", **ASK).choices[0].message.content or "")
    stream = client.chat.completions.create(model="cloister-notes", stream=True, **ASK)
    assert "[NAME]" in "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", **ASK)


def test_connect_refuses_a_rebound_name_and_other_listeners(proxy: str, replica: Replica) -> None:
    with httpx2.Client() as client:
        answer = client.get(f"{proxy}/models", headers={"host": "evil.example"})
        assert answer.status_code == 403
        for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example"):
            assert client.get(f"{proxy}/models", headers={"origin": origin}).status_code == 403
        assert client.get(f"{proxy}/models", headers={"origin": "http://localhost:3000"}).status_code == 200
        verdict = client.get(proxy.removesuffix("/v1") + "/.well-known/cloister/verdict").json()
        assert verdict["outcome"] == "accepted"
        assert client.get(proxy.removesuffix("/v1") + "/elsewhere").status_code == 404
    result = cli("connect", replica.url, "-p", str(replica.policy_file), "--listen", "0.0.0.0:0")
    assert result.returncode == 2


# --- The outer port ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1", "/v1/chat/completions", "/v1/models", "/v1/x/y"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_clear_requests_are_refused(replica: Replica, method: str, path: str) -> None:
    with httpx2.Client() as client:
        answer = client.request(method, replica.url + path, content=b'{"messages":[]}' if method != "GET" else None)
    assert answer.status_code == 426
    assert answer.json()["type"] == "urn:cloister:error:plaintext"


def test_outer_errors(replica: Replica) -> None:
    configs = None
    with httpx2.Client(base_url=replica.url) as client:
        assert client.get("/").status_code == client.get("/health").status_code == 404
        # Outside the channel health is a status and nothing else.
        assert (client.get("/healthz").status_code, client.get("/healthz").content) == (200, b"")
        assert client.put(GATEWAY).status_code == 405
        assert client.post(GATEWAY, content=b"x", headers={"content-type": "text/plain"}).status_code == 415
        answer = client.get(GATEWAY)
        assert answer.headers["content-type"] == "application/ohttp-keys"
        configs = decode_key_configs(answer.content)
        request = bhttp.encode_request(bhttp.Request(method="GET", path="/v1/models"))

        def post(body: bytes, kind: str = chunked.REQUEST_TYPE) -> httpx2.Response:
            return client.post(GATEWAY, content=body, headers={"content-type": kind})

        sealer = chunked.RequestSealer(configs[0])
        body = sealer.seal(request)
        assert post(body).status_code == 200
        again = post(body)
        assert (again.status_code, again.json()["type"]) == (409, "urn:cloister:error:replay")
        other = post(bytes([configs[0].key_id ^ 0xFF]) + chunked.RequestSealer(configs[0]).seal(request)[1:])
        changed = bytearray(chunked.RequestSealer(configs[0]).seal(request))
        changed[-1] ^= 1
        for refused in (other, post(bytes(changed))):
            assert refused.status_code == 422
            assert refused.json()["type"].endswith("#ohttp-key")
        assert other.content == post(bytes(changed)).content
        assert post(b"").status_code == post(body[:50]).status_code == 400
        assert post(body[:1130]).status_code == 400
        big = chunked.RequestSealer(configs[0])
        assert post(big.start() + big.chunk(b"x" * 16384) * 520).status_code in (400, 413)
        # Single-shot Oblivious HTTP, for foreign clients.
        exchange = ohttp.seal_request(configs[0], request)
        answer = post(exchange.body, ohttp.REQUEST_TYPE)
        assert bhttp.decode_response(exchange.open(answer.content)).status == 200
        assert post(exchange.body, ohttp.REQUEST_TYPE).status_code == 409
        # Whatever is wrong inside comes back sealed.
        sealer = chunked.RequestSealer(configs[0])
        opener = sealer.response_opener()
        data = opener.push(post(sealer.seal(b"\x07not binary http")).content)
        assert bhttp.decode_response(b"".join([*data, opener.finish()])).status == 400


def test_over_the_limit_is_413(replica: Replica) -> None:
    with httpx2.Client(base_url=replica.url) as client:
        config = decode_key_configs(client.get(GATEWAY).content)[0]
        sealer = chunked.RequestSealer(config)
        body = b"".join([sealer.start(), *(sealer.chunk(b"x" * 16384) for _ in range(513)), sealer.final(b"")])
        answer = client.post(GATEWAY, content=body, headers={"content-type": chunked.REQUEST_TYPE})
        assert answer.status_code == 413


def test_attestation_resource(replica: Replica) -> None:
    path = "/.well-known/cloister/attestation"
    with httpx2.Client(base_url=replica.url) as client:
        first = client.get(path)
        assert first.headers["cache-control"] == "max-age=60"
        assert "fresh" not in first.json()
        assert client.get(path).content == first.content
        assert client.get(path, params={"kid": "x" * 22}).status_code == 404
        for body in (
            b"",
            b"{}",
            b'{"nonce":"AAAA"}',
            b'{"nonce":5}',
            b"[" * 5000,
            b'{"nonce":"' + b"A" * 22 + b'","x":1}',
        ):
            assert client.post(path, content=body).status_code == 400
        assert client.post(path, content=b'{"nonce":"' + b"A" * 22 + b'"}').json()["fresh"]["nonce"] == "A" * 22


def test_many_nonces_at_once_each_get_their_own_answer(replica: Replica) -> None:
    import concurrent.futures

    def verify(_number: int) -> bool:
        transport = SealedTransport(replica.url, replica.policy)
        try:
            return transport.verify().accepted
        finally:
            transport.close()

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        assert all(pool.map(verify, range(36)))


def test_the_bundled_model_is_the_one_on_its_card(replica: Replica) -> None:
    folder = Path(cloister.__file__).parent / "enclave" / "engine" / "bundled"
    digest = hashlib.sha256((folder / "cloister-notes-q8_0.gguf").read_bytes()).hexdigest()
    assert digest == replica.ready["model_sha256"]
    assert digest in (folder / "MODEL_CARD.md").read_text()
