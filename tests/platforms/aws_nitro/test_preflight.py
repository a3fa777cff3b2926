"""Every rule of Nitro Enclaves, broken alone and together, on machines laid out as files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from tests.platforms.aws_nitro.machine import Tree

from cloister.errors import UsageError
from cloister.image import eif
from cloister.platforms.aws_nitro import parent, rules
from cloister.platforms.aws_nitro.errors import explain
from cloister.platforms.aws_nitro.nitro_cli import Described, NitroCli
from cloister.platforms.aws_nitro.platform import AwsNitro
from cloister.platforms.platform import Launch, Running

GIB, MIB = 1 << 30, 1 << 20
NOW = datetime(2026, 11, 24, tzinfo=UTC)
IMAGE = eif.Image(kernel=b"k" * 1000, cmdline=b"c", ramdisks=(b"boot", b"a" * 4 * MIB))


class Cli(NitroCli):
    """Installed, and describes what a test says."""

    def __init__(self, *enclaves: Described, installed: bool = True) -> None:
        super().__init__()
        self._enclaves, self._installed = enclaves, installed

    def present(self) -> bool:  # type: ignore[override]
        return self._installed

    def describe(self) -> tuple[Described, ...]:
        return self._enclaves


class Mute(Cli):
    """Installed, and without its folder of sockets."""

    def describe(self) -> tuple[Described, ...]:
        raise explain(b"[ E07 ]", 7, None)


def enclave(number: int, *cpu_ids: int, name: str = "") -> Described:
    running = Running(
        name=name or f"e{number}", id=f"i-00000000-enc{number}", state="RUNNING", cid=15 + number, cpus=len(cpu_ids),
        memory_mib=64, measurements={},
    )  # fmt: skip
    return Described(running=running, cpu_ids=cpu_ids, debug=False)


def plan(
    folder: Path, *, tree: Tree | None = None, cli: Cli | None = None, image: eif.Image = IMAGE, **changes: object
) -> rules.Plan:
    """A launch that breaks no rule, changed."""
    file = folder / "n.eif"
    file.write_bytes(eif.write(image))
    launch = Launch(name="n", image=file, memory_mib=512, cpus=2, kernel="aws", cid=30)
    return rules.Plan(
        launch=replace(launch, **changes),
        image=image,
        image_bytes=file.stat().st_size,
        parent=parent.look(cli or Cli(), (tree or Tree()).write(folder / "root"), architecture="x86_64"),
        cid=changes.get("cid", 30),  # type: ignore[arg-type]
        now=NOW,
    )


def test_nothing_to_say_about_a_good_launch(tmp_path: Path) -> None:
    assert rules.broken(plan(tmp_path)) == {}


def signed(valid_from: datetime, valid_until: datetime) -> eif.Image:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "signer")])
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(valid_from).not_valid_after(valid_until).sign(key, SHA384())
    )  # fmt: skip
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return eif.signed(IMAGE, pem, certificate.public_bytes(Encoding.PEM))


DAY = timedelta(days=1)
CASES: dict[str, tuple[str, Callable[[Path], rules.Plan], str]] = {
    "no program": ("program", lambda at: plan(at, cli=Cli(installed=False)), "dnf install aws-nitro-enclaves-cli"),
    "no sockets": ("answers", lambda at: plan(at, cli=Mute()), "/run/nitro_enclaves"),
    "no device": ("device", lambda at: plan(at, tree=Tree(device=False)), "enclave_options"),
    "burstable": ("instance", lambda at: plan(at, tree=Tree(instance_type="t3.xlarge")), "m6i.xlarge"),
    "excluded size": ("instance", lambda at: plan(at, tree=Tree(instance_type="m7i.48xlarge")), "m7i.48xlarge"),
    "high memory": ("instance", lambda at: plan(at, tree=Tree(instance_type="u-6tb1.56xlarge")), "u-6tb1"),
    "metal": ("instance", lambda at: plan(at, tree=Tree(instance_type="m6i.metal")), "virtual machine"),
    "two vCPUs": ("instance", lambda at: plan(at, tree=Tree(instance_type="m6i.large", present="0-1")), "needs 4"),
    "for ARM": ("architecture", lambda at: plan(at, image=replace(IMAGE, arm64=True)), "aarch64"),
    "small kernel": ("kernel", lambda at: plan(at, kernel="small"), 'kernel = "aws"'),
    "less than four times": (
        "memory.ratio", lambda at: plan(at, memory_mib=82, image=replace(IMAGE, ramdisks=(b"a" * 20 * MIB,))), "at least 84",
    ),
    "less than 64 MiB": (
        "memory.ratio", lambda at: plan(at, memory_mib=62, image=replace(IMAGE, ramdisks=(b"a",))), "at least 64",
    ),
    "weights": ("memory.weights", lambda at: plan(at, weights=400 * MIB), "at least 780"),
    "odd": ("memory.granule", lambda at: plan(at, memory_mib=511), "even"),
    "no pages": ("memory.pages", lambda at: plan(at, tree=Tree(pages={2048: 255})), "255 of 2 MiB"),
    "none at all": ("memory.pages", lambda at: plan(at, tree=Tree(pages={})), "none"),
    "no driver": ("cpus.pool", lambda at: plan(at, tree=Tree(pool=None)), "load the module"),
    "empty pool": ("cpus.pool", lambda at: plan(at, tree=Tree(pool="")), "cpu_count"),
    "senseless pool": ("cpus.pool", lambda at: plan(at, tree=Tree(pool="1;3")), "load the module"),
    "two nodes": ("cpus.pool", lambda at: plan(at, tree=Tree(nodes={0: 0, 1: 0, 2: 0, 3: 1})), "NUMA"),
    "half a core": ("cpus.cores", lambda at: plan(at, cpus=1), "2 threads"),
    "no CPU": ("cpus.cores", lambda at: plan(at, cpus=0), "whole"),
    "more than the pool": ("cpus.free", lambda at: plan(at, cpus=4), "2 free"),
    "taken CPUs": ("cpus.free", lambda at: plan(at, cli=Cli(enclave(1, 1, 3))), "0 free"),
    "four already": ("count", lambda at: plan(at, cli=Cli(*(enclave(n) for n in range(1, 5)))), "4 enclaves"),
    "same name": ("name", lambda at: plan(at, cli=Cli(enclave(1, name="n"))), "cloister down n"),
    "reserved cid": ("cid", lambda at: plan(at, cid=3), "at least 4"),
    "any cid": ("cid", lambda at: plan(at, cid=2**32 - 1), "below"),
    "taken cid": ("cid", lambda at: plan(at, cid=16, cli=Cli(enclave(1))), "taken"),
    "expired": ("signature", lambda at: plan(at, image=signed(NOW - 2 * DAY, NOW - DAY)), "2026-11-23"),
    "not yet": ("signature", lambda at: plan(at, image=signed(NOW + DAY, NOW + 2 * DAY)), "not now"),
    "changed after signing": (
        "signature", lambda at: plan(at, image=replace(signed(NOW - DAY, NOW + DAY), cmdline=b"d")), "sign the image again",
    ),
    "debug, sealed": ("debug", lambda at: plan(at, debug=True, weights=1), "no key is released"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_rule_alone(case: str, tmp_path: Path) -> None:
    name, make, word = CASES[case]
    found = rules.broken(make(tmp_path))
    assert set(found) == {name}
    assert word in found[name]


def test_every_rule_has_a_case_a_source_and_a_name_of_its_own() -> None:
    names = [rule.id for rule in rules.RULES]
    assert len(set(names)) == len(names)
    assert {name for name, _, _ in CASES.values()} == set(names)
    assert all(len(rule.source) > 20 for rule in rules.RULES)


def test_a_closed_device(tmp_path: Path) -> None:
    found = plan(tmp_path)
    closed = replace(found, parent=replace(found.parent, device="closed"))
    assert "group ne" in rules.broken(closed)["device"]


def test_a_signature_in_its_time_and_plain_debug_are_fine(tmp_path: Path) -> None:
    assert rules.broken(plan(tmp_path, image=signed(NOW - DAY, NOW + DAY), debug=True)) == {}


def test_one_thread_a_core_and_graviton(tmp_path: Path) -> None:
    tree = Tree(siblings="0", pool="1", present="0-1", nodes={0: 0, 1: 0}, instance_type="c7g.large")
    arm = plan(tmp_path, tree=tree, cpus=1, image=replace(IMAGE, arm64=True))
    assert rules.broken(replace(arm, parent=replace(arm.parent, architecture="aarch64"))) == {}


@pytest.mark.parametrize(
    ("free", "wanted", "taken"),
    [
        ({2 * MIB: 256}, 512, 512),
        ({GIB: 1}, 256, 1024),  # whole pages only
        ({GIB: 1, 2 * MIB: 1}, 512, 1026),
        ({GIB: 2, 2 * MIB: 100}, 1100, 1100),
        ({GIB: 1, 2 * MIB: 10}, 1100, None),
        ({32 * MIB: 1, 2 * MIB: 16}, 34, 34),
        ({}, 2, None),
    ],
)
def test_pages_as_nitro_cli_takes_them(free: dict[int, int], wanted: int, taken: int | None) -> None:
    assert parent.take(free, wanted * MIB) == (None if taken is None else taken * MIB)


def test_all_at_once_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(device=False, pool="", instance_type="t3.micro", present="0-1")
    monkeypatch.setattr(parent, "ROOT", tree.write(tmp_path / "root"))
    monkeypatch.setenv("PATH", str(tmp_path))
    made = plan(tmp_path / "x" if (tmp_path / "x").mkdir() is None else tmp_path)
    launch = replace(made.launch, memory_mib=7, cpus=3, cid=2, kernel="small", weights=GIB, debug=True)
    with pytest.raises(UsageError) as refused:
        AwsNitro().preflight(launch)
    said = refused.value.message
    for name in (
        "program", "device", "instance", "kernel", "memory.ratio", "memory.weights", "memory.granule", "cpus.pool", "cpus.cores",
        "cid", "debug",
    ):  # fmt: skip
        assert f"\n  {name}: " in said, name
    assert said.startswith("11 rule(s)")


def test_the_lowest_free_cid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = plan(tmp_path).launch
    monkeypatch.setattr(NitroCli, "describe", lambda self: (enclave(1), enclave(2), enclave(4)))
    assert AwsNitro().settle(replace(launch, cid=None)).cid == 18
    assert AwsNitro().settle(launch) is launch
