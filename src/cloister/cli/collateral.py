"""`cloister collateral`: certificates, revocation lists and keys that evidence needs, fetched into a folder."""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from cloister.channel.bundle import MAX_EVIDENCE
from cloister.cli import show
from cloister.errors import MalformedError, UndecidedError, UsageError
from cloister.tee import registry
from cloister.trust.collateral import Item

collateral = typer.Typer(help="What evidence needs beside it, from the vendors' services.", no_args_is_help=True)


@collateral.command()
@show.guarded
def fetch(
    evidence: Annotated[Path, typer.Argument(help="A file of evidence by itself.")],
    tee: Annotated[str, typer.Option(help="Its format.")],
    out: Annotated[Path, typer.Option(help="The folder for `cloister verify --collateral`; one for each evidence.")],
    offline: Annotated[bool, typer.Option(help="Use only what is in the cache.")] = False,
    refresh: Annotated[bool, typer.Option(help="Ask the services whatever the cache has.")] = False,
    base_url: Annotated[
        list[str] | None, typer.Option(help="KIND=URL: another service for a kind, such as your own PCCS.")
    ] = None,
) -> None:
    """Write what the evidence needs as KIND.N files. Nothing is verified here: cloister verify does that."""
    from cloister.trust.fetch.cache import Cache
    from cloister.trust.fetch.fetcher import Fetcher

    form = registry.get(tee)
    needs = list(form.needs(_read(evidence)))
    fetcher = Fetcher(Cache(), bases=_bases(base_url or []), offline=offline, refresh=refresh)
    items, missing = list[Item](), list[UndecidedError]()
    if not needs:
        show.stderr.print("Nothing: what it needs comes with it, or from its owner; see docs/collateral.md.")
    for need in needs:  # which grows: an answer may have needs of its own
        try:
            items.append(fetcher.get(need))
            further = need.then(items[-1].data) if need.then is not None else ()
            needs += [each for each in further if each.question not in {known.question for known in needs}]
        except UndecidedError as error:
            missing.append(error)
            show.stderr.print(Text(f"{need.kind}: {error.message}"))
    _write(out, items, {need.kind for need in needs})
    if missing:
        raise UndecidedError(
            f"{len(missing)} of {len(needs)} items could not be had; {len(items)} are in {out}", hint=missing[0].hint
        )


@collateral.command("list")
@show.guarded
def list_cache(json: Annotated[bool, typer.Option("--json", help="As JSON on standard output.")] = False) -> None:
    """List what the cache holds, and until when."""
    from cloister.trust.fetch.cache import Cache

    now = datetime.now(UTC)
    entries = Cache().entries()
    if json:
        show.print_json(
            [
                {
                    "kind": entry.kind,
                    "source": entry.key,
                    "fetched": entry.fetched.isoformat(),
                    "until": entry.until.isoformat(),
                    "bytes": len(entry.data),
                }
                for entry in entries
            ]
        )
        return
    for entry in entries:
        state = "expired" if entry.until < now else f"until {entry.until:%Y-%m-%d %H:%M}"
        print(f"{entry.kind}  {state}  fetched {entry.fetched:%Y-%m-%d %H:%M}  {entry.key}")


def _bases(options: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for option in options:
        kind, sign, url = option.partition("=")
        if not sign or not url or kind in found:
            raise UsageError("--base-url is KIND=URL, once for each kind")
        found[kind] = url
    return found


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_EVIDENCE + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > MAX_EVIDENCE:
        raise MalformedError(f"{path} has more than {MAX_EVIDENCE} bytes", hint="That is no evidence of any format.")
    return data


def _write(out: Path, items: list[Item], kinds: set[str]) -> None:
    """KIND.N files in place of those of an earlier run, where something was got; other files stay."""
    numbers = Counter[str]()
    try:
        out.mkdir(parents=True, exist_ok=True)
        written = set[Path]()
        for item in items:
            path = out / f"{item.kind}.{numbers[item.kind]}"
            numbers[item.kind] += 1
            path.write_bytes(item.data)
            written.add(path)
            print(path)
        for path in sorted(out.iterdir()):
            kind, _, number = path.name.partition(".")
            if kind in kinds & set(numbers) and re.fullmatch("[0-9]+", number) and path not in written:
                path.unlink()
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error.strerror}") from None
