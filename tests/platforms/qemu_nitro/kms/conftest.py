"""One running SIMULATED KMS for all tests of key release."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.platforms.qemu_nitro.kms import lab as labs


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[labs.Lab]:
    """The SIMULATED KMS with one key."""
    pytest.importorskip("boto3")
    with labs.run(tmp_path_factory.mktemp("kms")) as running:
        yield running
