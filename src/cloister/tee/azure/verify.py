"""Is this evidence of an Azure confidential VM genuine? The steps are numbered as in README.md beside this file."""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.errors import MalformedError, NotGenuineError, UndecidedError
from cloister.tee import registry
from cloister.tee.azure.evidence import BANK, Evidence, TpmQuote
from cloister.tee.azure.hcl import Hardware, HclReport
from cloister.tee.azure.roots import ANCHORS
from cloister.tee.claims import Claims
from cloister.tee.context import Context
from cloister.tee.format import Format
from cloister.trust import chain, tpm
from cloister.trust.anchors import Anchor
from cloister.trust.certificates import load_certificate
from cloister.trust.collateral import Collateral
from cloister.trust.signatures import Algorithm
from cloister.trust.tpm import Quoted
from cloister.wire.tcg_log import EventLog
from cloister.wire.tpm import Scheme, Signature

NAME = "azure-vtpm"
#: The hardware's own format, by what the HCL says it is.
INNER: Mapping[Hardware, str] = {Hardware.SNP: "snp", Hardware.TDX: "tdx"}
CHECKS: tuple[tuple[str, str], ...] = (
    ("azure-vtpm.envelope", "1. One envelope of at most 64 KiB, with an HCL report, a TPM quote, a TD quote on TDX"),
    ("azure-vtpm.hardware", "2. The hardware's own evidence is looked at by its own verifier"),
    ("azure-vtpm.runtime-data", "3. The hardware's report data is the hash of the runtime data, then zero"),
    ("azure-vtpm.ak-certificate", "4. A certificate that came along is of HCLAkPub and chains to Azure's vTPM root"),
    ("azure-vtpm.quote", "5. HCLAkPub signed a quote of exactly the SHA-256 PCRs that came with it"),
    ("azure-vtpm.log", "6. An event log that came along counts only for PCRs whose quoted value it replays to"),
)  # fmt: skip
#: Certificates of attestation keys have SHA-256, the intermediates above them SHA-384.
_PROFILE = chain.Profile(algorithms=frozenset({Algorithm.RSA_PKCS1_SHA256, Algorithm.RSA_PKCS1_SHA384}), rooted=False)
_MAX_INTERMEDIATES = 3


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What the rules look at. `quoted` is None without a quote, `ak_chain` empty without a certificate.

    `explained` are the PCRs whose quoted value an event log replays to.
    """

    hcl: HclReport
    quoted: Quoted | None
    ak_chain: tuple[str, ...]
    explained: frozenset[int]


def verify(evidence: bytes, context: Context) -> Claims:
    """Claims of genuine evidence; raises what the hardware's verifier raises, MalformedError, NotGenuineError.

    Collateral: that of the hardware's format, `azure-ak`, `tcg-event-log`. The caller has planned CHECKS.
    """
    step_of = context.checklist.step
    with step_of("azure-vtpm.envelope") as step:
        parsed = Evidence.parse(evidence)
        hcl = parsed.hcl
        step.detail = f"HCL report of version {hcl.version}"
    with step_of("azure-vtpm.hardware") as step:
        form = registry.get(INNER[hcl.hardware])
        context.checklist.plan(form.checks, after="azure-vtpm.hardware")
        step.detail = form.title
    inner = form.verify(parsed.hardware, _inner_context(form, context))
    with step_of("azure-vtpm.runtime-data") as step:
        _check_report_data(hcl, inner)
        step.detail = hcl.hash_name
    # From here on the runtime data may be believed: the paravisor, whose launch was measured, wrote it.
    key = hcl.runtime.attestation_key
    with step_of("azure-vtpm.ak-certificate") as step:
        anchor, subjects = _check_certificate(key, context)
        step.detail = subjects[-1] if subjects else "none was given; the policy may demand one"
    with step_of("azure-vtpm.quote") as step:
        quoted = None if parsed.tpm_quote is None else _check_quote(parsed.tpm_quote, key)
        step.detail = "none: what has booted is not known" if quoted is None else f"{len(quoted.pcrs)} PCRs"
    with step_of("azure-vtpm.log") as step:
        explained = _explained(context.collateral.of("tcg-event-log"), quoted)
        step.detail = ", ".join(f"PCR {index}" for index in sorted(explained)) or "no event log for these PCRs"
    return Claims(
        tee=NAME,
        genuine=inner.genuine and (anchor is None or anchor.genuine),
        debug=inner.debug,
        measurements={} if quoted is None else quoted.measurements(),
        user_data=hcl.runtime.user_data,
        nonce=None if quoted is None else quoted.quote.extra_data,
        signed_at=None,
        chain=subjects,
        facts=_facts(hcl, quoted),
        details=Verified(hcl=hcl, quoted=quoted, ak_chain=subjects, explained=explained),
        inner=(inner,),
    )


def _inner_context(form: Format, context: Context) -> Context:
    """With what is the inner format's own: the event log is the vTPM's, and none of the hardware's."""
    kinds = {kind for kind in form.collateral if kind != "tcg-event-log"}
    return replace(
        context, collateral=Collateral(tuple(item for item in context.collateral.items if item.kind in kinds))
    )


def _check_report_data(hcl: HclReport, inner: Claims) -> None:
    signed = inner.user_data or b""
    if hcl.hardware is Hardware.TDX and not hmac.compare_digest(hcl.td_report_data, signed):
        raise NotGenuineError("the TD quote is of another TD report than the HCL's")
    if not hmac.compare_digest(hcl.digest, signed):
        raise NotGenuineError("the hardware did not sign this runtime data")


def _check_certificate(key: rsa.RSAPublicKey, context: Context) -> tuple[Anchor | None, tuple[str, ...]]:
    """The anchor and the subjects from the root down; nothing where no certificate was given."""
    pool = [load_certificate(_unpadded(der), "AK certificate") for der in context.collateral.of("azure-ak")]
    if not pool:
        return None, ()
    leaf = next((each for each in pool if each.public_key() == key), None)
    if leaf is None:
        raise NotGenuineError("no certificate that was given is of the attestation key")
    roots = context.roots(NAME, ANCHORS)
    failure: NotGenuineError | None = None
    for above in _paths(leaf, pool, {root.subject for root in roots}, _MAX_INTERMEDIATES):
        try:
            anchor, certificates = chain.validate(
                tuple(each.public_bytes(Encoding.DER) for each in above), leaf, roots, now=context.now, profile=_PROFILE
            )
        except NotGenuineError as error:
            failure = failure or error
        else:
            return anchor, (anchor.subject, *(each.subject.rfc4514_string() for each in certificates))
    raise failure or UndecidedError(
        "a certificate between the attestation key's and the root is missing (azure-ak)",
        hint="The AK certificate's issuer names itself in its authority information access.",
    )


def _paths(
    certificate: x509.Certificate, pool: Sequence[x509.Certificate], roots: set[str], depth: int
) -> Iterator[tuple[x509.Certificate, ...]]:
    """Chains of issuers by name, nearest to the root first: signatures decide later."""
    if certificate.issuer.rfc4514_string() in roots:
        yield ()
    for each in pool if depth else ():
        if each.subject == certificate.issuer and each.subject != each.issuer:
            for above in _paths(each, pool, roots, depth - 1):
                yield (*above, each)


def _unpadded(der: bytes) -> bytes:
    """One DER value without the zero bytes of the NV area behind it; raises MalformedError for other bytes there."""
    if der[:2] != b"\x30\x82":
        raise MalformedError("AK certificate: not an X.509 certificate")
    end = 4 + int.from_bytes(der[2:4], "big")
    if any(der[end:]):
        raise MalformedError("AK certificate: bytes after it")
    return der[:end]


def _check_quote(given: TpmQuote, key: rsa.RSAPublicKey) -> Quoted:
    """No other scheme is tried: Azure's attestation keys are RSA with SHA-256."""
    signature = Signature(scheme=Scheme.RSASSA, bank=BANK, value=given.signature)
    return tpm.verify_quote(given.message, signature, key, given.pcrs, BANK)


def _explained(logs: Sequence[bytes], quoted: Quoted | None) -> frozenset[int]:
    """Register by register: what runs later extends some of them further, without the firmware's log."""
    if quoted is None:
        return frozenset()
    return frozenset(index for log in _readable(logs) for index in quoted.pcrs if _replays(log, index, quoted))


def _readable(logs: Sequence[bytes]) -> Iterator[EventLog]:
    """One of another kind (CCEL as JSON, SHA-1) explains nothing here: a log is nobody's word, the rule decides."""
    for data in logs:
        with suppress(MalformedError):
            yield EventLog.parse(data)


def _replays(log: EventLog, index: int, quoted: Quoted) -> bool:
    try:
        return bool(tpm.replay(log, replace(quoted, pcrs={index: quoted.pcrs[index]})))
    except NotGenuineError:
        return False


def _facts(hcl: HclReport, quoted: Quoted | None) -> dict[str, str]:
    vm = hcl.runtime.vm
    facts = {
        "hardware": INNER[hcl.hardware],
        "hcl_version": str(hcl.version),
        "vm_unique_id": vm.unique_id or "",
        **{name: str(getattr(vm, name)).lower() for name in ("secure_boot", "tpm_enabled", "console_enabled")},
    }
    if quoted is not None:
        quote = quoted.quote
        facts["tpm_clock"] = f"{quote.clock} ms, reset {quote.reset_count}, restart {quote.restart_count}"
        facts["tpm_firmware"] = f"{quote.firmware_version:016x}"
    return facts
