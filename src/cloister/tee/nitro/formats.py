"""The one format of this folder: the COSE-signed attestation document of the Nitro hypervisor."""

from __future__ import annotations

from cloister.tee import binding
from cloister.tee.claims import Claims
from cloister.tee.context import Context
from cloister.tee.evidence import Role
from cloister.tee.format import Format
from cloister.tee.nitro import MEDIA_TYPE, rules, verify
from cloister.tee.nitro.evidence import MAX_DOCUMENT, AttestationDocument
from cloister.tee.nitro.roots import ANCHORS
from cloister.trust.need import Need
from cloister.wire import cose


def _verify(evidence: bytes, context: Context) -> Claims:
    return verify.verify(
        evidence,
        now=context.now,
        anchors=context.roots("nitro", ANCHORS),
        max_age=context.max_age,
        max_skew=context.max_skew,
        checklist=context.checklist,
    )


def _parse(evidence: bytes) -> AttestationDocument:
    message = cose.Sign1.parse(evidence, "attestation document", limit=MAX_DOCUMENT)
    return AttestationDocument.parse(message.payload)


def _needs(evidence: bytes) -> tuple[Need, ...]:
    """None: its certificates come with it, and have no revocation lists."""
    _parse(evidence)
    return ()


FORMATS = (
    Format(
        name="nitro",
        title="AWS Nitro Enclaves attestation document",
        media_type=MEDIA_TYPE,
        role=Role.CPU,
        checks=verify.CHECKS,
        verify=_verify,
        rules=rules.RULES,
        bind=binding.user_data_and_nonce,
        parse=_parse,
        needs=_needs,
        anchors=ANCHORS,
    ),
)
