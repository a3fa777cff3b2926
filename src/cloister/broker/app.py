"""The broker as a web application (KBS attestation protocol, "HTTP Integration").

401 for whoever is not attested, whatever the reason; 403 for what the policy does not give; 404 for what is not there.
Besides the protocol's: 405, 413 for a body that is too long, 408 for one that does not come, 503 where nothing can be
decided. Error bodies are {"type", "detail"}; neither they nor the log hold what a caller sent.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from cloister.broker.messages import MAX_ATTESTATION, MAX_REQUEST
from cloister.broker.service import Broker, Denied
from cloister.weights import kbs

#: Seconds for a body to arrive.
BODY_SECONDS = 10.0
_COOKIE = re.compile(rf"{kbs.COOKIE}=([A-Za-z0-9_-]{{43}})")

log = logging.getLogger(__name__)
Handler = Callable[[Request], Awaitable[Response]]


def application(broker: Broker) -> Starlette:
    """An ASGI application around a broker."""

    async def auth(request: Request) -> Response:
        name, challenge = await run_in_threadpool(broker.auth, await _body(request, MAX_REQUEST))
        # Secure also behind a terminator: the caller speaks TLS to it.
        cookie = f"{kbs.COOKIE}={name}; Path=/kbs; Secure; HttpOnly; SameSite=Strict"
        return _answer(200, challenge, {"set-cookie": cookie})

    async def attest(request: Request) -> Response:
        body = await _body(request, MAX_ATTESTATION)
        return _answer(200, await run_in_threadpool(broker.attest, _session(request), body))

    async def resource(request: Request) -> Response:
        path = request.path_params["path"]
        return _answer(200, await run_in_threadpool(broker.resource, _session(request), path))

    return Starlette(
        routes=[
            Route(kbs.AUTH, _guarded(auth), methods=["POST"]),
            Route(kbs.ATTEST, _guarded(attest), methods=["POST"]),
            Route(f"{kbs.RESOURCE}/{{path:path}}", _guarded(resource), methods=["GET"]),
        ],
        exception_handlers={HTTPException: _http_error},
    )


def _guarded(handler: Handler) -> Handler:
    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except Denied as denied:
            log.warning("%s %d %s", request.url.path.split("/")[3], denied.status, denied.code)
            return _error(denied)
        except ClientDisconnect:
            return Response(status_code=400)
        except Exception as error:  # noqa: BLE001 - a traceback in a log could quote what was being processed
            log.error("unexpected %s in the broker", type(error).__name__)
            return _error(Denied(500, "unavailable", "an error of the broker itself"))

    return handle


async def _body(request: Request, limit: int) -> bytes:
    body = b""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > limit:
                    raise Denied(413, "too-large", f"more than {limit} bytes")
    except TimeoutError:
        raise Denied(408, "request", "the body did not come in time") from None
    return body


def _session(request: Request) -> str:
    """The session's name from exactly one cookie; a name that nobody has is no session."""
    cookies = [part for line in request.headers.getlist("cookie") for part in line.split("; ")]
    names = [match[1] for match in map(_COOKIE.fullmatch, cookies) if match]
    if len(names) != 1:
        raise Denied(401, "session", "the session's cookie is missing, or there are several")
    return names[0]


async def _http_error(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return _error(Denied(status, "resource", "there is no such resource"))


def _error(denied: Denied) -> Response:
    # The body of a request that was refused early is not read: the connection cannot go on.
    headers = {"connection": "close"} if denied.status in (408, 413) else {}
    return _answer(denied.status, {"type": kbs.ERRORS + denied.code, "detail": denied.detail}, headers)


def _answer(status: int, members: Mapping[str, object], headers: Mapping[str, str] | None = None) -> Response:
    data = json.dumps(members, separators=(",", ":")).encode("utf-8")
    return Response(data, status, {"cache-control": "no-store", **(headers or {})}, "application/json")
