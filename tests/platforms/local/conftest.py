"""One running SIMULATED Trust Authority for all tests that do not harm it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.platforms.local import lab as labs


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[labs.Lab]:
    """The service in its own process, and a TD."""
    with labs.run(tmp_path_factory.mktemp("trust-authority")) as running:
        yield running


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> labs.Inside:
    """The service in this process; tests leave its clock as they found it."""
    return labs.Inside(tmp_path_factory.mktemp("pcs"))
