"""The trust anchor of AWS Nitro Enclaves, as facts; a test compares them with the published certificate."""

from __future__ import annotations

from datetime import UTC, datetime

from cloister.trust.anchors import Anchor

AWS_NITRO_ROOT_G1 = Anchor(
    subject="CN=aws.nitro-enclaves,OU=AWS,O=Amazon,C=US",
    spki=bytes.fromhex(
        "3076301006072a8648ce3d020106052b8104002203620004fc0254eba608c1f36870e29ada90be46383292736e894bff"
        "f672d989444b5051e534a4b1f6dbe3c0bc581a32b7b176070ede12d69a3fea211b66e752cf7dd1dd095f6f1370f41708"
        "43d9dc100121e4cf63012809664487c9796284304dc53ff4"
    ),
    not_before=datetime(2019, 10, 28, 13, 28, 5, tzinfo=UTC),
    not_after=datetime(2049, 10, 28, 14, 28, 5, tzinfo=UTC),
    sha256="641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b",
    origin="AWS_NitroEnclaves_Root-G1, linked from the AWS Nitro Enclaves user guide, 'Verifying the root of trust'",
)

ANCHORS: tuple[Anchor, ...] = (AWS_NITRO_ROOT_G1,)
