"""Are these reports of NVIDIA GPUs and NVSwitches genuine? The steps are numbered as in README.md beside this file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from cryptography import x509
from cryptography.x509 import ocsp as x509_ocsp

from cloister.errors import MalformedError, NotGenuineError
from cloister.tee.claims import Claims
from cloister.tee.context import Context
from cloister.tee.nvidia import device
from cloister.tee.nvidia.device import Certified, Device, Devices, Facts, Golden, Manifest
from cloister.tee.nvidia.evidence import Entry, Evidence, Kind
from cloister.tee.nvidia.rim import Rim
from cloister.tee.nvidia.roots import DEVICE_ANCHORS, RIM_ANCHORS
from cloister.tee.nvidia.spdm import NONCE_SIZE, Opaque, Report
from cloister.trust import chain, ocsp, signatures
from cloister.trust.anchors import Anchor
from cloister.trust.chain import P384
from cloister.trust.ocsp import Answer, Status
from cloister.trust.signatures import Algorithm

#: Two for each kind of machine are enough; parsing one takes milliseconds.
MAX_RIMS = 32

CHECKS: tuple[tuple[str, str], ...] = (
    ("nvidia-gpu.envelope", "1. One envelope of bounded size; every report is one exact SPDM 1.1 exchange"),
    ("nvidia-gpu.chain", "2. The five certificates of each device chain to NVIDIA's device root"),
    ("nvidia-gpu.signature", "3. Each device's own key signed its report"),
    ("nvidia-gpu.identity", "4. Each report fits its certificate (chip, firmware identity); no device occurs twice"),
    ("nvidia-gpu.nonce", "5. All reports answer one and the same nonce"),
    ("nvidia-gpu.revocation", "6. No OCSP response at hand says that a certificate was revoked"),
    ("nvidia-gpu.rims", "7. The manifests at hand of these drivers and VBIOSes are signed under NVIDIA's RIM root"),
)


@dataclass(frozen=True, kw_only=True)
class _Genuine:
    """A manifest that was verified."""

    rim: Rim
    manifest: Manifest
    anchor: Anchor


def verify(evidence: bytes, context: Context) -> Claims:
    """Claims of genuine reports, or MalformedError or NotGenuineError.

    `user_data` and `nonce` are the requests' nonce (32 bytes). Whether golden measurements were at hand and fit, and
    what OCSP said, is in `details` (Devices) for the rules: a report is genuine without them, but accepted only by a
    rule that found them.
    """
    checklist, now = context.checklist, context.now
    with checklist.step("nvidia-gpu.envelope") as step:
        entries = Evidence.parse(evidence).entries
        step.detail = f"{len(entries)} reports"
    with checklist.step("nvidia-gpu.chain") as step:
        anchors = context.roots("nvidia-gpu", DEVICE_ANCHORS)
        # A chain is sent device first; it is validated from the root.
        chains = [
            chain.validate(tuple(reversed(entry.chain[1:])), entry.chain[0], anchors, now=now) for entry in entries
        ]
        step.detail = f"{len(chains)} chains from {chains[0][0].subject}"
    with checklist.step("nvidia-gpu.signature"):
        for entry, (_, certificates) in zip(entries, chains, strict=True):
            _check_signature(entry.report, certificates[-1])
    # From here on the reports' own words may be believed.
    with checklist.step("nvidia-gpu.identity") as step:
        facts = [
            device.read(entry.kind, entry.arch, entry.report, certificates[-1])
            for entry, (_, certificates) in zip(entries, chains, strict=True)
        ]
        _check_distinct([certificates[-1] for _, certificates in chains])
        step.detail = ", ".join(sorted({f"{each.chip} {each.vbios}" for each in facts}))
    with checklist.step("nvidia-gpu.nonce"):
        nonces = {entry.report.nonce for entry in entries}
        if len(nonces) != 1:
            raise NotGenuineError("the reports answer different nonces")
        nonce = nonces.pop()
        assert len(nonce) == NONCE_SIZE
    with checklist.step("nvidia-gpu.revocation") as step:
        responses = _Responses(context)
        # NVIDIA's OCSP knows the three intermediates; the root is pinned and the device's own certificate has none.
        certified = [responses.of(certificates, leaf=False) for _, certificates in chains]
        step.detail = _heard(certified)
    with checklist.step("nvidia-gpu.rims") as step:
        manifests = _Manifests(context, responses)
        golden = [manifests.compare(fact, entry.report) for fact, entry in zip(facts, entries, strict=True)]
        step.detail = ", ".join(sorted({manifest.version for each in golden for manifest in each.manifests})) or "none"
    devices = tuple(
        Device(facts=fact, certificates=known, golden=each)
        for fact, known, each in zip(facts, certified, golden, strict=True)
    )
    used = [*(anchor for anchor, _ in chains), *manifests.anchors]
    return Claims(
        tee="nvidia-gpu",
        genuine=all(anchor.genuine for anchor in used),
        debug=False,
        measurements=_measurements(entries, facts),
        user_data=nonce,
        nonce=nonce,
        signed_at=None,
        chain=tuple(certificate.subject.rfc4514_string() for certificate in chains[0][1]),
        facts=_shown(facts),
        details=Devices(devices=devices, now=now),
    )


def _check_signature(report: Report, leaf: x509.Certificate) -> None:
    """r ‖ s, each 48 bytes, by ECDSA P-384 with SHA-384."""
    signature = signatures.from_raw(report.signature)
    signatures.check(chain.p384(leaf), Algorithm.ECDSA_P384_SHA384, signature, report.signed, "the report")


def _check_distinct(leaves: Iterable[x509.Certificate]) -> None:
    serials, keys = [], []
    for leaf in leaves:
        serials.append(leaf.serial_number)
        keys.append(chain.p384(leaf).public_numbers())
    if len(set(serials)) != len(serials) or len(set(keys)) != len(keys):
        raise NotGenuineError("one device is counted twice")


class _Responses:
    """The OCSP responses of the collateral; each is checked when a certificate asks for it."""

    def __init__(self, context: Context) -> None:
        self._now, self._skew = context.now, context.max_skew
        self._known: dict[int, list[x509_ocsp.OCSPResponse]] = {}
        for der in context.collateral.of("nvidia-ocsp"):
            response = ocsp.parse(der)
            self._known.setdefault(response.serial_number, []).append(response)

    def of(self, certificates: Sequence[x509.Certificate], *, leaf: bool) -> tuple[Certified, ...]:
        """What is known of each certificate (root first) but the root, and but the leaf unless `leaf`."""
        last = len(certificates) if leaf else len(certificates) - 1
        return tuple(
            Certified(
                subject=certificates[at].subject.rfc4514_string(),
                answer=self._answer(certificates[at], certificates[at - 1]),
            )
            for at in range(1, last)
        )

    def _answer(self, certificate: x509.Certificate, issuer: x509.Certificate) -> Answer | None:
        newest: Answer | None = None
        for response in self._known.get(certificate.serial_number, ()):
            if not ocsp.about(response, certificate, issuer):
                continue
            answer = ocsp.check(response, issuer, P384, now=self._now, skew=self._skew)
            # A revocation is for good (RFC 5280 section 5.3.1): an old response that says so still holds.
            if answer.status is Status.REVOKED:
                raise NotGenuineError(f"{certificate.subject.rfc4514_string()} was revoked")
            if newest is None or answer.this_update > newest.this_update:
                newest = answer
        return newest


class _Manifests:
    """The RIMs of the collateral; each is verified once, when a report of its version asks for it."""

    def __init__(self, context: Context, responses: _Responses) -> None:
        self._now = context.now
        self._roots = context.roots("nvidia-rim", RIM_ANCHORS)
        self._responses = responses
        items = context.collateral.of("nvidia-rim")
        if len(items) > MAX_RIMS:
            raise MalformedError(f"collateral: more than {MAX_RIMS} manifests")
        # A document can be written in many ways around its signature, and counts once for each of its signers.
        parsed = [Rim.parse(data) for data in items]
        self._parsed = list({(rim.document, rim.certificates): rim for rim in parsed}.values())
        self._verified: dict[int, _Genuine] = {}
        self.anchors: list[Anchor] = []

    def compare(self, facts: Facts, report: Report) -> Golden:
        """The device's measurements against its own driver's and VBIOS's manifests."""
        versions = [facts.vbios] if facts.driver is None else [facts.driver, facts.vbios]
        choices = [self._find(facts, version) for version in versions]
        missing = tuple(version for version, found in zip(versions, choices, strict=True) if not found)
        if missing:
            return Golden(missing=missing)
        # Several genuine manifests of one version are alternatives: the device need fit one of each. NVIDIA signs old
        # ones anew, so that of those that fit, the signers that end last count.
        results = [_compare(chosen, report) for chosen in product(*choices)]
        return max(results, key=lambda result: (-len(result.wrong), min(each.ends for each in result.manifests)))

    def _find(self, facts: Facts, version: str) -> list[_Genuine]:
        """Every manifest of that version, chip and kind of device.

        A manifest does not carry its identifier; a driver's version alone would also fit another chip's manifest.
        """
        wanted = (version.upper(), facts.chip.replace("_", ""), facts.kind.upper())
        return [
            self._genuine(at)
            for at, rim in enumerate(self._parsed)
            if (rim.version.upper(), rim.product, rim.edition) == wanted
        ]

    def _genuine(self, at: int) -> _Genuine:
        if at not in self._verified:
            rim = self._parsed[at]
            anchor, certificates, ends = rim.verify(self._roots, now=self._now)
            certified = self._responses.of(certificates, leaf=True)
            manifest = Manifest(version=rim.version, ends=ends, certificates=certified)
            self._verified[at] = _Genuine(rim=rim, manifest=manifest, anchor=anchor)
            self.anchors.append(anchor)
        return self._verified[at]


def _compare(chosen: Sequence[_Genuine], report: Report) -> Golden:
    """Every active golden index is in the report and equals one alternative; other measurements are not compared."""
    golden: dict[int, tuple[bytes, ...]] = {}
    for each in chosen:
        if golden.keys() & each.rim.golden.keys():
            raise NotGenuineError("the manifests of driver and VBIOS both claim one measurement")
        golden.update(each.rim.golden)
    if report.opaque.get(Opaque.NVDEC0_STATUS) == device.NVDEC0_DISABLED:
        golden.pop(device.NVDEC0_INDEX, None)
    wrong = tuple(sorted(index for index, good in golden.items() if report.measurements.get(index) not in good))
    return Golden(missing=(), manifests=tuple(each.manifest for each in chosen), compared=len(golden), wrong=wrong)


def _heard(certified: Sequence[Sequence[Certified]]) -> str:
    answers = [each.answer for known in certified for each in known]
    heard = [answer.status for answer in answers if answer is not None]
    held = heard.count(Status.HOLD)
    return f"{len(heard)} of {len(answers)} certificates answered for" + (f", {held} on hold" if held else "")


def _measurements(entries: Sequence[Entry], facts: Sequence[Facts]) -> dict[str, str]:
    """One digest for each device: SHA-384 of its measurements in the order of their indices."""
    counts = dict.fromkeys(Kind, 0)
    shown = {}
    for entry, fact in zip(entries, facts, strict=True):
        values = b"".join(value for _, value in sorted(entry.report.measurements.items()))
        shown[f"{fact.kind}{counts[fact.kind]}"] = hashlib.sha384(values).hexdigest()
        counts[fact.kind] += 1
    return shown


def _shown(facts: Sequence[Facts]) -> dict[str, str]:
    return {
        "devices": ", ".join(f"{fact.chip} {fact.ueid}" for fact in facts),
        "drivers": ", ".join(sorted({fact.driver for fact in facts if fact.driver})),
        "vbios": ", ".join(sorted({fact.vbios for fact in facts})),
        "modes": ", ".join(sorted({fact.mode for fact in facts if fact.mode})),
        "boards": ", ".join(sorted({fact.board for fact in facts})),
    }
