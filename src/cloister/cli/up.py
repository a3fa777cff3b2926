"""`cloister up`, `status`, `logs`, `down`: an enclave from `cloister.toml` to a verified answer, and its end."""

from __future__ import annotations

import json as json_module
import shutil
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from cloister.channel.bundle import MAX_BUNDLE
from cloister.cli import show
from cloister.client.appraisal import VerifiedKey, verify_bundle
from cloister.client.fetch import challenge
from cloister.errors import CloisterError, UsageError
from cloister.platforms.platform import Launch
from cloister.platforms.state import Processes, folder
from cloister.policy.document import Policy
from cloister.policy.draft import draft

if TYPE_CHECKING:
    from cloister.image.build import Built
    from cloister.image.config import ImageConfig
    from cloister.platforms.qemu_nitro.platform import QemuNitro

NAME = Annotated[str, typer.Argument(metavar="NAME", help="The image's name, as in cloister.toml.")]
#: A machine that ends is noticed at once; this is for one that is merely slow, as an emulated one beside others is.
BOOT_SECONDS = 300.0
AGENT_SECONDS = 15.0
_WAIVED = "The first look at an image that was just built here: its own registers already cover this."
_ZERO = "0" * 64
"""A digest that nothing has: replaced before the policy is used."""


@show.guarded
def up(
    config: Annotated[Path, typer.Option("--config", "-c", help="What the image is to be.")] = Path("cloister.toml"),
    platform: Annotated[str, typer.Option(help="qemu-nitro: emulated here, SIMULATED evidence.")] = "qemu-nitro",
    listen: Annotated[str, typer.Option(help="HOST:PORT for clients; port 0 takes a free one.")] = "127.0.0.1:0",
    capture: Annotated[Path | None, typer.Option(help="Keep all that the parent sees in this folder.")] = None,
    debug: Annotated[bool, typer.Option(help="Nitro's debug mode: evidence that every policy refuses.")] = False,
    wait: Annotated[float, typer.Option(help="Seconds until it must serve.")] = BOOT_SECONDS,
    json: Annotated[bool, typer.Option("--json", help="One line of JSON when it serves.")] = False,
) -> None:
    """Build, boot, verify: ends with an address and a policy for exactly this image."""
    from cloister.image import build as builder
    from cloister.image import config as settings

    chosen = settings.load(config)
    machine = _platform(platform)
    home = folder(chosen.name)
    if machine.find(chosen.name) is not None:
        raise UsageError(f"{chosen.name} is running already", hint=f"cloister down {chosen.name}")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    started = time.monotonic()
    built = builder.build(chosen, home / "image")
    _say(f"built {built.image.name}: {built.size / 1e6:.1f} MB in {time.monotonic() - started:.1f} s", json)
    launch = Launch(name=chosen.name, image=built.image, memory_mib=chosen.memory_mib, cpus=chosen.cpus, debug=debug)
    machine.preflight(launch)
    show.simulated_banner()
    started = time.monotonic()
    try:
        url = _agent(chosen, machine, home, listen, capture, _release(chosen, built, config.parent, home))
        machine.start(launch)
        machine.wait(chosen.name, wait, "cloister: serving ")
        measurements = {f"pcr{index}": value.hex() for index, value in built.registers.items()}
        policy, key = _policy(chosen.name, url, measurements, machine.root_pem())
    except CloisterError:
        _stop(machine, chosen.name)
        raise
    seconds = time.monotonic() - started
    _say(f"booted and verified in {seconds:.1f} s", json)
    path = home / "policy.toml"
    path.write_text(policy)
    if json:
        document = {
            "schema": "cloister-up/1",
            "name": chosen.name,
            "url": url,
            "policy": str(path),
            "measurements": str(built.measurements),
            "console": str(home / "console"),
            "seconds": round(seconds, 2),
            "model_sha256": key.bundle.statement.model_sha256,
            "simulated": True,
        }
        show.print_json(document)
    else:
        print(url, flush=True)
        show.stderr.print(Text(f'cloister chat {url} --policy {path} "..."'), soft_wrap=True)


@show.guarded
def status(json: Annotated[bool, typer.Option("--json", help="As JSON on standard output.")] = False) -> None:
    """The enclaves of this user that run now."""
    machine = _platform("qemu-nitro")
    base = folder("x").parent
    names = sorted(each.name for each in base.iterdir()) if base.exists() else []
    rows = []
    for name in names:
        running = machine.find(name)
        if running is not None:
            agent = Processes(folder(name)).alive("agent")
            rows.append(
                {
                    "name": name,
                    "state": running.state,
                    "cid": running.cid,
                    "memory_mib": running.memory_mib,
                    "agent": agent,
                    "measurements": dict(running.measurements),
                    "simulated": True,
                }
            )
    if json:
        show.print_json({"schema": "cloister-status/1", "enclaves": rows})
        return
    for row in rows:
        reach = "agent runs" if row["agent"] else "agent is DOWN: clients cannot reach it"
        print(row["name"], row["state"], f"cid {row['cid']}", f"{row['memory_mib']} MiB", reach, "SIMULATED")


@show.guarded
def logs(name: NAME) -> None:
    """What the enclave wrote to its console, and the parent agent to its log. Neither ever holds content."""
    for line in _platform("qemu-nitro").console(name):
        print(line)
    agent = folder(name) / "agent.log"
    if agent.exists():
        print(agent.read_text("utf-8", "replace"), end="")


@show.guarded
def down(
    name: NAME,
    forget: Annotated[bool, typer.Option(help="Remove its image, policy and logs too.")] = False,
) -> None:
    """End an enclave and its parent agent."""
    _stop(_platform("qemu-nitro"), name)
    if forget:
        shutil.rmtree(folder(name), ignore_errors=True)


def _platform(name: str) -> QemuNitro:
    if name != "qemu-nitro":
        raise UsageError(f"there is no platform {name} for cloister up", hint="qemu-nitro")
    from cloister.platforms.qemu_nitro.platform import QemuNitro

    return QemuNitro()


def _release(chosen: ImageConfig, built: Built, project: Path, home: Path) -> list[str]:
    """For a sealed model: start the project's SIMULATED KMS, allow this build; what the agent has to serve for it."""
    from cloister.image.config import KmsSettings, SealedModel
    from cloister.platforms.qemu_nitro.project import HOST, Project

    if not isinstance(chosen.model, SealedModel):
        return []
    lab_project = Project(project.absolute())
    if not isinstance(chosen.release, KmsSettings) or not lab_project.kms.exists():
        raise UsageError(
            "a sealed model needs a key-release service, and this folder has no SIMULATED KMS",
            hint="cloister lab project FOLDER --model FILE makes one.",
        )
    port = lab_project.start_kms(Processes(home))
    lab_project.allow(port, chosen.release.key, built.registers[0].hex())
    return [
        f'store = "{lab_project.folder / "store"}"',
        f'credentials = "{lab_project.write_credentials()}"',
        f"egress = {json_module.dumps(list(chosen.egress))}",
        "[resolve]",
        f'"{HOST}:443" = "127.0.0.1:{port}"',
    ]


def _agent(
    chosen: ImageConfig, machine: QemuNitro, home: Path, listen: str, capture: Path | None, more: list[str]
) -> str:
    """Start the parent agent; returns the address for clients."""
    lines = [f'listen = "{listen}"', f'uds = "{machine.uds(chosen.name)}"', "heartbeat = true"]
    if capture is not None:
        lines.append(f'capture = "{capture.absolute()}"')
    (home / "host.toml").write_text("\n".join([*lines, *more]) + "\n")
    words = [sys.executable, "-m", "cloister.host.agent", "--config", str(home / "host.toml")]
    _, host, port = Processes(home).start("agent", words, ready=AGENT_SECONDS).split()
    return f"http://{host}:{port}"


def _policy(name: str, url: str, measurements: dict[str, str], root: str) -> tuple[str, VerifiedKey]:
    """Appraise what serves at `url` by the build's measurements alone; then pin model and configuration too."""
    written = draft(
        name=name, measurements=measurements, model_sha256=_ZERO, config_sha256=_ZERO, simulated_root_pem=root
    )
    first = replace(
        Policy.from_toml(written.encode()),
        model_sha256=None,
        config_sha256=None,
        waivers={"model.sha256": _WAIVED, "config.sha256": _WAIVED},
    )
    data, nonce = challenge(url, first, limit=MAX_BUNDLE)
    key = verify_bundle(data, first, now=datetime.now(UTC), nonce=nonce)
    statement = key.bundle.statement
    policy = draft(
        name=name,
        measurements=measurements,
        model_sha256=statement.model_sha256,
        config_sha256=statement.config_sha256,
        simulated_root_pem=root,
    )
    return policy, key


def _stop(machine: QemuNitro, name: str) -> None:
    machine.stop(name)
    Processes(folder(name)).stop("agent", "kms")


def _say(line: str, quiet: bool) -> None:
    if not quiet:
        show.stderr.print(Text(line))
