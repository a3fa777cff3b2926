"""Every fuzz target accepts its own corpus, and a few thousand mutations bring no surprise (longer: `make fuzz`)."""

from __future__ import annotations

import random

import pytest
from fuzz.__main__ import mutate, survives
from fuzz.targets import TARGETS, Target


# A changed certificate may also make the parser warn; what counts is that it is refused.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_target(target: Target) -> None:
    corpus = target.corpus()
    for data in corpus:
        target.run(data)
    rng = random.Random(7)
    for _ in range(500):
        assert survives(target.run, mutate(rng.choice(corpus), corpus, rng))


def test_the_fuzzer_notices_a_foreign_exception() -> None:
    assert not survives(lambda data: data[10:11].decode("ascii")[0] and None, b"short")
