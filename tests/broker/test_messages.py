"""What callers send is read strictly, and refused in one way."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.broker.messages import MAX_ATTESTATION, MAX_REQUEST, Attestation, Request
from cloister.errors import MalformedError
from cloister.weights import jwe

KEY = ec.generate_private_key(ec.SECP256R1())
GOOD = {
    "runtime-data": {"nonce": "bm9uY2U=", "tee-pubkey": jwe.public_jwk(KEY.public_key())},
    "tee-evidence": {"primary_evidence": {"document": "ZG9j"}, "additional_evidence": ""},
}


def test_a_good_attestation() -> None:
    read = Attestation.parse(json.dumps(GOOD).encode())
    assert (read.nonce, read.document) == ("bm9uY2U=", b"doc")
    assert read.key == KEY.public_key()
    with_null = {**GOOD, "init-data": None}
    assert Attestation.parse(json.dumps(with_null).encode()) == read


def change(path: str, value: object = None, *, drop: bool = False) -> Callable[[dict], None]:
    def apply(body: dict) -> None:
        *parents, last = path.split(".")
        for name in parents:
            body = body[name]
        if drop:
            del body[last]
        else:
            body[last] = value

    return apply


@pytest.mark.parametrize(
    "edit",
    [
        change("init-data", {"format": "toml", "body": ""}),
        change("more", 1),
        change("runtime-data", drop=True),
        change("runtime-data.nonce", drop=True),
        change("runtime-data.nonce", 5),
        change("runtime-data.nonce", "n" * 65),
        change("runtime-data.more", 1),
        change("runtime-data.tee-pubkey", "key"),
        change("runtime-data.tee-pubkey.kty", "RSA"),
        change("runtime-data.tee-pubkey.alg", "RSA1_5"),
        change("runtime-data.tee-pubkey.alg", drop=True),
        change("runtime-data.tee-pubkey.crv", "P-384"),
        change("runtime-data.tee-pubkey.x", "A" * 43),
        change("runtime-data.tee-pubkey.y", "AAAA"),
        change("runtime-data.tee-pubkey.d", "AAAA"),
        change("tee-evidence.additional_evidence", "{}"),
        change("tee-evidence.additional_evidence", drop=True),
        change("tee-evidence.primary_evidence", "ZG9j"),
        change("tee-evidence.primary_evidence.document", "ZG9j="),
        change("tee-evidence.primary_evidence.document", "A" * 21848),
        change("tee-evidence.primary_evidence.more", 1),
        change("tee-evidence.more", 1),
    ],
)
def test_attestations_that_are_refused(edit: Callable[[dict], None]) -> None:
    body = copy.deepcopy(GOOD)
    edit(body)
    with pytest.raises(MalformedError):
        Attestation.parse(json.dumps(body).encode())


def test_bounds() -> None:
    with pytest.raises(MalformedError, match="limit"):
        Attestation.parse(json.dumps(GOOD).encode() + b" " * MAX_ATTESTATION)
    with pytest.raises(MalformedError, match="limit"):
        Request.parse(b'{"version":"0.4.0","tee":"nitro","extra-params":""}' + b" " * MAX_REQUEST)


def test_extra_parameters_are_not_looked_at() -> None:
    for extra in ('""', '{"supported-hash-algorithms":["sha384"]}', "null", "[1]"):
        read = Request.parse(b'{"version":"0.4.0","tee":"nitro","extra-params":%s}' % extra.encode())
        assert (read.version, read.tee) == ("0.4.0", "nitro")
