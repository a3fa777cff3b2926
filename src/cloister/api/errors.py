"""Errors in the shape that OpenAI SDKs read: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json

from cloister.errors import ApiError, CloisterError, EngineCrashed, EngineError, MalformedError

#: Requests that the engine cannot take now.
OVERLOADED = "The replica is busy. Try again shortly."


def as_api_error(error: CloisterError) -> ApiError:
    """What an inner caller is told of an error; only fixed texts, the original may be about another layer."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, MalformedError):
        return ApiError("The request body is not valid JSON of the expected shape.")
    if isinstance(error, EngineCrashed):
        return ApiError(
            "The inference engine stopped while answering; it is being restarted. Try again.",
            status=503, kind="server_error", code="engine_restarted",
        )  # fmt: skip
    if isinstance(error, EngineError):
        return ApiError("The inference engine failed.", status=500, kind="server_error", code="engine_error")
    return ApiError("The replica could not answer.", status=500, kind="server_error")


def to_json(error: ApiError) -> bytes:
    """The error as a response body."""
    return json.dumps(
        {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}},
        separators=(",", ":"),
    ).encode()
