"""Predict a guest's launch measurement from firmware, kernel and processors (AMD 56860, "SNP_LAUNCH_UPDATE").

At build time only, and with the extra `measure`: `sev-snp-measure` knows what each hypervisor puts into a guest's first
pages. A client compares measurements and computes none.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from cloister.errors import UsageError

PAGE = 4096
MAX_VCPUS = 512
#: Hypervisors whose first register state is known.
HYPERVISORS = ("QEMU", "ec2", "gce")


@dataclass(frozen=True, kw_only=True)
class DirectBoot:
    """SHA-256 digests of a kernel and initrd that the firmware compares before it starts them, and the command line."""

    kernel: bytes
    initrd: bytes = hashlib.sha256(b"").digest()
    cmdline: str = ""

    @classmethod
    def of(cls, kernel: bytes, initrd: bytes = b"", cmdline: str = "") -> DirectBoot:
        """From the files' contents."""
        return cls(kernel=hashlib.sha256(kernel).digest(), initrd=hashlib.sha256(initrd).digest(), cmdline=cmdline)

    def construct_page(self, offset: int) -> bytes:
        """The page with QEMU's table of hashes at `offset`; the name is the one that sev-snp-measure calls."""
        entries = b"".join(
            _entry(guid, digest)
            for guid, digest in (
                ("97d02dd8-bd20-4c94-aa78-e7714d36ab2a", hashlib.sha256(self.cmdline.encode() + b"\x00").digest()),
                ("44baf731-3a2f-4bd7-9af1-41e29169781d", self.initrd),
                ("4de79437-abd2-427f-b835-d5b172d2045b", self.kernel),
            )
        )
        table = _entry("9438d606-4f22-4cc9-b479-a793d411fd21", entries)
        if not 0 <= offset <= PAGE - len(table):
            raise UsageError("the firmware's table of hashes does not fit into its page", hint="Is it an OVMF for SNP?")
        return bytes(offset) + table + bytes(PAGE - offset - len(table))


def _entry(guid: str, content: bytes) -> bytes:
    """GUID (mixed-endian), the whole length, the content."""
    return UUID(guid).bytes_le + (len(content) + 18).to_bytes(2, "little") + content


def launch_measurement(
    firmware: Path,
    *,
    vcpus: int,
    vcpu_type: str,
    boot: DirectBoot | None = None,
    hypervisor: str = "QEMU",
    guest_features: int = 1,
    firmware_digest: bytes | None = None,
) -> bytes:
    """The 48 bytes that a report of such a guest carries; they change with the number and type of its processors.

    `vcpu_type` is QEMU's name (`EPYC-v4`), `guest_features` is SEV_FEATURES (1: SNP alone), `firmware_digest` the 48
    bytes of the digest after the firmware's own pages, if the file has only the rest. Raises UsageError.
    """
    try:
        from sevsnpmeasure import guest, vcpu_types
        from sevsnpmeasure.gctx import GCTX
        from sevsnpmeasure.ovmf import OVMF
        from sevsnpmeasure.sev_mode import SevMode
        from sevsnpmeasure.vmm_types import VMMType
        from sevsnpmeasure.vmsa import VMSA
    except ImportError:
        raise UsageError("sev-snp-measure is not installed", hint="pip install 'cloister[measure]'") from None
    if not 1 <= vcpus <= MAX_VCPUS:
        raise UsageError(f"a guest has 1 to {MAX_VCPUS} processors")
    if vcpu_type not in vcpu_types.CPU_SIGS:
        raise UsageError("that processor type is not known", hint=f"Known: {', '.join(vcpu_types.CPU_SIGS)}.")
    if hypervisor not in HYPERVISORS:
        raise UsageError("that hypervisor is not known", hint=f"Known: {', '.join(HYPERVISORS)}.")
    vmm = VMMType[hypervisor]
    try:
        ovmf = OVMF(str(firmware))
        if firmware_digest is None:
            context = GCTX()
            context.update_normal_pages(ovmf.gpa(), ovmf.data())
        else:
            context = GCTX(seed=firmware_digest)
        guest.snp_update_metadata_pages(context, ovmf, boot, vmm)
        reset = ovmf.sev_es_reset_eip()
    except OSError as error:
        raise UsageError(f"the firmware cannot be read: {error.strerror}") from None
    except (ValueError, RuntimeError, AssertionError, LookupError):
        raise UsageError(
            "the firmware is no OVMF for SEV-SNP, or has no table of hashes for a kernel",
            hint="Use an OVMF built for AmdSev.",
        ) from None
    for page in VMSA(SevMode.SEV_SNP, reset, vcpu_types.CPU_SIGS[vcpu_type], guest_features, vmm).pages(vcpus):
        context.update_vmsa_page(page)
    digest: bytes = context.ld()
    return digest
