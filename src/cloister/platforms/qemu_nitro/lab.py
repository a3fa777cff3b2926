"""What the emulation needs that is not in the system: QEMU, the kernel, a SIMULATED root. Made once, kept by digest."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from cloister.image import cache, debian, toolchain
from cloister.platforms.qemu_nitro.qemu import Acceleration, Qemu
from cloister.platforms.qemu_nitro.qemu import acceleration as probe


def lock() -> debian.Lock:
    """The pinned QEMU and everything it needs, its C library included."""
    return debian.Lock.from_json(
        resources.files("cloister.platforms.qemu_nitro").joinpath("qemu.lock.json").read_bytes()
    )


def qemu() -> Qemu:
    """Debian's unmodified QEMU, unpacked and run through its own dynamic linker; raises UndecidedError."""
    system = debian.unpack(lock(), "qemu")
    libraries = system / "usr/lib/x86_64-linux-gnu"
    return Qemu(
        program=(
            str(libraries / "ld-linux-x86-64.so.2"),
            "--library-path",
            str(libraries),
            str(system / "usr/bin/qemu-system-x86_64"),
        ),
        module_path=libraries / "qemu",
        data=(system / "usr/share/qemu", system / "usr/share/seabios"),
    )


def acceleration(kernel: bytes) -> Acceleration:
    """`kvm` where this machine booted that very kernel under it, else `tcg`; tried once after each reboot."""
    booted = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    key = hashlib.sha256(kernel + booted.encode() + lock().digest.encode()).hexdigest()
    said = cache.home() / "kvm-probes" / key
    if not said.exists():
        said.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="cloister-probe-") as folder:
            file = Path(folder) / "kernel"
            file.write_bytes(kernel)
            said.write_text(probe(qemu(), file))
    return "kvm" if said.read_text() == "kvm" else "tcg"


def simulated_root() -> Path:
    """Where this user's SIMULATED root lies: whoever can read it can sign any evidence under it."""
    return cache.home() / "simulated-root.pem"


def ready() -> bool:
    """Is everything there already?"""
    return toolchain.INIT.ready() and toolchain.KERNEL.ready() and cache.path("qemu", lock().digest).exists()


def prepare(say: Callable[[str], None]) -> None:
    """Fetch and compile everything; raises UsageError or UndecidedError."""
    say("QEMU: fetching and unpacking")
    qemu()
    say("init: compiling")
    toolchain.INIT.make()
    say("kernel: compiling, once; about four minutes on two cores")
    toolchain.KERNEL.make()
    say("the lab is ready")
