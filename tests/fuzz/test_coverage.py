"""Every decoder of bytes in wire/, trust/ and tee/ is reached by the corpus of some fuzz target."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

from fuzz.targets import TARGETS

import cloister

SOURCE = Path(cloister.__file__).parent
FIRST_WORDS = ("parse", "load", "loads", "decode", "read", "from")


def _decoders(path: Path) -> Iterator[str]:
    """Public functions and methods named like a decoder that take bytes first."""
    place = path.relative_to(SOURCE).as_posix()
    tree = ast.parse(path.read_text())
    owners = [("", tree.body), *((f"{node.name}.", node.body) for node in tree.body if isinstance(node, ast.ClassDef))]
    for owner, body in owners:
        for node in body:
            if not isinstance(node, ast.FunctionDef) or node.name.split("_")[0] not in FIRST_WORDS:
                continue
            arguments = [each for each in node.args.args if each.arg not in ("self", "cls")]
            if arguments and isinstance(arguments[0].annotation, ast.Name) and arguments[0].annotation.id == "bytes":
                yield f"{place}:{owner}{node.name}"


def _all() -> set[str]:
    return {
        name for part in ("wire", "trust", "tee") for path in (SOURCE / part).rglob("*.py") for name in _decoders(path)
    }


def _reached() -> set[str]:
    """Functions of the package that run when the targets run on their corpora."""
    codes: set[CodeType] = set()

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            codes.add(frame.f_code)

    for target in TARGETS:
        # Made before: what makes well-formed input calls decoders too.
        corpus = target.corpus()
        sys.setprofile(note)
        try:
            for data in corpus:
                target.run(data)
        finally:
            sys.setprofile(None)
    found = set()
    for code in codes:
        path = Path(code.co_filename)
        if path.is_relative_to(SOURCE):
            found.add(f"{path.relative_to(SOURCE).as_posix()}:{code.co_qualname}")
    return found


def test_every_decoder_is_reached_by_a_target() -> None:
    decoders = _all()
    assert len(decoders) > 20
    assert decoders - _reached() == set()


def test_every_module_of_decoders_is_seen_by_this_test() -> None:
    """The names above are those that this project gives its decoders."""
    assert {
        "wire/cbor.py:loads",
        "wire/cose.py:Sign1.parse",
        "trust/crl.py:load",
        "tee/snp/evidence.py:Report.parse",
    } <= _all()


def test_names_are_distinct() -> None:
    assert len({target.name for target in TARGETS}) == len(TARGETS)
