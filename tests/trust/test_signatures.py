"""What a certificate says it was signed with: one of the list, or none of it, whatever the bytes."""

from __future__ import annotations

import pytest
from cryptography import x509
from tests.tee.google import signer as google
from tests.tee.snp import signer as snp

from cloister.trust import signatures
from cloister.trust.signatures import Algorithm

SHA384_OID = bytes.fromhex("0609608648016503040202")
PSS384 = snp.intermediate("Genoa")


def _of(der: bytes) -> Algorithm | None:
    return signatures.of(x509.load_der_x509_certificate(der))


def test_names() -> None:
    assert _of(PSS384) is Algorithm.RSA_PSS_SHA384
    assert _of(google.TCB_ROOT.der) is Algorithm.RSA_PSS_SHA256
    assert _of(google.AK_ROOT.der) is Algorithm.RSA_PKCS1_SHA256


@pytest.mark.parametrize("last", [0x01, 0x03, 0x74])
@pytest.mark.parametrize("mask", [True, False], ids=["mask", "hash"])
def test_another_hash_in_pss(last: int, mask: bool) -> None:
    # The parameters hold the hash, and again that of the mask; certificates name both twice.
    parts = PSS384.split(SHA384_OID)
    assert len(parts) == 5
    changed = SHA384_OID[:-1] + bytes((last,))
    joints = [SHA384_OID, changed] * 2 if mask else [changed, SHA384_OID] * 2
    der = b"".join(part + joint for part, joint in zip(parts, [*joints, b""], strict=True))
    assert _of(der) is None
