"""The ordered list of checks that every verifier and appraiser fills in as it goes.

A verifier declares its checks before it starts, so that a verdict can show what was *not reached* as plainly as what
passed: nothing is unchecked by omission.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from cloister.errors import CloisterError


class Status(StrEnum):
    """What became of a check."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_REACHED = "not-reached"
    WAIVED = "waived"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check: `id` is stable and dotted (`nitro.signature`), `title` is a sentence, `detail` is what was seen."""

    id: str
    title: str
    status: Status
    detail: str = ""


class Step:
    """The check in progress; set `detail` to what was seen."""

    def __init__(self) -> None:
        self.detail = ""
        self.waived = False

    def waive(self, reason: str) -> None:
        """Record that the policy waives this check, with the reason it gives."""
        self.waived = True
        self.detail = reason


class Checklist:
    """Checks in the order they were planned; a failed one ends the run, the rest stay not reached."""

    def __init__(self) -> None:
        self._planned: dict[str, str] = {}
        self._results: dict[str, Check] = {}

    def plan(self, checks: Sequence[tuple[str, str]], *, after: str | None = None) -> None:
        """Add `(id, title)` pairs to the end of the plan, or right after the planned check `after`.

        The latter is for an envelope that learns only on the way what it holds.
        """
        for check_id, _ in checks:
            if check_id in self._planned:
                raise ValueError(f"check {check_id} is planned twice")
        items = list(self._planned.items())
        at = len(items) if after is None else list(self._planned).index(after) + 1
        self._planned = dict((*items[:at], *checks, *items[at:]))

    def __contains__(self, check_id: str) -> bool:
        """Is the check planned?"""
        return check_id in self._planned

    @contextmanager
    def step(self, check_id: str) -> Iterator[Step]:
        """Run one planned check: leaving normally passes it, a CloisterError fails it and goes on up."""
        title = self._planned[check_id]
        if check_id in self._results:
            raise ValueError(f"check {check_id} runs twice")
        step = Step()
        try:
            yield step
        except CloisterError as error:
            self._results[check_id] = Check(id=check_id, title=title, status=Status.FAILED, detail=error.message)
            raise
        status = Status.WAIVED if step.waived else Status.PASSED
        self._results[check_id] = Check(id=check_id, title=title, status=status, detail=step.detail)

    def results(self) -> tuple[Check, ...]:
        """Every planned check in order."""
        return tuple(
            self._results.get(check_id, Check(id=check_id, title=title, status=Status.NOT_REACHED))
            for check_id, title in self._planned.items()
        )

    def complete(self) -> bool:
        """Has every planned check passed or been waived? An appraisal that forgot one must not succeed."""
        return all(check.status in (Status.PASSED, Status.WAIVED) for check in self.results())
