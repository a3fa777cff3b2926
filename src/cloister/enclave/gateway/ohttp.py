"""`/.well-known/ohttp-gateway`: GET the key configuration, POST a sealed request (chunked, or single-shot)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass
from typing import cast

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from cloister.api import errors
from cloister.channel import chunked, keyconfig, ohttp
from cloister.channel.frames import FRAME, FrameShaper
from cloister.channel.keyring import ReplicaKey
from cloister.channel.receipt import EXPORT_LABEL, EXPORT_LENGTH, TRAILER, Receipt, commitment
from cloister.enclave.gateway.inner import Answer, Inner, refuse
from cloister.enclave.gateway.problems import OHTTP_KEY, REPLAY, problem
from cloister.enclave.identity import Identity
from cloister.enclave.telemetry import Counters
from cloister.errors import KeyRejectedError, MalformedError, OverLimitError, ReplayError
from cloister.wire import bhttp

PATH = "/.well-known/ohttp-gateway"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sealed bytes of a request, seconds for its arrival, requests in the house at once, bytes of a response frame."""

    request_bytes: int = chunked.MAX_REQUEST
    request_seconds: float = 60.0
    in_flight: int = 512
    frame: int = FRAME


class OhttpGateway:
    """Opens requests, has them answered inside, seals the answers. An ASGI application."""

    def __init__(self, identity: Identity, inner: Inner, model_id: str, limits: Limits, counters: Counters) -> None:
        self._identity = identity
        self._inner = inner
        self._model_id = model_id
        self._limits = limits
        self._counters = counters
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One outer request, from its first byte to the last of its answer."""
        request = Request(scope, receive)
        if request.method == "GET":
            response = Response(
                self._identity.keyring.published(),
                media_type=keyconfig.MEDIA_TYPE,
                headers={"cache-control": "max-age=60"},
            )
            await response(scope, receive, send)
            return
        # Load is refused before anything is decrypted.
        if self._in_flight >= self._limits.in_flight:
            await problem(503, headers={"retry-after": "1"})(scope, receive, send)
            return
        self._in_flight += 1
        try:
            response = await self._open(request)
            await response(scope, receive, send)
        finally:
            self._in_flight -= 1

    async def _open(self, request: Request) -> Response:
        kind = request.headers.get("content-type", "")
        try:
            if kind == chunked.REQUEST_TYPE:
                return await self._chunked(request)
            if kind == ohttp.REQUEST_TYPE:
                return await self._single_shot(request)
            return problem(415)
        except KeyRejectedError:
            return problem(422, OHTTP_KEY)
        except ReplayError:
            return problem(409, REPLAY)
        except OverLimitError:
            return problem(413)
        except (MalformedError, ClientDisconnect, TimeoutError):
            return problem(400)

    async def _chunked(self, request: Request) -> Response:
        opener = chunked.RequestOpener(self._identity.keyring.lookup, limit=self._limits.request_bytes)
        pieces: list[bytes] = []
        admitted = False
        async with asyncio.timeout(self._limits.request_seconds):
            async for data in request.stream():
                pieces += opener.push(data)
                if opener.authenticated and not admitted:
                    # Recorded before anything acts on it, and only once it is known to come from a key holder.
                    self._identity.keyring.admit(_owner(opener.key), opener.enc)
                    admitted = True
        pieces.append(opener.finish())
        key = _owner(opener.key)
        if not admitted:
            self._identity.keyring.admit(key, opener.enc)
        answer = await _unless_gone(request, self._answer(b"".join(pieces), key))
        return StreamingResponse(
            self._sealed(opener, key, answer),
            media_type=chunked.RESPONSE_TYPE,
            headers={"incremental": "?1", "cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def _single_shot(self, request: Request) -> Response:
        """RFC 9458 without chunks, for clients that do not stream: the whole answer in one sealed message."""
        body = bytearray()
        async with asyncio.timeout(self._limits.request_seconds):
            async for data in request.stream():
                body += data
                if len(body) > self._limits.request_bytes:
                    raise OverLimitError("the sealed request is too large")
        exchange = ohttp.open_request(bytes(body), self._identity.keyring.lookup)
        key = _owner(exchange.key)
        self._identity.keyring.admit(key, exchange.enc)
        answer = await _unless_gone(request, self._answer(exchange.message, key))
        content = answer.content
        if answer.events is not None:
            content = b"".join([event async for event in answer.events])
        self._counters.answered(answer.status, answer.usage)
        message = bhttp.encode_response(bhttp.Response(status=answer.status, headers=answer.headers, content=content))
        if frame := self._limits.frame:
            message = message.ljust(-(-len(message) // frame) * frame, b"\x00")
        return Response(exchange.seal(message), media_type=ohttp.RESPONSE_TYPE, headers={"cache-control": "no-store"})

    async def _answer(self, message: bytes, key: ReplicaKey) -> Answer:
        """From here on every failure is an inner answer: whoever asked is entitled to a sealed one."""
        try:
            inner = bhttp.decode_request(message)
        except MalformedError as error:
            return refuse(errors.as_api_error(error))
        return await self._inner.answer(inner, key.statement_binding)

    async def _sealed(
        self, opener: chunked.RequestOpener, key: ReplicaKey, answer: Answer
    ) -> AsyncGenerator[bytes, None]:
        """The sealed response: one or more frames for each batch of events, then the final chunk with the receipt."""
        sealer = opener.response_sealer()
        shaper = FrameShaper(sse=answer.events is not None, size=self._limits.frame)
        out = [sealer.start(), *map(sealer.chunk, shaper.head(answer.status, answer.headers))]
        if answer.events is None:
            out += map(sealer.chunk, shaper.content(answer.content))
        else:
            async with contextlib.aclosing(answer.events) as events:
                async for data in events:
                    out += map(sealer.chunk, [*shaper.content(data), *shaper.flush()])
                    yield b"".join(out)
                    out = []
        self._counters.answered(answer.status, answer.usage)
        signed = Receipt(
            kid=key.kid,
            binding=key.statement_binding,
            number=key.next_receipt(),
            request=opener.transcript(),
            response=sealer.transcript(),
            commitment=commitment(opener.export(EXPORT_LABEL, EXPORT_LENGTH), shaper.content_sha256()),
            model=self._model_id,
            time=int(time.time()),
            usage=answer.usage,
        ).sign(key.receipt_key)
        out.append(sealer.final(shaper.end(((TRAILER, signed),))))
        yield b"".join(out)


async def _unless_gone(request: Request, work: Coroutine[None, None, Answer]) -> Answer:
    """Do the work, but stop it when the client goes away meanwhile: a slot must not serve nobody.

    The request's body has been read, so the only message that can still come is the disconnection.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for waiting in (task, gone):
            waiting.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _owner(material: ohttp.KeyMaterial) -> ReplicaKey:
    return cast("ReplicaKey", material.owner)
