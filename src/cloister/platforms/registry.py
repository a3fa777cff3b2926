"""The platforms that `cloister up` knows, by name: a list in the source, so that nothing installed can add to it."""

from __future__ import annotations

from cloister.errors import UsageError
from cloister.platforms.platform import Platform

NAMES = ("aws-nitro", "qemu-nitro")


def get(name: str) -> Platform:
    """The platform of that name; raises UsageError."""
    match name:
        case "aws-nitro":
            from cloister.platforms.aws_nitro.platform import AwsNitro

            return AwsNitro()
        case "qemu-nitro":
            from cloister.platforms.qemu_nitro.platform import QemuNitro

            return QemuNitro()
    raise UsageError(f"there is no platform {name}", hint=f"One of: {', '.join(NAMES)}.")
