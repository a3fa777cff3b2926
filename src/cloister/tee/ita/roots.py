"""The trust anchor of Intel Trust Authority, as facts; a test compares them with the published certificate."""

from __future__ import annotations

from datetime import UTC, datetime

from cloister.trust.anchors import Anchor

ITA_ROOT = Anchor(
    subject="O=Intel Corporation,L=Santa Clara,ST=CA,C=US,CN=Intel Trust Authority Root CA",
    spki=bytes.fromhex(
        "308201a2300d06092a864886f70d01010105000382018f003082018a0282018100b90d60d50e0cb67bd34616084ca568"
        "bb9083bc1e45a5f8c17bcb2c50a68320bc2480994636feba2163d0f6f8487a46508eebc76d48fdc8f72b33b1ef6bb87b"
        "121968fd29bb66163c02065f1854d1263bcd53ebe0fc14ebe6fbaa52efdae7879ec32ccc726c7099684aff870642ceec"
        "a45077e3a8e98d280e1e09393e0277f4f804af950bf52bc9d4b151b82371653773c8b7bb2bc716bc49f01a4476449a4a"
        "f69620cdf9c05b2f09d1d8dd00a6a8431b7c4ce13f23069f1bfd2e8d37ae35bce8fb7c31785e921b3e7a322984d7e2a0"
        "ada3e950b69e5f6b402fd954cfe10231eb4d2db032a87430c4dd63419ff7560a50f2aaa1ec2ca8e2b123a636b6f6246d"
        "3a28416255b4fd7e93c4e1b52cb4ae1a8fcdf427125ba1338ec0b50736a4ce3b38383f8919aaaabdcdb9e69f14453c59"
        "491489af5c6d8a664af81268087102b2b08bbc20b952615f4d0af191e189f8e203324405822754c362bb9185def64ee0"
        "94ac3dcb255ff42d2186a0457cf0fcafe097100f66daed6dbd1e0d18cba87a03310203010001"
    ),
    not_before=datetime(2023, 9, 12, 11, 11, 48, tzinfo=UTC),
    not_after=datetime(2049, 12, 30, 11, 11, 48, tzinfo=UTC),
    sha256="de77babfddca9f26881af28a71e37af836a11a125f2ac8a88940efa232c359ea",
    origin="the last certificate of the keys at https://portal.trustauthority.intel.com/certs, one stored copy of 2023",
)

ANCHORS: tuple[Anchor, ...] = (ITA_ROOT,)
