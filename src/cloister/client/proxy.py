"""A local OpenAI-compatible proxy: ordinary clients speak to loopback, the proxy verifies, seals and opens.

Whoever can reach the listener can use it, so it listens on loopback and answers only requests that name a loopback host
and come from no other origin (a web page that rebinds its DNS name to 127.0.0.1 still names itself).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from cloister.api import errors, sse
from cloister.client.transport import AsyncSealedTransport
from cloister.errors import (
    ApiError,
    CloisterError,
    GatewayRefusedError,
    NotGenuineError,
    OverLimitError,
    RefusedError,
    UndecidedError,
)

LOOPBACK = frozenset(("127.0.0.1", "localhost", "::1"))
#: Larger than any request the sealed channel carries.
MAX_BODY = 8 * 1024 * 1024
_HOP = frozenset(("content-length", "transfer-encoding", "connection", "keep-alive"))


def as_api_error(error: CloisterError) -> ApiError:
    """A client-side failure in the OpenAI shape, with what to do next; never with content."""
    if isinstance(error, ApiError):
        return error
    status, code = 502, "channel_error"
    if isinstance(error, NotGenuineError | RefusedError):
        status, code = 502, "verification_failed"
    elif isinstance(error, UndecidedError):
        status, code = 502, "replica_unreachable"
    elif isinstance(error, OverLimitError):
        status, code = 413, "request_too_large"
    elif isinstance(error, GatewayRefusedError) and error.status in (429, 503):
        status, code = error.status, "replica_busy"
    message = f"{error.message}. {error.hint}".strip()
    return ApiError(f"cloister: {message}", status=status, code=code, kind="cloister_error")


def _error(error: CloisterError) -> Response:
    known = as_api_error(error)
    # Without this header SDKs would send a refused prompt again and again.
    headers = {} if known.status in (429, 503) else {"x-should-retry": "false"}
    return Response(errors.to_json(known), status_code=known.status, media_type="application/json", headers=headers)


class Proxy:
    """Forwards `/v1/*` and `/healthz` through one sealed transport."""

    def __init__(self, transport: AsyncSealedTransport) -> None:
        self._transport = transport
        #: Requests and how they ended, without any of their content.
        self.counts: dict[str, int] = {"requests": 0, "failed": 0}

    def app(self) -> Starlette:
        """The ASGI application."""
        methods = ["GET", "POST"]
        return Starlette(
            routes=[
                Route("/v1/{rest:path}", self._forward, methods=methods),
                Route("/healthz", self._forward, methods=["GET"]),
                Route("/.well-known/cloister/verdict", self._verdict, methods=["GET"]),
            ]
        )

    async def _verdict(self, request: Request) -> Response:
        """The verdict on the replica in use."""
        if (refused := self._foreign(request)) is not None:
            return refused
        verdict = self._transport.verdict
        body = json.dumps(verdict.to_json() if verdict is not None else None).encode()
        return Response(body, media_type="application/json")

    def _foreign(self, request: Request) -> Response | None:
        named = [request.url.hostname or ""]
        if (origin := request.headers.get("origin")) is not None:
            # A web page elsewhere may send requests here, and browsers say which page it was.
            named.append(urlsplit(origin).hostname or "")
        if all(host.strip("[]") in LOOPBACK for host in named):
            return None
        return _error(ApiError("This proxy answers requests to a loopback address only.", status=403))

    async def _forward(self, request: Request) -> Response:
        if (refused := self._foreign(request)) is not None:
            return refused
        self.counts["requests"] += 1
        try:
            outer = await self._transport.handle_async_request(await self._sealed_request(request))
        except CloisterError as error:
            self.counts["failed"] += 1
            return _error(error)
        headers = {name: value for name, value in outer.headers.items() if name.lower() not in _HOP}
        kind = headers.get("content-type", "")
        if kind.startswith(sse.MEDIA_TYPE):
            return StreamingResponse(self._events(outer), status_code=outer.status_code, headers=headers)
        try:
            # Not a byte of an answer leaves before it is known to be whole.
            body = await outer.aread()
        except CloisterError as error:
            self.counts["failed"] += 1
            return _error(error)
        finally:
            await outer.aclose()
        return Response(body, status_code=outer.status_code, headers=headers)

    async def _sealed_request(self, request: Request) -> httpx2.Request:
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY:
                raise OverLimitError("the request is larger than the sealed channel carries")
        target = self._transport.address.copy_with(path=request.url.path, query=request.url.query.encode() or None)
        return httpx2.Request(request.method, target, headers=list(request.headers.items()), content=bytes(body))

    async def _events(self, outer: httpx2.Response) -> AsyncIterator[bytes]:
        """Pass events on; an answer that breaks off ends with an error event and never with [DONE]."""
        held = b""
        async with contextlib.aclosing(outer):
            try:
                async for piece in outer.aiter_raw():
                    # Only whole events leave: an error event must not be glued to half of another. And [DONE] is held
                    # back until the final chunk and the receipt have been checked.
                    data, held = _split(held + piece)
                    if data:
                        yield data
                if held:
                    yield held
            except CloisterError as error:
                self.counts["failed"] += 1
                yield sse.error_event(errors.to_json(as_api_error(error)))


def _split(data: bytes) -> tuple[bytes, bytes]:
    """What may be passed on now, and what is held: half an event, and [DONE] until the end is proven."""
    at = data.find(sse.DONE)
    if at < 0:
        at = data.rfind(b"\n\n") + 2 if b"\n\n" in data else 0
    return data[:at], data[at:]
