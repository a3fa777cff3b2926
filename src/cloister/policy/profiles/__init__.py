"""Policies to start from, one TOML file each; docs/policy.md says how to use them.

A file's first line says what it is for. Every rule of its formats is stated or waived, and what only the user can know
is a place that begins with FILL IN (policy.document.FILL_IN), with a comment that says where to look.
"""

from __future__ import annotations

from importlib import resources

from cloister.errors import UsageError


def names() -> tuple[str, ...]:
    """The profiles, sorted."""
    files = (each.name for each in resources.files(__name__).iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml")))


def text(name: str) -> str:
    """The document of a profile; raises UsageError for one that this version has not."""
    if name not in names():
        raise UsageError("there is no such profile", hint=f"There are: {', '.join(names())}.")
    return resources.files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8")


def title(name: str) -> str:
    """What a profile is for, in one line; raises UsageError."""
    return text(name).partition("\n")[0].removeprefix("# ")
