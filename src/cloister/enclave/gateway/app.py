"""The outer application: which path leads where. Nothing here ever reads a clear prompt."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloister.api.tenants import Tenant
from cloister.enclave.engine.protocol import Engine
from cloister.enclave.gateway import attestation, ohttp
from cloister.enclave.gateway.embeddings import embeddings
from cloister.enclave.gateway.generate import chat, completion
from cloister.enclave.gateway.inner import Handler, Inner
from cloister.enclave.gateway.models import healthz, models
from cloister.enclave.gateway.problems import PLAINTEXT, problem
from cloister.enclave.identity import Identity
from cloister.enclave.telemetry import Counters

log = logging.getLogger(__name__)

#: Outside the sealed channel, for whoever keeps the replica up: does it serve? Says nothing else.
HEALTH = "/healthz"

#: The whole inner API; part of the configuration digest.
INNER_ROUTES: dict[tuple[str, str], Handler] = {
    ("POST", "/v1/chat/completions"): chat,
    ("POST", "/v1/completions"): completion,
    ("POST", "/v1/embeddings"): embeddings,
    ("GET", "/v1/models"): models,
    ("GET", "/healthz"): healthz,
}


async def _plaintext(_request: Request) -> Response:
    """A clear API request is not read, only refused."""
    return problem(426, PLAINTEXT, headers={"upgrade": "ohttp", "connection": "close"})


async def _http_error(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return problem(status if status in (404, 405) else 400)


class _Quiet:
    """Ends what no one caught with a bare 500: a traceback in a log could quote what was being processed."""

    def __init__(self, app: ASGIApp, counters: Counters) -> None:
        self._app = app
        self._counters = counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if scope["path"] != HEALTH:
                    self._counters.outer(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception as error:  # noqa: BLE001 - the last line of defence
            log.error("unexpected %s in the gateway", type(error).__name__)
            if not started and scope["type"] == "http":
                await problem(500)(scope, receive, send)
            elif started:
                # The connection is broken off: the client sees an answer without its final chunk.
                raise ConnectionAbortedError from None


def create_app(
    identity: Identity,
    engine: Engine,
    limits: ohttp.Limits,
    *,
    tenants: Sequence[Tenant] = (),
    counters: Counters | None = None,
) -> ASGIApp:
    """The replica's application over a started identity and engine."""
    counters = counters or Counters()

    async def health(_request: Request) -> Response:
        return Response(status_code=503 if engine.state in ("failed", "stopped") else 200)

    evidence = attestation.Attestation(identity)
    inner = Inner(INNER_ROUTES, engine, tenants)
    gateway = ohttp.OhttpGateway(identity, inner, engine.info.model_id, limits, counters)
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    return _Quiet(
        Starlette(
            routes=[
                Route(ohttp.PATH, gateway, methods=["GET", "POST"]),
                Route(attestation.PATH, evidence.handle, methods=["GET", "POST"]),
                Route(HEALTH, health, methods=["GET"]),
                Route("/v1", _plaintext, methods=methods),
                Route("/v1/{rest:path}", _plaintext, methods=methods),
            ],
            exception_handlers={HTTPException: _http_error},
        ),
        counters,
    )
