"""Rules about the repository itself."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import cloister
from cloister import errors

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def _fresh(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_client_is_quick_and_brings_nothing_of_the_server() -> None:
    took = []
    for _ in range(5):
        began = time.perf_counter()
        loaded = _fresh("import cloister, sys; print(*sys.modules)").split()
        took.append(time.perf_counter() - began)
    assert min(took) < 0.3  # interpreter start included
    # Of this process alone: getrusage's maximum is also its parent's.
    peak = "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    assert int(_fresh(f"import cloister; {peak}")) < 40 * 1024  # kB
    for name in ("starlette", "uvicorn", "xllamacpp", "cryptography", "httpx2", "typer", "cloister.enclave"):
        assert name not in loaded
    loaded = _fresh("import cloister, sys; cloister.http_client, cloister.Policy; print(*sys.modules)").split()
    assert "cloister.client.transport" in loaded
    for name in ("starlette", "uvicorn", "xllamacpp", "typer", "cloister.enclave", "cloister.tee.sim", "dcap_qvl"):
        assert name not in loaded


def test_the_face_is_sorted_and_whole() -> None:
    assert cloister.__all__ == sorted(cloister.__all__)
    for name in cloister.__all__:
        assert getattr(cloister, name) is not None
    with pytest.raises(AttributeError):
        _ = cloister.nothing


def test_every_error_is_in_the_drawing_with_its_exit_code() -> None:
    drawn = dict(re.findall(r"([A-Z]\w+)\s+(\d+)  ", errors.__doc__ or "")) | {"CloisterError": "1"}
    classes = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.CloisterError)
    }
    assert set(drawn) == set(classes)
    for name, kind in classes.items():
        assert str(kind.exit_code) == drawn[name], name
        assert name in cloister.__all__


def test_import_arrows() -> None:
    result = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


def test_every_module_says_what_it_is_for_and_is_short() -> None:
    for path in SOURCES:
        text = path.read_text()
        assert not text or text.startswith('"""'), path
        # Longer ones say why, where a reader starts.
        assert len(text.splitlines()) <= (500 if "\nLong because " in text.split('"""')[1] else 420), path


def test_direct_dependencies_are_the_declared_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = {
        line.strip() for line in (ROOT / "requirements" / "client.in").read_text().splitlines() if line[:1].isalpha()
    }
    assert listed == set(project["dependencies"])
    assert cloister.__version__ == project["version"]


def test_locks_are_hashed_and_name_no_registry() -> None:
    for name in ("client", "serve", "build", "dev"):
        text = (ROOT / "requirements" / f"{name}.txt").read_text()
        pins = re.findall(r"^[a-z0-9._-]+==", text, re.MULTILINE | re.IGNORECASE)
        assert pins
        assert text.count("--hash=sha256:") >= len(pins)
        assert "://" not in text


def test_no_verifier_comes_from_an_entry_point() -> None:
    for path in SOURCES:
        assert "entry_points(" not in path.read_text(), path


def test_ci_runs_the_commands_of_the_readme() -> None:
    readme, script = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    for command in ("make demo", "make test"):
        assert command in readme
        assert re.search(rf"^{command}$", script, re.MULTILINE)


def test_links_in_the_documents_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)
