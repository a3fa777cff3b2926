"""The SIMULATED Trust Authority as a web application: API and portal on one address."""

from __future__ import annotations

import contextlib
import json
import logging
import uuid
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cloister.platforms.local.trust_authority.errors import ServiceError
from cloister.platforms.local.trust_authority.requests import MAX_BODY
from cloister.platforms.local.trust_authority.service import Service

log = logging.getLogger(__name__)


def application(service: Service) -> Starlette:
    """An ASGI application around a service."""

    async def nonce(request: Request) -> Response:
        return await _answer(request, lambda: service.nonce(request.headers.get("x-api-key", "")))

    async def attest(request: Request) -> Response:
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY:
                return _json(request, 413, {"error": "request body too large"})
        key, version = request.headers.get("x-api-key", ""), 1 if "/v1/" in request.url.path else 2
        return await _answer(request, lambda: service.attest(key, body, version=version))

    async def certificates(request: Request) -> Response:
        return _json(request, 200, service.key_set())

    async def revocations(request: Request) -> Response:
        data = await run_in_threadpool(service.revocations, request.path_params["name"])
        if data is None:
            return _json(request, 404, {"error": "not found"})
        return Response(data, media_type="application/pkix-crl")

    return Starlette(
        routes=[
            *(Route(f"/appraisal/v{version}/nonce", nonce, methods=["GET"]) for version in (1, 2)),
            *(Route(f"/appraisal/v{version}/attest", attest, methods=["POST"]) for version in (1, 2)),
            Route("/certs", certificates, methods=["GET"]),
            Route("/crl/{name}", revocations, methods=["GET"]),
        ]
    )


async def _answer(request: Request, operation: Callable[[], dict[str, str]]) -> Response:
    try:
        members = await run_in_threadpool(operation)
    except ServiceError as error:
        # The reason alone: neither key nor quote belongs in a log.
        log.warning("SIMULATED Trust Authority refused: %d %s", error.status, error.message)
        headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
        return _json(request, error.status, {"error": error.message}, headers)
    return _json(request, 200, members)


def _json(
    request: Request, status: int, members: dict[str, str] | dict[str, object], headers: dict[str, str] | None = None
) -> Response:
    own = {"trace-id": str(uuid.uuid4()), "x-cloister-simulated": "SIMULATED, NOT INTEL TRUST AUTHORITY"}
    with contextlib.suppress(ValueError):
        own["request-id"] = str(uuid.UUID(request.headers.get("request-id", "")))
    return Response(json.dumps(members), status, own | (headers or {}), "application/json")
