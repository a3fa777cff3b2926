"""`cloister lab`: the emulation that stands in for EC2, prepared once; projects to try sealed models with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from cloister.cli import show

lab = typer.Typer(help="The emulation of Nitro Enclaves on this machine (SIMULATED).", no_args_is_help=True)


@lab.command()
@show.guarded
def prepare(
    reference: Annotated[
        bool,
        typer.Option("--reference", help="Also compile QEMU with its own Nitro machine, for tests."),
    ] = False,
) -> None:
    """Fetch QEMU, compile kernel and init. Takes some minutes the first time, then nothing."""
    from cloister.platforms.qemu_nitro import lab as preparation
    from cloister.platforms.qemu_nitro import reference as second

    def say(line: str) -> None:
        show.stderr.print(Text(line))

    preparation.prepare(say)
    if reference:
        second.prepare(say)


@lab.command()
@show.guarded
def project(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    model: Annotated[Path | None, typer.Option(help="A GGUF file; without it, the bundled demo model.")] = None,
    name: Annotated[str, typer.Option(help="The model's and image's name.")] = "sealed-notes",
    memory: Annotated[int, typer.Option(help="MiB of the enclave.")] = 1024,
) -> None:
    """Seal a model under a key of a SIMULATED KMS and write the cloister.toml that opens it in an enclave."""
    from cloister.enclave.engine.config import BUNDLED_MODEL
    from cloister.platforms.qemu_nitro.project import Project

    show.simulated_banner()
    print(Project(folder.absolute()).create(model or BUNDLED_MODEL, name=name, memory_mib=memory))
