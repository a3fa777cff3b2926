"""What an appraisal always checks beside a TEE's own steps, in order, and which of it a policy may waive."""

from __future__ import annotations

from collections.abc import Mapping

ENVELOPE: tuple[tuple[str, str], ...] = (("policy.tee", "The evidence is of a TEE that the policy accepts"),)
RULES: tuple[tuple[str, str], ...] = (
    ("policy.genuine", "The root is a hardware vendor's, or the policy allows a simulated TEE"),
    ("policy.debug", "The TEE is not in debug mode"),
    ("policy.binding", "The evidence binds this replica's key statement"),
    ("policy.challenge", "The evidence answers this client's own nonce"),
    ("policy.measurement", "The replica runs an image that the policy names"),
    ("policy.validity", "The key is in use now"),
    ("policy.scope", "The key belongs to whom the policy expects"),
    ("policy.model", "The replica serves a model file that the policy names"),
    ("policy.config", "The replica runs a configuration that the policy names"),
)
#: No accepted verdict lacks one of these, whatever TEE signed.
REQUIRED: frozenset[str] = frozenset(check for check, _ in (*ENVELOPE, *RULES))

#: Rules of a policy that may be waived, and the check that each one feeds. Everything else is checked whatever a policy
#: says: a waiver of the signature, the chain, debug mode or the binding would make every other check worthless.
WAIVABLE: Mapping[str, str] = {
    "freshness.challenge": "policy.challenge",
    "model.sha256": "policy.model",
    "config.sha256": "policy.config",
}
