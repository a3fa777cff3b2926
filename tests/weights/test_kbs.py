"""Names of resources, and what the evidence binds."""

from __future__ import annotations

import hashlib

import pytest

from cloister.errors import MalformedError
from cloister.weights import kbs, manifest


@pytest.mark.parametrize("path", ["notes/data-key/7", "a/data-key/0", "a.b_c-d/data-key/999999999999999"])
def test_names(path: str) -> None:
    resource = kbs.Resource.parse(path)
    assert str(resource) == path
    assert kbs.Resource.of(resource.context) == resource
    assert resource.context == manifest.context(resource.model, resource.version)


@pytest.mark.parametrize(
    "path",
    [
        "", "notes", "notes/data-key", "notes/data-key/", "notes/data-key/x", "notes/data-key/-1", "notes/data-key/07",
        "notes/data-key/7 ", "notes/data-key/7\n", "Notes/data-key/7", "../data-key/7", "a/b/data-key/7", "a/key/7",
        "a" * 64 + "/data-key/7", "notes/data-key/1000000000000000", "notes/data-key/٧",
    ],
)  # fmt: skip
def test_other_paths(path: str) -> None:
    with pytest.raises(MalformedError):
        kbs.Resource.parse(path)


def test_a_context_without_model_or_version_names_nothing() -> None:
    for context in ({}, {"cloister:model": "a"}, {"cloister:version": "1"}):
        with pytest.raises(MalformedError):
            kbs.Resource.of(context)


def test_runtime_data_is_hashed_as_canonical_json() -> None:
    """Written out by hand from RFC 8785: members sorted, no spaces."""
    jwk = {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": "eA", "y": "eQ"}
    text = (
        b'{"additional-evidence":"","nonce":"bm9uY2U=","tee-pubkey":'
        b'{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"eA","y":"eQ"}}'
    )
    assert kbs.runtime_digest("bm9uY2U=", jwk) == hashlib.sha384(text).digest()
