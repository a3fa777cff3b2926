"""Google's trust anchors, as facts; a test compares them with the published certificates.

Two more are known here only by what Google says of them: the root of Confidential Space's PKI by a SHA-1 fingerprint,
that of the firmware's launch endorsements (GCE-cc-tcb-root_1) by its address. A policy may name them.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime

from cloister.errors import NotGenuineError
from cloister.tee.format import NamedRoot
from cloister.trust.anchors import Anchor

EK_AK_ROOT = Anchor(
    subject="CN=EK/AK CA Root,OU=Google Cloud,O=Google LLC,L=Mountain View,ST=California,C=US",
    spki=bytes.fromhex(
        "30820222300d06092a864886f70d01010105000382020f003082020a02820201009d25f550a8c8964b4a897c2b284da5"
        "b4bba419ee89c13aa6daddb71016211d939cbc52831345891eddaeda1fc48d2bb9c7a8088a6c6bd34720aaf3dec33f37"
        "f13c98534788902ec957f7a4fa660e92c9650d6a7bcc87929192b372a3dece58616b4479c0957f336ce0cb4abc67c0f9"
        "6281e3d03a3688bc47d4751a89cb20deb04975f790fd626d19f434681daa07e045ee470b790a0218d9eac713f046f548"
        "695a0721b31395a81939cd6f289f932c7da146715d526caafdaaeb5d56ddaa5b3f17207aff33e495d051baeb43b11b3b"
        "44ad2b50ec291b0a2ee0fe60bc63ac1450e14788379587a7a1b4be06223a9b479ba60a67141e98efe454c2d1cec9b501"
        "81fb78d3857a470120a4634aaa64e66e2e774e2aba6e9fd21063de213f3def83bc86d584b87d22d02e9c848640f03d75"
        "81207c0fea5a2afea54ecb577a61a4b78686e965f06ff362642117785e8346ee211ef469abf34fc88b010af154c35164"
        "910633020dfedabc6224f7fb711921c4aaaba1801a38ae570dcd22c5c2dfe0ae489190e466c3a78f4b73a5563c779678"
        "5bf04941a0c4a5eae6bd7e3d1b286202ba4b886179c817117e5ced1b5ae9370594415bd172bd7e9cb576bf3d2de146c5"
        "4069743bcac4344b326dc541e9fcae647f3d245e11c26c6aa6d43ffabb3dcee4d117c5f4c6fa01f3d97e7aa0a58250f8"
        "8152afd1234525b5c0f70bd37ce84cfe3b0203010001"
    ),
    not_before=datetime(2022, 7, 8, 0, 40, 34, tzinfo=UTC),
    not_after=datetime(2122, 7, 8, 5, 57, 23, tzinfo=UTC),
    sha256="594759594b9b61524f6c8ef668f7177f7b9066bc0674f2f49fe9e052be78beb2",
    origin="the root of the keys of Compute Engine's vTPMs, as two public verifiers carry it",
)

#: For `google-vtpm`. The older root of such keys (tpm_ek_root_1) is not among them: it was not at hand.
ANCHORS: tuple[Anchor, ...] = (EK_AK_ROOT,)

#: Of the root of Confidential Space's PKI tokens, in Google's documentation.
PKI_ROOT_SHA1 = "b95120742c24e3aa34042e1c3ba3aad28b212321"


def pki_anchor(der: bytes) -> Anchor:
    """The anchor for PKI tokens, from the root's certificate (DER) that the caller fetched from Google over TLS.

    For `Context.anchors["google-space"]`. Its fingerprint must be the documented one: SHA-1 suffices against another
    certificate with the same fingerprint, which is all that is asked of it. Raises MalformedError or NotGenuineError.
    """
    anchor = Anchor.root(der, "the caller")
    if not hmac.compare_digest(hashlib.sha1(der, usedforsecurity=False).hexdigest(), PKI_ROOT_SHA1):
        raise NotGenuineError("the certificate is not the one that Google documents as the root of its PKI tokens")
    return anchor


def endorsement_anchor(der: bytes) -> Anchor:
    """The anchor for launch endorsements, from the root's certificate (DER), for `Context.anchors` of that name.

    Google documents no fingerprint of it, so whoever names it answers for it. Raises MalformedError or NotGenuineError.
    """
    return Anchor.root(der, "the caller")


ROOTS_OF_SPACE = (
    NamedRoot(
        key="pki_root_pem",
        title="Google's root of tokens with certificates; its SHA-1 must be the documented one",
        anchors="google-space",
        read=pki_anchor,
    ),
)
ROOTS_OF_VTPM = (
    NamedRoot(
        key="endorsement_root_pem",
        title="Google's root of the firmware's launch endorsements (GCE-cc-tcb-root_1)",
        anchors="google-endorsement",
        read=endorsement_anchor,
    ),
)
