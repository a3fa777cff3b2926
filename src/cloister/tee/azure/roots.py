"""The trust anchor of Azure's virtual TPMs, as facts; a test compares them with the published certificate."""

from __future__ import annotations

from datetime import UTC, datetime

from cloister.trust.anchors import Anchor

AZURE_VTPM_ROOT = Anchor(
    subject="CN=Azure Virtual TPM Root Certificate Authority 2023,O=Microsoft Corporation,C=US",
    spki=bytes.fromhex(
        "30820222300d06092a864886f70d01010105000382020f003082020a0282020100ba0c330bdd449efe6d6d3469d284d5"
        "57a636a252fb6ebc52b7bc41c7d95d53ac54edb6f8f2fd591a0f9d6a34af9755a2899819ba1b8781c2ef6b3db0663a04"
        "645ef948b62ccc2e5a78ab06d3a3689df8af566278d31c54d253fdd5d6e4737f1cb966fe048a956cea084c7a80514041"
        "3bf2625ff98d823839ed39cc9ee88e08caffa6475e9172b179f25084c9f6a8239f9e3a20987f1b938c0b79837c553b03"
        "f1808be2d868e1d2cd78faf4b935bc27ed36af437101ed07ba2d3b457116444b6942dc7eefc060733b142fd2aba7096f"
        "d02ef0afc8521c3fe652525d96b02c9c07a5c118cc44e6d9b95a774547b0009a2cdb9c64be70062f0612eb10f56a3c5b"
        "5a75ad408ca7cf69b9fc5adc0afdb1866f59e265bca82059c41552586fbc86449d3f9fb5e12fc137686a3979a92bd96c"
        "33c608f8dbf75ad2ce7a222eaf17aa04010458e71224cbf9589a666c993d852c06f058de529707597686081a85f0486a"
        "0e23d30720aa52fcd922fba407468ead05a2ee922a01e7924ad5e4237150105530d0b05288f99af123779985ed73e07c"
        "cf7ca8d0016f602ab5f97e56e0a453f1b55ef1684ea4bd024c1b2d3185312f7e8c2114dabc3ac272ae1afd53c7d8ae49"
        "d36fb17b7cb2dc787e455e26f9c5a497802300595602914936b7c37d3df64d265bca8688c9f0088e527dd676489c83e2"
        "e126b33b2789e13ac0059dd6d2cb8358ef0203010001"
    ),
    not_before=datetime(2023, 6, 1, 18, 8, 53, tzinfo=UTC),
    not_after=datetime(2048, 6, 1, 18, 15, 41, tzinfo=UTC),
    sha256="e6c596b17f8ffefba5c300f714cfb1260c6028704ecf7becc4ab5018efb00e95",
    origin="a copy in one public verifier (openpcc); certificates that were seen elsewhere chain to it",
)

ANCHORS: tuple[Anchor, ...] = (AZURE_VTPM_ROOT,)
