"""Implements platforms.platform.Platform with QEMU and two devices of our own; everything it attests is SIMULATED."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from cloister.errors import UndecidedError, UsageError
from cloister.image import eif
from cloister.image.built import Built
from cloister.image.config import BrokerSettings, ImageConfig, KmsSettings
from cloister.platforms.platform import Launch, Running
from cloister.platforms.qemu_nitro import lab, qemu
from cloister.platforms.qemu_nitro.project import HOST, Project
from cloister.platforms.state import Processes, folder
from cloister.tee.sim.root import SimulatedRoot

#: What nitro-cli demands of EC2, demanded here too, so that nobody learns it there.
MEMORY_TO_IMAGE = 4
FIRST_CID, USUAL_CID = 4, 16
DEVICE_SECONDS = 20.0


class QemuNitro:
    """One enclave by name; its state is in a folder, so any process can find it."""

    name = "qemu-nitro"
    simulated = True

    def settle(self, launch: Launch) -> Launch:
        """Every machine has a vsock device of its own, so any identifier is free."""
        return launch if launch.cid is not None else replace(launch, cid=USUAL_CID)

    def preflight(self, launch: Launch) -> None:
        """Raises UsageError that names every rule the launch breaks."""
        broken = []
        size = launch.image.stat().st_size
        if launch.memory_mib * 1024 * 1024 < MEMORY_TO_IMAGE * size:
            needed = -(-MEMORY_TO_IMAGE * size // (1024 * 1024))
            broken.append(f"memory_mib must be at least {MEMORY_TO_IMAGE} times the image, {needed}")
        if not 1 <= launch.cpus <= (os.cpu_count() or 1):
            broken.append(f"cpus must be from 1 to {os.cpu_count()}")
        if launch.cid is not None and launch.cid < FIRST_CID:
            broken.append(f"cid must be at least {FIRST_CID}")
        if launch.debug and launch.weights:
            broken.append("debug mode zeroes PCR0 to PCR2, so no key is released for the sealed model")
        if len(os.fsencode(self.uds(launch.name))) > 90:
            broken.append("the state folder's path is too long for unix sockets: set XDG_STATE_HOME to a shorter one")
        if broken:
            raise UsageError("; ".join(broken), hint="Change [nitro] in cloister.toml.")

    def reach(self, launch: Launch) -> Mapping[str, object]:
        """The hybrid vsock path; nitro-cli is not there to answer the heartbeat."""
        return {"uds": str(self.uds(launch.name)), "heartbeat": True}

    def release(self, config: ImageConfig, built: Built, project: Path) -> Mapping[str, object]:
        """Start the project's SIMULATED KMS, allow this build; its credentials, and where KMS's name leads.

        A key broker runs by itself, and its owner decides what it grants.
        """
        if isinstance(config.release, BrokerSettings):
            return {}
        lab_project = Project(project.absolute())
        if not isinstance(config.release, KmsSettings) or not lab_project.kms.exists():
            raise UsageError(
                "a sealed model needs a key-release service, and this folder has no SIMULATED KMS",
                hint="cloister lab project FOLDER --model FILE makes one.",
            )
        port = lab_project.start_kms(Processes(folder(config.name)))
        lab_project.allow(port, config.release.key, built.registers[0].hex())
        return {
            "credentials": str(lab_project.write_credentials()),
            "resolve": {f"{HOST}:443": f"127.0.0.1:{port}"},
        }

    def start(self, launch: Launch) -> Running:
        """Start devices and machine; the heartbeat's listener must be there already."""
        home = folder(launch.name)
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        processes = Processes(home)
        if processes.alive("qemu"):
            raise UsageError(f"{launch.name} is running already", hint=f"cloister down {launch.name}")
        image = eif.parse(launch.image.read_bytes())
        kernel, initrd = home / "kernel", home / "initrd"
        kernel.write_bytes(image.kernel)
        initrd.write_bytes(b"".join(image.ramdisks))
        registers = image.measurements()
        cid = launch.cid or USUAL_CID
        nsm, vsock = home / "nsm.sock", home / "vsock.sock"
        module = [sys.executable, "-m"]
        processes.start(
            "nsm",
            [
                *module,
                "cloister.platforms.qemu_nitro.nsm_device",
                "--socket",
                str(nsm),
                "--root",
                str(lab.simulated_root()),
                *(word for index, value in registers.items() for word in ("--pcr", f"{index}={value.hex()}")),
                *(["--debug"] if launch.debug else []),
            ],
            ready=DEVICE_SECONDS,
        )
        words = ["--socket", str(vsock), "--uds-path", str(self.uds(launch.name)), "--guest-cid", str(cid)]
        processes.start("vsock", [*module, "cloister.platforms.qemu_nitro.vsock_device", *words], ready=DEVICE_SECONDS)
        program = lab.qemu()
        machine = qemu.Machine(
            kernel=kernel,
            initrd=initrd,
            cmdline=image.cmdline.decode("ascii"),
            memory_mib=launch.memory_mib,
            cpus=launch.cpus,
            vsock_socket=vsock,
            nsm_socket=nsm,
            console=home / "console",
            acceleration=lab.acceleration(image.kernel),
        )
        (home / "console").unlink(missing_ok=True)
        processes.start("qemu", qemu.argv(program, machine), environment=program.environment())
        names = {} if launch.debug else {f"PCR{index}": value.hex() for index, value in registers.items()}
        described = {"cid": cid, "cpus": launch.cpus, "memory_mib": launch.memory_mib, "measurements": names}
        (home / "enclave.json").write_text(json.dumps(described))
        running = self.find(launch.name)
        if running is None:
            raise UndecidedError("QEMU ended at once", hint=f"See {home / 'qemu.out'}.")
        return running

    def find(self, name: str) -> Running | None:
        """The enclave of that name, if its machine runs."""
        home = folder(name)
        if not Processes(home).alive("qemu"):
            return None
        described = json.loads((home / "enclave.json").read_text())
        return Running(name=name, id=f"{name}-simulated", state="RUNNING", **described)

    def list(self) -> tuple[Running, ...]:
        """The enclaves of this user whose machines run."""
        base = folder("x").parent
        names = sorted(each.name for each in base.iterdir()) if base.exists() else []
        return tuple(running for name in names if (running := self.find(name)) is not None)

    def console(self, name: str) -> Iterator[str]:
        """The guest's console so far. Nitro shows one only in debug mode; the emulation shows it always."""
        try:
            with (folder(name) / "console").open("r", encoding="utf-8", errors="replace") as file:
                yield from (line.rstrip("\r\n") for line in file)
        except OSError:
            raise UsageError(f"there is no enclave {name}", hint="cloister status lists them.") from None

    def stop(self, name: str) -> None:
        """End machine and devices, and the SIMULATED KMS of its project."""
        Processes(folder(name)).stop("qemu", "vsock", "nsm", "kms")

    def root_pem(self) -> str:
        """The SIMULATED root that a policy has to name."""
        return SimulatedRoot.load_or_create(lab.simulated_root()).pem

    def uds(self, name: str) -> Path:
        """The hybrid vsock path of an enclave."""
        return folder(name) / "v"
