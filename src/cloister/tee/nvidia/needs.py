"""What reports and results need from NVIDIA's services; a report is a stranger's word."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise

from cloister.tee.nvidia import nras
from cloister.tee.nvidia.evidence import Arch, Entry, Evidence, Kind
from cloister.tee.nvidia.rim import Rim
from cloister.tee.nvidia.roots import NRAS_ISSUER
from cloister.tee.nvidia.spdm import Opaque, vbios_version
from cloister.trust.certificates import load_certificate
from cloister.trust.need import Life, Need

#: The chip where a report does not name it, as NVIDIA's own verifier takes it.
_CHIPS = {Arch.HOPPER: "GH100", Arch.BLACKWELL: "GB100"}
#: There is one kind of NVSwitch whose reports are understood.
_SWITCH = "NV_SWITCH_BIOS_5612_0002_890"


def of_reports(evidence: bytes) -> tuple[Need, ...]:
    """The manifests of every driver and VBIOS, and what OCSP says of each certificate that can be revoked.

    Once each; raises MalformedError.
    """
    found = list[Need]()
    for entry in Evidence.parse(evidence).entries:
        # The device's own certificate is none of those that the responder knows.
        found += [*(_manifest(name) for name in _names(entry)), *_revocation(entry.chain[1:])]
    return tuple({need.question: need for need in found}.values())


def of_result(evidence: bytes) -> tuple[Need, ...]:
    """The service's keys, whatever issuer the token names; raises MalformedError."""
    nras.parse(evidence)
    return (Need(kind="jwks", parameters={"issuer": NRAS_ISSUER}),)


def _names(entry: Entry) -> Iterator[str]:
    """The identifiers that NVIDIA's RIM service has for the manifests of one device."""
    report = entry.report
    if entry.kind is Kind.SWITCH:
        yield f"{_SWITCH}_{_undotted(report.stated(Opaque.VBIOS_VERSION))}"
        return
    prefix = "NV_GPU_DRIVER" if entry.arch is Arch.HOPPER else "NV_GPU_CC_DRIVER"
    chip = report.text(Opaque.CHIP_INFO) or _CHIPS[entry.arch]
    yield f"{prefix}_{chip}_{report.stated(Opaque.DRIVER_VERSION)}"
    board = "_".join(report.stated(kind) for kind in (Opaque.PROJECT, Opaque.PROJECT_SKU, Opaque.CHIP_SKU))
    yield f"NV_GPU_VBIOS_{board.upper()}_{_undotted(vbios_version(report.opaque.get(Opaque.VBIOS_VERSION, b'')))}"


def _undotted(version: str) -> str:
    return version.replace(".", "").upper()


def _manifest(name: str) -> Need:
    def check(data: bytes) -> Life:
        for der in Rim.parse(data).certificates:
            load_certificate(der, "RIM certificate")
        # Of one version for good: how long its signer may have ended is the policy's word.
        return Life(datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))

    return Need(
        kind="nvidia-rim",
        parameters={"id": name},
        check=check,
        then=lambda data: _revocation(Rim.parse(data).certificates),
    )


def _revocation(chain: Sequence[bytes]) -> tuple[Need, ...]:
    """For each certificate (DER, root last) but the root."""
    encoded = [base64.b64encode(der).decode() for der in chain]
    return tuple(
        Need(kind="nvidia-ocsp", parameters={"certificate": certificate, "issuer": issuer})
        for certificate, issuer in pairwise(encoded)
    )
