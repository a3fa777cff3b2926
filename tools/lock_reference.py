"""Pins what the reference QEMU is compiled from and in: the newest source and packages of one Debian release.

python tools/lock_reference.py      (needs apt; writes two lock files beside platforms/qemu_nitro/reference.py)
"""

from __future__ import annotations

from pathlib import Path

import cloister
from cloister.image import debian

SUITE = "trixie"
PACKAGES = (
    "bash", "coreutils", "dash", "diffutils", "findutils", "grep", "sed", "tar", "xz-utils", "libc-bin",
    "ca-certificates", "gcc", "binutils", "libc6-dev", "meson", "ninja-build", "pkgconf", "python3", "python3-venv",
    "flex", "bison", "libglib2.0-dev", "libcbor-dev", "libgnutls28-dev", "libfdt-dev", "zlib1g-dev",
)  # fmt: skip


def main() -> None:
    """Write both locks."""
    folder = Path(cloister.__file__).parent / "platforms/qemu_nitro"
    toolchain = debian.resolve(SUITE, PACKAGES, dependencies=True)
    (folder / "reference-toolchain.lock.json").write_text(toolchain.to_json())
    (folder / "reference-source.lock.json").write_text(debian.resolve_source(SUITE, "qemu").to_json())


if __name__ == "__main__":
    main()
