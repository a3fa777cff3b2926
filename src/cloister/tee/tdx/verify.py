"""Is this TDX quote genuine? The steps are numbered as in README.md beside this file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloister.tee import dcap
from cloister.tee.claims import Claims
from cloister.tee.context import Context
from cloister.tee.tdx import eventlog
from cloister.tee.tdx.eventlog import Event
from cloister.tee.tdx.evidence import TdQuote, TdReport

CHECKS: tuple[tuple[str, str], ...] = (
    *dcap.checks("tdx"),
    ("tdx.log", "6. An event log that came along counts only for registers whose signed value it replays to"),
)


@dataclass(frozen=True, kw_only=True)
class Details:
    """A verified quote, its TD report, and for each RTMR (0 to 3) that an event log replays to, the events."""

    verified: dcap.Verified
    report: TdReport
    events: Mapping[int, tuple[Event, ...]]


def verify(evidence: bytes, context: Context) -> Claims:
    """Claims of a genuine quote.

    Raises MalformedError, NotGenuineError, UndecidedError, and RefusedError for what dcap-qvl lets nobody accept.
    """
    with context.checklist.step("tdx.quote") as step:
        parsed = TdQuote.parse(evidence)
        step.detail = f"version {parsed.quote.version}"
    verified = dcap.verify("tdx", parsed.quote, context)
    report = parsed.report
    with context.checklist.step("tdx.log") as step:
        events = _replayed(context.collateral.of("tcg-event-log"), report)
        step.detail = ", ".join(f"RTMR{index}" for index in sorted(events)) or "no event log for this TD"
    return Claims(
        tee="tdx",
        genuine=verified.genuine,
        debug=report.debug,
        measurements={
            "mrtd": report.mr_td.hex(),
            **{f"rtmr{index}": value.hex() for index, value in enumerate(report.rtmrs)},
        },
        user_data=report.report_data,
        nonce=None,
        signed_at=None,
        chain=verified.chain,
        facts=verified.facts() | {"mrseam": report.mr_seam.hex(), "tee_tcb_svn": report.tee_tcb_svn.hex()},
        details=Details(verified=verified, report=report, events=events),
    )


def _replayed(logs: tuple[bytes, ...], report: TdReport) -> dict[int, tuple[Event, ...]]:
    found: dict[int, tuple[Event, ...]] = {}
    for log in logs:
        events = eventlog.parse(log)
        for index, value in enumerate(report.rtmrs):
            mine = eventlog.of_register(events, index, value)
            # A register that nothing extended needs no log.
            if mine:
                found.setdefault(index, mine)
    return found
