"""`cloister policy`: write, check and explain the policy of a client; write the key policy of AWS KMS."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from cloister.cli import show
from cloister.errors import MalformedError, PolicyDocumentError, UsageError
from cloister.policy import profiles
from cloister.policy.explain import ASSUMES, Answer, Effect, Explanation, explain
from cloister.policy.kms import KeyPolicy, from_measurements
from cloister.policy.survey import State, Survey, survey
from cloister.wire import strict_json

MAX_MEASUREMENTS = 64 * 1024
_STATES = {
    State.STATED: "green",
    State.WAIVED: "yellow",
    State.MISSING: "bold red",
    State.UNFILLED: "bold red",
    State.WRONG: "bold red",
}
_EFFECTS = {
    Effect.COVERED: "green",
    Effect.NARROWED: "yellow",
    Effect.WEAKENED: "bold red",
    Effect.UNSEEN: "bold yellow",
    Effect.ABSENT: "dim",
}

app = typer.Typer(name="policy", help="Write, check and explain what a client accepts.", no_args_is_help=True)


@app.callback()
def policy() -> None:
    """Write, check and explain what a client accepts."""


@app.command("init")
@show.guarded
def init(
    profile: Annotated[str | None, typer.Argument(help="Which one; --list names them.")] = None,
    out: Annotated[Path | None, typer.Option(help="A new file; standard output without it.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Name the profiles.")] = False,
) -> None:
    """Write a whole policy of a profile, with places to fill in; then run cloister policy check."""
    if listed:
        for name in profiles.names():
            print(f"{name:<16} {profiles.title(name)}")
        return
    if profile is None:
        raise UsageError("no profile is named", hint=f"There are: {', '.join(profiles.names())}.")
    text = profiles.text(profile)
    if out is None:
        print(text, end="")
        return
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}", hint="Give --out a file that is not there.") from None
    show.stderr.print(Text(f"wrote {out}; next: fill it in, then cloister policy check {out}"))


@app.command("check")
@show.guarded
def check(
    file: Annotated[Path, typer.Argument(help="A policy document.")],
    json_: Annotated[bool, typer.Option("--json", help="As JSON on standard output.")] = False,
) -> None:
    """Say of every rule whether it is stated, waived, missing or to be filled in; 0 only if the policy is complete."""
    found = survey(_read(file))
    if json_:
        show.print_json(found.to_json())
    else:
        _show_survey(found)
    if not found.complete:
        left = [
            f"{row.detail if row.state is State.UNFILLED else row.rule} ({row.state})"
            for row in found.rows
            if row.state not in (State.STATED, State.WAIVED)
        ]
        raise PolicyDocumentError(
            f"{file} is not complete: {'; '.join([*left, *found.problems])}", hint="Nobody is trusted by such a policy."
        )


@app.command("explain")
@show.guarded
def explain_(
    file: Annotated[Path, typer.Argument(help="A policy document that is complete.")],
    json_: Annotated[bool, typer.Option("--json", help="As JSON on standard output.")] = False,
) -> None:
    """Say in words what a policy demands, and what it does about each published attack."""
    data = _read(file)
    try:
        found = explain(data)
    except PolicyDocumentError as error:
        raise PolicyDocumentError(f"{file}: {error.message}", hint=f"First: cloister policy check {file}") from None
    if json_:
        show.print_json(found.to_json())
    else:
        _show_explanation(found)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the policy {file}: {error.strerror}") from None


def _grid(*, fixed: int = 1) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(fixed):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _show_survey(found: Survey) -> None:
    table = _grid(fixed=2)
    for row in found.rows:
        text = Text(row.title)
        if row.detail:
            text.append(f"\n  {row.detail}", style="dim")
        table.add_row(Text(row.state, style=_STATES[row.state]), Text(row.rule), text)
    show.stdout.print(table)
    for problem in found.problems:
        show.stdout.print(Text(problem, style="bold red"))
    if found.complete:
        show.stdout.print(Text("complete", style="bold green"))


def _show_explanation(found: Explanation) -> None:
    if found.policy.allow_simulated:
        show.simulated_banner(show.stdout)
    show.stdout.print(Text(f"{found.policy.name} (SHA-256 {found.policy.sha256})", style="bold"))
    table = _grid()
    for demand in found.demands:
        style = "yellow" if demand.reason is not None else "dim"
        table.add_row(Text(demand.rule), Text(demand.title).append(f"\n  {demand.words()}", style=style))
    table.add_row(
        Text("always"),
        "signatures and chains up to the vendor's root, debug mode refused, the replica's key bound by the evidence",
    )
    show.stdout.print(table)
    show.stdout.print(Text("\nPublished attacks", style="bold"))
    table = _grid()
    for answer in found.answers:
        table.add_row(Text(answer.effect, style=_EFFECTS[answer.effect]), _told(answer))
    show.stdout.print(table)
    show.stdout.print(Text(f"All of this assumes that {ASSUMES}.", style="bold"))
    show.stdout.print(Text("What each needs, and our sources: docs/attacks.md", style="dim"))


def _told(answer: Answer) -> Text:
    attack = answer.attack
    text = Text(f"{attack.title} ({attack.year})")
    if answer.effect is Effect.ABSENT:
        return text.append("\n  not about the formats of this policy", style="dim")
    lines = [f"by {', '.join(answer.by)}"] if answer.by else []
    lines += [f"weakened: {rule} ({why})" for rule, why in answer.gaps.items()]
    lines += [f"no rule of {', '.join(answer.bare)} is about it"] if answer.bare else []
    lines.append(f"no verifier sees {attack.unseen}")
    lines += [f"not sure: {attack.uncertain}"] if attack.uncertain else []
    return text.append("".join(f"\n  {line}" for line in lines), style="dim")


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
    pcr0, pcr8 = read_measurements(measurements, signed=signer_pcr8)
    rules = KeyPolicy(account=account, role=role, pcr0=pcr0, pcr8=pcr8, owner=owner, model=model, version=version)
    print(json.dumps(rules.document(), indent=2))


def read_measurements(path: Path, *, signed: bool) -> tuple[str, str | None]:
    """PCR0 and, if `signed`, PCR8 that a build wrote into `path`; raises UsageError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="Give --measurements FILE.") from None
    try:
        members = strict_json.loads(data, "measurements", limit=MAX_MEASUREMENTS)
    except MalformedError as error:
        raise UsageError(error.message, hint="Give the measurements.json that the image build wrote.") from None
    return from_measurements(members, signed=signed)
