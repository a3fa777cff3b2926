"""Runs the formats of this folder, and their rules from TOML."""

from __future__ import annotations

from datetime import datetime, timedelta

from cloister.tee import registry
from cloister.tee.checks import Check, Checklist
from cloister.tee.claims import Claims
from cloister.tee.context import Context
from cloister.trust.collateral import Collateral, Item
from cloister.wire import toml


def context(
    name: str, *items: Item, now: datetime, anchors: dict | None = None, max_age: timedelta = timedelta(hours=1)
) -> Context:
    """With the format's checks planned."""
    checklist = Checklist()
    checklist.plan(registry.get(name).checks)
    return Context(
        now=now, checklist=checklist, max_age=max_age, max_skew=timedelta(seconds=60),
        anchors=anchors or {}, collateral=Collateral(items),
    )  # fmt: skip


def verify(name: str, evidence: bytes, *items: Item, **options: object) -> Claims:
    """Through the registered format; every planned check, the enveloped format's too, must have passed."""
    given = context(name, *items, **options)
    claims = registry.get(name).verify(evidence, given)
    assert given.checklist.complete()
    return claims


def checks(name: str, evidence: bytes, *items: Item, **options: object) -> tuple[Exception | None, dict[str, Check]]:
    """The error, if any, and every check."""
    given, error = context(name, *items, **options), None
    try:
        registry.get(name).verify(evidence, given)
    except Exception as caught:
        error = caught
    return error, {check.id: check for check in given.checklist.results()}


def rule(claims: Claims, name: str, text: str) -> str:
    """What one rule, stated in the format's table, saw."""
    found = next(each for each in registry.get(claims.tee).rules if each.name == name)
    table = toml.parse(text.encode(), limit=100_000)
    value = found.read(table)
    table.done()
    assert value is not None
    return found.check(claims, value)
