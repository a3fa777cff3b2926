"""How the SIMULATED services of this platform listen: TLS of a lab's own, one line of JSON when ready."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from cloister.errors import UsageError
from cloister.platforms import lab_tls


def listen(address: str) -> tuple[socket.socket, str]:
    """A listener on HOST:PORT and the service's URL; raises UsageError."""
    host, _, port = address.rpartition(":")
    try:
        listener = socket.create_server((host, int(port)))
    except (OSError, ValueError, OverflowError):
        raise UsageError(f"cannot listen on {address}", hint="Choose another address or port.") from None
    return listener, f"https://localhost:{listener.getsockname()[1]}"


def run(application: Starlette, listener: socket.socket, state: Path, ready: dict[str, str]) -> None:
    """Print `ready`, and serve until a signal ends it; the TLS authority is in `state` and outlives a restart."""
    if not (state / lab_tls.SERVER).exists():
        lab_tls.make(state, ("localhost", "127.0.0.1"))
    config = uvicorn.Config(
        application,
        ssl_certfile=state / lab_tls.SERVER,
        ssl_keyfile=state / lab_tls.KEY,
        log_level="warning",
        access_log=False,
        server_header=False,
        # Clients keep their connections; a TLS connection that nobody closes would hold up the end.
        timeout_graceful_shutdown=1,
    )
    # The backlog already holds whoever connects before the loop runs.
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()
    uvicorn.Server(config).run(sockets=[listener])
