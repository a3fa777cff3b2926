"""The formats of this folder: evidence of a confidential VM by way of its vTPM, and tokens of Azure Attestation."""

from __future__ import annotations

import base64
import hmac

from cloister.errors import NotGenuineError
from cloister.tee import registry
from cloister.tee.azure import MAA_MEDIA_TYPE, MEDIA_TYPE, maa, maa_rules, rules, verify
from cloister.tee.azure.evidence import Evidence
from cloister.tee.azure.roots import ANCHORS
from cloister.tee.binding import REPORT_DATA
from cloister.tee.claims import Claims
from cloister.tee.evidence import Role
from cloister.tee.format import Format
from cloister.trust.need import Need
from cloister.wire.strict_json import encode_base64url


def _bind_quote(claims: Claims, binding: bytes, challenge: bytes | None) -> None:
    """The quote answers B itself, which covers the challenge.

    B in the runtime data's user data does not do: an attestation key outlives a boot, so beside it an old quote, of a
    system that ran before, would pass.
    """
    del challenge
    if not hmac.compare_digest(claims.nonce or b"", binding):
        raise NotGenuineError("the TPM quote does not bind this replica's key statement")


def _bind_token(claims: Claims, binding: bytes, challenge: bytes | None) -> None:
    """B and zeros are the guest's 64 bytes, or B in base64url is the payload's nonce, which the client library encodes
    in base64 once more."""
    del challenge
    text = encode_base64url(binding).encode()
    accepted = (
        (claims.user_data, binding.ljust(REPORT_DATA, b"\x00")),
        (claims.nonce, text),
        (claims.nonce, base64.b64encode(text)),
    )
    if not any(hmac.compare_digest(carried or b"", expected) for carried, expected in accepted):
        raise NotGenuineError("the token does not bind this replica's key statement")


def _needs(evidence: bytes) -> tuple[Need, ...]:
    parsed = Evidence.parse(evidence)
    return registry.get(verify.INNER[parsed.hcl.hardware]).needs(parsed.hardware)


FORMATS = (
    Format(
        name=verify.NAME,
        title="Azure confidential VM (paravisor report and vTPM quote)",
        media_type=MEDIA_TYPE,
        role=Role.CPU,
        checks=verify.CHECKS,
        verify=verify.verify,
        rules=rules.RULES,
        bind=_bind_quote,
        parse=Evidence.parse,
        needs=_needs,
        anchors=ANCHORS,
        inner=tuple(verify.INNER.values()),
        collateral=("amd-vcek", "amd-ask", "amd-crl", "intel-collateral", "azure-ak", "tcg-event-log"),
    ),
    Format(
        name=maa.NAME,
        title="Microsoft Azure Attestation token about a confidential VM",
        media_type=MAA_MEDIA_TYPE,
        role=Role.RESULT,
        checks=maa.CHECKS,
        verify=maa.verify,
        rules=maa_rules.RULES,
        bind=_bind_token,
        parse=maa.parse,
        needs=maa.needs,
        collateral=("jwks",),
    ),
)
