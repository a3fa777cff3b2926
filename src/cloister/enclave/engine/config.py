"""How the engine is run. Every value is checked before llama.cpp sees it: some bad ones abort its process."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cloister.enclave.engine.gguf import Header
from cloister.errors import UsageError

BUNDLED_MODEL = Path(__file__).parent / "bundled" / "cloister-notes-q8_0.gguf"
#: Below this many parameters a second thread only waits for the first.
TINY = 50_000_000


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """`context` is in tokens for each of `slots` concurrent requests; 0 or None means chosen from the model.

    `batch` is the number of prompt tokens between two looks at whether the client is still there; it also bounds the
    tokens of one embedding input.
    """

    model: Path
    #: Hex SHA-256 of the file where it is known already (hashed while it was opened); else it is computed.
    model_sha256: str | None = None
    #: Map the file as it is: no second, repacked copy of the weights. Slower by a quarter, half the memory.
    one_copy: bool = False
    model_id: str | None = None
    context: int = 0
    slots: int = 4
    threads: int | None = None
    batch: int | None = None
    queue: int = 64

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("context", self.context, 0, 1 << 20),
            ("slots", self.slots, 1, 64),
            ("threads", self.threads if self.threads is not None else 1, 1, 512),
            ("batch", self.batch if self.batch is not None else 64, 8, 8192),
            ("queue", self.queue, 0, 100_000),
        ):
            if not low <= value <= high:
                raise UsageError(f"engine: {name} must be from {low} to {high}", hint="Choose a value in that range.")
        if self.model_id is not None and not (0 < len(self.model_id) <= 128 and self.model_id.isprintable()):
            raise UsageError("engine: the model id must be 1 to 128 printable characters", hint="Use a short name.")

    def resolve(self, header: Header) -> ResolvedConfig:
        """Fill what was left open from the model file."""
        tiny = header.parameters < TINY
        trained = header.context or 2048
        if self.context > trained:
            raise UsageError(
                f"engine: the model was trained for a context of {trained} tokens", hint="Ask for at most that."
            )
        # llama.cpp rounds a slot's context up to a multiple of 256: ask for what it would take.
        context = self.context or min(trained, 2048)
        return ResolvedConfig(
            model_id=self.model_id or header.name or self.model.stem,
            context=max(256, -(-context // 256) * 256),
            slots=self.slots,
            threads=self.threads or (1 if tiny else max(1, (os.cpu_count() or 2) - 1)),
            batch=self.batch or (512 if tiny else 128 if header.parameters < 500_000_000 else 64),
            queue=self.queue,
            one_copy=self.one_copy,
        )


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig:
    """EngineConfig with nothing left open."""

    model_id: str
    context: int
    slots: int
    threads: int
    batch: int
    queue: int
    one_copy: bool
