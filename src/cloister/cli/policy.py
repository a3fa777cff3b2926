"""`cloister policy kms`: the AWS KMS key policy that releases the data key to one measured image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cloister.cli import show
from cloister.errors import MalformedError, UsageError
from cloister.policy.kms import KeyPolicy, from_measurements
from cloister.wire import strict_json

MAX_MEASUREMENTS = 64 * 1024

app = typer.Typer(name="policy", help="Write the policies that others enforce.", no_args_is_help=True)


@app.callback()
def policy() -> None:
    """Write the policies that others enforce."""


@app.command("kms")
@show.guarded
def kms(
    measurements: Annotated[Path, typer.Option(help="The image's measurements.json.")],
    account: Annotated[str, typer.Option(help="The AWS account that owns the key.")],
    role: Annotated[str, typer.Option(metavar="ARN", help="The role of the instance that runs the enclave.")],
    signer_pcr8: Annotated[bool, typer.Option("--signer-pcr8", help="Demand the image's signer (PCR8) too.")] = False,
    owner: Annotated[
        str | None, typer.Option(metavar="ARN", help="Who seals the weights: may make data keys, not decrypt them.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only for wrapped keys of this model.")] = None,
    version: Annotated[str | None, typer.Option(help="Only for wrapped keys of this version of the model.")] = None,
) -> None:
    """Print the AWS KMS key policy for an image, for `aws kms create-key --policy file://...`."""
    try:
        data = measurements.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {measurements}: {error.strerror}", hint="Give --measurements FILE.") from None
    try:
        members = strict_json.loads(data, "measurements", limit=MAX_MEASUREMENTS)
    except MalformedError as error:
        raise UsageError(error.message, hint="Give the measurements.json that the image build wrote.") from None
    pcr0, pcr8 = from_measurements(members, signed=signer_pcr8)
    rules = KeyPolicy(account=account, role=role, pcr0=pcr0, pcr8=pcr8, owner=owner, model=model, version=version)
    print(json.dumps(rules.document(), indent=2))
