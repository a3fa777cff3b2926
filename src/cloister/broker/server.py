"""The broker as a process: a listener, TLS that ends here, and uvicorn."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from cloister.broker.app import application
from cloister.broker.service import Broker
from cloister.errors import UsageError

MAX_CONNECTIONS = 256


@dataclass(frozen=True, kw_only=True)
class Tls:
    """PEM files: the certificate with its chain, and its private key."""

    certificate: Path
    key: Path


def serve(broker: Broker, host: str, port: int, tls: Tls | None, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `on_ready` gets the address. Raises UsageError.

    Without `tls` only on a loopback address, behind something on this machine that ends TLS.
    """
    if tls is None and not _loopback(host):
        raise UsageError("without TLS the broker listens on loopback addresses only", hint="Give --certificate.")
    config = uvicorn.Config(
        application(broker),
        ssl_certfile=tls.certificate if tls is not None else None,
        ssl_keyfile=tls.key if tls is not None else None,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        lifespan="off",
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
    )
    try:
        config.load()
    except (OSError, ValueError):
        raise UsageError("the certificate or its key cannot be used", hint="PEM, the key with no passphrase.") from None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the port is out of range"
        raise UsageError(f"cannot listen on {host}:{port}: {reason}", hint="Choose another address or port.") from None
    bound = listener.getsockname()
    shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
    # The backlog holds whoever connects before the loop runs.
    on_ready(f"{'http' if tls is None else 'https'}://{shown}:{bound[1]}")
    uvicorn.Server(config).run(sockets=[listener])


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
