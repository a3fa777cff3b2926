"""The claims of the SIMULATED Trust Authority's tokens, in the shapes of versions 1 (flat) and 2 (`tdx`)."""

from __future__ import annotations

import base64

from cloister.platforms.local.trust_authority.requests import AttestRequest
from cloister.tee.claims import Claims
from cloister.tee.tdx.verify import Details

#: The service's own name in tokens since 2025: relying parties compare it exactly.
ISSUER = "https://portal.trustauthority.intel.com"
PROFILE = "https://portal.trustauthority.intel.com/eat_profile.html"


def claims_of(asked: AttestRequest, claims: Claims) -> dict[str, object]:
    """Everything but the times, the token's id and the policies."""
    outer = {"ver": f"{asked.version}.0.0", "eat_profile": PROFILE, "intuse": "generic", "iss": ISSUER}
    inner = _tdx(asked, claims)
    return outer | inner if asked.version == 1 else outer | {"tdx": inner}


def of_td(claims: Claims) -> dict[str, object]:
    """What a token says of a verified TDX quote; Azure Attestation uses the same names."""
    details = claims.details
    assert isinstance(details, Details)
    report, verified = details.report, details.verified
    attributes = int.from_bytes(report.td_attributes, "little")
    return {
        "attester_tcb_status": verified.tcb.status,
        "attester_tcb_date": f"{verified.tcb.date:%Y-%m-%dT%H:%M:%SZ}",
        "attester_advisory_ids": list(verified.tcb.advisories),
        "dbgstat": "enabled" if claims.debug else "disabled",
        "tdx_is_debuggable": claims.debug,
        "tdx_mrtd": report.mr_td.hex(),
        **{f"tdx_rtmr{index}": value.hex() for index, value in enumerate(report.rtmrs)},
        "tdx_mrseam": report.mr_seam.hex(),
        "tdx_mrsignerseam": report.mr_signer_seam.hex(),
        "tdx_mrconfigid": report.mr_config_id.hex(),
        "tdx_mrowner": report.mr_owner.hex(),
        "tdx_mrownerconfig": report.mr_owner_config.hex(),
        "tdx_report_data": report.report_data.hex(),
        "tdx_seam_attributes": report.seam_attributes.hex(),
        "tdx_seamsvn": report.tee_tcb_svn[0],
        "tdx_tee_tcb_svn": report.tee_tcb_svn.hex(),
        "tdx_xfam": report.xfam.hex(),
        "tdx_td_attributes": report.td_attributes.hex(),
        "tdx_td_attributes_debug": bool(attributes & 1),
        "tdx_td_attributes_septve_disable": bool(attributes >> 28 & 1),
        "tdx_td_attributes_protection_keys": bool(attributes >> 30 & 1),
        "tdx_td_attributes_key_locker": bool(attributes >> 31 & 1),
        "tdx_td_attributes_perfmon": bool(attributes >> 63 & 1),
    }


def _tdx(asked: AttestRequest, claims: Claims) -> dict[str, object]:
    found = {"attester_type": "TDX"} | of_td(claims)
    if asked.held_data is not None:
        found["attester_held_data"] = _base64(asked.held_data)
    if asked.nonce is not None:
        nonce = {"val": asked.nonce.val, "iat": asked.nonce.iat, "signature": asked.nonce.signature}
        found["verifier_nonce"] = {name: _base64(data) for name, data in nonce.items()}
    return found


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
