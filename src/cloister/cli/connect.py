"""`cloister connect`: a local OpenAI-compatible address for a verified replica."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Annotated

import typer
import uvicorn
from rich.text import Text

from cloister.cli import show
from cloister.client.proxy import LOOPBACK, Proxy
from cloister.client.transport import AsyncSealedTransport
from cloister.errors import CloisterError, UsageError
from cloister.host.relay import Address
from cloister.policy.verdict import Verdict


@show.guarded
def connect(
    url: Annotated[str, typer.Argument(help="The replica's address.")],
    policy: Annotated[Path, typer.Option("--policy", "-p", help="The policy document (TOML).")],
    listen: Annotated[str, typer.Option(help="A loopback HOST:PORT; port 0 takes a free one.")] = "127.0.0.1:8300",
    check: Annotated[bool, typer.Option("--check", help="Verify, print the verdict, end.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="One line of JSON when ready (or the verdict with --check).")
    ] = False,
) -> None:
    """Verify a replica and serve its API on loopback: point any OpenAI client at the printed address."""
    address = Address.parse(listen)
    if address.host not in LOOPBACK:
        raise UsageError("connect listens on loopback only", hint="Use 127.0.0.1:PORT.")
    asyncio.run(_connect(url, policy, address, check=check, json=json))


async def _connect(url: str, policy: Path, address: Address, *, check: bool, json: bool) -> None:
    transport = AsyncSealedTransport(url, show.load_policy(policy))
    try:
        try:
            verdict = await transport.verify()
        except CloisterError as error:
            if error.verdict is not None:
                _show(error.verdict, json=json and check)
            raise
        if check:
            _show(verdict, json=json)
            return
        if verdict.simulated:
            show.simulated_banner()
        show.stderr.print(Text(verdict.summary()))
        await _serve(transport, address, verdict, json=json)
    finally:
        await transport.aclose()


def _show(verdict: Verdict, *, json: bool) -> None:
    if json:
        show.print_json(verdict.to_json())
    else:
        show.show_verdict(verdict)


async def _serve(transport: AsyncSealedTransport, address: Address, verdict: Verdict, *, json: bool) -> None:
    try:
        listener = socket.create_server((address.host, address.port), backlog=256)
    except (OSError, OverflowError):
        raise UsageError(
            f"cannot listen on {address.host}:{address.port}", hint="Choose another port with --listen."
        ) from None
    with listener:
        # Accepted sockets inherit it; without it small events wait for delayed acknowledgements.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        local = f"http://{address.host}:{listener.getsockname()[1]}/v1"
        if json:
            show.print_json({"schema": "cloister-connect/1", "base_url": local, "simulated": verdict.simulated})
        else:
            print(local, flush=True)
            show.stderr.print(Text("ready: give that address to an OpenAI client as base_url; Ctrl-C ends"))
        server = uvicorn.Server(
            uvicorn.Config(
                Proxy(transport).app(), log_config=None, access_log=False, server_header=False, lifespan="off",
                timeout_graceful_shutdown=3,
            )
        )  # fmt: skip
        await server.serve(sockets=[listener])
