"""The verdict: every check in order, what became of it, and what follows. The same object on success and on failure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TypedDict

from cloister.errors import CloisterError, MalformedError, NotGenuineError, RefusedError
from cloister.policy.checks import REQUIRED, may_be_waived, required_of
from cloister.tee.checks import Check, Checklist, Status
from cloister.tee.claims import Claims
from cloister.wire import strict_json

SCHEMA = "cloister-verdict/1"
MAX_REPORT = 256 * 1024
_MAX_CHECKS = 256
_MAX_NAMES = 256
_WHAT = "verdict"


class Subject(StrEnum):
    """What was appraised."""

    #: A replica's key, bound by evidence: something may be sent to it.
    KEY = "key"
    #: Evidence alone: it says that a TEE exists, and nothing may be sent because of it.
    EVIDENCE = "evidence"


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

    `measurements`, `chain` and `facts` are what the evidence says, once it proved genuine; `statement` is what the key
    statement says, once the evidence proved to bind it: before that they are empty. `appraised_at` is aware.
    An accepted verdict with an open check, without one that every appraisal makes, or with a waiver of one that nobody
    may waive cannot be made: ValueError.
    """

    outcome: Outcome
    simulated: bool
    checks: tuple[Check, ...]
    subject: Subject = Subject.KEY
    policy_name: str
    policy_sha256: str
    appraised_at: datetime
    tee: str = ""
    measurements: Mapping[str, str] = field(default_factory=dict)
    statement: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    chain: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.appraised_at.tzinfo is None:
            raise ValueError("appraised_at has no time zone")
        if len({check.id for check in self.checks}) != len(self.checks):
            raise ValueError("a check occurs twice")
        if self.outcome is not Outcome.ACCEPTED:
            return
        if not self.checks or any(check.status not in (Status.PASSED, Status.WAIVED) for check in self.checks):
            raise ValueError("an accepted verdict has every check passed or waived")
        missing = (REQUIRED[self.subject] | required_of(self.tee.split())) - {check.id for check in self.checks}
        if missing:
            raise ValueError(f"an accepted verdict lacks checks: {', '.join(sorted(missing))}")
        if any(check.status is Status.WAIVED and not may_be_waived(check.id) for check in self.checks):
            raise ValueError("an accepted verdict waives only what a policy may waive")

    @property
    def accepted(self) -> bool:
        """Did every check pass? Something may be sent only if the subject is a key, too."""
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
            "subject": str(self.subject),
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
            "chain": list(self.chain),
        }

    @classmethod
    def from_json(cls, data: bytes) -> Verdict:
        """Read what `to_json` wrote, to show it again; raises MalformedError.

        Nobody signed a stored verdict: it tells what its writer found, and is no reason to send anything.
        """
        members = strict_json.loads(data, _WHAT, limit=MAX_REPORT)
        simulated = members.pop("simulated", None)
        fields = strict_json.Fields(members, _WHAT)
        if not isinstance(simulated, bool):
            raise MalformedError(f"{_WHAT}: simulated must be true or false")
        if fields.text("schema") != SCHEMA:
            raise MalformedError(f"{_WHAT}: the schema is not {SCHEMA}")
        policy = fields.member("policy")
        exit_code = fields.integer("exit_code")
        try:
            verdict = cls(
                subject=Subject(fields.text("subject")),
                outcome=Outcome(fields.text("outcome")),
                simulated=simulated,
                checks=tuple(_check(item) for item in fields.array("checks", limit=_MAX_CHECKS)),
                policy_name=policy.text("name"),
                policy_sha256=policy.text("sha256"),
                appraised_at=datetime.fromisoformat(fields.text("appraised_at")),
                tee=fields.text("tee"),
                measurements=_strings(fields.member("measurements")),
                statement=_strings(fields.member("statement")),
                facts=_strings(fields.member("facts")),
                chain=tuple(_string(item) for item in fields.array("chain", limit=_MAX_CHECKS)),
            )
        except ValueError:
            # Of an enumeration, of a time, or of a verdict that claims more than its checks.
            raise MalformedError(f"{_WHAT}: it contradicts itself or holds an unknown value") from None
        policy.done()
        fields.done()
        if exit_code != verdict.outcome.exit_code:
            raise MalformedError(f"{_WHAT}: the exit code is not that of the outcome")
        return verdict


def _check(item: object) -> Check:
    if not isinstance(item, dict):
        raise MalformedError(f"{_WHAT}: checks must hold objects")
    fields = strict_json.Fields(item, f"{_WHAT}: a check")
    check = Check(
        id=fields.text("id"),
        title=fields.text("title"),
        status=Status(fields.text("status")),
        detail=fields.text("detail", limit=MAX_REPORT),
    )
    fields.done()
    # What is shown must not be able to move the terminal's cursor, and pose as another line.
    if not all(text.isprintable() for text in (check.id, check.title, check.detail)):
        raise MalformedError(f"{_WHAT}: a check is not printable")
    return check


def _strings(fields: strict_json.Fields) -> dict[str, str]:
    if len(fields.names()) > _MAX_NAMES:
        raise MalformedError(f"{_WHAT}: more than {_MAX_NAMES} names in one object")
    return {name: fields.text(name, limit=MAX_REPORT) for name in sorted(fields.names())}


def _string(item: object) -> str:
    if not isinstance(item, str):
        raise MalformedError(f"{_WHAT}: chain must hold strings")
    return item


class _Told(TypedDict, total=False):
    tee: str
    measurements: Mapping[str, str]
    facts: Mapping[str, str]
    chain: tuple[str, ...]


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
    error: CloisterError,
    checklist: Checklist,
    *,
    policy_name: str,
    policy_sha256: str,
    now: datetime,
    simulated: bool,
    subject: Subject = Subject.KEY,
    claims: tuple[Claims, ...] = (),
    statement: Mapping[str, str] | None = None,
) -> Verdict:
    """The verdict of an appraisal that `error` ended; `claims` and `statement` as far as they were established."""
    return Verdict(
        outcome=outcome_of(error),
        subject=subject,
        simulated=simulated,
        checks=checklist.results(),
        policy_name=policy_name,
        policy_sha256=policy_sha256,
        appraised_at=now,
        statement=statement or {},
        **told_by(claims),
    )


def told_by(claims: tuple[Claims, ...]) -> _Told:
    """The fields of a verdict that come from verified claims: names of the first bare, of all others with their TEE."""
    if not claims:
        return {}
    named = [(each, "" if each is claims[0] else f"{each.tee}.") for one in claims for each in one.flat()]
    return {
        "tee": " ".join(each.tee for each, _ in named),
        "measurements": {
            f"{prefix}{name}": value for each, prefix in named for name, value in each.measurements.items()
        },
        "facts": {f"{prefix}{name}": value for each, prefix in named for name, value in _facts(each).items()},
        "chain": tuple(subject for each, _ in named for subject in each.chain),
    }


def _facts(claims: Claims) -> dict[str, str]:
    signed_at = claims.signed_at.isoformat() if claims.signed_at else ""
    return {**claims.facts, "signed_at": signed_at}
