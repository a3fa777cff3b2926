"""The launch measurements of a Nitro enclave, predicted from what its image holds.

Each register is SHA384(48 zero bytes ‖ SHA384(content)): the hypervisor extends a register that starts at zero, once.
Which content goes where: AWS Nitro Enclaves User Guide, "Enclave measurements"; held against QEMU and the NSM by tests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

REGISTER_BYTES = 48


def extend(content_digest: bytes, register: bytes = bytes(REGISTER_BYTES)) -> bytes:
    """A register (48 bytes) after it was extended by a SHA-384 digest."""
    return hashlib.sha384(register + content_digest).digest()


def registers(
    kernel: bytes, cmdline: bytes, ramdisks: Sequence[bytes], *, signing_certificate: bytes | None = None
) -> dict[int, bytes]:
    """PCR0 (everything), PCR1 (kernel, boot ramdisk), PCR2 (other ramdisks) and, signed, PCR8 (certificate DER)."""
    everything, boot, application = hashlib.sha384(), hashlib.sha384(), hashlib.sha384()
    for number, part in enumerate((kernel, cmdline, *ramdisks)):
        everything.update(part)
        (boot if number < 3 else application).update(part)
    values = {0: extend(everything.digest()), 1: extend(boot.digest()), 2: extend(application.digest())}
    if signing_certificate is not None:
        values[8] = extend(hashlib.sha384(signing_certificate).digest())
    return values


def parent_registers(*, role_arn: str | None, instance_id: str | None) -> dict[int, bytes]:
    """PCR3 (the parent's IAM role) and PCR4 (its instance ID), which the platform sets and no image can."""
    named = {3: role_arn, 4: instance_id}
    return {index: extend(text.encode("utf-8")) for index, text in named.items() if text is not None}
