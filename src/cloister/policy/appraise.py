"""Do I accept it? Verified evidence against a policy, one ordered check after the other."""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from cloister.errors import CloisterError, NotGenuineError, RefusedError
from cloister.policy.checks import ENVELOPE, RULES
from cloister.policy.document import Policy
from cloister.policy.verdict import Outcome, Verdict, failed_verdict, told_by
from cloister.tee import nitro
from cloister.tee.binding import check_binding
from cloister.tee.checks import Checklist
from cloister.tee.claims import Claims
from cloister.tee.nitro import rules as nitro_rules
from cloister.tee.nitro import verify as nitro_verify
from cloister.trust.anchors import Anchor

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What the evidence must bind, and what the statement that is bound says.

    `binding` is B (32 bytes), `challenge` F (32 bytes) or None; `fresh` says that F covers a nonce of this very client.
    Digests are lower-case hex. Raises ValueError for values of any other shape: PROTOCOL.md section 4.4.
    """

    binding: bytes
    challenge: bytes | None
    fresh: bool
    kid: str
    scope: str
    model_id: str
    model_sha256: str
    config_sha256: str
    not_before: datetime
    not_after: datetime

    def __post_init__(self) -> None:
        # An empty binding would equal the empty user_data of evidence that binds nothing.
        if len(self.binding) != 32 or (self.challenge is not None and len(self.challenge) != 32):
            raise ValueError("the binding and the challenge are 32 bytes each")
        if self.fresh and self.challenge is None:
            raise ValueError("without a challenge nothing is fresh")
        if not (_SHA256.match(self.model_sha256) and _SHA256.match(self.config_sha256)):
            raise ValueError("digests are 64 lower-case hex digits")
        if self.not_before.tzinfo is None or self.not_after.tzinfo is None:
            raise ValueError("times have a time zone")

    def summary(self) -> dict[str, str]:
        """What a verdict shows of the statement."""
        return {
            "kid": self.kid,
            "scope": self.scope,
            "model": self.model_id,
            "model_sha256": self.model_sha256,
            "config_sha256": self.config_sha256,
            "not_after": self.not_after.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }


class Accepts(Protocol):
    """What every policy says about TEEs: whose evidence, under which roots, how old."""

    @property
    def tees(self) -> Sequence[str]:
        """Names of TEEs."""
        ...

    @property
    def anchors(self) -> Sequence[Anchor]:
        """Roots."""
        ...

    @property
    def allow_simulated(self) -> bool:
        """May the root be one that was made in software?"""
        ...

    @property
    def max_age(self) -> timedelta:
        """Of the evidence."""
        ...

    @property
    def max_clock_skew(self) -> timedelta:
        """How far in the future it may seem to lie."""
        ...


class _Seen:
    """What was established so far: `claims` once genuine, `statement` once the evidence proved to bind it."""

    def __init__(self) -> None:
        self.claims: Claims | None = None
        self.statement: dict[str, str] = {}


def plan(checklist: Checklist) -> None:
    """Add every check of an appraisal to the list, in order."""
    checklist.plan((*ENVELOPE, *nitro_verify.CHECKS, *RULES))


def appraise(
    evidence: bytes,
    media_type: str,
    bound: Bound,
    policy: Policy,
    *,
    now: datetime,
    checklist: Checklist | None = None,
) -> Verdict:
    """The accepted Verdict, or the CloisterError that ended the appraisal, with its Verdict attached.

    `now` is aware. `checklist`, if given, has been through `plan` and may hold checks that the caller ran before.
    """
    if checklist is None:
        checklist = Checklist()
        plan(checklist)
    seen = _Seen()
    try:
        claims = seen.claims = genuine(evidence, media_type, policy, now, checklist)
        _rules(seen, claims, bound, policy, now, checklist)
    except CloisterError as error:
        error.verdict = failed_verdict(
            error,
            checklist,
            policy_name=policy.name,
            policy_sha256=policy.sha256,
            now=now,
            simulated=policy.allow_simulated if seen.claims is None else not seen.claims.genuine,
            claims=seen.claims,
            statement=seen.statement,
        )
        raise
    # The constructor refuses to accept if a planned check was forgotten above.
    return Verdict(
        outcome=Outcome.ACCEPTED,
        simulated=not claims.genuine,
        checks=checklist.results(),
        policy_name=policy.name,
        policy_sha256=policy.sha256,
        appraised_at=now,
        statement=seen.statement,
        **told_by(claims),
    )


def genuine(evidence: bytes, media_type: str, policy: Accepts, now: datetime, checklist: Checklist) -> Claims:
    """`policy.tee` and the verifier's own checks; raises what they raise.

    The verifier is chosen by what the policy accepts; the label on the evidence only has to agree.
    """
    with checklist.step("policy.tee") as step:
        if media_type != nitro.MEDIA_TYPE or "nitro" not in policy.tees:
            raise RefusedError("the evidence is not of a TEE that the policy accepts")
        step.detail = "nitro"
    return nitro_verify.verify(
        evidence,
        now=now,
        anchors=policy.anchors,
        max_age=policy.max_age,
        max_skew=policy.max_clock_skew,
        checklist=checklist,
    )


def trusted(claims: Claims, policy: Accepts, binding: bytes, challenge: bytes | None, checklist: Checklist) -> None:
    """`policy.genuine`, `policy.debug` and `policy.binding`: what no policy can do without."""
    with checklist.step("policy.genuine") as step:
        if not claims.genuine and not policy.allow_simulated:
            raise NotGenuineError("the evidence is SIMULATED and the policy does not allow that")
        step.detail = "hardware vendor's root" if claims.genuine else "SIMULATED: proves nothing about the machine"
    with checklist.step("policy.debug"):
        nitro_rules.check_not_debug(claims)
    with checklist.step("policy.binding"):
        check_binding(claims, binding, challenge)


def _rules(seen: _Seen, claims: Claims, bound: Bound, policy: Policy, now: datetime, checklist: Checklist) -> None:
    trusted(claims, policy, bound.binding, bound.challenge, checklist)
    seen.statement = bound.summary()
    with checklist.step("policy.challenge") as step:
        if "freshness.challenge" in policy.waivers:
            step.waive(policy.waivers["freshness.challenge"])
        elif not bound.fresh:
            raise NotGenuineError("the evidence does not answer a nonce of this client")
    with checklist.step("policy.measurement") as step:
        found = nitro_rules.check_measurements(claims, policy.measurements)
        step.detail = found.label or ", ".join(found.stated())
    with checklist.step("policy.validity") as step:
        # As differences: near the ends of the calendar a shifted time would overflow.
        if bound.not_before - now > policy.max_clock_skew:
            raise RefusedError("the key is not in use yet", hint="Compare this machine's clock with another.")
        if now > bound.not_after:
            raise RefusedError("the key is not in use any more", hint="Fetch the evidence again.")
        step.detail = f"until {bound.not_after.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    with checklist.step("policy.scope") as step:
        if bound.scope not in policy.scopes:
            raise RefusedError("the key has a scope that the policy does not accept")
        step.detail = bound.scope
    for check, rule, value, allowed in (
        ("policy.model", "model.sha256", bound.model_sha256, policy.model_sha256),
        ("policy.config", "config.sha256", bound.config_sha256, policy.config_sha256),
    ):
        with checklist.step(check) as step:
            if allowed is None:
                step.waive(policy.waivers[rule])
            elif not any(hmac.compare_digest(value, item) for item in allowed):
                raise RefusedError(f"{rule} is {value}, which the policy does not name")
            else:
                step.detail = value
