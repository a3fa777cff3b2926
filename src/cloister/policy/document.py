"""The policy document: TOML in which every rule is stated, or waived with a reason. docs/policy.md has the table."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from cloister.errors import PolicyDocumentError
from cloister.policy import roots
from cloister.policy.checks import WAIVABLE, rule_name
from cloister.tee import FORMATS, registry
from cloister.tee.evidence import Role
from cloister.tee.format import Format
from cloister.trust.anchors import Anchor
from cloister.wire import toml

SCHEMA = "cloister-policy/1"
MAX_POLICY = 64 * 1024
MAX_AGE = 86_400 * 3650
MAX_SKEW = 3600
MAX_REVERIFY = 3600
MIN_REASON = 8
SCOPES = ("replica", "fleet")
#: How a place begins that a profile leaves to whoever uses it; no policy holds one.
FILL_IN = "FILL IN"


@dataclass(frozen=True, kw_only=True)
class Shared:
    """A rule that all formats share; `read` takes its section, or the whole document for a rule without one."""

    title: str
    example: str
    read: Callable[[toml.Table], Any]


def _challenge(fresh: toml.Table) -> str | None:
    challenge = fresh.text("challenge")
    if challenge not in (None, "required"):
        raise PolicyDocumentError(
            'freshness.challenge can only be "required"', hint="To go without it, waive freshness.challenge."
        )
    return challenge


def _scope(key: toml.Table) -> tuple[str, ...] | None:
    scopes = key.texts("scope")
    if not set(scopes or ()) <= set(SCOPES):
        raise PolicyDocumentError('key.scope may hold "replica" and "fleet"', hint="Most policies want replica.")
    return scopes


#: In the order in which holes are named. The rules of the accepted formats come after `tee.accept`.
RULES: Mapping[str, Shared] = {
    "name": Shared(
        title="What every verdict calls the policy",
        example='name = "…"',
        read=lambda root: root.line("name") or None,
    ),
    "tee.accept": Shared(
        title="Formats of evidence of which one is enough",
        example='[tee] accept = ["nitro"]',
        read=lambda tee: tee.texts("accept"),
    ),
    "freshness.max_age_seconds": Shared(
        title="The evidence is not older, where it says when it was signed",
        example="[freshness] max_age_seconds = 300",
        read=lambda fresh: fresh.seconds("max_age_seconds", 1, MAX_AGE),
    ),
    "freshness.max_clock_skew_seconds": Shared(
        title="Nothing lies further in the future by this machine's clock",
        example="[freshness] max_clock_skew_seconds = 60",
        read=lambda fresh: fresh.seconds("max_clock_skew_seconds", 0, MAX_SKEW),
    ),
    "freshness.reverify_after_seconds": Shared(
        title="A verified key is used no longer before evidence is fetched again",
        example="[freshness] reverify_after_seconds = 3600",
        read=lambda fresh: fresh.seconds("reverify_after_seconds", 1, MAX_REVERIFY),
    ),
    "freshness.challenge": Shared(
        title="The evidence answers this client's own nonce",
        example='[freshness] challenge = "required"',
        read=_challenge,
    ),
    "model.sha256": Shared(
        title="The replica serves a model file that the policy names",
        example='[model] sha256 = ["…"]',
        read=lambda model: model.digests("sha256"),
    ),
    "config.sha256": Shared(
        title="The replica runs a configuration that the policy names",
        example='[config] sha256 = ["…"]',
        read=lambda config: config.digests("sha256"),
    ),
    "key.scope": Shared(
        title="The key belongs to whom the policy expects",
        example='[key] scope = ["replica"]',
        read=_scope,
    ),
}
SECTIONS = ("tee", "freshness", "model", "config", "key")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a client accepts.

    `tees` are formats of evidence (tee.FORMATS) of which one is enough, `inside` those that an envelope among them may
    hold, `gpus` those of which one must vouch for the GPUs (none: no GPU is spoken of). `demands` holds, for each of
    these formats, the value of every rule that is stated; a rule that is not there is waived. `anchors` are roots by
    name of their format: the built-in and a simulated one, or one that a format lets a policy name. Digest tuples are
    None exactly where their rule is waived; `waivers` maps a waived rule to its reason. `tables` are the formats'
    tables as they were read; `sha256` names the whole document.
    """

    name: str
    tees: tuple[str, ...]
    inside: tuple[str, ...]
    gpus: tuple[str, ...]
    demands: Mapping[str, Mapping[str, Any]]
    anchors: Mapping[str, tuple[Anchor, ...]]
    allow_simulated: bool
    max_age: timedelta
    max_clock_skew: timedelta
    reverify_after: timedelta
    challenge_required: bool
    model_sha256: tuple[str, ...] | None
    config_sha256: tuple[str, ...] | None
    scopes: tuple[str, ...]
    waivers: Mapping[str, str]
    tables: Mapping[str, Mapping[str, object]]
    sha256: str
    simulated_root_pem: str | None = None
    simulated_roots: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_toml(cls, data: bytes) -> Policy:
        """Read a policy of at most 64 KiB; raises PolicyDocumentError that names everything it lacks."""
        return _read(toml.parse(data, limit=MAX_POLICY), hashlib.sha256(data).hexdigest())

    def to_toml(self) -> str:
        """A document that reads back as this policy, under another `sha256`: comments and spacing are not kept.

        Raises ValueError for a policy that was not read from a document and cannot be written as one.
        """
        text = _write(self)
        try:
            same = replace(Policy.from_toml(text.encode()), sha256=self.sha256) == self
        except (PolicyDocumentError, UnicodeEncodeError) as error:
            raise ValueError(f"the policy cannot be written as a document: {error}") from None
        if not same:
            raise ValueError("the policy holds something that a document cannot say")
        return text


def _waivers(root: toml.Table, formats: Iterable[Format]) -> dict[str, str]:
    theirs = {rule_name(form, rule.name): rule.waivable for form in formats for rule in form.rules}
    can = (*WAIVABLE, *(name for name, waivable in theirs.items() if waivable))
    waivers: dict[str, str] = {}
    for item in root.tables("waive"):
        rule, reason = item.text("rule") or "", (item.line("reason") or "").strip()
        item.done()
        if rule not in can:
            known = rule in RULES or rule in theirs
            problem = "names a rule that must be stated" if known else "names nothing that can be waived"
            raise PolicyDocumentError(f"{item.name('rule')} {problem}", hint=f"Only these can: {', '.join(can)}.")
        if rule in waivers:
            raise PolicyDocumentError(f"{rule} is waived twice", hint="Keep one of the two.")
        if len(reason) < MIN_REASON:
            raise PolicyDocumentError(
                f"{item.name('reason')} must say why, in a sentence", hint="Every verdict prints it."
            )
        waivers[rule] = reason
    return waivers


def _formats(tee: toml.Table, key: str, *roles: Role) -> tuple[Format, ...]:
    """The formats that a list names; raises PolicyDocumentError for one that this version has not, or not there."""
    names = tee.texts(key) or ()
    if not set(names) <= set(FORMATS):
        raise PolicyDocumentError(
            f"{tee.name(key)} names a TEE that this version cannot verify", hint=f"It can: {', '.join(FORMATS)}."
        )
    if len(set(names)) != len(names):
        raise PolicyDocumentError(f"{tee.name(key)} names a TEE twice", hint="Remove one.")
    found = tuple(registry.get(name) for name in names)
    for form in found:
        if form.role not in roles:
            raise PolicyDocumentError(f"{form.name} does not belong into {tee.name(key)}", hint=form.title)
    return found


def _inside(tee: toml.Table, accepted: tuple[Format, ...]) -> tuple[Format, ...]:
    inside = _formats(tee, "inside", Role.CPU)
    possible = {name for form in accepted for name in form.inner}
    for form in accepted:
        if form.inner and not any(item.name in form.inner for item in inside):
            raise PolicyDocumentError(
                f"tee.inside must say what {form.name} may hold", hint=f"One or more of: {', '.join(form.inner)}."
            )
    for form in inside:
        if form.name not in possible:
            raise PolicyDocumentError(f"tee.inside: nothing that is accepted holds {form.name}", hint="Remove it.")
        if form in accepted:
            raise PolicyDocumentError(
                f"{form.name} is both in tee.accept and in tee.inside", hint="Write two policies."
            )
    return inside


def unfilled(root: toml.Table) -> tuple[str, ...]:
    """The paths of all places that are left to be filled in, in no particular order."""
    found = list[str]()
    # Not by recursion: dotted keys nest as deep as the document is long.
    stack: list[tuple[str, object]] = [(root.path, root.members)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, dict):
            stack += [(toml.Table(value, path).name(key), each) for key, each in value.items()]
        elif isinstance(value, list):
            stack += [(f"{path}[{at}]", each) for at, each in enumerate(value)]
        elif isinstance(value, str) and value.startswith(FILL_IN):
            found.append(path)
    return tuple(sorted(found))


def chosen(tee: toml.Table) -> tuple[tuple[Format, ...], tuple[Format, ...], tuple[Format, ...]]:
    """The formats that are accepted, that these may hold, and that vouch for GPUs; raises PolicyDocumentError."""
    accepted = _formats(tee, "accept", Role.CPU, Role.RESULT)
    return accepted, _inside(tee, accepted), _formats(tee, "gpu", Role.GPU)


def _read(root: toml.Table, sha256: str) -> Policy:
    if root.text("schema") != SCHEMA:
        raise PolicyDocumentError(f'the policy must begin with schema = "{SCHEMA}"', hint="See docs/policy.md.")
    if places := unfilled(root):
        raise PolicyDocumentError(
            f"the policy has places to fill in: {', '.join(places)}", hint="The comments beside them say with what."
        )
    shared = {part: root.table(part) for part in SECTIONS}
    tee = shared["tee"]
    accepted, inside, gpus = chosen(tee)
    formats = (*accepted, *inside, *gpus)
    waivers = _waivers(root, formats)
    allow_simulated = tee.flag("allow_simulated") or False
    pem, others = roots.read(tee, formats, allow_simulated=allow_simulated)
    anchors = roots.anchors_for(pem, others)
    # Without tee.accept the hole is what to tell, not the tables that nobody reads because of it.
    sections = {name: root.table(name) for name in ([form.name for form in formats] if accepted else FORMATS)}
    demands = {form.name: {rule.name: rule.read(sections[form.name]) for rule in form.rules} for form in formats}
    values = {name: rule.read(shared.get(name.partition(".")[0], root)) for name, rule in RULES.items()}
    named = roots.named(formats if accepted else (), sections)
    for table in (*shared.values(), *(sections.values() if accepted else ()), root):
        table.done()
    stated = {rule_name(form, rule): value for form in formats for rule, value in demands[form.name].items()}
    _complete({**values, **stated}, waivers, formats)
    return Policy(
        name=values["name"],
        tees=tuple(form.name for form in accepted),
        inside=tuple(form.name for form in inside),
        gpus=tuple(form.name for form in gpus),
        demands={
            form: {rule: value for rule, value in found.items() if value is not None} for form, found in demands.items()
        },
        anchors={**named, **anchors},
        allow_simulated=allow_simulated,
        max_age=values["freshness.max_age_seconds"],
        max_clock_skew=values["freshness.max_clock_skew_seconds"],
        reverify_after=values["freshness.reverify_after_seconds"],
        challenge_required=values["freshness.challenge"] is not None,
        model_sha256=values["model.sha256"],
        config_sha256=values["config.sha256"],
        scopes=values["key.scope"],
        waivers=waivers,
        tables={form: section.members for form, section in sections.items() if section.members},
        sha256=sha256,
        simulated_root_pem=pem,
        simulated_roots=others,
    )


def _complete(rules: Mapping[str, object], waivers: Mapping[str, str], formats: Iterable[Format]) -> None:
    """Every rule is stated or waived, and none is both."""
    examples, waivable = dict[str, str](), set(WAIVABLE)
    for rule, shared in RULES.items():
        examples[rule] = shared.example
        if rule == "tee.accept":
            for form in formats:
                examples |= {rule_name(form, each.name): each.example for each in form.rules}
                waivable |= {rule_name(form, each.name) for each in form.rules if each.waivable}
    both = [rule for rule in waivers if rules[rule] is not None]
    if both:
        raise PolicyDocumentError(f"both stated and waived: {', '.join(both)}", hint="Keep one of the two.")
    holes = [rule for rule in examples if rules[rule] is None and rule not in waivers]
    if holes:
        shown = "; ".join(f"{rule} ({examples[rule]})" for rule in holes)
        can = [rule for rule in holes if rule in waivable]
        raise PolicyDocumentError(
            f"the policy has holes: {shown}",
            hint=f"State them; or waive {' or '.join(can)} with a [[waive]] entry that gives the reason."
            if can
            else "State them; they cannot be waived.",
        )


def _write(policy: Policy) -> str:
    lines = [f"schema = {toml.quote(SCHEMA)}", f"name = {toml.quote(policy.name)}", "", "[tee]"]
    lists = {"accept": policy.tees, "inside": policy.inside, "gpu": policy.gpus}
    lines += toml.write({key: list(names) for key, names in lists.items() if names or key == "accept"})
    if policy.allow_simulated:
        lines += roots.write(policy.simulated_root_pem, policy.simulated_roots)
    lines += toml.write(policy.tables)
    fresh: dict[str, object] = {
        "max_age_seconds": policy.max_age // timedelta(seconds=1),
        "max_clock_skew_seconds": policy.max_clock_skew // timedelta(seconds=1),
        "reverify_after_seconds": policy.reverify_after // timedelta(seconds=1),
    }
    rest: dict[str, object] = {"freshness": fresh | ({"challenge": "required"} if policy.challenge_required else {})}
    for part, digests in (("model", policy.model_sha256), ("config", policy.config_sha256)):
        if digests is not None:
            rest[part] = {"sha256": list(digests)}
    rest["key"] = {"scope": list(policy.scopes)}
    if policy.waivers:
        rest["waive"] = [{"rule": rule, "reason": reason} for rule, reason in policy.waivers.items()]
    return "\n".join([*lines, *toml.write(rest)]) + "\n"
