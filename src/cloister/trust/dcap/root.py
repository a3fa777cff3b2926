"""The trust anchor of SGX and TDX, as facts; a test compares them with the published certificate."""

from __future__ import annotations

from datetime import UTC, datetime

from cloister.trust.anchors import Anchor

INTEL_SGX_ROOT_CA = Anchor(
    subject="C=US,ST=CA,L=Santa Clara,O=Intel Corporation,CN=Intel SGX Root CA",
    spki=bytes.fromhex(
        "3059301306072a8648ce3d020106082a8648ce3d030107034200040ba9c4c0c0c86193a3fe23d6b02cda10a8bbd4e88e48b445"
        "8561a36e705525f567918e2edc88e40d860bd0cc4ee26aacc988e505a953558c453f6b0904ae7394"
    ),
    not_before=datetime(2018, 5, 21, 10, 45, 10, tzinfo=UTC),
    not_after=datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC),
    sha256="44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3",
    origin="Intel SGX Root CA, certificates.trustedservices.intel.com/Intel_SGX_Provisioning_Certification_RootCA.cer",
)

ANCHORS: tuple[Anchor, ...] = (INTEL_SGX_ROOT_CA,)
