"""The measured configuration of an image, as the enclave reads it."""

from __future__ import annotations

import pytest

from cloister.enclave import boot
from cloister.errors import MalformedError, UsageError
from cloister.tee.nitro.attest import NitroSecurityModule

GOOD = b'{"schema":"cloister-replica/1","name":"n","model":{"bundled":true},"engine":{"context":256},"keys":{},"egress":[],"release":null}'


def test_measured_configuration() -> None:
    measured = boot.read(GOOD)
    assert measured.engine == {"context": 256}
    assert measured.release is None
    sealed = boot.read(
        GOOD.replace(b'{"bundled":true}', b'{"sealed":"m","owner":"' + b"A" * 43 + b'","minimum_version":3}').replace(
            b'"release":null', b'"release":{"service":"aws-kms","region":"eu-west-1","key":"arn"}'
        )
    )
    assert sealed.model == boot.Sealed(name="m", owner=bytes(32), minimum_version=3)
    assert sealed.release is not None
    assert sealed.release.host == "kms.eu-west-1.amazonaws.com"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"replica/1", b"replica/2"),
        (b'"name":"n",', b""),
        (b'"bundled":true', b""),
        (b'"context":256', b'"context":"256"'),
        (b'"keys":{}', b'"keys":{},"more":1'),
        (b'{"bundled":true}', b'{"bundled":true,"file":"x"}'),
        (b'{"bundled":true}', b'{"sealed":"m","owner":"AA","minimum_version":3}'),
        (b'"release":null', b'"release":{"service":"kbs"}'),
        (b'"release":null', b'"release":{"service":"kbs","host":"b.test","port":0}'),
        (b'"release":null', b'"release":{"service":"kbs","host":"b.test","port":65536}'),
        (b'"release":null', b'"release":{"service":"kbs","host":"b.test","port":443,"more":1}'),
        (b'"release":null', b'"release":1'),
        (b"}", b""),
    ],
)
def test_configurations_that_are_refused(old: bytes, new: bytes) -> None:
    assert old in GOOD
    with pytest.raises(MalformedError):
        boot.read(GOOD.replace(old, new))


def test_a_service_that_this_version_does_not_have() -> None:
    measured = boot.read(GOOD.replace(b'"release":null', b'"release":{"service":"vault","host":"v.test","port":443}'))
    for unknown in (measured, boot.read(GOOD)):
        with pytest.raises(UsageError, match="no key-release service"):
            boot.key_release(unknown, lambda _port: pytest.fail("nobody is asked"), NitroSecurityModule())
