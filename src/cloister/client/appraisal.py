"""From a received attestation bundle to a key that may be used: parse, appraise, or raise with the verdict so far."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from cloister.channel import challenge
from cloister.channel.bundle import Bundle
from cloister.channel.keyconfig import KeyConfig
from cloister.channel.statement import binding
from cloister.errors import CloisterError, MalformedError
from cloister.policy.appraise import Bound, appraise, plan
from cloister.policy.document import Policy
from cloister.policy.verdict import Verdict, failed_verdict
from cloister.tee.checks import Checklist
from cloister.trust.collateral import Collateral

CHECKS: tuple[tuple[str, str], ...] = (
    ("bundle.format", "The bundle, its key statement and its key are well formed"),
    ("bundle.nonce", "The bundle repeats the nonce that this client sent"),
)


@dataclass(frozen=True, kw_only=True)
class VerifiedKey:
    """A replica's key whose evidence the policy accepted; `usable_until` is by this client's clock."""

    bundle: Bundle
    config: KeyConfig
    verdict: Verdict
    usable_until: datetime

    @property
    def kid(self) -> str:
        """The key's name."""
        return self.bundle.statement.kid

    @property
    def statement_binding(self) -> bytes:
        """B of the statement without a challenge: names it in `cloister-expect` and in receipts."""
        return binding(self.bundle.statement_bytes, None)


def verify_bundle(
    data: bytes, policy: Policy, *, now: datetime, nonce: bytes | None, collateral: Collateral | None = None
) -> VerifiedKey:
    """Appraise a bundle at `now` (aware); `nonce` is what this client sent, None when it sent none.

    `collateral` is this client's own, beside what the bundle carries (token issuers' keys can only come from here).

    Raises MalformedError, NotGenuineError, RefusedError or UndecidedError with `.verdict` attached.
    """
    checklist = Checklist()
    checklist.plan(CHECKS)
    plan(checklist, policy)
    try:
        bundle, config = _read(data, nonce, checklist)
        verdict = appraise(
            bundle.offers, _bound(bundle, nonce), policy, now=now, collateral=collateral, checklist=checklist
        )
    except CloisterError as error:
        if error.verdict is None:
            error.verdict = failed_verdict(
                error,
                checklist,
                policy_name=policy.name,
                policy_sha256=policy.sha256,
                now=now,
                simulated=policy.allow_simulated,
            )
        raise
    not_after = _time(bundle.statement.not_after)
    return VerifiedKey(
        bundle=bundle, config=config, verdict=verdict, usable_until=min(not_after, now + policy.reverify_after)
    )


def _read(data: bytes, nonce: bytes | None, checklist: Checklist) -> tuple[Bundle, KeyConfig]:
    with checklist.step("bundle.format") as step:
        bundle = Bundle.from_bytes(data)
        config = KeyConfig.decode(bundle.statement.key_config)
        config.choose()
        for seconds in (bundle.statement.not_before, bundle.statement.not_after):
            _time(seconds)
        step.detail = f"key {bundle.statement.kid}"
    with checklist.step("bundle.nonce") as step:
        if nonce is None:
            step.detail = "none was sent"
        elif bundle.nonce is None:
            raise MalformedError("the bundle does not answer the nonce that was sent")
        else:
            challenge.check_answer(nonce, bundle.nonce)
    return bundle, config


def _time(seconds: int) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        raise MalformedError("key statement: a time is out of range") from None


def _bound(bundle: Bundle, nonce: bytes | None) -> Bound:
    statement = bundle.statement
    return Bound(
        binding=bundle.binding,
        challenge=bundle.challenge,
        fresh=nonce is not None,
        kid=statement.kid,
        scope=statement.scope,
        model_id=statement.model_id,
        model_sha256=statement.model_sha256,
        config_sha256=statement.config_sha256,
        not_before=_time(statement.not_before),
        not_after=_time(statement.not_after),
    )
