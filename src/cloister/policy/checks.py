"""What an appraisal always checks beside a format's own steps, in order, and which of it a policy may waive."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cloister.errors import UsageError
from cloister.tee import registry
from cloister.tee.format import Format

ENVELOPE: tuple[tuple[str, str], ...] = (("policy.tee", "The evidence is of a TEE that the policy accepts"),)
TRUST: tuple[tuple[str, str], ...] = (
    ("policy.genuine", "The root is a hardware vendor's, or the policy allows a simulated TEE"),
    ("policy.debug", "The TEE is not in debug mode"),
    ("policy.inside", "What the evidence envelops is of TEEs that the policy accepts there"),
)
#: The GPUs' own checks come right after the first of these, the rules of all accepted formats after the second.
GPU, GPU_BOUND = "policy.gpu", "policy.gpu-binding"
RULES: tuple[tuple[str, str], ...] = (
    *TRUST,
    ("policy.binding", "The evidence binds this replica's key statement"),
    ("policy.challenge", "The evidence answers this client's own nonce"),
    (GPU, "Evidence of the GPUs is there, where the policy demands it"),
    (GPU_BOUND, "It is genuine, not of debug mode, and made for the same key"),
    ("policy.validity", "The key is in use now"),
    ("policy.scope", "The key belongs to whom the policy expects"),
    ("policy.model", "The replica serves a model file that the policy names"),
    ("policy.config", "The replica runs a configuration that the policy names"),
)
#: For evidence that is looked at by itself, without a key of a replica.
EVIDENCE_BINDING = "evidence.binding"
EVIDENCE: tuple[tuple[str, str], ...] = (
    *TRUST,
    (EVIDENCE_BINDING, "The evidence carries the data that the caller expects"),
)
#: No accepted verdict lacks one of these, whatever TEE signed.
REQUIRED: Mapping[str, frozenset[str]] = {
    "key": frozenset(check for check, _ in (*ENVELOPE, *RULES)),
    "evidence": frozenset(check for check, _ in (*ENVELOPE, *EVIDENCE)),
}

#: Rules of a policy that may be waived, and the check that each one feeds. Formats add rules of their own. Everything
#: else is checked whatever a policy says: a waiver of the signature, the chain, debug mode or the binding would make
#: every other check worthless.
WAIVABLE: Mapping[str, str] = {
    "freshness.challenge": "policy.challenge",
    "model.sha256": "policy.model",
    "config.sha256": "policy.config",
}


def rule_name(form: Format, rule: str) -> str:
    """A format's rule as policies and waivers name it: `snp.vmpl`."""
    return f"{form.name}.{rule}"


def rule_check(form: Format, rule: str) -> str:
    """The check that a format's rule feeds: `policy.snp.vmpl`."""
    return f"policy.{form.name}.{rule}"


def rule_checks(form: Format) -> tuple[tuple[str, str], ...]:
    """The checks of all rules of a format, as a checklist plans them."""
    return tuple((rule_check(form, rule.name), rule.title) for rule in form.rules)


def required_of(tees: Iterable[str]) -> frozenset[str]:
    """The checks and rules of formats that proved genuine: none of them may be left out. ValueError for none."""
    try:
        forms = [registry.get(tee) for tee in tees]
    except UsageError as error:
        raise ValueError(error.message) from None
    if not forms:
        raise ValueError("an accepted verdict names the TEE")
    return frozenset(check for form in forms for check, _ in (*form.checks, *rule_checks(form)))


def may_be_waived(check: str) -> bool:
    """Could any policy waive that check?"""
    if check in WAIVABLE.values() or check == EVIDENCE_BINDING:
        return True
    parts = check.split(".")
    if len(parts) != 3 or parts[0] != "policy":
        return False
    try:
        form = registry.get(parts[1])
    except UsageError:
        return False
    return any(rule.name == parts[2] and rule.waivable for rule in form.rules)
