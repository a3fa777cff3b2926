"""Compile what an image needs that is not a package (kernel, init) with a compiler that is pinned like everything else.

Debian's packages are unpacked into the cache and entered with chroot in a mount namespace of its own; without root, in
a user namespace. Nothing is installed on this machine.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from cloister.errors import UndecidedError, UsageError
from cloister.image import cache, debian

_ENTER = """set -e
mount --make-rprivate /
mkdir -p "$1/work" "$1/dev" "$1/proc" "$1/tmp"
mount --bind "$2" "$1/work"
mount --rbind /dev "$1/dev"
mount --rbind /proc "$1/proc"
mount -t tmpfs tmpfs "$1/tmp"
root=$1; shift 2
exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin LC_ALL=C.UTF-8 "$@"
"""


def lock(name: str = "toolchain", package: str = "cloister.image") -> debian.Lock:
    """What a package of this program pins under a name; without one, the compiler and the kernel's source."""
    return debian.Lock.from_json(resources.files(package).joinpath(f"{name}.lock.json").read_bytes())


def run(root: Path, work: Path, command: Sequence[str], *, timeout: float) -> None:
    """Run a command inside the system at `root` with `work` at /work; raises UsageError or UndecidedError."""
    if shutil.which("unshare") is None:
        raise UsageError("compiling needs Linux namespaces (unshare)", hint="Install util-linux.")
    mapped = [] if os.geteuid() == 0 else ["--map-root-user"]
    try:
        done = subprocess.run(  # noqa: S603 - our own command inside our own folder
            ["unshare", "--mount", *mapped, "bash", "-c", _ENTER, "enter", str(root), str(work), *command],  # noqa: S607
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise UndecidedError(f"compiling did not end within {timeout:.0f} s") from None
    if done.returncode:
        reason = " / ".join(done.stderr.strip().splitlines()[-6:]) or "no reason given"
        raise UndecidedError(f"compiling failed: {reason}", hint="Without root, user namespaces must be allowed.")


@dataclass(frozen=True)
class Product:
    """One thing to compile: its sources (files of a package), the command inside the toolchain, what comes out."""

    name: str
    sources: tuple[str, ...]
    command: tuple[str, ...]
    output: str
    timeout: float
    #: Where the sources and the locks are.
    package: str = "cloister.image"
    #: The lock of the system that it is compiled in.
    toolchain: str = "toolchain"
    #: The lock of the archives that lie beside the sources under their names.
    archives: str | None = None

    @property
    def digest(self) -> str:
        """Hex SHA-256 over everything that decides the output."""
        locks = [lock(name, self.package).digest for name in (self.toolchain, self.archives) if name is not None]
        digest = hashlib.sha256("\0".join([*locks, *self.command]).encode("utf-8"))
        for file, data in self._read():
            digest.update(file.encode("ascii") + b"\0" + hashlib.sha256(data).digest())
        return digest.hexdigest()

    def ready(self) -> bool:
        """Was it compiled already?"""
        return cache.path(self.name, self.digest).exists()

    def make(self) -> Path:
        """The compiled file, from the cache if it is there; raises UsageError or UndecidedError."""

        def fill(folder: Path) -> None:
            for file, data in self._read():
                (folder / file).write_bytes(data)
            archives = [] if self.archives is None else list(debian.fetch(lock(self.archives, self.package)))
            for archive, path in archives:
                shutil.copyfile(path, folder / archive.name)
            run(self.system(), folder, self.command, timeout=self.timeout)
            for archive, _ in archives:
                (folder / archive.name).unlink()
            for each in folder.iterdir():
                if each.is_dir():
                    shutil.rmtree(each)

        return cache.folder(self.name, self.digest, fill) / self.output

    def system(self) -> Path:
        """The unpacked toolchain; raises UndecidedError."""
        return debian.unpack(lock(self.toolchain, self.package), self.toolchain)

    def _read(self) -> list[tuple[str, bytes]]:
        return [(file, resources.files(self.package).joinpath(file).read_bytes()) for file in sorted(self.sources)]


#: The small kernel: some minutes the first time.
KERNEL = Product("kernel", ("kernel.fragment", "build-kernel.sh"), ("bash", "/work/build-kernel.sh"), "bzImage", 3600)
#: The image's first process, a static program.
INIT = Product(
    "init",
    ("init.c",),
    (
        "gcc", "-O2", "-static", "-s", "-Wall", "-Wextra", "-Werror", "-Wl,--build-id=none",
        "-o", "/work/init", "/work/init.c",
    ),
    "init",
    300,
)  # fmt: skip
