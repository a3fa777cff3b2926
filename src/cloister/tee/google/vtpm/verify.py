"""Is this attestation of a Compute Engine vTPM genuine? The steps are numbered as in README.md beside this folder."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cryptography import x509

from cloister.errors import CloisterError, MalformedError, NotGenuineError, UndecidedError
from cloister.tee import registry
from cloister.tee.binding import REPORT_DATA
from cloister.tee.claims import Claims
from cloister.tee.context import Context
from cloister.tee.google.roots import ANCHORS
from cloister.tee.google.vtpm import certificates
from cloister.tee.google.vtpm import endorsement as endorsements
from cloister.tee.google.vtpm.certificates import Instance
from cloister.tee.google.vtpm.endorsement import Endorsement
from cloister.tee.google.vtpm.evidence import Attestation
from cloister.tee.google.vtpm.firmware import EVIDENCE, Firmware, Technology
from cloister.tee.google.vtpm.inner import Inner
from cloister.trust import chain, tpm
from cloister.trust.anchors import Anchor
from cloister.trust.collateral import Collateral
from cloister.trust.tpm import Quoted
from cloister.wire.tcg_log import EventLog
from cloister.wire.tpm import Bank

CHECKS: tuple[tuple[str, str], ...] = (
    ("google-vtpm.message", "1. One attestation message of at most 2 MiB, with its TPM structures"),
    ("google-vtpm.key", "2. The attestation key has a certificate for a machine of Google's, valid now"),
    ("google-vtpm.quote", "3. That key signed a quote of exactly these SHA-256 registers"),
    ("google-vtpm.event-log", "4. The event log, if there is one, gives the quoted values"),
    ("google-vtpm.inner", "5. Evidence of the processor, if there is some, is of the kind that the firmware measured"),
    ("google-vtpm.inner-data", "6. It carries the quote's own data, and zeros"),
    ("google-vtpm.endorsement", "7. An endorsement of the firmware that was given is Google's"),
)
BANK = Bank.SHA256


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What the rules look at. `firmware` is None without an event log, `endorsement` without one and its root."""

    quoted: Quoted
    instance: Instance
    firmware: Firmware | None
    inner: Claims | None
    endorsement: Endorsement | None

    @property
    def technology(self) -> Technology | None:
        """What isolates the machine; for SEV-SNP and TDX it takes the processor's own evidence too."""
        return self.firmware.technology if self.firmware is not None else None


def verify(evidence: bytes, context: Context) -> Claims:
    """Claims of a genuine attestation, or MalformedError, NotGenuineError, UndecidedError (a certificate is missing).

    Collateral: `google-ak` (certificates that did not come with it), `tcg-event-log` (the same for the log),
    `google-endorsement` with a root among `context.anchors["google-endorsement"]`, and that of the evidence inside.
    """
    checklist = context.checklist
    with checklist.step("google-vtpm.message") as step:
        attestation = Attestation.parse(evidence)
        quote = attestation.quote_of(BANK)
        if quote is None:
            raise NotGenuineError(f"there is no quote of the {BANK.name} registers")
        step.detail = f"{len(attestation.quotes)} quotes; the one of {BANK.name} is looked at"
    with checklist.step("google-vtpm.key") as step:
        root, path = _key(attestation, context)
        instance = Instance.of(path[-1])
        if not instance.production:
            raise NotGenuineError("the key's certificate is not of Google's production environment")
        step.detail = f"{instance.project_id}, {instance.zone}, instance {instance.instance_id}"
    with checklist.step("google-vtpm.quote") as step:
        quoted = tpm.verify_quote(quote.message, quote.signature, path[-1].public_key(), quote.pcrs, quote.bank)
        step.detail = f"{len(quoted.pcrs)} registers"
    # From here on the registers may be believed, and of the log what gives them.
    with checklist.step("google-vtpm.event-log") as step:
        firmware = _firmware(attestation, quoted, context)
        step.detail = _told(firmware)
    inner: Claims | None = None
    with checklist.step("google-vtpm.inner") as step:
        if attestation.inner is not None:
            _check_kind(attestation.inner, firmware)
            form = registry.get(attestation.inner.name)
            if form.checks[0][0] not in checklist:
                checklist.plan(form.checks, after="google-vtpm.inner")
        step.detail = attestation.inner.name if attestation.inner is not None else "none"
    carried = Collateral(attestation.inner.items if attestation.inner is not None else ())
    context = replace(context, collateral=context.collateral + carried)
    if attestation.inner is not None:
        inner = registry.get(attestation.inner.name).verify(attestation.inner.evidence, context)
    with checklist.step("google-vtpm.inner-data") as step:
        if inner is not None:
            _check_data(inner, quoted)
        step.detail = "the same" if inner is not None else "none"
    with checklist.step("google-vtpm.endorsement") as step:
        endorsed = _endorsement(inner, context)
        endorsement, endorser = endorsed or (None, None)
        step.detail = "none was looked at"
        if endorsement is not None and endorser is not None:
            step.detail = f"signed {endorsement.signed_at:%Y-%m-%d}; root: {endorser.origin}"
    return Claims(
        tee="google-vtpm",
        genuine=root.genuine and (endorser is None or endorser.genuine),
        debug=False,
        measurements=quoted.measurements(),
        user_data=quoted.quote.extra_data,
        nonce=None,
        signed_at=None,
        chain=(root.subject, *(each.subject.rfc4514_string() for each in path)),
        facts=_facts(instance, firmware, quoted, root),
        details=Verified(quoted=quoted, instance=instance, firmware=firmware, inner=inner, endorsement=endorsement),
        inner=() if inner is None else (inner,),
    )


def _key(attestation: Attestation, context: Context) -> tuple[Anchor, tuple[x509.Certificate, ...]]:
    """The chain of the certificate whose key is the attestation's; what else came along is an intermediate."""
    certificate, key = attestation.certificate, tpm.public_key(attestation.key)
    own = (certificates.load(certificate),) if certificate is not None else ()
    others = [certificates.load(der) for der in (*attestation.intermediates, *context.collateral.of("google-ak"))]
    leaf = next((each for each in (*own, *others) if each.public_key() == key), None)
    if leaf is None and own:
        raise NotGenuineError("the certificate is for another key than the attestation names")
    if leaf is None:
        raise UndecidedError(
            "the attestation key's certificate is missing (google-ak)", hint="The guest reads it from its vTPM."
        )
    anchors = context.roots("google-vtpm", ANCHORS)
    path = certificates.path(leaf, others, anchors)
    return chain.validate(path, leaf, anchors, now=context.now, profile=certificates.PROFILE)


def _firmware(attestation: Attestation, quoted: Quoted, context: Context) -> Firmware | None:
    """From the log that came along; else from the first at hand that gives the quoted values."""
    if attestation.event_log:
        return _replayed(attestation.event_log, quoted)
    failure: CloisterError | None = None
    for data in context.collateral.of("tcg-event-log"):
        try:
            return _replayed(data, quoted)
        except (MalformedError, NotGenuineError) as error:
            failure = error
    if failure is not None:
        raise failure
    return None


def _replayed(data: bytes, quoted: Quoted) -> Firmware:
    return Firmware.read(tpm.replay(EventLog.parse(data), quoted), quoted.bank)


def _told(firmware: Firmware | None) -> str:
    if firmware is None:
        return "none was given"
    return f"firmware v{firmware.version}, technology {firmware.technology or 'not stated'}"


def _check_kind(inner: Inner, firmware: Firmware | None) -> None:
    """A log that does not say contradicts nothing; the policy's rule on the technology cannot pass then."""
    technology = firmware.technology if firmware is not None else None
    if technology is not None and EVIDENCE.get(technology) != inner.name:
        raise NotGenuineError(f"the firmware measured {technology}, the evidence inside is of {inner.name}")


def _check_data(inner: Claims, quoted: Quoted) -> None:
    """One caller's data in both: as go-tpm-tools has it, the nonce filled up with zeros."""
    extra = quoted.quote.extra_data
    if not extra or len(extra) > REPORT_DATA:
        raise NotGenuineError("the quote carries no data that the evidence inside could repeat")
    if not hmac.compare_digest(inner.user_data or b"", extra.ljust(REPORT_DATA, b"\x00")):
        raise NotGenuineError("the evidence inside carries other data than the quote")


def _endorsement(inner: Claims | None, context: Context) -> tuple[Endorsement, Anchor] | None:
    """With its root; of several, the one that lists the measurement. All must be Google's. None without a root."""
    anchors: Sequence[Anchor] = context.roots("google-endorsement", ())
    if not anchors or inner is None:
        return None
    found = [
        endorsements.verify(data, anchors, now=context.now, skew=context.max_skew)
        for data in context.collateral.of("google-endorsement")
    ]
    measurement = launch_measurement(inner)
    listing = (each for each in found if each[0].svn_of(inner.tee, measurement) is not None)
    return next(listing, next(iter(found), None))


def launch_measurement(inner: Claims) -> bytes:
    """What the processor measured at launch: SEV-SNP's MEASUREMENT or TDX's MRTD, empty for anything else."""
    return bytes.fromhex(inner.measurements.get({"snp": "measurement", "tdx": "mrtd"}.get(inner.tee, ""), ""))


def _facts(instance: Instance, firmware: Firmware | None, quoted: Quoted, root: Anchor) -> dict[str, str]:
    facts = {
        "project_id": instance.project_id,
        "zone": instance.zone,
        "instance_name": instance.instance_name,
        "instance_id": str(instance.instance_id),
        "reset_count": str(quoted.quote.reset_count),
        "root_sha256": root.sha256,
    }
    if firmware is not None:
        facts["firmware"] = "" if firmware.version is None else str(firmware.version)
        facts["technology"] = firmware.technology.value if firmware.technology is not None else ""
    return {name: value for name, value in facts.items() if value}
