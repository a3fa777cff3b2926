"""What evidence needs beside it, said by its format: a question for whoever has a network. No I/O here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from cloister.trust.collateral import KINDS


@dataclass(frozen=True)
class Life:
    """From when to when an item says that it holds (aware)."""

    start: datetime
    until: datetime


@dataclass(frozen=True, kw_only=True)
class Need:
    """One item: a kind of KINDS, and what tells it from others of its kind (docs/collateral.md has the names).

    It comes from evidence that nobody has verified, so a parameter is a stranger's word: where it becomes part of an
    address it is matched against a pattern, and it never names a host that is not listed. `check`, for kinds that only
    the format can read, gets the answer and gives its life; it raises MalformedError, or NotGenuineError for the answer
    to another question. `otherwise` is what to ask where the service does not know this one. `then` gets the answer and
    gives what that needs in turn (a manifest: whether its signer was revoked); it raises MalformedError.
    """

    kind: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[bytes], Life] | None = None
    otherwise: Need | None = None
    then: Callable[[bytes], tuple[Need, ...]] | None = None

    @property
    def question(self) -> tuple[object, ...]:
        """What is asked, to compare by."""
        return (self.kind, *sorted(self.parameters.items()))

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(self.kind)
