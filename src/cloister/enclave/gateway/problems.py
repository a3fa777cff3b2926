"""Outer errors as problem documents (RFC 9457). They are unauthenticated, so they say nothing about content."""

from __future__ import annotations

import json

from starlette.responses import Response

OHTTP_KEY = "https://iana.org/assignments/http-problem-types#ohttp-key"
REPLAY = "urn:cloister:error:replay"
PLAINTEXT = "urn:cloister:error:plaintext"
BLANK = "about:blank"

_TITLES = {
    400: "Bad request",
    404: "Not found",
    405: "Method not allowed",
    409: "This request was already received",
    413: "Too large",
    415: "Unsupported media type",
    422: "Key not accepted",
    426: "This service is reached through the sealed channel only",
    429: "Too many requests",
    500: "Internal error",
    503: "Not available now",
}


def problem(status: int, kind: str = BLANK, *, headers: dict[str, str] | None = None) -> Response:
    """A problem document of that status and type."""
    body = json.dumps({"type": kind, "title": _TITLES[status], "status": status}).encode("ascii")
    return Response(
        body,
        status_code=status,
        media_type="application/problem+json",
        headers={"cache-control": "no-store", **(headers or {})},
    )
