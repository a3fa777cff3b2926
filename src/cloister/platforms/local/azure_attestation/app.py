"""The SIMULATED Azure Attestation as a web application."""

from __future__ import annotations

import json
import logging

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cloister.platforms.local.azure_attestation.requests import MAX_BODY
from cloister.platforms.local.azure_attestation.service import AttestationError, Service

log = logging.getLogger(__name__)


def application(service: Service) -> Starlette:
    """An ASGI application around a service."""

    async def attest(request: Request) -> Response:
        if not request.query_params.get("api-version"):
            return _error(AttestationError("MissingApiVersionParameter", "the api-version query parameter is required"))
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY:
                return _error(AttestationError("RequestBodyTooLarge", "the request is too large", status=413))
        tdx = request.url.path == "/attest/TdxVm"
        try:
            members = await run_in_threadpool(service.attest, body, tdx=tdx)
        except AttestationError as error:
            log.warning("SIMULATED Azure Attestation refused: %s", error.message)
            return _error(error)
        return _json(200, members)

    async def certificates(_request: Request) -> Response:
        return _json(200, service.key_set())

    return Starlette(
        routes=[
            Route("/attest/SevSnpVm", attest, methods=["POST"]),
            Route("/attest/TdxVm", attest, methods=["POST"]),
            Route("/certs", certificates, methods=["GET"]),
        ]
    )


def _error(error: AttestationError) -> Response:
    members = {"error": {"code": error.code, "message": error.message}}
    return _json(error.status, members, {"x-ms-error-code": error.code})


def _json(status: int, members: object, headers: dict[str, str] | None = None) -> Response:
    own = {"x-cloister-simulated": "SIMULATED, NOT AZURE ATTESTATION"}
    return Response(json.dumps(members), status, own | (headers or {}), "application/json")
