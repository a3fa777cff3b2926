"""The command line's entry; each verb is a file beside this one."""

from __future__ import annotations

import typer

from cloister import __version__
from cloister.cli.broker import app as broker
from cloister.cli.build import build, image
from cloister.cli.chat import chat
from cloister.cli.collateral import collateral
from cloister.cli.connect import connect
from cloister.cli.demo import demo
from cloister.cli.enclaves import down, logs, status
from cloister.cli.inspect import inspect
from cloister.cli.lab import lab
from cloister.cli.policy import app as policy
from cloister.cli.relay import relay
from cloister.cli.seal import owner, seal, sealed
from cloister.cli.serve import serve
from cloister.cli.tenant import tenant
from cloister.cli.up import up
from cloister.cli.verify import verify

app = typer.Typer(
    name="cloister",
    help="Ask a language model in a trusted execution environment, verified and sealed.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Exit codes: 0 done, 2 usage, 3 malformed, 4 forged, 5 refused, 6 undecided, 7 channel, 8 denied, 9 engine."""
    del version


for verb in (demo, verify, inspect, chat, connect, serve, relay, build, up, status, logs, down, seal, owner, sealed):
    app.command()(verb)
app.add_typer(policy)
app.add_typer(image, name="image")
app.add_typer(lab, name="lab")
app.add_typer(broker, name="broker")
app.add_typer(tenant, name="tenant")
app.add_typer(collateral, name="collateral")


def main() -> None:
    """Run the command line."""
    app()
