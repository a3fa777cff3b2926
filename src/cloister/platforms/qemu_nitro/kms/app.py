"""The SIMULATED KMS as a web application: AWS's JSON 1.1 protocol, one operation named by `X-Amz-Target`."""

from __future__ import annotations

import json
import logging
import uuid

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cloister.platforms.qemu_nitro.kms.errors import KmsError
from cloister.platforms.qemu_nitro.kms.service import Service

MAX_BODY = 512 * 1024

log = logging.getLogger(__name__)


def application(service: Service) -> Starlette:
    """An ASGI application around a service."""

    async def handle(request: Request) -> Response:
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY:
                return _answer(413, {"__type": "RequestEntityTooLargeException"})
        headers = {name.lower(): value for name, value in request.headers.items()}
        target = headers.get("x-amz-target", "")
        try:
            members = await run_in_threadpool(service.answer, headers, body)
        except KmsError as error:
            # The code alone: neither the request nor its signature belongs in a log.
            log.warning("SIMULATED KMS refused %.64r: %s", target, error.code)
            return _answer(error.status, {"__type": error.code, "message": error.message})
        log.info("SIMULATED KMS answered %.64r", target)
        return _answer(200, members)

    return Starlette(routes=[Route("/", handle, methods=["POST"])])


def _answer(status: int, members: dict[str, object]) -> Response:
    return Response(
        json.dumps(members),
        status,
        {"x-amzn-requestid": str(uuid.uuid4()), "x-cloister-simulated": "SIMULATED, NOT AWS KMS"},
        "application/x-amz-json-1.1",
    )
