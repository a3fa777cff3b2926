"""The verdict: every check in order, what became of it, and what follows. The same object on success and on failure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from cloister.errors import CloisterError, MalformedError, NotGenuineError, RefusedError
from cloister.tee.checks import Check, Checklist, Status

SCHEMA = "cloister-verdict/1"


class Outcome(StrEnum):
    """What an appraisal came to; each has one exit code."""

    ACCEPTED = "accepted"
    MALFORMED = "malformed"
    NOT_GENUINE = "not-genuine"
    REFUSED = "refused"
    UNDECIDED = "undecided"

    @property
    def exit_code(self) -> int:
        """0, 3, 4, 5 or 6."""
        return _EXIT_CODES[self]


_EXIT_CODES = {
    Outcome.ACCEPTED: 0,
    Outcome.MALFORMED: 3,
    Outcome.NOT_GENUINE: 4,
    Outcome.REFUSED: 5,
    Outcome.UNDECIDED: 6,
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`simulated` is True when the evidence chains to a root made in software, or when that could not be excluded.

    `measurements` are the replica's register values, `statement` what its key statement says; both are empty until the
    checks came that far. An accepted verdict with an open check cannot be made.
    """

    outcome: Outcome
    simulated: bool
    checks: tuple[Check, ...]
    policy_name: str
    policy_sha256: str
    appraised_at: datetime
    tee: str = ""
    measurements: Mapping[str, str] = field(default_factory=dict)
    statement: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.outcome is Outcome.ACCEPTED and (
            not self.checks or any(check.status not in (Status.PASSED, Status.WAIVED) for check in self.checks)
        ):
            raise ValueError("an accepted verdict has every check passed or waived")

    @property
    def accepted(self) -> bool:
        """May something be sent?"""
        return self.outcome is Outcome.ACCEPTED

    def summary(self) -> str:
        """One line for people; begins with SIMULATED when it must."""
        failed = next((check for check in self.checks if check.status is Status.FAILED), None)
        waived = sum(check.status is Status.WAIVED for check in self.checks)
        text = f"{self.outcome} by policy {self.policy_name!r}: "
        if failed is not None:
            text += f"{failed.id}: {failed.detail}"
        else:
            text += f"{len(self.checks) - waived} checks passed" + (f", {waived} waived" if waived else "")
        return f"SIMULATED, NOT A TEE: {text}" if self.simulated else text

    def to_json(self) -> dict[str, object]:
        """The verdict as JSON-ready values, schema cloister-verdict/1."""
        return {
            "schema": SCHEMA,
            "outcome": str(self.outcome),
            "exit_code": self.outcome.exit_code,
            "simulated": self.simulated,
            "tee": self.tee,
            "policy": {"name": self.policy_name, "sha256": self.policy_sha256},
            "appraised_at": self.appraised_at.isoformat(),
            "checks": [
                {"id": check.id, "title": check.title, "status": str(check.status), "detail": check.detail}
                for check in self.checks
            ],
            "measurements": dict(self.measurements),
            "statement": dict(self.statement),
            "facts": dict(self.facts),
        }


def outcome_of(error: CloisterError) -> Outcome:
    """What an error that ended an appraisal makes of it; anything unforeseen is undecided, never accepted."""
    for kind, outcome in (
        (MalformedError, Outcome.MALFORMED),
        (NotGenuineError, Outcome.NOT_GENUINE),
        (RefusedError, Outcome.REFUSED),
    ):
        if isinstance(error, kind):
            return outcome
    return Outcome.UNDECIDED


def failed_verdict(
    error: CloisterError, checklist: Checklist, *, policy_name: str, policy_sha256: str, now: datetime, simulated: bool
) -> Verdict:
    """The verdict of an appraisal that `error` ended."""
    return Verdict(
        outcome=outcome_of(error),
        simulated=simulated,
        checks=checklist.results(),
        policy_name=policy_name,
        policy_sha256=policy_sha256,
        appraised_at=now,
    )
