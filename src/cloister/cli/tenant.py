"""`cloister tenant`: API keys, of which an image's configuration holds only hashes."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from cloister.api import tenants
from cloister.cli import show
from cloister.errors import MalformedError, UsageError

tenant = typer.Typer(help="Who may ask a replica.", no_args_is_help=True)


@tenant.callback()
def options() -> None:
    """Who may ask a replica."""


@tenant.command()
@show.guarded
def new(
    name: Annotated[str, typer.Argument(metavar="ID", help="The tenant's name.")],
    json: Annotated[bool, typer.Option("--json", help="Key and hash as JSON on standard output.")] = False,
) -> None:
    """Make an API key: the entry goes to standard output, the key once to standard error, and nowhere else."""
    key = tenants.new_key()
    made = {"id": name, "key_sha256": tenants.fingerprint(key)}
    try:
        (entry,) = tenants.read([made])
    except MalformedError as error:
        raise UsageError(error.message, hint="For example: cloister tenant new clinic-1.") from None
    if json:
        show.print_json({"schema": "cloister-tenant/1", **made, "key": key})
        return
    show.stderr.print(Text("the API key, shown this once:"), Text(key), soft_wrap=True)
    print(tenants.to_toml(entry), end="")
