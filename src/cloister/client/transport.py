"""httpx2 transports that verify, seal and open: a drop-in for the `openai` package, sync and async.

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", http_client=cloister.http_client(url, policy=policy))

Every request to the replica's address goes through the sealed channel; a request to any other address is refused. There
is no way from here to a clear request.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

import httpx2

from cloister.client.session import MAX_BUNDLE, Completed, Exchange, OuterRequest, Session, retryable
from cloister.errors import CloisterError, TruncatedResponse, UndecidedError, UsageError
from cloister.policy.document import Policy
from cloister.policy.verdict import Verdict
from cloister.trust.collateral import Collateral
from cloister.wire import bhttp

#: Headers of the caller that mean nothing inside, or that describe the outer connection.
_DROPPED = frozenset(
    ("host", "connection", "content-length", "transfer-encoding", "accept-encoding", "keep-alive", "te", "upgrade",
     "proxy-authorization", "proxy-connection", "trailer", "expect")
)  # fmt: skip
_TIMEOUT = httpx2.Timeout(10.0, read=600.0)


def parse_address(url: str | httpx2.URL) -> httpx2.URL:
    """The replica's address (scheme, host, port); raises UsageError."""
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError):
        raise UsageError("not a URL", hint="For example http://127.0.0.1:8080.") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError("the address must begin with http:// or https://", hint="For example http://127.0.0.1:8080.")
    return parsed.copy_with(path="/", query=None, fragment=None, userinfo=b"")


def _now() -> datetime:
    return datetime.now(UTC)


class _Shell:
    """What the sync and the async transport have in common."""

    def __init__(self, address: str | httpx2.URL, policy: Policy, collateral: Collateral | None) -> None:
        self.address = parse_address(address)
        self.session = Session(policy, collateral)
        #: How the newest finished exchange ended.
        self.last: Completed | None = None

    @property
    def verdict(self) -> Verdict | None:
        """The verdict on the key in use; None before the first verification."""
        return self.session.verdict

    def _outer(self, request: OuterRequest, extensions: dict[str, object] | None = None) -> httpx2.Request:
        return httpx2.Request(
            request.method,
            self.address.join(request.path),
            headers=list(request.headers),
            content=request.body,
            extensions=extensions or {"timeout": _TIMEOUT.as_dict()},
        )

    def _inner(self, request: httpx2.Request, content: bytes) -> bhttp.Request:
        target = request.url
        if (target.scheme, target.host, target.port) != (self.address.scheme, self.address.host, self.address.port):
            raise UsageError(
                "this client speaks to its verified replica only", hint=f"Set base_url to {self.address}v1."
            )
        try:
            return bhttp.Request(
                method=request.method,
                scheme=target.scheme,
                authority=target.netloc.decode("ascii"),
                path=target.raw_path.decode("ascii"),
                headers=tuple(
                    (name.lower(), value.strip())
                    for name, value in request.headers.items()
                    if name.lower() not in _DROPPED
                ),
                content=content,
            )
        except UnicodeError:
            raise UsageError("the request's address is not ASCII") from None


def _head_of(exchange: Exchange, response: httpx2.Response) -> None:
    exchange.head(response.status_code, response.headers.get("content-type", ""), response.headers.get("retry-after"))


def _unreachable(error: httpx2.TransportError) -> UndecidedError:
    return UndecidedError(f"the replica cannot be reached ({type(error).__name__})")


def _broken(error: httpx2.TransportError) -> TruncatedResponse:
    return TruncatedResponse(f"the connection broke before the answer's end ({type(error).__name__})")


def _response(head: bhttp.Head, stream: httpx2.SyncByteStream | httpx2.AsyncByteStream) -> httpx2.Response:
    return httpx2.Response(head.status, headers=list(head.headers), stream=stream)


class _Opening:
    """Collects events until the inner head has come."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.head: bhttp.Head | None = None
        self.content: list[bytes] = []

    def add(self, events: list[bhttp.Event]) -> bytes:
        """Take events in; returns the content among them."""
        for event in events:
            if isinstance(event, bhttp.Head):
                self.head = event
        return b"".join(event.data for event in events if isinstance(event, bhttp.Content))


# --- Sync -------------------------------------------------------------------------------------------------------------


class SealedTransport(_Shell, httpx2.BaseTransport):
    """A sync httpx2 transport over the sealed channel. `verify()` attests now; otherwise the first request does."""

    def __init__(
        self,
        address: str | httpx2.URL,
        policy: Policy,
        *,
        collateral: Collateral | None = None,
        inner: httpx2.BaseTransport | None = None,
    ) -> None:
        super().__init__(address, policy, collateral)
        self._transport = inner or httpx2.HTTPTransport()
        self._lock = threading.Lock()

    def verify(self) -> Verdict:
        """Fetch fresh evidence and appraise it; raises with `.verdict` attached."""
        with self._lock:
            self.session.forget()
            return self._attest()

    def _attest(self) -> Verdict:
        request = self.session.challenge()
        try:
            response = self._transport.handle_request(self._outer(request))
            try:
                body = b""
                for piece in response.stream:  # type: ignore[union-attr]
                    body += piece
                    if len(body) > MAX_BUNDLE:
                        raise UndecidedError("the replica's evidence does not end")
            finally:
                response.close()
        except httpx2.TransportError as error:
            raise _unreachable(error) from None
        return self.session.accept(response.status_code, body, nonce=request.nonce, now=_now()).verdict

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request through the sealed channel."""
        inner = self._inner(request, request.read())
        try:
            return self._send(inner, request)
        except CloisterError as error:
            if not retryable(error):
                raise
            self.session.forget()
            return self._send(inner, request)

    def _send(self, inner: bhttp.Request, request: httpx2.Request) -> httpx2.Response:
        with self._lock:
            if self.session.key(_now()) is None:
                self._attest()
            exchange = self.session.seal(inner, _now())
        try:
            outer = self._transport.handle_request(self._outer(exchange.request, dict(request.extensions)))
        except httpx2.TransportError as error:
            raise _unreachable(error) from None
        try:
            _head_of(exchange, outer)
            opening, stream = _Opening(exchange), iter(outer.stream)  # type: ignore[arg-type]
            body = _SyncBody(self, opening, outer, stream)
            body.open()
        except BaseException:
            outer.close()
            raise
        assert opening.head is not None
        return _response(opening.head, body)

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()


class _SyncBody(httpx2.SyncByteStream):
    """The inner content as it comes; its end is proven, or raised about."""

    def __init__(
        self, shell: SealedTransport, opening: _Opening, outer: httpx2.Response, stream: Iterator[bytes]
    ) -> None:
        self._shell, self._opening, self._outer, self._stream = shell, opening, outer, stream
        self._first = b""
        self._finished = False

    def _next(self) -> bytes | None:
        """Some content (perhaps none), or None at the proven end."""
        if self._finished:
            return None
        exchange = self._opening.exchange
        try:
            piece = next(self._stream, None)
        except httpx2.TransportError as error:
            raise _broken(error) from None
        if piece is not None:
            return self._opening.add(exchange.feed(piece))
        events, self._shell.last = exchange.finish()
        self._finished = True
        return self._opening.add(events)

    def open(self) -> None:
        """Read until the inner head is there."""
        while self._opening.head is None:
            content = self._next()
            if content is None:
                raise TruncatedResponse("the answer has no head")
            self._first += content

    def __iter__(self) -> Iterator[bytes]:
        if self._first:
            yield self._first
        while (content := self._next()) is not None:
            if content:
                yield content

    def close(self) -> None:
        self._outer.close()


# --- Async ------------------------------------------------------------------------------------------------------------


class AsyncSealedTransport(_Shell, httpx2.AsyncBaseTransport):
    """The same for async clients."""

    def __init__(
        self,
        address: str | httpx2.URL,
        policy: Policy,
        *,
        collateral: Collateral | None = None,
        inner: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(address, policy, collateral)
        self._transport = inner or httpx2.AsyncHTTPTransport()
        self._lock = asyncio.Lock()

    async def verify(self) -> Verdict:
        """Fetch fresh evidence and appraise it; raises with `.verdict` attached."""
        async with self._lock:
            self.session.forget()
            return await self._attest()

    async def _attest(self) -> Verdict:
        request = self.session.challenge()
        try:
            response = await self._transport.handle_async_request(self._outer(request))
            try:
                body = b""
                async for piece in response.stream:  # type: ignore[union-attr]
                    body += piece
                    if len(body) > MAX_BUNDLE:
                        raise UndecidedError("the replica's evidence does not end")
            finally:
                await response.aclose()
        except httpx2.TransportError as error:
            raise _unreachable(error) from None
        return self.session.accept(response.status_code, body, nonce=request.nonce, now=_now()).verdict

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request through the sealed channel."""
        inner = self._inner(request, await request.aread())
        try:
            return await self._send(inner, request)
        except CloisterError as error:
            if not retryable(error):
                raise
            self.session.forget()
            return await self._send(inner, request)

    async def _send(self, inner: bhttp.Request, request: httpx2.Request) -> httpx2.Response:
        async with self._lock:
            if self.session.key(_now()) is None:
                await self._attest()
            exchange = self.session.seal(inner, _now())
        try:
            outer = await self._transport.handle_async_request(self._outer(exchange.request, dict(request.extensions)))
        except httpx2.TransportError as error:
            raise _unreachable(error) from None
        try:
            _head_of(exchange, outer)
            opening, stream = _Opening(exchange), aiter(outer.stream)  # type: ignore[arg-type]
            body = _AsyncBody(self, opening, outer, stream)
            await body.open()
        except BaseException:
            await outer.aclose()
            raise
        assert opening.head is not None
        return _response(opening.head, body)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()


class _AsyncBody(httpx2.AsyncByteStream):
    """The inner content as it comes; its end is proven, or raised about."""

    def __init__(
        self, shell: AsyncSealedTransport, opening: _Opening, outer: httpx2.Response, stream: AsyncIterator[bytes]
    ) -> None:
        self._shell, self._opening, self._outer, self._stream = shell, opening, outer, stream
        self._first = b""
        self._finished = False

    async def _next(self) -> bytes | None:
        """Some content (perhaps none), or None at the proven end."""
        if self._finished:
            return None
        exchange = self._opening.exchange
        try:
            piece = await anext(self._stream, None)
        except httpx2.TransportError as error:
            raise _broken(error) from None
        if piece is not None:
            return self._opening.add(exchange.feed(piece))
        events, self._shell.last = exchange.finish()
        self._finished = True
        return self._opening.add(events)

    async def open(self) -> None:
        """Read until the inner head is there."""
        while self._opening.head is None:
            content = await self._next()
            if content is None:
                raise TruncatedResponse("the answer has no head")
            self._first += content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._first:
            yield self._first
        while (content := await self._next()) is not None:
            if content:
                yield content

    async def aclose(self) -> None:
        await self._outer.aclose()


# --- The public face --------------------------------------------------------------------------------------------------


def http_client(address: str, *, policy: Policy, collateral: Collateral | None = None) -> httpx2.Client:
    """A sync HTTP client for that replica; it is verified now, so a refusal is raised here and not inside an SDK."""
    transport = SealedTransport(address, policy, collateral=collateral)
    try:
        transport.verify()
    except BaseException:
        transport.close()
        raise
    return httpx2.Client(transport=transport, timeout=_TIMEOUT, trust_env=False)


def async_http_client(address: str, *, policy: Policy, collateral: Collateral | None = None) -> httpx2.AsyncClient:
    """An async HTTP client for that replica; its first request verifies."""
    transport = AsyncSealedTransport(address, policy, collateral=collateral)
    return httpx2.AsyncClient(transport=transport, timeout=_TIMEOUT, trust_env=False)
