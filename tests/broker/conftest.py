"""One running broker for all tests that do not change it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.broker import lab as labs


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[labs.Lab]:
    """A broker with one key and one grant."""
    with labs.run(tmp_path_factory.mktemp("broker")) as running:
        yield running
