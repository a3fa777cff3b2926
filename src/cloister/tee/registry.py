"""Formats of evidence by name. The folder is the name's first word: `azure-vtpm` lives in `tee/azure/formats.py`."""

from __future__ import annotations

from importlib import import_module

from cloister.errors import UsageError
from cloister.tee import FORMATS, TEES
from cloister.tee.format import Format


def get(name: str) -> Format:
    """The format of that name; raises UsageError for one that this version cannot verify."""
    folder = name.partition("-")[0]
    if name not in FORMATS or folder not in TEES:
        raise UsageError("that evidence format is not known here", hint=f"Known: {', '.join(FORMATS)}.")
    formats: tuple[Format, ...] = import_module(f"cloister.tee.{folder}.formats").FORMATS
    return next(item for item in formats if item.name == name)
