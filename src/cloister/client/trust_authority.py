"""The background-check model (RFC 9334 section 5.2): Intel Trust Authority looks at a quote that a client got."""

from __future__ import annotations

import hmac
from datetime import datetime

from cloister.errors import NotGenuineError, UsageError
from cloister.policy.appraise import Expected, appraise_evidence
from cloister.policy.document import Policy
from cloister.policy.verdict import Verdict
from cloister.tee.evidence import Offers, Role
from cloister.tee.ita import MEDIA_TYPE
from cloister.tee.ita.client import TrustAuthority
from cloister.tee.ita.evidence import WHAT, Attestation
from cloister.trust.collateral import Collateral
from cloister.trust.jwt import Alg, Token


def background_check(
    quote: bytes,
    report_data: bytes,
    service: TrustAuthority,
    policy: Policy,
    *,
    now: datetime,
    collateral: Collateral | None = None,
) -> Verdict:
    """The verdict about the service's token for a TDX quote that must carry `report_data` (64 bytes: B and zeros).

    `policy` accepts `ita`; `now` is aware; `collateral` is the caller's own, beside the service's keys and lists. The
    verdict's subject is the evidence alone. Raises UndecidedError, or what the appraisal of the token raises.
    """
    if "ita" not in policy.tees:
        raise UsageError("the policy does not accept tokens of Intel Trust Authority", hint='Name "ita" in tee.accept.')
    demands = policy.demands["ita"]
    token = service.attest(quote, policy_ids=demands.get("policies", ()), algorithm=Alg(demands["algorithm"][0]))
    verdict = appraise_evidence(
        Offers.one(MEDIA_TYPE, token, role=Role.RESULT),
        Expected(),
        policy,
        now=now,
        collateral=(collateral or Collateral()) + service.endorsements(),
    )
    # The same bytes, now known to be the service's. It was not asked to look at the report data.
    carried = Attestation.parse(Token.parse(token, WHAT)).report_data
    if len(report_data) != len(carried) or not hmac.compare_digest(carried, report_data):
        raise NotGenuineError("the token is about a quote that carries other report data")
    return verdict
