"""Do I accept it? Verified evidence against a policy, one ordered check after the other."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from cloister.errors import CloisterError, NotGenuineError, RefusedError
from cloister.policy.checks import (
    ENVELOPE,
    EVIDENCE,
    EVIDENCE_BINDING,
    GPU,
    GPU_BOUND,
    RULES,
    rule_check,
    rule_checks,
    rule_name,
)
from cloister.policy.document import Policy
from cloister.policy.verdict import Outcome, Subject, Verdict, failed_verdict, told_by
from cloister.tee import registry
from cloister.tee.checks import Checklist
from cloister.tee.claims import Claims
from cloister.tee.context import Context
from cloister.tee.evidence import Offer, Offers
from cloister.tee.format import Format
from cloister.trust.collateral import Collateral

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


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What evidence that is looked at by itself must carry: the exact signed bytes, or a reason not to compare them."""

    user_data: bytes | None = None
    nonce: bytes | None = None
    #: Evidence that nothing is compared with says that some TEE exists, and nothing about a key.
    unbound: str | None = None


def plan(checklist: Checklist, policy: Policy, *, subject: Subject = Subject.KEY) -> None:
    """Add every check of an appraisal to the list, in order, as far as the policy alone determines them."""
    checklist.plan((*ENVELOPE, *(RULES if subject is Subject.KEY else EVIDENCE)))
    if subject is Subject.EVIDENCE:
        return
    if len(policy.tees) == 1:
        _plan_format(checklist, registry.get(policy.tees[0]), "policy.tee", subject)
    if len(policy.gpus) == 1:
        _plan_format(checklist, registry.get(policy.gpus[0]), GPU, subject)


def appraise(
    offers: Offers,
    bound: Bound,
    policy: Policy,
    *,
    now: datetime,
    collateral: Collateral | None = None,
    checklist: Checklist | None = None,
) -> Verdict:
    """The accepted Verdict, or the CloisterError that ended the appraisal, with its Verdict attached.

    `now` is aware. `collateral` is the caller's own, beside what came with the offers. `checklist`, if given, has been
    through `plan` and may hold checks that the caller ran before.
    """
    if checklist is None:
        checklist = Checklist()
        plan(checklist, policy)
    appraisal = _Appraisal(offers, policy, now, collateral or Collateral(), checklist, Subject.KEY)
    return appraisal.run(lambda claims: appraisal.key(claims, bound))


def appraise_evidence(
    offers: Offers, expected: Expected, policy: Policy, *, now: datetime, collateral: Collateral | None = None
) -> Verdict:
    """Like `appraise`, for evidence without a key statement: a file, a vector, another system's quote.

    The verdict's subject is the evidence alone. It is no reason to send anything anywhere.
    """
    checklist = Checklist()
    plan(checklist, policy, subject=Subject.EVIDENCE)
    appraisal = _Appraisal(offers, policy, now, collateral or Collateral(), checklist, Subject.EVIDENCE)
    return appraisal.run(lambda claims: appraisal.evidence(claims, expected))


def _plan_format(checklist: Checklist, form: Format, after: str, subject: Subject) -> None:
    """The format's own checks after `after`, its rules where rules of formats stand."""
    if form.checks[0][0] not in checklist:
        checklist.plan(form.checks, after=after)
    _plan_rules(checklist, form, subject)


def _plan_rules(checklist: Checklist, form: Format, subject: Subject) -> None:
    if form.rules and rule_check(form, form.rules[0].name) not in checklist:
        checklist.plan(rule_checks(form), after=GPU_BOUND if subject is Subject.KEY else EVIDENCE_BINDING)


class _Appraisal:
    """One run; `seen` once the evidence proved genuine, `statement` once it proved to bind it."""

    def __init__(
        self, offers: Offers, policy: Policy, now: datetime, own: Collateral, checklist: Checklist, subject: Subject
    ) -> None:
        self.offers, self.policy, self.now, self.checklist, self.subject = offers, policy, now, checklist, subject
        self.context = Context(
            now=now,
            checklist=checklist,
            max_age=policy.max_age,
            max_skew=policy.max_clock_skew,
            anchors=policy.anchors,
            collateral=own + offers.collateral,
        )
        self.seen: tuple[Claims, ...] = ()
        self.statement: dict[str, str] = {}

    def run(self, rules: Callable[[Claims], None]) -> Verdict:
        policy = self.policy
        try:
            rules(self.genuine())
        except CloisterError as error:
            error.verdict = failed_verdict(
                error,
                self.checklist,
                subject=self.subject,
                policy_name=policy.name,
                policy_sha256=policy.sha256,
                now=self.now,
                simulated=policy.allow_simulated if not self.seen else not _genuine(self.seen),
                claims=self.seen,
                statement=self.statement,
            )
            raise
        # The constructor refuses to accept if a planned check was forgotten above.
        return Verdict(
            outcome=Outcome.ACCEPTED,
            subject=self.subject,
            simulated=not _genuine(self.seen),
            checks=self.checklist.results(),
            policy_name=policy.name,
            policy_sha256=policy.sha256,
            appraised_at=self.now,
            statement=self.statement,
            **told_by(self.seen),
        )

    def genuine(self) -> Claims:
        """The verifier is chosen by what the policy accepts; the label on the evidence only has to agree."""
        with self.checklist.step("policy.tee") as step:
            form, offer = self._chosen()
            step.detail = form.name
        _plan_format(self.checklist, form, "policy.tee", self.subject)
        claims = form.verify(offer.data, self.context)
        self.seen = (claims,)
        return claims

    def _chosen(self) -> tuple[Format, Offer]:
        # By itself, evidence of GPUs may be looked at too.
        for name in self.policy.tees if self.subject is Subject.KEY else (*self.policy.tees, *self.policy.gpus):
            form = registry.get(name)
            for offer in self.offers:
                if offer.role is form.role and offer.media_type == form.media_type:
                    return form, offer
        raise RefusedError("the evidence is not of a TEE that the policy accepts")

    def trust(self, claims: Claims) -> None:
        check_trust(claims, self.checklist, allow_simulated=self.policy.allow_simulated)
        with self.checklist.step("policy.inside") as step:
            inner = [each.tee for each in claims.flat() if each is not claims]
            if not set(inner) <= set(self.policy.inside):
                raise RefusedError("the evidence envelops that of a TEE which the policy does not accept there")
            step.detail = ", ".join(inner) or "nothing"

    def formats(self, claims: Claims) -> None:
        """The rules of the format, and of all that it envelops: stated or waived."""
        for each in claims.flat():
            form = registry.get(each.tee)
            _plan_rules(self.checklist, form, self.subject)
            demands = self.policy.demands[form.name]
            for rule in form.rules:
                with self.checklist.step(rule_check(form, rule.name)) as step:
                    if rule.name in demands:
                        step.detail = rule.check(each, demands[rule.name])
                    else:
                        step.waive(self.policy.waivers[rule_name(form, rule.name)])

    def evidence(self, claims: Claims, expected: Expected) -> None:
        self.trust(claims)
        with self.checklist.step(EVIDENCE_BINDING) as step:
            if expected.unbound is not None:
                step.waive(expected.unbound)
            elif (claims.user_data or b"", claims.nonce or b"") != (expected.user_data or b"", expected.nonce or b""):
                raise NotGenuineError("the evidence carries other user data or another nonce than expected")
        self.formats(claims)

    def key(self, claims: Claims, bound: Bound) -> None:
        policy, checklist = self.policy, self.checklist
        self.trust(claims)
        with checklist.step("policy.binding"):
            registry.get(claims.tee).bind(claims, bound.binding, bound.challenge)
        self.statement = bound.summary()
        with checklist.step("policy.challenge") as step:
            if "freshness.challenge" in policy.waivers:
                step.waive(policy.waivers["freshness.challenge"])
            elif not bound.fresh:
                raise NotGenuineError("the evidence does not answer a nonce of this client")
        self.gpus(bound)
        self.formats(claims)
        with checklist.step("policy.validity") as step:
            # As differences: near the ends of the calendar a shifted time would overflow.
            if bound.not_before - self.now > policy.max_clock_skew:
                raise RefusedError("the key is not in use yet", hint="Compare this machine's clock with another.")
            if self.now > bound.not_after:
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

    def gpus(self, bound: Bound) -> None:
        """A GPU's report alone says nothing about whose machine holds it: it must carry a nonce made from B."""
        offer, names = self.offers.gpu(), self.policy.gpus
        form: Format | None = None
        with self.checklist.step(GPU) as step:
            if names:
                fitting = (each for each in map(registry.get, names) if offer and each.media_type == offer.media_type)
                form = next(fitting, None)
                if form is None:
                    raise RefusedError("evidence of the GPUs is missing, or not of a format that the policy accepts")
                step.detail = form.name
            else:
                step.detail = "none demanded" + (": what was offered was not looked at" if offer is not None else "")
        claims: Claims | None = None
        if form is not None and offer is not None:
            _plan_format(self.checklist, form, GPU, self.subject)
            claims = form.verify(offer.data, self.context)
            self.seen = (*self.seen, claims)
        with self.checklist.step(GPU_BOUND):
            if form is None or claims is None:
                return
            if not claims.genuine and not self.policy.allow_simulated:
                raise NotGenuineError("the evidence of the GPUs is SIMULATED and the policy does not allow that")
            if claims.debug:
                raise RefusedError("a GPU runs in debug mode")
            form.bind(claims, bound.binding, bound.challenge)
        self.formats(claims)


def check_trust(claims: Claims, checklist: Checklist, *, allow_simulated: bool) -> None:
    """What no policy can waive: no simulated root where it is not allowed, no debug mode; RefusedError, NotGenuine."""
    with checklist.step("policy.genuine") as step:
        genuine = _genuine((claims,))
        if not genuine and not allow_simulated:
            raise NotGenuineError("the evidence is SIMULATED and the policy does not allow that")
        step.detail = "hardware vendor's root" if genuine else "SIMULATED: proves nothing about the machine"
    with checklist.step("policy.debug"):
        if any(each.debug for each in claims.flat()):
            raise RefusedError("the TEE runs in debug mode: its memory can be read from outside")


def _genuine(claims: tuple[Claims, ...]) -> bool:
    return all(each.genuine for one in claims for each in one.flat())
