"""NVIDIA's trust anchors, as facts; a test compares them with the published certificates."""

from __future__ import annotations

from datetime import UTC, datetime

from cloister.trust.anchors import Anchor

DEVICE_IDENTITY_CA = Anchor(
    subject="O=NVIDIA,CN=NVIDIA Device Identity CA",
    spki=bytes.fromhex(
        "3076301006072a8648ce3d020106052b81040022036200040e4c14a33bf8a5626658db4129607e4cbf4519c4412716f4"
        "d0d917c4978005bdeabeaefd57bc66082d718a4f8b6052e1516ee8a7c422b84de857071bb58fd395bea0cfa1c63ee7c8"
        "0d6bd63901d91cbbd187d3857dc16b5cceaf238ff8c27dbd"
    ),
    not_before=datetime(2021, 11, 5, tzinfo=UTC),
    not_after=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
    sha256="102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48",
    origin="NVIDIA device identity root, as in google/go-nvattest-tools server/cert/device_root.pem and NVIDIA's SDK",
)
CORIM_ROOT_CA = Anchor(
    subject="CN=NVIDIA CoRIM signing Root CA,O=NVIDIA,C=US",
    spki=bytes.fromhex(
        "3076301006072a8648ce3d020106052b8104002203620004b840b28bdbcd33e230da57d4cf2065747030682d4717b4c2"
        "829d7641c1325139b74da831c2be3c779e7e2b65489566080e4ecd94021075c57f15fedeb862c8f906ae8fddc7b12238"
        "597dbdf0fa56e78453833f6d0be43af3871a47f057584799"
    ),
    not_before=datetime(2023, 3, 16, 15, 37, 34, tzinfo=UTC),
    not_after=datetime(2053, 3, 8, 15, 37, 34, tzinfo=UTC),
    sha256="12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1",
    origin="NVIDIA RIM root, as in google/go-nvattest-tools server/cert/rim_root.pem and NVIDIA's SDK",
)

#: What a device's report chains to.
DEVICE_ANCHORS: tuple[Anchor, ...] = (DEVICE_IDENTITY_CA,)
#: What a RIM chains to; a context replaces them under the name `nvidia-rim`.
RIM_ANCHORS: tuple[Anchor, ...] = (CORIM_ROOT_CA,)
#: Whose keys NRAS tokens are checked with: they are in no certificate, TLS to the issuer vouches for them.
NRAS_ISSUER = "https://nras.attestation.nvidia.com"
