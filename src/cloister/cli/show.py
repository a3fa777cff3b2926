"""How verdicts, errors and notices look on a terminal."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cloister.errors import CloisterError, PolicyDocumentError, UsageError
from cloister.policy.document import Policy
from cloister.policy.verdict import Verdict
from cloister.tee.checks import Status

stderr = Console(stderr=True, highlight=False)
stdout = Console(highlight=False)

_MARKS = {
    Status.PASSED: ("ok", "green"),
    Status.FAILED: ("FAILED", "bold red"),
    Status.NOT_REACHED: ("not reached", "dim"),
    Status.WAIVED: ("waived", "yellow"),
}
P = ParamSpec("P")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """End a command that raised one of our errors with its message, hint and exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except CloisterError as error:
            show_error(error)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None

    return run


def show_error(error: CloisterError) -> None:
    """Message and hint on standard error."""
    # A path that is cut in two by a line's end cannot be copied.
    stderr.print(Text("error: ", style="bold red") + Text(error.message), soft_wrap=True)
    if error.hint:
        stderr.print(Text(f"  {error.hint}"), soft_wrap=True)


def simulated_banner(console: Console = stderr) -> None:
    """The line that nobody must be able to miss."""
    console.print(Text(" SIMULATED, NOT A TEE: this proves nothing about the machine ", style="bold black on yellow"))


def show_verdict(verdict: Verdict, console: Console = stdout) -> None:
    """A table of every check in order, and the outcome."""
    if verdict.simulated:
        simulated_banner(console)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in verdict.checks:
        mark, style = _MARKS[check.status]
        text = Text(check.title)
        if check.detail:
            text.append(f"\n  {check.detail}", style="dim" if check.status is not Status.FAILED else "red")
        table.add_row(Text(mark, style=style), Text(check.id), text)
    console.print(table)
    style = "bold green" if verdict.accepted else "bold red"
    console.print(Text(verdict.summary(), style=style))


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    # Whoever waits for this line on a pipe must get it now.
    print(json.dumps(value, ensure_ascii=False), flush=True)


def load_policy(path: Path) -> Policy:
    """The policy in a file; raises PolicyDocumentError or UsageError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the policy {path}: {error.strerror}", hint="Give --policy FILE.") from None
    try:
        return Policy.from_toml(data)
    except PolicyDocumentError as error:
        raise PolicyDocumentError(f"{path}: {error.message}", hint=error.hint) from None
