"""The policy document: TOML in which every rule is stated, or waived with a reason. docs/policy.md has the table."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

from cloister.errors import PolicyDocumentError
from cloister.policy import tables
from cloister.policy.checks import WAIVABLE
from cloister.tee import TEES
from cloister.tee.nitro.roots import ANCHORS as NITRO_ANCHORS
from cloister.tee.nitro.rules import REGISTERS, Measurement
from cloister.trust.anchors import Anchor

SCHEMA = "cloister-policy/1"
MAX_POLICY = 64 * 1024
MAX_AGE = 86_400 * 3650
MAX_SKEW = 3600
MAX_REVERIFY = 3600
MIN_REASON = 8
SCOPES = ("replica", "fleet")

#: Every rule, in the order in which holes are named, with an example of stating it.
RULES: Mapping[str, str] = {
    "name": 'name = "…"',
    "tee.accept": '[tee] accept = ["nitro"]',
    "nitro.measurement": '[[nitro.measurement]] pcr0 = "…"',
    "freshness.max_age_seconds": "[freshness] max_age_seconds = 300",
    "freshness.max_clock_skew_seconds": "[freshness] max_clock_skew_seconds = 60",
    "freshness.reverify_after_seconds": "[freshness] reverify_after_seconds = 3600",
    "freshness.challenge": '[freshness] challenge = "required"',
    "model.sha256": '[model] sha256 = ["…"]',
    "config.sha256": '[config] sha256 = ["…"]',
    "key.scope": '[key] scope = ["replica"]',
}
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]+\n-----END CERTIFICATE-----\Z")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a client accepts.

    `anchors` are the roots that evidence may chain to. Digest tuples are None exactly where their rule is waived;
    `waivers` maps a waived rule to its reason. `sha256` names the document as it was read.
    """

    name: str
    tees: tuple[str, ...]
    anchors: tuple[Anchor, ...]
    allow_simulated: bool
    measurements: tuple[Measurement, ...]
    max_age: timedelta
    max_clock_skew: timedelta
    reverify_after: timedelta
    challenge_required: bool
    model_sha256: tuple[str, ...] | None
    config_sha256: tuple[str, ...] | None
    scopes: tuple[str, ...]
    waivers: Mapping[str, str]
    sha256: str
    simulated_root_pem: str | None = None

    @classmethod
    def from_toml(cls, data: bytes) -> Policy:
        """Read a policy of at most 64 KiB; raises PolicyDocumentError that names everything it lacks."""
        return _read(tables.parse(data, limit=MAX_POLICY), hashlib.sha256(data).hexdigest())

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


def anchors_for(simulated_root_pem: str | None) -> tuple[Anchor, ...]:
    """AWS's roots, and a simulated one if it is given (one PEM certificate, nothing else); raises PolicyDocumentError.

    The hardware roots always stay: allowing simulated evidence does not turn genuine evidence away.
    """
    if simulated_root_pem is None:
        return NITRO_ANCHORS
    # A second certificate, or text around the first, would be skipped in silence by the parser.
    if not _CERTIFICATE.match(simulated_root_pem.strip()):
        raise PolicyDocumentError(
            "tee.simulated_root_pem must hold one PEM certificate and nothing else",
            hint="Paste the root certificate that the simulated replica printed or wrote.",
        )
    try:
        anchor = Anchor.simulated(simulated_root_pem)
    except PolicyDocumentError as error:
        raise PolicyDocumentError(f"tee.simulated_root_pem: {error.message}", hint=error.hint) from None
    if any(anchor.sha256 == root.sha256 or anchor.spki == root.spki for root in NITRO_ANCHORS):
        raise PolicyDocumentError(
            "tee.simulated_root_pem is a hardware vendor's root", hint="Vendors' roots are built in; remove it."
        )
    return (*NITRO_ANCHORS, anchor)


def _waivers(root: tables.Table) -> dict[str, str]:
    waivers: dict[str, str] = {}
    for item in root.tables("waive"):
        rule, reason = item.text("rule") or "", (item.line("reason") or "").strip()
        item.done()
        if rule not in WAIVABLE:
            problem = "names a rule that must be stated" if rule in RULES else "names nothing that can be waived"
            raise PolicyDocumentError(f"{item.name('rule')} {problem}", hint=f"Only these can: {', '.join(WAIVABLE)}.")
        if rule in waivers:
            raise PolicyDocumentError(f"{rule} is waived twice", hint="Keep one of the two.")
        if len(reason) < MIN_REASON:
            raise PolicyDocumentError(
                f"{item.name('reason')} must say why, in a sentence", hint="Every verdict prints it."
            )
        waivers[rule] = reason
    return waivers


def accepted_tees(tee: tables.Table) -> tuple[str, ...] | None:
    """`tee.accept`; raises PolicyDocumentError for one that cannot be verified."""
    tees = tee.texts("accept")
    for item in tees or ():
        if item not in TEES:
            raise PolicyDocumentError(
                "tee.accept names a TEE that this version cannot verify", hint=f"It can: {', '.join(TEES)}."
            )
    return tees


def simulated_root(tee: tables.Table, *, allow_simulated: bool) -> str | None:
    """`tee.simulated_root_pem`, given exactly where simulated evidence is allowed; raises PolicyDocumentError."""
    pem = tee.text("simulated_root_pem")
    if allow_simulated and pem is None:
        raise PolicyDocumentError(
            "tee.allow_simulated needs tee.simulated_root_pem", hint="Paste the simulated replica's root certificate."
        )
    if pem is not None and not allow_simulated:
        raise PolicyDocumentError(
            "tee.simulated_root_pem is given but tee.allow_simulated is not true",
            hint="Remove the root, or accept that a simulated TEE proves nothing.",
        )
    return None if pem is None else pem.strip() + "\n"


def measurement(table: tables.Table) -> Measurement:
    """One `[[…measurement]]` table; raises PolicyDocumentError."""
    registers = {register: table.text(register) for register in REGISTERS}
    label = table.line("label") or ""
    table.done()
    try:
        return Measurement(**registers, label=label)
    except PolicyDocumentError as error:
        raise PolicyDocumentError(f"{table.path}: {error.message}", hint=error.hint) from None


def _read(root: tables.Table, sha256: str) -> Policy:
    if root.text("schema") != SCHEMA:
        raise PolicyDocumentError(f'the policy must begin with schema = "{SCHEMA}"', hint="See docs/policy.md.")
    name = root.line("name")
    tee, fresh, model, config, key = (root.table(part) for part in ("tee", "freshness", "model", "config", "key"))
    nitro = root.table("nitro")
    waivers = _waivers(root)
    tees, allow_simulated = accepted_tees(tee), tee.flag("allow_simulated") or False
    pem = simulated_root(tee, allow_simulated=allow_simulated)
    anchors = anchors_for(pem)
    measurements = tuple(measurement(table) for table in nitro.tables("measurement"))
    max_age = fresh.seconds("max_age_seconds", 1, MAX_AGE)
    skew = fresh.seconds("max_clock_skew_seconds", 0, MAX_SKEW)
    reverify = fresh.seconds("reverify_after_seconds", 1, MAX_REVERIFY)
    challenge = fresh.text("challenge")
    if challenge not in (None, "required"):
        raise PolicyDocumentError(
            'freshness.challenge can only be "required"', hint="To go without it, waive freshness.challenge."
        )
    model_sha256, config_sha256, scopes = model.digests("sha256"), config.digests("sha256"), key.texts("scope")
    for scope in scopes or ():
        if scope not in SCOPES:
            raise PolicyDocumentError('key.scope may hold "replica" and "fleet"', hint="Most policies want replica.")
    for table in (tee, fresh, model, config, key, nitro, root):
        table.done()
    _complete(
        {
            "name": name or None,
            "tee.accept": tees,
            "nitro.measurement": measurements or None,
            "freshness.max_age_seconds": max_age,
            "freshness.max_clock_skew_seconds": skew,
            "freshness.reverify_after_seconds": reverify,
            "freshness.challenge": challenge,
            "model.sha256": model_sha256,
            "config.sha256": config_sha256,
            "key.scope": scopes,
        },
        waivers,
    )
    # What _complete has just made sure of, for the type checker.
    assert name is not None
    assert tees is not None
    assert scopes is not None
    assert max_age is not None
    assert skew is not None
    assert reverify is not None
    return Policy(
        name=name,
        tees=tees,
        anchors=anchors,
        allow_simulated=allow_simulated,
        measurements=measurements,
        max_age=max_age,
        max_clock_skew=skew,
        reverify_after=reverify,
        challenge_required=challenge is not None,
        model_sha256=model_sha256,
        config_sha256=config_sha256,
        scopes=scopes,
        waivers=waivers,
        sha256=sha256,
        simulated_root_pem=pem,
    )


def _complete(rules: Mapping[str, object], waivers: Mapping[str, str]) -> None:
    """Every rule is stated or waived, and none is both."""
    both = [rule for rule in waivers if rules[rule] is not None]
    if both:
        raise PolicyDocumentError(f"both stated and waived: {', '.join(both)}", hint="Keep one of the two.")
    holes = [rule for rule, example in RULES.items() if rules[rule] is None and rule not in waivers]
    if holes:
        shown = "; ".join(f"{rule} ({RULES[rule]})" for rule in holes)
        can = [rule for rule in holes if rule in WAIVABLE]
        raise PolicyDocumentError(
            f"the policy has holes: {shown}",
            hint=f"State them; or waive {' or '.join(can)} with a [[waive]] entry that gives the reason."
            if can
            else "State them; they cannot be waived.",
        )


def write_simulated(root_pem: str) -> list[str]:
    """The lines of `[tee]` that allow simulated evidence under a root."""
    return [
        "# SIMULATED: evidence under this root proves nothing about the machine. For laptops and tests only.",
        "allow_simulated = true",
        f'simulated_root_pem = """\n{root_pem}"""',
    ]


def write_measurement(table: str, stated: Measurement) -> list[str]:
    """One measurement as an entry of `table`."""
    label = [f"label = {tables.quote(stated.label)}"] if stated.label else []
    registers = [f"{register} = {tables.quote(value)}" for register, value in stated.stated().items()]
    return [f"[[{table}]]", *label, *registers]


def _write(policy: Policy) -> str:
    def items(key: str, values: tuple[str, ...]) -> str:
        return f"{key} = [{', '.join(tables.quote(value) for value in values)}]"

    lines = [f"schema = {tables.quote(SCHEMA)}", f"name = {tables.quote(policy.name)}"]
    lines += ["", "[tee]", items("accept", policy.tees)]
    if policy.allow_simulated:
        lines += write_simulated(policy.simulated_root_pem or "")
    for each in policy.measurements:
        lines += ["", *write_measurement("nitro.measurement", each)]
    lines += ["", "[freshness]"]
    for key, value in (
        ("max_age_seconds", policy.max_age),
        ("max_clock_skew_seconds", policy.max_clock_skew),
        ("reverify_after_seconds", policy.reverify_after),
    ):
        lines.append(f"{key} = {value // timedelta(seconds=1)}")
    lines += ['challenge = "required"'] if policy.challenge_required else []
    for part, digests in (("model", policy.model_sha256), ("config", policy.config_sha256)):
        lines += ["", f"[{part}]", items("sha256", digests)] if digests is not None else []
    lines += ["", "[key]", items("scope", policy.scopes)]
    for rule, reason in policy.waivers.items():
        lines += ["", "[[waive]]", f"rule = {tables.quote(rule)}", f"reason = {tables.quote(reason)}"]
    return "\n".join(lines) + "\n"
