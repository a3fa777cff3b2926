"""A policy in words: what every rule demands, and what the whole does about each published attack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from cloister.policy import checks
from cloister.policy.attacks import ATTACKS, Attack
from cloister.policy.checks import rule_name
from cloister.policy.document import MAX_POLICY, RULES, Policy
from cloister.tee import registry
from cloister.wire import toml

SCHEMA = "cloister-policy-explained/1"
#: What nobody can read off a document.
ASSUMES = "every minimum is the number that the vendor's bulletin or today's collateral names"
_LONG = 24


class Effect(StrEnum):
    """What a policy does about an attack, the worst of its formats."""

    #: Evidence that passes is of a machine that is not open to it.
    COVERED = "covered"
    #: The rules make it harder or say whose machine it would be; the rest no verifier sees.
    NARROWED = "narrowed"
    #: A rule that answers it is waived, or states less than it could.
    WEAKENED = "weakened"
    #: No verifier can see it.
    UNSEEN = "unseen"
    #: No format of this policy is hit.
    ABSENT = "absent"


@dataclass(frozen=True, kw_only=True)
class Demand:
    """One rule: `value` as the document states it, None where the rule is waived for `reason`."""

    rule: str
    format: str
    title: str
    value: object
    reason: str | None

    def words(self) -> str:
        """What is demanded, or why nothing is."""
        return f"waived: {self.reason}" if self.reason is not None else f"demands {words(self.value)}"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a policy does about one attack: the rules and checks that answer it, and the gaps, each with why."""

    attack: Attack
    effect: Effect
    by: tuple[str, ...]
    gaps: Mapping[str, str]
    #: Formats that are hit and have no rule against it.
    bare: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """All of a policy."""

    policy: Policy
    demands: tuple[Demand, ...]
    answers: tuple[Answer, ...]

    def to_json(self) -> dict[str, object]:
        """For programs: schema `cloister-policy-explained/1`."""
        return {
            "schema": SCHEMA,
            "name": self.policy.name,
            "sha256": self.policy.sha256,
            "simulated_allowed": self.policy.allow_simulated,
            "rules": [
                {
                    "rule": each.rule,
                    "format": each.format,
                    "title": each.title,
                    "waived": each.reason is not None,
                    **({"value": each.value} if each.reason is None else {"reason": each.reason}),
                }
                for each in self.demands
            ],
            "assumes": ASSUMES,
            "attacks": [
                {
                    "id": each.attack.id,
                    "title": each.attack.title,
                    "year": each.attack.year,
                    "effect": each.effect,
                    "by": list(each.by),
                    "gaps": dict(each.gaps),
                    "without_rule": list(each.bare),
                    "unseen": each.attack.unseen,
                    "uncertain": each.attack.uncertain,
                    "page": f"docs/attacks/{each.attack.page}",
                }
                for each in self.answers
            ],
        }


def explain(data: bytes) -> Explanation:
    """What a document says; raises PolicyDocumentError for one that is not complete."""
    policy = Policy.from_toml(data)
    root = toml.parse(data, limit=MAX_POLICY).members
    demands = tuple(_demands(policy, root))
    answers = tuple(_answer(each, policy, demands) for each in ATTACKS)
    return Explanation(policy=policy, demands=demands, answers=answers)


def formats(policy: Policy) -> tuple[str, ...]:
    """Every format whose rules count for this policy."""
    return (*policy.tees, *policy.inside, *policy.gpus)


def plain(title: str) -> str:
    """A rule's title without its number in the folder's own list."""
    number, _, rest = title.partition(". ")
    return rest if number.replace("-", "").isdigit() else title


def words(value: object) -> str:
    """A stated value for people; long hex is cut."""
    match value:
        case bool():
            return "yes" if value else "no"
        case str():
            if len(value) > _LONG and not set(value) - set("0123456789abcdef"):
                return f"{value[:16]}…"
            # Somebody else's policy must not move the terminal's cursor.
            return "".join(each if each.isprintable() else "�" for each in value)
        case list():
            return " or ".join(map(words, value))
        case Mapping() if "label" in value:
            return str(value["label"])
        case Mapping():
            return ", ".join(f"{key} {words(each)}" for key, each in value.items())
    return str(value)


def _demands(policy: Policy, root: Mapping[str, object]) -> Iterator[Demand]:
    titles = [(rule, "", shared.title) for rule, shared in RULES.items()]
    for name in formats(policy):
        form = registry.get(name)
        titles += [(rule_name(form, rule.name), name, plain(rule.title)) for rule in form.rules]
    for rule, form_name, title in titles:
        value = _lookup(root, rule) if rule not in policy.waivers else None
        yield Demand(rule=rule, format=form_name, title=title, value=value, reason=policy.waivers.get(rule))
    for name in formats(policy):
        for each in registry.get(name).roots:
            for anchor in policy.anchors.get(each.anchors, ()):
                yield Demand(rule=f"{name}.{each.key}", format=name, title=each.title, value=anchor.sha256, reason=None)


def _lookup(root: Mapping[str, object], rule: str) -> object:
    table, _, key = rule.partition(".")
    value = root.get(table)
    return value.get(key) if key and isinstance(value, Mapping) else value


def _answer(attack: Attack, policy: Policy, demands: tuple[Demand, ...]) -> Answer:
    stated = {each.rule: each for each in demands}
    mine = [name for name in attack.hits if name in formats(policy) and _open(name, attack, stated)]
    elsewhere = {name for name in formats(policy) if name not in mine}
    defences = [
        each for each in attack.defences if each.rule in stated and each.rule.partition(".")[0] not in elsewhere
    ]
    by = list[str]()
    gaps = dict[str, str]()
    for defence in defences if mine else ():
        demand = stated[defence.rule]
        if demand.reason is not None:
            gaps[defence.rule] = f"waived: {demand.reason}"
        elif not defence.holds(demand.value):
            gaps[defence.rule] = "; ".join(filter(None, (gaps.get(defence.rule), f"wanted: {defence.wants}")))
        elif defence.rule not in by:
            by.append(defence.rule)
    bare = tuple(name for name in mine if not any(each.rule.startswith(f"{name}.") for each in defences))
    if mine and policy.gpus:
        by += attack.always
    elif mine:
        by += [check for check in attack.always if check != checks.GPU_BOUND]
    return Answer(
        attack=attack,
        effect=_effect(attack, mine, bare, gaps, by),
        by=tuple(rule for rule in by if rule not in gaps),
        gaps=gaps,
        bare=bare,
    )


def _open(form: str, attack: Attack, stated: Mapping[str, Demand]) -> bool:
    """Can evidence of that format be of what the attack hits? A waived rule rules nothing out."""
    where = attack.only.get(form)
    return where is None or stated[where.rule].reason is not None or where.holds(stated[where.rule].value)


def _effect(attack: Attack, mine: list[str], bare: tuple[str, ...], gaps: Mapping[str, str], by: list[str]) -> Effect:
    if not mine:
        return Effect.ABSENT
    if gaps:
        return Effect.WEAKENED
    # A rule that all formats share stands for each of them.
    if not by or (bare and not set(by) & {*RULES, *attack.always}):
        return Effect.UNSEEN
    return Effect.COVERED if set(mine) <= set(attack.cured) and not bare else Effect.NARROWED
