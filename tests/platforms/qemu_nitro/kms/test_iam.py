"""The part of the policy language that the SIMULATED KMS evaluates, rule by rule of the IAM User Guide."""

from __future__ import annotations

import json

import pytest

from cloister.platforms.qemu_nitro.kms import iam
from cloister.platforms.qemu_nitro.kms.errors import KmsError

ME, KEY = "arn:aws:iam::111122223333:role/me", "arn:aws:kms:us-east-1:111122223333:key/k"
ALLOW = {"Effect": "Allow", "Principal": {"AWS": ME}, "Action": "kms:*", "Resource": "*"}


def outcome(*statements: dict, principal: str = ME, action: str = "kms:Decrypt", **context: list[str]) -> str:
    policy = iam.parse(json.dumps({"Version": "2012-10-17", "Statement": list(statements)}))
    named = {name.replace("__", ":"): values for name, values in context.items()}
    return iam.evaluate(
        policy, iam.Request(principal=principal, action=action, resource=KEY, context=named)
    ).name  # fmt: skip


def holds(operator: str, wanted: object, found: list[str] | None) -> bool:
    statement = ALLOW | {"Condition": {operator: {"kms:Some": wanted}}}
    return outcome(statement, **({} if found is None else {"kms__some": found})) == "ALLOWED"


def test_order_does_not_matter_and_deny_wins() -> None:
    deny = ALLOW | {"Effect": "Deny"}
    assert outcome(ALLOW) == "ALLOWED"
    assert outcome(ALLOW, deny) == outcome(deny, ALLOW) == "EXPLICITLY_DENIED"
    assert outcome(ALLOW, deny | {"Action": "kms:Encrypt"}) == "ALLOWED"


@pytest.mark.parametrize(
    ("principal", "expected"),
    [
        ("*", "ALLOWED"), ({"AWS": "*"}, "ALLOWED"), ({"AWS": ["x", ME]}, "ALLOWED"), ({"AWS": "111122223333"}, "DELEGATED"),
        ({"AWS": "arn:aws:iam::111122223333:root"}, "DELEGATED"), ({"AWS": "arn:aws:iam::999999999999:root"}, "DENIED"),
        ({"AWS": ME + "2"}, "DENIED"), ({"AWS": "arn:aws:iam::111122223333:role/*"}, "DENIED"),
    ],
)  # fmt: skip
def test_principals(principal: object, expected: str) -> None:
    assert outcome(ALLOW | {"Principal": principal}) == expected


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [("kms:Decrypt", True), ("KMS:decrypt", True), ("kms:Dec*", True), ("kms:Encrypt", False), ("kms:Decryp?", True),
     (["kms:Encrypt", "kms:Decrypt"], True), ("kms:[D]ecrypt", False)],
)  # fmt: skip
def test_actions(pattern: object, matches: bool) -> None:
    assert (outcome(ALLOW | {"Action": pattern}) == "ALLOWED") == matches


@pytest.mark.parametrize(
    ("operator", "wanted", "found", "expected"),
    [
        ("StringEquals", "a", ["a"], True), ("StringEquals", "a", ["A"], False), ("StringEquals", ["b", "a"], ["a"], True),
        ("StringEquals", "a", None, False), ("StringEquals", "*", ["a"], False),
        ("StringEqualsIgnoreCase", "aB", ["Ab"], True), ("StringEqualsIgnoreCase", "a", None, False),
        ("StringNotEquals", "a", ["b"], True), ("StringNotEquals", "a", ["a"], False),
        ("StringNotEquals", ["a", "b"], ["b"], False), ("StringNotEquals", "a", None, True),
        ("StringLike", "a*c?", ["abcd"], True), ("StringLike", "a.c", ["abc"], False), ("StringNotLike", "a*", ["b"], True),
        ("ArnEquals", "arn:*:x", ["arn:y:x"], True), ("ArnNotEquals", "arn:y", ["arn:y"], False),
        ("Null", "true", None, True), ("Null", "true", ["a"], False), ("Null", "false", ["a"], True),
        ("Null", "false", None, False), ("Null", True, None, True),
        ("Bool", "true", ["true"], True), ("Bool", "true", ["false"], False), ("Bool", "true", None, False),
        ("ForAllValues:StringEquals", ["a", "b"], ["a"], True), ("ForAllValues:StringEquals", ["a"], ["a", "b"], False),
        ("ForAllValues:StringEquals", ["a"], None, True), ("ForAnyValue:StringEquals", ["a"], ["b", "a"], True),
        ("ForAnyValue:StringEquals", ["a"], None, False), ("ForAnyValue:StringNotEquals", ["a"], ["a", "b"], True),
        ("ForAllValues:StringNotEquals", ["a"], ["a", "b"], False),
        # A key of several values never satisfies an operator for one value.
        ("StringEquals", ["a", "b"], ["a", "b"], False),
    ],
)  # fmt: skip
def test_conditions(operator: str, wanted: object, found: list[str] | None, expected: bool) -> None:
    assert holds(operator, wanted, found) == expected


def test_all_conditions_must_hold() -> None:
    both = ALLOW | {"Condition": {"StringEquals": {"kms:A": "1", "kms:B": "2"}, "Null": {"kms:C": "true"}}}
    assert outcome(both, kms__a=["1"], kms__b=["2"]) == "ALLOWED"
    assert outcome(both, kms__a=["1"]) == "DENIED"
    assert outcome(both, kms__a=["1"], kms__b=["2"], kms__c=["x"]) == "DENIED"


@pytest.mark.parametrize(
    "change",
    [
        {"Effect": "Perhaps"}, {"Principal": {"Service": "x"}}, {"Principal": ME}, {"NotPrincipal": {"AWS": ME}},
        {"NotAction": "kms:Decrypt"}, {"NotResource": "*"}, {"Action": []}, {"Resource": 5}, {"Condition": []},
        {"Condition": {"NumericEquals": {"a": "1"}}}, {"Condition": {"StringEqualsIfExists": {"a": "1"}}},
        {"Condition": {"ForSome:StringEquals": {"a": "1"}}}, {"Condition": {"StringEquals": {}}},
        {"Condition": {"StringEquals": {"a": [None]}}}, {"Condition": {"Null": {"a": "maybe"}}},
    ],
)  # fmt: skip
def test_what_is_not_understood_is_not_accepted(change: dict) -> None:
    with pytest.raises(KmsError) as error:
        outcome(ALLOW | change)
    assert error.value.code == "MalformedPolicyDocumentException"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"Version":"2008-10-17","Statement":[]}', '{"Version":"2012-10-17"}', "[" * 100_000]
)
def test_not_a_policy(text: str) -> None:
    with pytest.raises(KmsError):
        iam.parse(text)
