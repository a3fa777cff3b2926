"""The two formats of this folder: the devices' own signed reports, and NRAS's word about them.

Both carry a nonce of 32 bytes, which ties them to the replica's key statement and so to the CPU's evidence over it.
"""

from __future__ import annotations

import hmac

from cloister.errors import NotGenuineError
from cloister.tee.claims import Claims
from cloister.tee.evidence import Role
from cloister.tee.format import Format
from cloister.tee.nvidia import MEDIA_TYPE, NRAS_MEDIA_TYPE, needs, nras, nras_rules, rules, verify
from cloister.tee.nvidia.evidence import Evidence, nonce
from cloister.tee.nvidia.roots import DEVICE_ANCHORS


def _bind(claims: Claims, binding: bytes, challenge: bytes | None) -> None:
    """The challenge needs no field of its own: B covers it."""
    del challenge
    if claims.user_data is None or not hmac.compare_digest(claims.user_data, nonce(binding)):
        raise NotGenuineError("the GPU evidence does not bind this replica's key statement")


FORMATS = (
    Format(
        name="nvidia-gpu",
        title="NVIDIA GPU and NVSwitch reports (SPDM)",
        media_type=MEDIA_TYPE,
        role=Role.GPU,
        checks=verify.CHECKS,
        verify=verify.verify,
        rules=rules.RULES,
        bind=_bind,
        parse=Evidence.parse,
        needs=needs.of_reports,
        anchors=DEVICE_ANCHORS,
        collateral=("nvidia-rim", "nvidia-ocsp"),
    ),
    Format(
        name="nvidia-nras",
        title="NVIDIA Remote Attestation Service result (EAT)",
        media_type=NRAS_MEDIA_TYPE,
        role=Role.GPU,
        checks=nras.CHECKS,
        verify=nras.verify,
        rules=nras_rules.RULES,
        bind=_bind,
        parse=nras.parse,
        needs=needs.of_result,
        collateral=("jwks",),
    ),
)
