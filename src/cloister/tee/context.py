"""Everything that a verifier may look at beside the evidence: no network, no clock of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cloister.tee.checks import Checklist
from cloister.trust.anchors import Anchor
from cloister.trust.collateral import Collateral


@dataclass(frozen=True, kw_only=True)
class Context:
    """`now` is aware. `anchors` replaces the built-in roots of a format by name (a simulated or a test's root).

    `max_age` and `max_skew` bound the age of what carries a signed time. The caller has planned the format's checks in
    `checklist`.
    """

    now: datetime
    checklist: Checklist
    max_age: timedelta
    max_skew: timedelta
    anchors: Mapping[str, Sequence[Anchor]] = field(default_factory=dict)
    collateral: Collateral = field(default_factory=Collateral)

    def roots(self, name: str, built_in: Sequence[Anchor]) -> Sequence[Anchor]:
        """The roots that evidence of that format (or service) may chain to."""
        return self.anchors.get(name, built_in)
