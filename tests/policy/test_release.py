"""The release policy: complete or refused, and what a grant gives."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from cloister.errors import PolicyDocumentError, RefusedError
from cloister.policy import release
from cloister.policy.release import Grant, ReleasePolicy
from cloister.tee.claims import Claims
from cloister.tee.nitro.rules import Measurement
from cloister.tee.sim.root import SimulatedRoot

NOW = datetime.now(UTC)
A, B, C = ("a1" * 48, "b2" * 48, "c3" * 48)


def grant(model: str = "notes", version: int = 3, *pcr0: str) -> Grant:
    stated = tuple(Measurement(pcr0=value, label="x") for value in pcr0 or (A,))
    return Grant(model=model, minimum_version=version, measurements=stated)


def text(*grants: Grant, root: str | None = None) -> str:
    return "\n".join([release.beginning("test", root), *(each.to_toml() for each in grants)])


def read(document: str) -> ReleasePolicy:
    return ReleasePolicy.from_toml(document.encode())


def claims(pcr0: str) -> Claims:
    return Claims(
        tee="nitro", genuine=True, debug=False, measurements={"pcr0": pcr0}, user_data=None, nonce=None, signed_at=NOW
    )


def test_what_is_written_reads_back() -> None:
    policy = read(text(grant(), grant("other", 0, A, B)))
    assert policy.grants == (grant(), grant("other", 0, A, B))
    assert (policy.name, policy.allow_simulated) == ("test", False)
    assert policy.max_age == timedelta(seconds=120)
    assert not policy.anchors
    root = SimulatedRoot.create()
    simulated = read(text(root=root.pem))
    assert simulated.allow_simulated
    assert [anchor.genuine for anchor in simulated.anchors["nitro"]].count(False) == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"cloister-release-policy/1"', '"cloister-policy/1"'),
        ('name = "test"\n', ""),
        ('accept = ["nitro"]\n', ""),
        ('accept = ["nitro"]', 'accept = ["sample"]'),
        ('accept = ["nitro"]', 'accept = ["nitro"]\nallow_simulated = true'),
        ("max_age_seconds = 120\n", ""),
        ("max_age_seconds = 120", "max_age_seconds = 0"),
        ("max_age_seconds = 120", "max_age_seconds = 3601"),
        ("max_clock_skew_seconds = 60\n", ""),
        ("max_clock_skew_seconds = 60", "max_clock_skew_seconds = 60\nmore = 1"),
        ('model = "notes"', 'model = "No"'),
        ('model = "notes"', 'model = "notes"\nversions = 1'),
        ('model = "notes"\n', ""),
        ("minimum_version = 3\n", ""),
        ("minimum_version = 3", "minimum_version = -1"),
        ("minimum_version = 3", "minimum_version = true"),
        (A, "00" * 48),
        (A, "a1"),
        ("[[grant.measurement]]", "[[grant.measurements]]"),
        ("[[grant.measurement]]", "[[grants.measurement]]"),
    ],
)
def test_policies_that_are_refused(old: str, new: str) -> None:
    document = text(grant())
    assert old in document
    with pytest.raises(PolicyDocumentError):
        read(document.replace(old, new))


@pytest.mark.parametrize(
    ("pcr0", "model", "version", "failed"),
    [
        (A, "notes", 3, None),
        (A, "notes", 9, None),
        (B, "notes", 5, None),
        (A, "notes", 2, "grant.version"),
        (B, "notes", 4, "grant.version"),
        (C, "notes", 9, "grant.image"),
        (B, "other", 9, "grant.image"),
        (A, "third", 9, "grant.image"),
    ],
)
def test_a_grant_is_for_an_image_a_model_and_a_version(pcr0: str, model: str, version: int, failed: str | None) -> None:
    policy = read(text(grant("notes", 3, A), grant("notes", 5, B), grant("other", 0, A)))
    if failed is None:
        assert release.release(claims(pcr0), policy, model=model, version=version, now=NOW).model == model
        return
    with pytest.raises(RefusedError) as error:
        release.release(claims(pcr0), policy, model=model, version=version, now=NOW)
    assert error.value.verdict is not None
    assert [check.id for check in error.value.verdict.checks if check.status == "failed"] == [failed]


@pytest.mark.parametrize(("binding", "challenge"), [(b"", bytes(32)), (bytes(32), bytes(32)), (bytes(48), b"")])
def test_empty_bindings_cannot_be_asked_for(binding: bytes, challenge: bytes) -> None:
    with pytest.raises(ValueError, match="bytes"):
        release.attest(b"", "", read(text(grant())), binding=binding, challenge=challenge, now=NOW)
