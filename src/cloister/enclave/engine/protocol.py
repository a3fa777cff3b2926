"""What the gateway needs of an engine; any OpenAI-compatible local server can stand behind it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from cloister.api.requests import EmbeddingRequest, Generation

State = Literal["stopped", "starting", "ready", "restarting", "failed"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A step of starting: `stage` is hashing, loading or warming; `done` is a fraction where it is known."""

    stage: Literal["hashing", "loading", "warming"]
    done: float | None = None


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """What is loaded: `model_sha256` is of the file's bytes, `context` in tokens for each of `slots` requests."""

    model_id: str
    model_sha256: str
    architecture: str
    parameters: int
    context: int
    slots: int
    engine: str


OnProgress = Callable[[Progress], None]


class Engine(Protocol):
    """One loaded model."""

    @property
    def state(self) -> State:
        """Where the engine is in its life."""
        ...

    @property
    def info(self) -> EngineInfo:
        """What is loaded; only after `start`."""
        ...

    async def start(self, on_progress: OnProgress | None = None) -> None:
        """Load and answer one token; raises ModelLoadError."""
        ...

    async def stop(self) -> None:
        """End every request and the engine."""
        ...

    def stream(self, request: Generation) -> AsyncGenerator[list[bytes], None]:
        """OpenAI chunk objects as JSON, in batches as they come; closing the iterator frees the slot.

        The last chunk has no choices and reports usage, whether or not the request asked for it.
        Raises ApiError, EngineCrashed or EngineError.
        """
        ...

    async def call(self, request: Generation | EmbeddingRequest) -> bytes:
        """The whole answer as OpenAI JSON; cancelling the task frees the slot."""
        ...
