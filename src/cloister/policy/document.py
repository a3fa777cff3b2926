"""The policy document: TOML in which every rule is stated, or waived with a reason. docs/policy.md has the table."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from cloister.errors import PolicyDocumentError
from cloister.tee import TEES
from cloister.tee.nitro.roots import ANCHORS as NITRO_ANCHORS
from cloister.tee.nitro.rules import REGISTERS, Measurement
from cloister.trust.anchors import Anchor

SCHEMA = "cloister-policy/1"
MAX_POLICY = 64 * 1024
MAX_REVERIFY = 3600

#: Rules that may be waived, with the table that states them. Everything else is checked whatever a policy says.
WAIVABLE: Mapping[str, str] = {
    "freshness.challenge": 'freshness.challenge = "required"',
    "model.sha256": "[model] sha256",
    "config.sha256": "[config] sha256",
}
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


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

    @classmethod
    def from_toml(cls, data: bytes) -> Policy:
        """Read a policy; raises PolicyDocumentError that names everything it lacks."""
        if len(data) > MAX_POLICY:
            raise PolicyDocumentError(f"the policy is larger than {MAX_POLICY} bytes", hint="Is it the right file?")
        try:
            root = _Table(tomllib.loads(data.decode("utf-8")), "")
        except UnicodeDecodeError:
            raise PolicyDocumentError("the policy is not UTF-8", hint="Save it as UTF-8.") from None
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            where = re.search(r"\(at [a-z0-9 ,]+\)", str(error))
            raise PolicyDocumentError(
                f"the policy is not TOML {where.group() if where else ''}".rstrip(), hint="Mend the line."
            ) from None
        return _read(root, hashlib.sha256(data).hexdigest())


class _Table:
    """One TOML table: typed getters, and a record of what was asked for."""

    def __init__(self, members: dict[str, object], path: str) -> None:
        self._members = members
        self._path = path
        self._asked: set[str] = set()

    def name(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def _get(self, key: str, kind: type, what: str) -> object:
        self._asked.add(key)
        value = self._members.get(key)
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise PolicyDocumentError(f"{self.name(key)} must be {what}", hint="See docs/policy.md.")
        return value

    def text(self, key: str) -> str | None:
        value = self._get(key, str, "a string")
        return value if isinstance(value, str) else None

    def flag(self, key: str) -> bool | None:
        value = self._get(key, bool, "true or false")
        return value if isinstance(value, bool) else None

    def seconds(self, key: str, smallest: int, largest: int) -> timedelta | None:
        value = self._get(key, int, "a whole number of seconds")
        if not isinstance(value, int):
            return None
        if not smallest <= value <= largest:
            raise PolicyDocumentError(
                f"{self.name(key)} must be from {smallest} to {largest} seconds", hint="Choose a value in that range."
            )
        return timedelta(seconds=value)

    def texts(self, key: str) -> tuple[str, ...] | None:
        value = self._get(key, list, "a list of strings")
        if not isinstance(value, list):
            return None
        if not value or not all(isinstance(item, str) for item in value):
            raise PolicyDocumentError(
                f"{self.name(key)} must be a list of at least one string", hint="An empty list accepts nothing."
            )
        return tuple(str(item) for item in value)

    def digests(self, key: str) -> tuple[str, ...] | None:
        values = self.texts(key)
        for value in values or ():
            if not _SHA256.match(value):
                raise PolicyDocumentError(
                    f"{self.name(key)} must hold lower-case hex SHA-256 digests", hint="Copy them from the build."
                )
        return values

    def table(self, key: str) -> _Table:
        value = self._get(key, dict, "a table")
        return _Table(value if isinstance(value, dict) else {}, self.name(key))

    def tables(self, key: str) -> list[_Table]:
        value = self._get(key, list, "a list of tables")
        items = value if isinstance(value, list) else []
        if not all(isinstance(item, dict) for item in items):
            raise PolicyDocumentError(
                f"{self.name(key)} must be [[{self.name(key)}]] tables", hint="See docs/policy.md."
            )
        return [_Table(item, f"{self.name(key)}[{at}]") for at, item in enumerate(items)]

    def done(self) -> None:
        unknown = sorted(set(self._members) - self._asked)
        if unknown:
            raise PolicyDocumentError(
                f"unknown key {self.name(unknown[0])}", hint="A misspelt rule would go unchecked; see docs/policy.md."
            )


def _waivers(root: _Table) -> dict[str, str]:
    waivers: dict[str, str] = {}
    for item in root.tables("waive"):
        rule, reason = item.text("rule") or "", (item.text("reason") or "").strip()
        item.done()
        if rule not in WAIVABLE:
            raise PolicyDocumentError(
                f"{item.name('rule')} names nothing that can be waived",
                hint=f"Only these can: {', '.join(WAIVABLE)}.",
            )
        if rule in waivers:
            raise PolicyDocumentError(f"{rule} is waived twice", hint="Keep one of the two.")
        if len(reason) < 8:
            raise PolicyDocumentError(
                f"{item.name('reason')} must say why, in a sentence", hint="Every verdict prints it."
            )
        waivers[rule] = reason
    return waivers


def _anchors(tee: _Table, *, allow_simulated: bool) -> tuple[Anchor, ...]:
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
    return (*NITRO_ANCHORS, Anchor.simulated(pem)) if pem is not None else NITRO_ANCHORS


def _read(root: _Table, sha256: str) -> Policy:
    if root.text("schema") != SCHEMA:
        raise PolicyDocumentError(f'the policy must begin with schema = "{SCHEMA}"', hint="See docs/policy.md.")
    name = root.text("name")
    tee, fresh, model, config, key = (root.table(part) for part in ("tee", "freshness", "model", "config", "key"))
    nitro = root.table("nitro")
    waivers = _waivers(root)
    tees, allow_simulated = tee.texts("accept"), tee.flag("allow_simulated") or False
    for item in tees or ():
        if item not in TEES:
            raise PolicyDocumentError(
                "tee.accept names a TEE that this version cannot verify", hint=f"It can: {', '.join(TEES)}."
            )
    anchors = _anchors(tee, allow_simulated=allow_simulated)
    measurements = []
    for table in nitro.tables("measurement"):
        registers = {register: table.text(register) for register in REGISTERS}
        label = table.text("label") or ""
        table.done()
        measurements.append(Measurement(**registers, label=label))
    max_age = fresh.seconds("max_age_seconds", 1, 86_400 * 3650)
    skew = fresh.seconds("max_clock_skew_seconds", 0, 3600)
    reverify = fresh.seconds("reverify_after_seconds", 1, MAX_REVERIFY)
    challenge = fresh.text("challenge")
    if challenge not in (None, "required"):
        raise PolicyDocumentError(
            'freshness.challenge can only be "required"', hint="To go without it, waive freshness.challenge."
        )
    model_sha256, config_sha256, scopes = model.digests("sha256"), config.digests("sha256"), key.texts("scope")
    for scope in scopes or ():
        if scope not in ("replica", "fleet"):
            raise PolicyDocumentError('key.scope may hold "replica" and "fleet"', hint="Most policies want replica.")
    for table in (tee, fresh, model, config, key, nitro, root):
        table.done()

    stated = {
        "freshness.challenge": challenge is not None,
        "model.sha256": model_sha256 is not None,
        "config.sha256": config_sha256 is not None,
    }
    both = [rule for rule in waivers if stated[rule]]
    if both:
        raise PolicyDocumentError(f"{both[0]} is both stated and waived", hint="Keep one of the two.")
    holes = [f"{rule} (state {how})" for rule, how in WAIVABLE.items() if not stated[rule] and rule not in waivers]
    must = {
        "name": name,
        "tee.accept": tees,
        "[[nitro.measurement]]": measurements,
        "freshness.max_age_seconds": max_age,
        "freshness.max_clock_skew_seconds": skew,
        "freshness.reverify_after_seconds": reverify,
        "key.scope": scopes,
    }
    holes += [rule for rule, value in must.items() if value is None or value in ("", [])]
    if holes:
        raise PolicyDocumentError(f"the policy has holes: {'; '.join(holes)}")
    # What the list of holes has just made sure of, for the type checker.
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
        measurements=tuple(measurements),
        max_age=max_age,
        max_clock_skew=skew,
        reverify_after=reverify,
        challenge_required=challenge is not None,
        model_sha256=model_sha256,
        config_sha256=config_sha256,
        scopes=scopes,
        waivers=waivers,
        sha256=sha256,
    )
