"""The one format of this folder: an attestation token of Intel Trust Authority."""

from __future__ import annotations

from cloister.tee import binding
from cloister.tee.evidence import Role
from cloister.tee.format import Format
from cloister.tee.ita import MEDIA_TYPE, needs, rules, verify
from cloister.tee.ita.evidence import WHAT, Attestation
from cloister.tee.ita.roots import ANCHORS
from cloister.trust.jwt import Token


def _parse(evidence: bytes) -> Attestation:
    return Attestation.parse(Token.parse(evidence, WHAT))


FORMATS = (
    Format(
        name="ita",
        title="Intel Trust Authority attestation token",
        media_type=MEDIA_TYPE,
        role=Role.RESULT,
        checks=verify.CHECKS,
        verify=verify.verify,
        rules=rules.RULES,
        bind=binding.user_data_alone,
        parse=_parse,
        needs=needs.needs,
        anchors=ANCHORS,
        collateral=("ita-certs", "ita-crl"),
    ),
)
