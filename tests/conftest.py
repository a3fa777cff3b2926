"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VECTORS = Path(os.environ.get("CLOISTER_VECTORS", Path(__file__).parents[1].parent / "shared" / "vectors"))


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The folder of published and collected test vectors; they are not part of the project."""
    if not VECTORS.is_dir():
        pytest.skip(f"no vectors at {VECTORS} (set CLOISTER_VECTORS)")
    return VECTORS
