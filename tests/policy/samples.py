"""A policy, evidence that it accepts, and one call that appraises them with a change."""

from __future__ import annotations

from datetime import datetime, timedelta

from tests.tee import documents as d

from cloister.policy.appraise import Bound, appraise
from cloister.policy.document import Policy
from cloister.policy.draft import draft
from cloister.policy.verdict import Verdict
from cloister.tee.evidence import Offers
from cloister.tee.nitro import MEDIA_TYPE

BINDING, CHALLENGE = b"B" * 32, b"F" * 32
TEXT = draft(
    name="test",
    measurements={"pcr0": "01" * 48, "pcr1": "02" * 48, "pcr2": "03" * 48},
    model_sha256="0a" * 32,
    config_sha256="0b" * 32,
    simulated_root_pem=d.ROOT.pem,
)
POLICY = Policy.from_toml(TEXT.encode())
BOUND = Bound(
    binding=BINDING,
    challenge=CHALLENGE,
    fresh=True,
    kid="k" * 22,
    scope="replica",
    model_id="m",
    model_sha256="0a" * 32,
    config_sha256="0b" * 32,
    not_before=d.NOW - timedelta(minutes=1),
    not_after=d.NOW + timedelta(hours=1),
)
EVIDENCE = d.attester().attest(BINDING, CHALLENGE)
MINIMAL = f"""
schema = "cloister-policy/1"
name = "minimal"
[tee]
accept = ["nitro"]
[[nitro.measurement]]
pcr0 = "{"01" * 48}"
[freshness]
max_age_seconds = 300
max_clock_skew_seconds = 60
reverify_after_seconds = 3600
challenge = "required"
[model]
sha256 = ["{"0a" * 32}"]
[config]
sha256 = ["{"0b" * 32}"]
[key]
scope = ["replica"]
"""


def run(
    evidence: bytes = EVIDENCE,
    bound: Bound = BOUND,
    policy: Policy = POLICY,
    media_type: str = MEDIA_TYPE,
    now: datetime = d.NOW,
) -> Verdict:
    """appraise() with everything right but for what is given."""
    return appraise(Offers.one(media_type, evidence), bound, policy, now=now)
