"""`cloister inspect`: what a file of evidence says, decoded. Nothing is verified: the words are a stranger's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from cloister.channel.bundle import MAX_BUNDLE, Bundle
from cloister.cli import show
from cloister.errors import CloisterError, MalformedError, UsageError
from cloister.tee import FORMATS, registry

SCHEMA = "cloister-inspect/1"


@show.guarded
def inspect(
    file: Annotated[Path, typer.Argument(help="Evidence of any known format, or a bundle.")],
    tee: Annotated[str | None, typer.Option(help="The format; otherwise it is guessed.")] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON on standard output.")] = False,
) -> None:
    """Decode a file of evidence and print its fields. To know whether they are true: cloister verify."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None
    if len(data) > MAX_BUNDLE:
        raise MalformedError(f"{file} has more than {MAX_BUNDLE} bytes", hint="That is no evidence of any format.")
    found = list(_decode(data, [tee] if tee is not None else ["bundle", *FORMATS]))
    if not found:
        raise MalformedError(f"{file} is evidence of no known format", hint=f"Known: {', '.join(FORMATS)}.")
    if json:
        show.print_json({"schema": SCHEMA, "verified": False, "readings": [{"format": n, **v} for n, v in found]})
        return
    show.stderr.print(Text("decoded, NOT verified", style="bold yellow"))
    for name, fields in found:
        print(f"format: {name}")
        for key, value in _lines(fields):
            print(f"{key}: {value}")


def _decode(data: bytes, names: list[str]) -> Iterator[tuple[str, dict[str, object]]]:
    for name in names:
        try:
            value = Bundle.from_bytes(data) if name == "bundle" else registry.get(name).parse(data)
        except CloisterError:
            if len(names) == 1:
                raise
            continue
        yield name, {"fields": _plain(value)}


def _plain(value: object) -> object:
    """A decoded value for JSON: bytes as hex, dataclasses as objects."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    match value:
        case bytes() | bytearray() | memoryview():
            return bytes(value).hex()
        case datetime():
            return value.isoformat()
        case Enum():
            return str(value.value)
        case Mapping():
            return {str(key): _plain(each) for key, each in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(each) for each in value]
        case str() | int() | float() | bool() | None:
            return value
    return type(value).__name__


def _lines(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        # A stranger's text must not move the terminal's cursor.
        yield path, "".join(each if each.isprintable() else "�" for each in str(value))
        return
    for key, each in items:
        yield from _lines(each, f"{path}.{key}" if path else str(key))
