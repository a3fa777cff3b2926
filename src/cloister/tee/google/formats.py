"""The formats of this folder: Confidential Space's tokens, and the attestation of a Compute Engine vTPM."""

from __future__ import annotations

from cloister.tee import binding, registry
from cloister.tee.evidence import Role
from cloister.tee.format import Format
from cloister.tee.google import SPACE_MEDIA_TYPE, VTPM_MEDIA_TYPE
from cloister.tee.google.roots import ANCHORS, ROOTS_OF_SPACE, ROOTS_OF_VTPM
from cloister.tee.google.space import evidence as space
from cloister.tee.google.space import rules as space_rules
from cloister.tee.google.space import verify as space_verify
from cloister.tee.google.vtpm import evidence as vtpm
from cloister.tee.google.vtpm import rules as vtpm_rules
from cloister.tee.google.vtpm import verify as vtpm_verify
from cloister.trust.jwt import Token
from cloister.trust.need import Need


def _parse_token(evidence: bytes) -> space.Attestation:
    return space.Attestation.parse(Token.parse(evidence, space.WHAT))


def _needs_of_token(evidence: bytes) -> tuple[Need, ...]:
    """Google's keys, whatever issuer it names; a token with certificates needs a root, which nobody fetches."""
    token = Token.parse(evidence, space.WHAT)
    return () if token.x5c else (Need(kind="jwks", parameters={"issuer": space.ISSUER}),)


def _needs_inside(evidence: bytes) -> tuple[Need, ...]:
    """What the processor's evidence needs, without the kinds that came along with it."""
    inner = vtpm.Attestation.parse(evidence).inner
    if inner is None:
        return ()
    carried = {item.kind for item in inner.items}
    return tuple(need for need in registry.get(inner.name).needs(inner.evidence) if need.kind not in carried)


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
        needs=_needs_of_token,
        roots=ROOTS_OF_SPACE,
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
        needs=_needs_inside,
        anchors=ANCHORS,
        roots=ROOTS_OF_VTPM,
        inner=("snp", "tdx"),
        collateral=("google-ak", "tcg-event-log", "google-endorsement"),
    ),
)
