"""The formats of this folder: Confidential Space's tokens, and the attestation of a Compute Engine vTPM."""

from __future__ import annotations

from cloister.tee import binding
from cloister.tee.evidence import Role
from cloister.tee.format import Format
from cloister.tee.google import SPACE_MEDIA_TYPE, VTPM_MEDIA_TYPE
from cloister.tee.google.roots import ANCHORS
from cloister.tee.google.space import evidence as space
from cloister.tee.google.space import rules as space_rules
from cloister.tee.google.space import verify as space_verify
from cloister.tee.google.vtpm import evidence as vtpm
from cloister.tee.google.vtpm import rules as vtpm_rules
from cloister.tee.google.vtpm import verify as vtpm_verify
from cloister.trust.jwt import Token


def _parse_token(evidence: bytes) -> space.Attestation:
    return space.Attestation.parse(Token.parse(evidence, space.WHAT))


FORMATS = (
    Format(
        name="google-space",
        title="Google Confidential Space attestation token",
        media_type=SPACE_MEDIA_TYPE,
        role=Role.RESULT,
        checks=space_verify.CHECKS,
        verify=space_verify.verify,
        rules=space_rules.RULES,
        bind=space_verify.bind,
        parse=_parse_token,
        collateral=("jwks",),
    ),
    Format(
        name="google-vtpm",
        title="Compute Engine vTPM attestation",
        media_type=VTPM_MEDIA_TYPE,
        role=Role.CPU,
        checks=vtpm_verify.CHECKS,
        verify=vtpm_verify.verify,
        rules=vtpm_rules.RULES,
        bind=binding.user_data_alone,
        parse=vtpm.Attestation.parse,
        anchors=ANCHORS,
        inner=("snp", "tdx"),
        collateral=("google-ak", "tcg-event-log", "google-endorsement"),
    ),
)
