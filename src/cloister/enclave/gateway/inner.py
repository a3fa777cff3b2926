"""What lies behind the sealed channel: inner requests, their answers, and the table of routes."""

from __future__ import annotations

import hmac
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from cloister.api import errors, tenants
from cloister.api.sse import MEDIA_TYPE as EVENT_STREAM
from cloister.enclave.engine.protocol import Engine
from cloister.errors import ApiError, CloisterError
from cloister.wire import bhttp
from cloister.wire.strict_json import encode_base64url

JSON = "application/json"
#: A client may name the statement binding it verified; a replica that holds another refuses (412).
EXPECT = "cloister-expect"


@dataclass(kw_only=True)
class Answer:
    """An inner response: `events` (whole SSE events, joined as they come) or `content`, never both.

    `usage` is filled while events pass, for the receipt.
    """

    status: int = 200
    content: bytes = b""
    events: AsyncGenerator[bytes, None] | None = None
    usage: dict[str, int] = field(default_factory=dict)

    @property
    def headers(self) -> bhttp.Fields:
        """The inner headers."""
        return (
            ("content-type", JSON if self.events is None else EVENT_STREAM),
            ("cache-control", "no-store"),
            *((("www-authenticate", "Bearer"),) if self.status == 401 else ()),
        )


Handler = Callable[[bhttp.Request, Engine], Awaitable[Answer]]


def refuse(error: ApiError) -> Answer:
    """The answer that carries an error."""
    return Answer(status=error.status, content=errors.to_json(error))


def check_model(asked: str | None, engine: Engine) -> None:
    """Require that the request asks for the model that runs here, or for none."""
    if asked not in (None, engine.info.model_id):
        raise ApiError(
            "The model is not served by this replica; GET /v1/models says which is.",
            status=404, code="model_not_found", param="model",
        )  # fmt: skip


class Inner:
    """Dispatches inner requests by method and path, from those who bear a tenant's key where there are tenants."""

    def __init__(
        self, routes: dict[tuple[str, str], Handler], engine: Engine, allowed: Sequence[tenants.Tenant] = ()
    ) -> None:
        self._routes = routes
        self._engine = engine
        #: Empty: everybody may ask.
        self._tenants = allowed

    async def answer(self, request: bhttp.Request, statement_binding: bytes) -> Answer:
        """The answer to one request; every refusal is an answer too."""
        try:
            expected = request.header(EXPECT)
            if expected is not None and not hmac.compare_digest(
                expected.encode(), encode_base64url(statement_binding).encode()
            ):
                raise ApiError("The client verified another key statement.", status=412, code="statement_mismatch")
            if self._tenants:
                tenants.identify(self._tenants, request.header("authorization"))
            path = request.path.partition("?")[0]
            handler = self._routes.get((request.method, path))
            if handler is None:
                if any(known == path for _, known in self._routes):
                    raise ApiError("The method is not allowed for this path.", status=405, code="method_not_allowed")
                raise ApiError("There is nothing at this path.", status=404, code="not_found")
            return await handler(request, self._engine)
        except CloisterError as error:
            return refuse(errors.as_api_error(error))


def json_answer(value: object) -> Answer:
    """A 200 with a JSON body."""
    return Answer(content=json.dumps(value, separators=(",", ":")).encode())
