"""A TEE is one folder, one name in two tuples, and one folder of tests: nothing else knows of it."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.policy.checks import EVIDENCE, RULES
from cloister.tee import FORMATS, TEES, registry
from cloister.tee.format import Format
from cloister.trust.collateral import KINDS

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "cloister"
FOLDERS = SOURCE / "tee"
#: A folder that verifies nothing: the TEE made in software.
NO_VERIFIER = frozenset({"sim"})
#: Sources outside a TEE's folder that may name a format, and which. This project runs on nitro itself; its client asks
#: Intel Trust Authority (ita) for tokens about a TD.
NAMED = {
    "policy/roots.py": {"nitro", "tdx", "ita"},
    "policy/document.py": {"nitro", "tdx", "ita"},  # formats whose evidence can be simulated; the example of a policy
    "policy/draft.py": {"nitro"},  # a first policy for a replica of ours
    "policy/attacks.py": {*FORMATS, *TEES},  # published attacks, by what they hit
    "policy/release.py": {"nitro"},  # the broker's policies: replicas of ours
    "weights/kbs.py": {"nitro"},  # the key broker protocol's name for the TEE
    "trust/fetch/amd.py": {"snp"},  # a part of a TCB, in AMD's address
    "trust/fetch/intel.py": {"tdx", "sgx"},  # the two kinds of collateral that Intel serves
    "image/config.py": {"nitro"},  # a table of cloister.toml
    "image/rootfs.py": {"nitro"},  # what an image leaves out: every other folder
    "client/trust_authority.py": {"ita"},  # evidence for a token, the passport model
    "cli/demo.py": {"ita"},  # the demo of that
    "cli/serve.py": {"nitro"},  # what a simulated replica gives by default
}
NUMBER = re.compile(r"(\d+)(?:-(\d+))?\. \S")


def _folder(name: str) -> tuple[Format, ...]:
    formats: tuple[Format, ...] = importlib.import_module(f"cloister.tee.{name}.formats").FORMATS
    return formats


def test_each_has_its_folder_its_page_and_its_tests() -> None:
    assert len(set(TEES)) == len(TEES)
    found = {path.name for path in FOLDERS.iterdir() if (path / "__init__.py").is_file()}
    assert found - set(TEES) <= NO_VERIFIER
    assert set(TEES) <= found
    for name in TEES:
        for file in ("README.md", "__init__.py", "formats.py", "roots.py"):
            assert (FOLDERS / name / file).is_file(), (name, file)
        assert list((ROOT / "tests" / "tee" / name).glob("test_*.py")), name


def test_the_tuple_of_formats_is_that_of_the_folders() -> None:
    forms = [form for name in TEES for form in _folder(name)]
    assert sorted(form.name for form in forms) == sorted(FORMATS)
    assert len({form.name for form in forms}) == len({form.media_type for form in forms}) == len(forms)
    for name in TEES:
        for form in _folder(name):
            assert re.fullmatch(rf"{name}(-[a-z]+)?", form.name)
            assert registry.get(form.name) is form
            assert set(form.inner) <= set(FORMATS) - {form.name}
            assert set(form.collateral) <= set(KINDS)
            assert form.title == form.title.strip() != ""


def test_formats_without_a_root_of_their_own_say_why() -> None:
    for name in TEES:
        roots = importlib.import_module(f"cloister.tee.{name}.roots")
        assert len(roots.__doc__ or "") > 20
        anchors = [anchor for form in _folder(name) for anchor in form.anchors]
        assert all(anchor.genuine and anchor.origin for anchor in anchors)
        for form in _folder(name):
            # Who has none trusts keys that the caller brings.
            assert form.anchors or "jwks" in form.collateral, form.name


def test_checks_and_rules_are_named_and_numbered() -> None:
    checks = [check for form in map(registry.get, FORMATS) for check, _ in form.checks]
    assert len(set(checks)) == len(checks)
    assert not {check for check, _ in (*RULES, *EVIDENCE)} & set(checks)
    for form in map(registry.get, FORMATS):
        assert form.checks
        for check, _ in form.checks:
            assert re.fullmatch(rf"{form.name}\.[a-z][a-z0-9-]*", check), check
        names = [rule.name for rule in form.rules]
        assert len(set(names)) == len(names)
        assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in names)
        assert all(rule.example.strip() for rule in form.rules)
        # What names the code is never left out of a policy.
        assert not all(rule.waivable for rule in form.rules)
        numbers = _numbers(form)
        assert numbers == sorted(set(numbers))
        assert numbers[0] == 1


def _numbers(form: Format) -> list[int]:
    """Those that titles begin with: `3. …`, or `1-2. …` for two steps in one."""
    found = []
    for title in [title for _, title in form.checks] + [rule.title for rule in form.rules]:
        match = NUMBER.match(title)
        assert match, (form.name, title)
        first, last = int(match[1]), int(match[2] or match[1])
        found += range(first, last + 1)
    return found


@pytest.mark.parametrize("name", TEES)
def test_the_page_numbers_its_checks_as_the_code_does(name: str) -> None:
    """Of each format from 1 without a gap; steps that are made elsewhere (debug, binding) are numbered there too."""
    rows = [int(row) for row in re.findall(r"^\| (\d+) \|", (FOLDERS / name / "README.md").read_text(), re.MULTILINE)]
    starts = [at for at, row in enumerate(rows) if row == 1]
    tables = [rows[start:end] for start, end in zip(starts, [*starts[1:], len(rows)], strict=True)]
    assert len(tables) == len(_folder(name))
    for form, table in zip(_folder(name), tables, strict=True):
        assert table == list(range(1, len(table) + 1)), form.name
        assert set(_numbers(form)) <= set(table), form.name
        # No more than those two kinds of step are without a number in the code.
        assert len(table) - len(_numbers(form)) <= 2, form.name


def _mentions(path: Path) -> Iterator[str]:
    """Formats and TEE folders that a source names in text (not in docstrings), or imports."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and _has_doc(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            for name in {*FORMATS, *TEES}:
                if node.value == name or f'"{name}"' in node.value:
                    yield name
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cloister.tee."):
            folder = (node.module or "").split(".")[2]
            if folder in TEES and folder != "nitro":
                yield folder


def _has_doc(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return bool(node.body) and isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)


def test_nothing_else_names_a_format() -> None:
    found: dict[str, set[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        place = path.relative_to(SOURCE)
        inside = place.parts[0] == "tee" and (place.parts[1] in TEES or place.name == "__init__.py")
        # Benchmarks have a sample of each format; a platform makes its own TEE's evidence.
        if inside or place.parts[0] in ("bench", "platforms"):
            continue
        if names := set(_mentions(path)):
            found[str(place)] = names
    assert {place: names for place, names in found.items() if not names <= NAMED.get(place, set())} == {}


def test_import_contracts_hold_for_every_folder() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    by_id = {contract["id"]: contract for contract in contracts}
    for name in TEES:
        folder = f"cloister.tee.{name}"
        assert folder in by_id["tees"]["modules"]
        pure = [module for module in by_id["pure"]["source_modules"] if f"{module}.".startswith(f"{folder}.")]
        assert pure == [folder] or {f"{folder}.{part}" for part in ("evidence", "verify", "rules", "roots")} <= set(
            pure
        )
