"""`cloister status`, `logs`, `down`: the enclaves of every platform."""

from __future__ import annotations

import json as json_module
import shutil
from typing import Annotated

import typer

from cloister.cli import show
from cloister.errors import UsageError
from cloister.platforms import registry
from cloister.platforms.platform import Platform
from cloister.platforms.state import Processes, folder

NAME = Annotated[str, typer.Argument(metavar="NAME", help="The image's name, as in cloister.toml.")]
PLATFORM = Annotated[str | None, typer.Option(help="aws-nitro or qemu-nitro; default: wherever it runs.")]

#: What the supervisor writes into an enclave's folder.
STATUS = "supervisor.json"


@show.guarded
def status(
    platform: PLATFORM = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON on standard output.")] = False,
) -> None:
    """The enclaves that run now: on AWS all of the instance, emulated ones of this user."""
    rows: list[dict[str, object]] = [
        {
            "name": running.name,
            "platform": machine.name,
            "state": running.state,
            "cid": running.cid,
            "cpus": running.cpus,
            "memory_mib": running.memory_mib,
            "agent": Processes(folder(running.name)).alive("agent"),
            "supervisor": supervised(running.name),
            "measurements": dict(running.measurements),
            "simulated": machine.simulated,
        }
        for machine in _machines(platform)
        for running in machine.list()
    ]
    known = {row["name"] for row in rows}
    down: list[dict[str, object]] = [
        {"name": each.name, "state": "DOWN", "supervisor": state}
        for each in (sorted(folder("x").parent.iterdir()) if folder("x").parent.exists() else [])
        if each.name not in known and (state := supervised(each.name)) in ("starting", "failed")
    ]
    if json:
        show.print_json({"schema": "cloister-status/1", "enclaves": [*rows, *down]})
        return
    for row in rows:
        reach = "agent runs" if row["agent"] else "agent is DOWN: clients cannot reach it"
        if row["supervisor"] not in (None, "running"):
            reach = f"the supervisor says: {row['supervisor']}"
        where = f"{row['platform']}{' SIMULATED' if row['simulated'] else ''}"
        print(row["name"], row["state"], f"cid {row['cid']}", f"{row['memory_mib']} MiB", reach, where)
    for row in down:
        print(row["name"], f"DOWN, the supervisor says: {row['supervisor']}")


@show.guarded
def logs(name: NAME, platform: PLATFORM = None) -> None:
    """What the enclave wrote to its console, and the parent agent to its log. Neither ever holds content."""
    home = folder(name)
    try:
        for line in _where(name, platform).console(name):
            print(line)
    except UsageError as error:
        # Without a console the agent's log is all there is.
        if not (home / "agent.log").exists():
            raise
        show.show_error(error)
    for file in (home / "nitro-cli.log", home / "agent.log"):
        if file.exists():
            print(file.read_text("utf-8", "replace"), end="")


@show.guarded
def down(
    name: NAME,
    platform: PLATFORM = None,
    forget: Annotated[bool, typer.Option(help="Remove its image, policy and logs too.")] = False,
) -> None:
    """End an enclave and its parent agent."""
    stop(_where(name, platform), name)
    if forget:
        shutil.rmtree(folder(name), ignore_errors=True)


def stop(machine: Platform, name: str) -> None:
    """End what serves the enclave, then it; no error for what is gone. A supervisor would start the enclave again."""
    try:
        Processes(folder(name)).stop("agent")
    finally:
        machine.stop(name)


def supervised(name: str) -> str | None:
    """The state that the supervisor last wrote; None without one."""
    try:
        return str(json_module.loads((folder(name) / STATUS).read_text())["state"])
    except (OSError, ValueError, KeyError):
        return None


def _machines(platform: str | None) -> list[Platform]:
    return [registry.get(each) for each in (registry.NAMES if platform is None else (platform,))]


def _where(name: str, platform: str | None) -> Platform:
    """The platform that runs the enclave; the emulation, which keeps a folder, when none does."""
    machines = _machines(platform)
    found = [machine for machine in machines if machine.find(name) is not None]
    if len(found) > 1:
        raise UsageError(f"{name} runs on more than one platform", hint="Choose one with --platform.")
    return (found or machines)[-1]
