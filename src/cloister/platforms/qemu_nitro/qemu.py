"""Runs a kernel, its command line and a ramdisk under an unmodified QEMU (>= 10.2) as a Nitro enclave would run.

The machine is `microvm` with two devices, both served by processes of our own over vhost-user (`vsock_device`,
`nsm_device`). Emulation (TCG) is what works everywhere; KVM is used only where a probe really booted the kernel,
because a /dev/kvm that opens may still be unable to run an ordinary guest.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal

from cloister.errors import UsageError
from cloister.platforms.qemu_nitro.nsm_device import VIRTIO_ID

Acceleration = Literal["tcg", "kvm"]
PANIC = b"Kernel panic - not syncing"
PROBE_SECONDS = 20.0
PROBE_MIB = 256
#: A kernel that panics or reboots ends QEMU, which runs with -no-reboot.
PROBE_CMDLINE = "console=ttyS0 panic=-1 reboot=k"
_TAIL = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Qemu:
    """Where QEMU is: the words that start it, and what it needs that is not in the system's places."""

    program: tuple[str, ...] = ("qemu-system-x86_64",)
    #: For the dynamic linker, when the program needs other libraries than the system's.
    library_path: Path | None = None
    module_path: Path | None = None
    #: Folders of firmware (`bios-microvm.bin`) and data.
    data: tuple[Path, ...] = ()

    def environment(self) -> dict[str, str]:
        """This process's environment with QEMU's places in it."""
        added = {"LD_LIBRARY_PATH": self.library_path, "QEMU_MODULE_DIR": self.module_path}
        return {**os.environ, **{name: str(path) for name, path in added.items() if path is not None}}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What to boot. Without sockets the machine has no devices but its console."""

    kernel: Path
    initrd: Path | None
    cmdline: str
    memory_mib: int
    cpus: int = 1
    acceleration: Acceleration = "tcg"
    vsock_socket: Path | None = None
    nsm_socket: Path | None = None
    #: Where the guest's console goes; QEMU's own words go to the same name with `.qemu` behind it.
    console: Path

    @property
    def words(self) -> Path:
        """QEMU's own output."""
        return self.console.with_name(self.console.name + ".qemu")


class Outcome(Enum):
    """Why a machine is not running."""

    PANIC = "the guest's kernel panicked"
    REBOOT = "the guest ended itself"
    KILLED = "QEMU was told to end"
    FAILED = "QEMU could not run the machine"


@dataclass(frozen=True)
class Ended:
    """How a machine ended; the console is the guest's, so `outcome` is for people and never evidence."""

    outcome: Outcome
    status: int
    detail: str = ""


def argv(qemu: Qemu, machine: Machine) -> list[str]:
    """The words that start QEMU."""
    kvm = machine.acceleration == "kvm"
    words = [*qemu.program]
    for folder in qemu.data:
        words += ["-L", str(folder)]
    words += [
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-M", "microvm,pcie=off,acpi=off,rtc=on,isa-serial=on,memory-backend=ram",
        # The devices are other processes: they must be able to map the guest's memory.
        "-object", f"memory-backend-memfd,id=ram,size={machine.memory_mib}M,share=on",
        "-m", f"{machine.memory_mib}M", "-smp", str(machine.cpus),
        "-accel", machine.acceleration, "-cpu", "host" if kvm else "max",
        "-kernel", str(machine.kernel), "-append", machine.cmdline,
        "-chardev", f"file,id=console,path={escaped(machine.console)}", "-serial", "chardev:console",
    ]  # fmt: skip
    if machine.initrd is not None:
        words += ["-initrd", str(machine.initrd)]
    if machine.vsock_socket is not None:
        words += ["-chardev", f"socket,id=vsock,path={escaped(machine.vsock_socket)}"]
        words += ["-device", "vhost-user-vsock-device,chardev=vsock"]
    if machine.nsm_socket is not None:
        words += ["-chardev", f"socket,id=nsm,path={escaped(machine.nsm_socket)}"]
        words += ["-device", f"vhost-user-test-device,virtio-id={VIRTIO_ID},num_vqs=1,vq_size=8,chardev=nsm"]
    return words


def escaped(path: Path) -> str:
    """A path in an option's value, where a comma is written twice."""
    return str(path).replace(",", ",,")


class Guest:
    """A running QEMU."""

    def __init__(self, machine: Machine, process: subprocess.Popen[bytes]) -> None:
        self.machine = machine
        self.process = process

    @classmethod
    def start(cls, qemu: Qemu, machine: Machine, words: Callable[[Qemu, Machine], list[str]] = argv) -> Guest:
        """Start it; raises UsageError when the program is not there."""
        try:
            with machine.words.open("wb") as output:
                process = subprocess.Popen(  # noqa: S603 - the caller's own QEMU
                    words(qemu, machine),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=qemu.environment(),
                )
        except OSError as error:
            raise UsageError(f"cannot start QEMU: {error.strerror}", hint="Check where QEMU is installed.") from None
        return cls(machine, process)

    def wait(self, timeout: float | None = None) -> Ended | None:
        """How it ended, or None when it still runs after `timeout` seconds."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        return classify(status, _tail(self.machine.console), _tail(self.machine.words))

    def stop(self, grace: float = 5.0) -> Ended:
        """End it: politely, then not."""
        self.process.terminate()
        ended = self.wait(grace)
        if ended is None:
            self.process.kill()
            ended = self.wait()
        assert ended is not None
        return ended


def classify(status: int, console: bytes, words: bytes) -> Ended:
    """From QEMU's exit status, the end of the guest's console and of QEMU's own output."""
    last = words.strip().rpartition(b"\n")[2].decode(errors="replace")
    if status < 0:
        return Ended(Outcome.KILLED, status, signal.Signals(-status).name)
    if b"terminating on signal" in words:
        return Ended(Outcome.KILLED, status, last)
    if status:
        return Ended(Outcome.FAILED, status, last)
    if PANIC in console:
        line = console[console.rindex(PANIC) :].splitlines()[0]
        return Ended(Outcome.PANIC, status, line.decode(errors="replace"))
    return Ended(Outcome.REBOOT, status)


def _tail(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            return file.read()
    except OSError:
        return b""


def boots(qemu: Qemu, kernel: Path, acceleration: Acceleration, *, seconds: float = PROBE_SECONDS) -> bool:
    """Whether the kernel really boots: without a ramdisk it must come as far as to panic for want of an init."""
    with tempfile.TemporaryDirectory(prefix="cloister-probe-") as folder:
        machine = Machine(
            kernel=kernel, initrd=None, cmdline=PROBE_CMDLINE, memory_mib=PROBE_MIB, acceleration=acceleration,
            console=Path(folder) / "console",
        )  # fmt: skip
        guest = Guest.start(qemu, machine)
        ended = guest.wait(seconds)
        if ended is None:
            guest.stop()
        return ended is not None and ended.outcome is Outcome.PANIC


def acceleration(qemu: Qemu, kernel: Path, device: Path = Path("/dev/kvm")) -> Acceleration:
    """`kvm` where this kernel was seen to boot under it, else `tcg`."""
    usable = os.access(device, os.R_OK | os.W_OK) and boots(qemu, kernel, "kvm")
    return "kvm" if usable else "tcg"
