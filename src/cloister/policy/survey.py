"""How far a policy document is: every rule stated, waived, missing, left to fill in or wrong, not only the first."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from cloister.errors import PolicyDocumentError
from cloister.policy.checks import WAIVABLE, rule_name
from cloister.policy.document import MAX_POLICY, RULES, SECTIONS, Policy, chosen, unfilled
from cloister.policy.explain import plain
from cloister.tee import FORMATS
from cloister.tee.format import Format
from cloister.wire import toml

SCHEMA = "cloister-policy-check/1"
MAX_KEY = 64


class State(StrEnum):
    """How a rule stands in a document."""

    STATED = "stated"
    WAIVED = "waived"
    MISSING = "missing"
    UNFILLED = "to fill in"
    WRONG = "wrong"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One rule. `detail` is a waiver's reason, an example of what is missing, places to fill in, or what is wrong."""

    rule: str
    title: str
    state: State
    detail: str
    waivable: bool


@dataclass(frozen=True, kw_only=True)
class Survey:
    """`problems` are what no row shows. `complete` is true exactly where Policy.from_toml reads the document."""

    rows: tuple[Row, ...]
    problems: tuple[str, ...]
    complete: bool

    def to_json(self) -> dict[str, object]:
        """For programs: schema `cloister-policy-check/1`."""
        rows = [
            {"rule": row.rule, "title": row.title, "state": row.state, "detail": row.detail, "waivable": row.waivable}
            for row in self.rows
        ]
        return {"schema": SCHEMA, "complete": self.complete, "rules": rows, "problems": list(self.problems)}


@dataclass(frozen=True, kw_only=True)
class _Known:
    """A rule of the document, wherever it comes from."""

    name: str
    title: str
    example: str
    waivable: bool
    table: toml.Table
    read: Callable[[toml.Table], object]


def survey(data: bytes) -> Survey:
    """Look at every rule of a document; raises PolicyDocumentError only for what is not TOML or too large."""
    root = toml.parse(data, limit=MAX_POLICY)
    problems = list[str]()
    formats: tuple[Format, ...] | None = None
    try:
        formats = tuple(form for part in chosen(root.table("tee")) for form in part)
    except PolicyDocumentError as error:
        problems.append(f"{error.message}. {error.hint}")
    reasons, places = _reasons(root), unfilled(root)
    rows = tuple(_row(each, reasons, places) for each in _known(root, formats or (), problems))
    problems += _unknown(root, formats)
    shown = {place for row in rows if row.state is State.UNFILLED for place in row.detail.split(", ")}
    problems += [f"{place} is to be filled in" for place in places if place not in shown]
    error_message = ""
    try:
        Policy.from_toml(data)
    except PolicyDocumentError as error:
        error_message = error.message
    # What this overview does not see, the reader itself does.
    if error_message and not problems and all(row.state in (State.STATED, State.WAIVED) for row in rows):
        problems.append(error_message)
    return Survey(rows=rows, problems=tuple(problems), complete=not error_message)


def _known(root: toml.Table, formats: Iterable[Format], problems: list[str]) -> Iterator[_Known]:
    sections = {part: _table(root, part, problems) for part in (*SECTIONS, *(form.name for form in formats))}
    for name, rule in RULES.items():
        yield _Known(
            name=name,
            title=rule.title,
            example=rule.example,
            waivable=name in WAIVABLE,
            table=sections.get(name.partition(".")[0], root),
            read=rule.read,
        )
        for form in formats if name == "tee.accept" else ():
            for each in form.rules:
                yield _Known(
                    name=rule_name(form, each.name),
                    title=plain(each.title),
                    example=each.example,
                    waivable=each.waivable,
                    table=sections[form.name],
                    read=each.read,
                )


def _table(root: toml.Table, name: str, problems: list[str]) -> toml.Table:
    try:
        return root.table(name)
    except PolicyDocumentError as error:
        problems.append(error.message)
        return toml.Table({}, name)


def _reasons(root: toml.Table) -> dict[str, str]:
    """Waivers as far as they can be read; what is wrong with one, the reader tells."""
    try:
        return {item.text("rule") or "": item.line("reason") or "" for item in root.tables("waive")}
    except PolicyDocumentError:
        return {}


def _row(rule: _Known, reasons: Mapping[str, str], places: Iterable[str]) -> Row:
    def row(state: State, detail: str = "") -> Row:
        return Row(rule=rule.name, title=rule.title, state=state, detail=detail, waivable=rule.waivable)

    left = [place for place in places if place == rule.name or place.startswith((f"{rule.name}.", f"{rule.name}["))]
    if left:
        return row(State.UNFILLED, ", ".join(left))
    try:
        value = rule.read(rule.table)
    except PolicyDocumentError as error:
        return row(State.WRONG, f"{error.message}. {error.hint}")
    if rule.name not in reasons:
        return row(State.STATED) if value is not None else row(State.MISSING, rule.example)
    if value is not None:
        return row(State.WRONG, "both stated and waived")
    return row(State.WAIVED, reasons[rule.name]) if rule.waivable else row(State.WRONG, "it cannot be waived")


def _unknown(root: toml.Table, formats: tuple[Format, ...] | None) -> Iterator[str]:
    """Keys that nothing reads, with the nearest that something does. Inner tables are their rule's own business."""
    known: dict[str, set[str]] = {part: set() for part in SECTIONS}
    known["tee"] |= {"inside", "gpu", "allow_simulated", "simulated_root_pem"}
    for form in formats or ():
        known[form.name] = {*(rule.name for rule in form.rules), *(root.key for root in form.roots)}
    for name in RULES:
        part, _, key = name.partition(".")
        known.setdefault("" if not key else part, set()).add(key or part)
    # Without the accepted formats nobody can say whose table one is.
    known[""] |= {"schema", "waive", *known, *(FORMATS if formats is None else ())}
    for part, keys in known.items():
        table = root.members if not part else root.members.get(part)
        for key in table if isinstance(table, Mapping) else ():
            if key not in keys:
                path = toml.Table({}, part).name(key)
                near = difflib.get_close_matches(key[:MAX_KEY], keys, n=1)
                if not part and key in FORMATS:
                    yield f"{path}: the policy does not accept that format"
                else:
                    yield f"unknown key {path}" + (f": is it {near[0]}?" if near else "")
