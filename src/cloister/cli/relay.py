"""`cloister relay`: the blind relay, for looking at what an observer sees."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from cloister.cli import show
from cloister.errors import UsageError
from cloister.host import relay as blind


@show.guarded
def relay(
    to: Annotated[str, typer.Option(help="HOST:PORT of the replica.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0 takes a free one.")] = "127.0.0.1:8443",
    capture: Annotated[Path | None, typer.Option(help="Keep both directions of every connection here.")] = None,
) -> None:
    """Carry bytes to a replica and back, understanding none of them."""
    carrier = blind.Relay(blind.Address.parse(listen), blind.Address.parse(to), capture=capture)
    try:
        asyncio.run(blind.run(carrier))
    except OSError as error:
        raise UsageError(f"cannot listen: {error.strerror}", hint="Choose another port with --listen.") from None
