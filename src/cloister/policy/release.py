"""To whom a key broker releases which data key: the policy document, and the two questions asked under it.

At attestation: is the evidence genuine, does it bind the caller's key and this session's challenge, is its image one
that some grant names? At each request: does a grant give this model, in this version, to that image? The verifier and
its shared rules are those of `appraise`; a release has no key statement, so what concerns one is not here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from cloister.errors import CloisterError, PolicyDocumentError, RefusedError
from cloister.policy import document, roots
from cloister.policy.appraise import check_trust
from cloister.policy.checks import ENVELOPE
from cloister.policy.verdict import failed_verdict
from cloister.tee.checks import Checklist
from cloister.tee.claims import Claims
from cloister.tee.context import Context
from cloister.tee.nitro import rules as nitro_rules
from cloister.tee.nitro.formats import FORMATS
from cloister.tee.nitro.rules import Measurement
from cloister.trust.anchors import Anchor
from cloister.wire import toml

SCHEMA = "cloister-release-policy/1"
MAX_POLICY = 256 * 1024
MAX_VERSION = 10**15 - 1
#: The one format of evidence that the key-release protocol carries here.
(NITRO,) = FORMATS
_MODEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)

ATTESTATION: tuple[tuple[str, str], ...] = (
    *ENVELOPE,
    *NITRO.checks,
    ("policy.genuine", "The root is a hardware vendor's, or the policy allows a simulated TEE"),
    ("policy.debug", "The TEE is not in debug mode"),
    ("policy.binding", "The evidence binds the caller's key and answers this session's challenge"),
    ("policy.measurement", "The image is one that some grant names"),
)
RELEASE: tuple[tuple[str, str], ...] = (
    ("grant.image", "A grant gives the model to this image"),
    ("grant.version", "The version is not below that grant's minimum"),
)


@dataclass(frozen=True, kw_only=True)
class Grant:
    """The data keys of a model, from a version on, for images that fit one of the measurements."""

    model: str
    minimum_version: int
    measurements: tuple[Measurement, ...]

    def to_toml(self) -> str:
        """The grant as the end of a policy document."""
        grant = {
            "model": self.model,
            "minimum_version": self.minimum_version,
            "measurement": [each.table() for each in self.measurements],
        }
        return "\n".join(toml.write({"grant": [grant]})).lstrip() + "\n"


@dataclass(frozen=True, kw_only=True)
class ReleasePolicy:
    """What a broker accepts, and to which images it gives which keys. `sha256` names the document as it was read."""

    name: str
    anchors: Mapping[str, tuple[Anchor, ...]]
    allow_simulated: bool
    max_age: timedelta
    max_clock_skew: timedelta
    grants: tuple[Grant, ...]
    sha256: str

    @classmethod
    def from_toml(cls, data: bytes) -> ReleasePolicy:
        """Read a policy of at most 256 KiB in which every rule is stated; raises PolicyDocumentError."""
        root = toml.parse(data, limit=MAX_POLICY)
        if root.text("schema") != SCHEMA:
            raise PolicyDocumentError(
                f'the policy must begin with schema = "{SCHEMA}"', hint="cloister broker grant writes one."
            )
        tee, fresh = root.table("tee"), root.table("freshness")
        allow_simulated = tee.flag("allow_simulated") or False
        stated = {
            "name": root.line("name") or None,
            "tee.accept": tee.choices("accept", (NITRO.name,)),
            "freshness.max_age_seconds": fresh.seconds("max_age_seconds", 1, document.MAX_SKEW),
            "freshness.max_clock_skew_seconds": fresh.seconds("max_clock_skew_seconds", 0, document.MAX_SKEW),
        }
        pem, _ = roots.read(tee, (NITRO,), allow_simulated=allow_simulated)
        anchors = roots.anchors_for(pem)
        grants = tuple(_grant(item) for item in root.tables("grant"))
        for table in (tee, fresh, root):
            table.done()
        holes = [rule for rule, value in stated.items() if value is None]
        if holes:
            raise PolicyDocumentError(f"the policy has holes: {', '.join(holes)}", hint="State them: docs/broker.md.")
        name, _, age, skew = stated.values()
        assert isinstance(name, str)
        assert isinstance(age, timedelta)
        assert isinstance(skew, timedelta)
        return cls(
            name=name,
            anchors=anchors,
            allow_simulated=allow_simulated,
            max_age=age,
            max_clock_skew=skew,
            grants=grants,
            sha256=hashlib.sha256(data).hexdigest(),
        )


def beginning(name: str, simulated_root_pem: str | None) -> str:
    """A policy document that grants nothing yet."""
    simulated = []
    if simulated_root_pem is not None:
        simulated = roots.write(simulated_root_pem.strip() + "\n", {})
    lines = [f"schema = {toml.quote(SCHEMA)}", f"name = {toml.quote(name)}", "", "[tee]", 'accept = ["nitro"]']
    lines += [*simulated, "", "[freshness]", "max_age_seconds = 120", "max_clock_skew_seconds = 60"]
    return "\n".join(lines) + "\n"


def attest(
    evidence: bytes, media_type: str, policy: ReleasePolicy, *, binding: bytes, challenge: bytes, now: datetime
) -> Claims:
    """The claims of a caller that may ask for keys, or the CloisterError that ended it, with its Verdict attached.

    `binding` is the digest of the runtime data (48 bytes), `challenge` the session's nonce (32 bytes), `now` aware.
    """
    # Empty values would equal those of evidence that binds nothing.
    if len(binding) != 48 or len(challenge) != 32:
        raise ValueError("the binding has 48 bytes and the challenge 32")
    checklist = Checklist()
    checklist.plan(ATTESTATION)
    claims = None
    try:
        with checklist.step("policy.tee"):
            if media_type != NITRO.media_type:
                raise RefusedError("the evidence is not of a TEE that the policy accepts")
        context = Context(
            now=now,
            checklist=checklist,
            max_age=policy.max_age,
            max_skew=policy.max_clock_skew,
            anchors=policy.anchors,
        )
        claims = NITRO.verify(evidence, context)
        check_trust(claims, checklist, allow_simulated=policy.allow_simulated)
        with checklist.step("policy.binding"):
            NITRO.bind(claims, binding, challenge)
        with checklist.step("policy.measurement"):
            named = [each for grant in policy.grants for each in grant.measurements]
            if not named:
                raise RefusedError("the policy grants nothing to any image", hint="cloister broker grant")
            nitro_rules.check_measurements(claims, named)
    except CloisterError as error:
        _tell(error, checklist, policy, now, claims)
        raise
    if not checklist.complete():
        raise RuntimeError("a planned check was forgotten")
    return claims


def release(claims: Claims, policy: ReleasePolicy, *, model: str, version: int, now: datetime) -> Grant:
    """The grant under which these claims get that key; raises RefusedError with its Verdict attached.

    The claims were accepted by `attest` under this very policy.
    """
    checklist = Checklist()
    checklist.plan(RELEASE)
    try:
        with checklist.step("grant.image"):
            fitting = [each for each in policy.grants if each.model == model and _fits(claims, each)]
            if not fitting:
                raise RefusedError("no grant gives this model to this image", hint="cloister broker grant")
        with checklist.step("grant.version"):
            enough = [each for each in fitting if version >= each.minimum_version]
            if not enough:
                raise RefusedError(
                    f"version {version} is below the grant's minimum", hint="Put the newer file into the store."
                )
    except CloisterError as error:
        _tell(error, checklist, policy, now, claims)
        raise
    return enough[0]


def _fits(claims: Claims, grant: Grant) -> bool:
    try:
        nitro_rules.check_measurements(claims, grant.measurements)
    except RefusedError:
        return False
    return True


def _tell(
    error: CloisterError, checklist: Checklist, policy: ReleasePolicy, now: datetime, claims: Claims | None
) -> None:
    error.verdict = failed_verdict(
        error,
        checklist,
        policy_name=policy.name,
        policy_sha256=policy.sha256,
        now=now,
        simulated=policy.allow_simulated if claims is None else not claims.genuine,
        claims=() if claims is None else (claims,),
    )


def _grant(table: toml.Table) -> Grant:
    model, version = table.text("model"), table.number("minimum_version", 0, MAX_VERSION)
    measurements = tuple(nitro_rules.read_measurement(each) for each in table.tables("measurement"))
    table.done()
    if model is None or not _MODEL.fullmatch(model):
        raise PolicyDocumentError(
            f"{table.name('model')} must be a model's name",
            hint="Lower-case letters, digits, dot, dash, underscore: model.sealed in cloister.toml.",
        )
    if version is None or not measurements:
        raise PolicyDocumentError(
            f"{table.path} must state minimum_version and at least one [[grant.measurement]]",
            hint="cloister broker grant writes whole ones.",
        )
    return Grant(model=model, minimum_version=version, measurements=measurements)
