"""Evaluates key policies for the SIMULATED KMS, in the part of the policy language that key policies for enclaves use.

Source: IAM User Guide, "Policy evaluation logic", "IAM JSON policy elements: Condition operators" and "Multivalued
context keys"; AWS KMS Developer Guide, "Key policies". What is not understood is refused when the policy is set, never
skipped when it is evaluated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from cloister.platforms.qemu_nitro.kms.errors import KmsError

MAX_POLICY = 32 * 1024
VERSION = "2012-10-17"

_MEMBERS = frozenset({"Sid", "Effect", "Principal", "Action", "Resource", "Condition"})


class Outcome(Enum):
    """What the key policy says to a request."""

    ALLOWED = "allowed"
    #: The policy lets the account decide: an identity's own policy must allow it.
    DELEGATED = "delegated to the account"
    DENIED = "not allowed"
    EXPLICITLY_DENIED = "explicitly denied"


@dataclass(frozen=True, kw_only=True)
class Request:
    """Who asks for what; `context` maps condition keys in lower case to their values."""

    principal: str
    action: str
    resource: str
    context: Mapping[str, Sequence[str]]

    @property
    def account(self) -> str:
        """The account in the principal's ARN."""
        return self.principal.split(":")[4]


def evaluate(policy: Mapping[str, object], request: Request) -> Outcome:
    """An explicit deny wins, then an allow, then a delegation to the account; nothing else is allowed."""
    outcome = Outcome.DENIED
    for statement in _list(policy["Statement"]):
        assert isinstance(statement, dict)
        named = _principal(statement["Principal"], request)
        if named is None or not _acts(statement, request) or not _conditions(statement.get("Condition", {}), request):
            continue
        if statement["Effect"] == "Deny":
            return Outcome.EXPLICITLY_DENIED
        if named is Outcome.ALLOWED or outcome is Outcome.DENIED:
            outcome = named
    return outcome


def matches_action(patterns: Sequence[str], action: str) -> bool:
    """Does one of the patterns (`kms:Generate*`) name the action?"""
    return any(_like(action.lower(), pattern.lower()) for pattern in patterns)


def parse(text: str) -> dict[str, object]:
    """A key policy that `evaluate` understands whole; raises MalformedPolicyDocumentException."""
    try:
        if len(text) > MAX_POLICY:
            raise ValueError("it is longer than 32 kB")
        policy = json.loads(text)
        if not isinstance(policy, dict) or not set(policy) <= {"Version", "Id", "Statement"}:
            raise ValueError("members other than Version, Id and Statement")
        if policy.get("Version") != VERSION:
            raise ValueError(f"Version is not {VERSION}")
        statements = _list(policy["Statement"])
        for statement in statements:
            _check_statement(statement)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise KmsError("MalformedPolicyDocumentException", f"the key policy cannot be used: {error}") from None
    return policy


def _check_statement(statement: object) -> None:
    if not isinstance(statement, dict) or not set(statement) <= _MEMBERS:
        raise ValueError(f"a statement has members other than {', '.join(sorted(_MEMBERS))}")
    if statement["Effect"] not in ("Allow", "Deny"):
        raise ValueError("Effect is neither Allow nor Deny")
    principal = statement["Principal"]
    if principal != "*":
        if not isinstance(principal, dict) or set(principal) != {"AWS"}:
            raise ValueError("Principal is neither * nor AWS")
        _texts(principal["AWS"])
    _texts(statement["Action"])
    _texts(statement["Resource"])
    conditions = statement.get("Condition", {})
    if not isinstance(conditions, dict):
        raise ValueError("Condition is not an object")
    for operator, keys in conditions.items():
        quantifier, _, name = operator.rpartition(":")
        if name not in _OPERATORS or quantifier not in ("", "ForAllValues", "ForAnyValue"):
            raise ValueError(f"condition operator {operator}")
        if not isinstance(keys, dict) or not keys:
            raise ValueError(f"condition operator {operator} without keys")
        for values in keys.values():
            if name in ("Null", "Bool") and not set(_texts(values)) <= {"true", "false"}:
                raise ValueError(f"{operator} compares with true or false")
            _texts(values)


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _texts(value: object) -> list[str]:
    """A string or a list of strings; a JSON boolean counts as its name, as AWS reads it."""
    texts = [str(item).lower() if isinstance(item, bool) else item for item in _list(value)]
    if not texts or not all(isinstance(item, str) for item in texts):
        raise ValueError("a value is not text")
    return [item for item in texts if isinstance(item, str)]


def _principal(principal: object, request: Request) -> Outcome | None:
    """ALLOWED when the statement names the caller, DELEGATED when it names his account, None when neither."""
    named = ["*"] if principal == "*" else _texts(principal["AWS"]) if isinstance(principal, dict) else []
    if "*" in named or request.principal in named:
        return Outcome.ALLOWED
    if {request.account, f"arn:aws:iam::{request.account}:root"} & set(named):
        return Outcome.DELEGATED
    return None


def _acts(statement: Mapping[str, object], request: Request) -> bool:
    resources = _texts(statement["Resource"])
    return matches_action(_texts(statement["Action"]), request.action) and any(
        _like(request.resource, pattern) for pattern in resources
    )


def _conditions(conditions: object, request: Request) -> bool:
    """All operators and all keys must hold."""
    assert isinstance(conditions, dict)
    return all(
        _holds(operator, request.context.get(key.lower()), _texts(wanted))
        for operator, keys in conditions.items()
        for key, wanted in keys.items()
    )


def _holds(operator: str, found: Sequence[str] | None, wanted: Sequence[str]) -> bool:
    quantifier, _, name = operator.rpartition(":")
    if name == "Null":
        return ("true" in wanted) == (found is None)
    one, negated = _OPERATORS[name]
    if quantifier == "ForAllValues":
        # True for a key that is missing or empty: the well-known trap, kept as it is at AWS.
        return all(_one(one, negated, value, wanted) for value in found or ())
    if quantifier == "ForAnyValue":
        return any(_one(one, negated, value, wanted) for value in found or ())
    if found is None:
        # A negated operator holds for a key that is not there.
        return negated
    return len(found) == 1 and _one(one, negated, found[0], wanted)


def _one(match: Callable[[str, str], bool], negated: bool, value: str, wanted: Sequence[str]) -> bool:
    return any(match(value, item) for item in wanted) != negated


def _equal(value: str, wanted: str) -> bool:
    return value == wanted


def _equal_ignoring_case(value: str, wanted: str) -> bool:
    return value.casefold() == wanted.casefold()


def _like(value: str, wanted: str) -> bool:
    pattern = re.escape(wanted).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(pattern, value, re.DOTALL) is not None


#: Name -> (comparison, negated).
_OPERATORS: Mapping[str, tuple[Callable[[str, str], bool], bool]] = {
    "StringEquals": (_equal, False),
    "StringNotEquals": (_equal, True),
    "StringEqualsIgnoreCase": (_equal_ignoring_case, False),
    "StringNotEqualsIgnoreCase": (_equal_ignoring_case, True),
    "StringLike": (_like, False),
    "StringNotLike": (_like, True),
    "ArnEquals": (_like, False),
    "ArnNotEquals": (_like, True),
    "Bool": (_equal_ignoring_case, False),
    "Null": (_equal, False),
}
