"""`/.well-known/cloister/attestation`: GET the cached bundle, POST a nonce for fresh evidence."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from cloister.channel.bundle import MEDIA_TYPE
from cloister.enclave.gateway.problems import OHTTP_KEY, problem
from cloister.enclave.identity import Identity
from cloister.errors import CloisterError, GatewayRefusedError, KeyRejectedError, MalformedError
from cloister.wire import strict_json

PATH = "/.well-known/cloister/attestation"
MAX_BODY = 4096


class Attestation:
    """The two methods of the attestation resource."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    async def handle(self, request: Request) -> Response:
        """Answer with a bundle (channel.bundle) or a problem document."""
        try:
            if request.method == "GET":
                bundle = await self._identity.bundle(request.query_params.get("kid"))
                return Response(bundle, media_type=MEDIA_TYPE, headers={"cache-control": "max-age=60"})
            nonce, kid = _challenge(await _body(request))
            bundle = await self._identity.fresh_bundle(nonce, kid)
            return Response(bundle, media_type=MEDIA_TYPE, headers={"cache-control": "no-store"})
        except KeyRejectedError:
            return problem(404, OHTTP_KEY)
        except MalformedError:
            return problem(400)
        except GatewayRefusedError as error:
            return problem(error.status, headers={"retry-after": "1"})
        except CloisterError:
            return problem(503, headers={"retry-after": "1"})


async def _body(request: Request) -> bytes:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY:
            raise MalformedError("challenge: too large")
    return body


def _challenge(body: bytes) -> tuple[bytes, str | None]:
    fields = strict_json.Fields(strict_json.loads(body, "challenge", limit=MAX_BODY), "challenge")
    nonce = fields.octets("nonce", limit=64)
    kid = fields.text("kid", limit=64) if fields.has("kid") else None
    fields.done()
    return nonce, kid
