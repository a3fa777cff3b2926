"""The launch measurement that we predict, against one that real hardware signed."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from tests.tee.snp import signer as s
from tests.tee.snp.test_real_reports import _read

from cloister.errors import UsageError
from cloister.tee.snp.measure import DirectBoot, launch_measurement

# Sections of OVMF's metadata: memory, secrets page, CPUID page, table of hashes.
SECTIONS = [(0x800000, 0x9000, 1), (0x80A000, 0x1000, 2), (0x80B000, 0x1000, 3), (0x810000, 0x1000, 0x10)]


def _firmware(
    path: Path, sections: list[tuple[int, int, int]], *, reset: int = 0x80B004, hashes: int = 0x810C00
) -> Path:
    """What stands at the end of an OVMF: the metadata and the footer that leads to it."""
    metadata = b"ASEV" + struct.pack("<III", 16 + 12 * len(sections), 1, len(sections))
    metadata += b"".join(struct.pack("<III", *section) for section in sections)
    body = bytes(2048) + metadata
    body += bytes(4096 - 512 - len(body))
    entries = b""
    for guid, value in (
        ("7255371f-3a3b-4b04-927b-1da6efa8d454", struct.pack("<II", hashes, 1024)),
        ("00f771de-1a7e-4fcb-890e-68c77e2fb44e", struct.pack("<I", reset)),
        ("dc886566-984a-4798-a75e-5585a7bf67cc", struct.pack("<I", 4096 - 2048)),
    ):
        entries += value + struct.pack("<H", len(value) + 18) + UUID(guid).bytes_le
    footer = struct.pack("<H", len(entries) + 18) + UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
    tail = entries + footer + bytes(32)
    path.write_bytes(body + bytes(512 - len(tail)) + tail)
    return path


def test_the_measurement_of_a_real_guest(vectors: Path, tmp_path: Path) -> None:
    whole = (vectors / "snp" / "dstack_attestation_scale.bin").read_bytes()
    vcek = _read(vectors / "snp" / "dstack_vcek.pem")
    setting = s.Setting(items=s.items(vcek=vcek), anchors=None, now=datetime(2026, 7, 1, tzinfo=UTC))
    claims = setting.verify(whole[4 : 4 + 1184])
    found = re.search(rb'\{"os_image_hash".*', whole, re.DOTALL)
    assert found
    configuration = json.JSONDecoder().raw_decode(found.group().decode("latin-1"))[0]
    told = json.loads(configuration["sev_snp_measurement"])
    sections = [(each["gpa"], each["size"], each["section_type"]) for each in told["ovmf_sections"]]
    firmware = _firmware(
        tmp_path / "OVMF.fd", sections, reset=told["sev_es_reset_eip"], hashes=told["sev_hashes_table_gpa"]
    )
    boot = DirectBoot(
        kernel=bytes.fromhex(told["kernel_hash"]),
        initrd=bytes.fromhex(told["initrd_hash"]),
        cmdline=told["base_cmdline"],
    )

    def predict(vcpus: int, boot: DirectBoot) -> str:
        return launch_measurement(
            firmware, vcpus=vcpus, vcpu_type=told["vcpu_type"], boot=boot, guest_features=told["guest_features"],
            firmware_digest=bytes.fromhex(told["ovmf_hash"]),
        ).hex()  # fmt: skip

    assert predict(told["vcpus"], boot) == claims.measurements["measurement"]
    assert predict(told["vcpus"] + 1, boot) != claims.measurements["measurement"]
    other = DirectBoot(kernel=boot.kernel, initrd=boot.initrd, cmdline=boot.cmdline + " ")
    assert predict(told["vcpus"], other) != claims.measurements["measurement"]


def test_everything_that_goes_in_changes_it(tmp_path: Path) -> None:
    firmware = _firmware(tmp_path / "a", SECTIONS)
    boot = DirectBoot.of(b"kernel", b"initrd", "console=ttyS0")
    assert boot.kernel == hashlib.sha256(b"kernel").digest()
    base: dict = {"vcpus": 2, "vcpu_type": "EPYC-v4", "boot": boot}
    seen = {launch_measurement(firmware, **base)}
    for change in (
        {"vcpus": 1}, {"vcpus": 3}, {"vcpu_type": "EPYC-Genoa"}, {"boot": None}, {"hypervisor": "ec2"},
        {"hypervisor": "gce"}, {"guest_features": 5}, {"boot": DirectBoot.of(b"Kernel", b"initrd", "console=ttyS0")},
        {"boot": DirectBoot.of(b"kernel", b"", "console=ttyS0")}, {"boot": DirectBoot.of(b"kernel", b"initrd")},
        {"firmware_digest": b"\x01" * 48},
    ):  # fmt: skip
        seen.add(launch_measurement(firmware, **{**base, **change}))
    seen.add(launch_measurement(_firmware(tmp_path / "b", SECTIONS, reset=0x80C004), **base))
    seen.add(launch_measurement(_firmware(tmp_path / "c", SECTIONS[:2] + SECTIONS[3:]), **base))
    assert len(seen) == 14
    assert all(len(each) == 48 for each in seen)


def test_what_cannot_be_measured(tmp_path: Path) -> None:
    firmware = _firmware(tmp_path / "a", SECTIONS)
    boot = DirectBoot.of(b"kernel")
    for change, word in (
        ({"vcpus": 0}, "processors"), ({"vcpus": 513}, "processors"), ({"vcpu_type": "Opteron"}, "Known"),
        ({"hypervisor": "xen"}, "Known"),
    ):  # fmt: skip
        with pytest.raises(UsageError) as caught:
            launch_measurement(firmware, **{"vcpus": 1, "vcpu_type": "EPYC-v4", "boot": boot, **change})
        assert word in caught.value.message + caught.value.hint
    wrong = tmp_path / "b"
    for content in (b"", bytes(100), bytes(4096)):
        wrong.write_bytes(content)
        with pytest.raises(UsageError):
            launch_measurement(wrong, vcpus=1, vcpu_type="EPYC-v4")
    with pytest.raises(UsageError):
        launch_measurement(tmp_path / "nothing", vcpus=1, vcpu_type="EPYC-v4")
    with pytest.raises(UsageError, match="table of hashes"):
        launch_measurement(_firmware(tmp_path / "c", SECTIONS[:3]), vcpus=1, vcpu_type="EPYC-v4", boot=boot)
    with pytest.raises(UsageError, match="fit"):
        launch_measurement(
            _firmware(tmp_path / "d", SECTIONS, hashes=0x810FF0), vcpus=1, vcpu_type="EPYC-v4", boot=boot
        )
