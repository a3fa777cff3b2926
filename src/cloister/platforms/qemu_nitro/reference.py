"""QEMU's own `nitro-enclave` machine, as the independent reading of an image: its loader, its registers, its NSM.

QEMU parses the image file, measures it and answers /dev/nsm with code that shares nothing with ours. Debian's binary
lacks the machine (it is built without libcbor), so it is compiled from Debian's source in a pinned toolchain. Its
documents are unsigned: they show registers and are never accepted as evidence.
"""

from __future__ import annotations

from collections.abc import Callable

from cloister.image import toolchain
from cloister.platforms.qemu_nitro import lab
from cloister.platforms.qemu_nitro.qemu import Machine, Qemu, escaped

_PACKAGE = "cloister.platforms.qemu_nitro"
QEMU = toolchain.Product(
    "reference-qemu",
    ("build-qemu.sh",),
    ("bash", "/work/build-qemu.sh"),
    "qemu-system-x86_64",
    3600,
    package=_PACKAGE,
    toolchain="reference-toolchain",
    archives="reference-source",
)
#: What the machine is told of its parent: registers 3 and 4, and the module's name in documents.
ROLE_ARN, INSTANCE_ID = "arn:aws:iam::111122223333:role/reference", "i-0123456789abcdef0"
MODULE_ID = f"{INSTANCE_ID}-enc0123456789abcdef"


def ready() -> bool:
    """Was it compiled, and are kernel and init there?"""
    return lab.ready() and QEMU.ready()


def prepare(say: Callable[[str], None]) -> None:
    """Fetch and compile everything that `qemu` needs; raises UsageError or UndecidedError."""
    say("reference QEMU: fetching its source (40 MB) and a toolchain (112 MB)")
    QEMU.system()
    say("reference QEMU: compiling, once; about four minutes on two cores")
    QEMU.make()
    say("the reference QEMU is ready")


def qemu() -> Qemu:
    """The reference QEMU, run with the libraries it was compiled against; raises UsageError or UndecidedError."""
    libraries = QEMU.system() / "usr/lib/x86_64-linux-gnu"
    return Qemu(
        program=(
            str(libraries / "ld-linux-x86-64.so.2"),
            "--library-path",
            str(libraries),
            str(QEMU.make()),
        ),
        data=lab.qemu().data,
    )


def argv(qemu: Qemu, machine: Machine) -> list[str]:
    """The words that start QEMU on an image file, which is the machine's `kernel`; it needs a vsock device."""
    assert machine.vsock_socket is not None
    words = [*qemu.program]
    for folder in qemu.data:
        words += ["-L", str(folder)]
    return [
        *words, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-M", f"nitro-enclave,vsock=vsock,id={MODULE_ID},parent-role={ROLE_ARN},parent-id={INSTANCE_ID}",
        "-m", f"{machine.memory_mib}M", "-smp", str(machine.cpus), "-accel", "tcg", "-cpu", "max",
        "-kernel", str(machine.kernel),
        "-chardev", f"socket,id=vsock,path={escaped(machine.vsock_socket)}",
        "-chardev", f"file,id=console,path={escaped(machine.console)}", "-serial", "chardev:console",
    ]  # fmt: skip
