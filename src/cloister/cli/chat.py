"""`cloister chat`: verify, then talk; one question or a conversation."""

from __future__ import annotations

import json as json_module
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import httpx2
import typer
from rich.text import Text

from cloister.api import sse
from cloister.cli import show
from cloister.client.transport import SealedTransport
from cloister.errors import ApiError, CloisterError, TruncatedResponse

#: The API key, where a replica has tenants; never on a command line, where other users could read it.
KEY_VARIABLE = "CLOISTER_API_KEY"
_TIMEOUT = {"timeout": httpx2.Timeout(10, read=600).as_dict()}


def stream_chat(transport: SealedTransport, messages: list[dict[str, str]], **options: object) -> Iterator[str]:
    """The pieces of one streamed answer; raises ApiError or a ChannelError. `transport.last` then has the receipt."""
    body: dict[str, object] = {"messages": messages, "stream": True}
    body |= {name: value for name, value in options.items() if value is not None}
    target = transport.address.join("/v1/chat/completions")
    headers = {"content-type": "application/json", "accept": sse.MEDIA_TYPE}
    if key := os.environ.get(KEY_VARIABLE):
        headers["authorization"] = f"Bearer {key}"
    response = transport.handle_request(
        httpx2.Request("POST", target, headers=headers, content=json_module.dumps(body).encode(), extensions=_TIMEOUT)
    )
    try:
        if response.status_code != 200:
            raise _refused(response.read(), response.status_code)
        yield from _deltas(response)
    finally:
        response.close()


def _deltas(response: httpx2.Response) -> Iterator[str]:
    decoder = sse.Decoder()
    done = False
    for piece in response.iter_raw():
        for kind, data in decoder.push(piece):
            if kind == "error":
                raise _refused(data.encode(), 500)
            if data == "[DONE]":
                done = True
                continue
            for choice in json_module.loads(data)["choices"]:
                if text := choice["delta"].get("content"):
                    yield text
    if not done:
        raise TruncatedResponse("the answer ended without [DONE]")


def _refused(body: bytes, status: int) -> ApiError:
    try:
        error = json_module.loads(body)["error"]
        return ApiError(str(error["message"]), status=status, code=error.get("code"))
    except (ValueError, KeyError, TypeError):
        return ApiError(f"the replica answered {status}", status=status)


@show.guarded
def chat(
    url: Annotated[str, typer.Argument(help="The replica's address.")],
    prompt: Annotated[list[str] | None, typer.Argument(help="One question; without it, a conversation.")] = None,
    policy: Annotated[Path, typer.Option("--policy", "-p", help="The policy document (TOML).")] = Path("policy.toml"),
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="The longest answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is repeatable.")] = None,
    seed: Annotated[int | None, typer.Option(help="Repeats the same choices.")] = None,
    json: Annotated[bool, typer.Option("--json", help="The answer, verdict and receipt as JSON.")] = False,
) -> None:
    """Verify the replica, seal each question to its attested key, stream the answers."""
    transport = SealedTransport(url, show.load_policy(policy))
    try:
        verdict = transport.verify()
    except CloisterError as error:
        if error.verdict is not None:
            show.show_verdict(error.verdict, show.stderr)
        raise
    if verdict.simulated:
        show.simulated_banner()
    show.stderr.print(Text(verdict.summary(), style="dim"))
    history = [{"role": "system", "content": system}] if system else []
    options: dict[str, object] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    once = " ".join(prompt) if prompt else None if sys.stdin.isatty() else sys.stdin.read().strip()
    if once is not None:
        history.append({"role": "user", "content": once})
        answer = _answer(transport, history, options, quiet=json)
        if json:
            assert transport.last is not None
            receipt = transport.last.receipt
            show.print_json(
                {
                    "schema": "cloister-chat/1",
                    "answer": answer,
                    "verdict": transport.last.verdict.to_json(),
                    "receipt": {"kid": receipt.kid, "number": receipt.number, "usage": dict(receipt.usage)},
                }
            )
        return
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if not line:
            continue
        history.append({"role": "user", "content": line})
        try:
            history.append({"role": "assistant", "content": _answer(transport, history, options, quiet=False)})
        except CloisterError as error:
            # The question is taken back, so that the conversation holds no half answer.
            history.pop()
            show.show_error(error)


def _answer(
    transport: SealedTransport, history: list[dict[str, str]], options: dict[str, object], *, quiet: bool
) -> str:
    pieces: list[str] = []
    for piece in stream_chat(transport, history, **options):
        pieces.append(piece)
        if not quiet:
            sys.stdout.write(piece)
            sys.stdout.flush()
    if not quiet:
        sys.stdout.write("\n")
        sys.stdout.flush()
    return "".join(pieces)
