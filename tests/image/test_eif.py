"""Enclave image files: what is written reads back, what strangers write is refused, what is measured is what the docs say."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import MalformedError, NotGenuineError, UsageError
from cloister.image import eif

IMAGE = eif.Image(
    kernel=b"kernel" * 9, cmdline=b"reboot=k", ramdisks=(b"boot", b"application" * 5), metadata=b"{}", default_memory=1 << 30,
    default_cpus=2,
)  # fmt: skip


def issue(curve: ec.EllipticCurve, days: int = 1) -> tuple[bytes, bytes]:
    """A key and a certificate that is valid from now, or that has ended so many days ago."""
    key = ec.generate_private_key(curve)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "signer")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now + timedelta(days=min(0, days - 1))).not_valid_after(now + timedelta(days=days)).sign(key, SHA256())
    )  # fmt: skip
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private, certificate.public_bytes(Encoding.PEM)


def with_crc(data: bytes) -> bytes:
    """A consistent checksum, so that a test reaches what lies behind it."""
    return data[:544] + struct.pack(">I", zlib.crc32(data[548:], zlib.crc32(data[:544]))) + data[548:]


@given(
    kernel=st.binary(min_size=0, max_size=50), cmdline=st.binary(max_size=50), metadata=st.binary(max_size=20),
    ramdisks=st.lists(st.binary(max_size=50), min_size=1, max_size=5), arm64=st.booleans(),
    memory=st.integers(0, 2**63), cpus=st.integers(0, 2**31),
)  # fmt: skip
def test_round_trip(kernel, cmdline, metadata, ramdisks, arm64, memory, cpus) -> None:
    image = eif.Image(
        kernel=kernel, cmdline=cmdline, metadata=metadata, ramdisks=tuple(ramdisks), arm64=arm64,
        default_memory=memory, default_cpus=cpus,
    )  # fmt: skip
    assert eif.parse(eif.write(image)) == image


@given(st.data())
def test_nothing_is_read_that_is_not_written(data) -> None:
    """A changed file with a right checksum is refused, or says the same as the file written from what was read."""
    at = data.draw(st.integers(4, len(DATA) - 1))
    changed = bytearray(DATA)
    changed[at] = data.draw(st.integers(0, 255))
    changed = with_crc(bytes(changed))
    try:
        image = eif.parse(changed)
    except MalformedError:
        return
    written = eif.write(image)
    # Older versions are read and never written.
    assert with_crc(written[:4] + changed[4:6] + written[6:]) == changed


def test_images_of_nitro_cli_before_metadata() -> None:
    for version in (2, 3):
        data = eif.write(replace(IMAGE, metadata=b""))
        old = eif.parse(with_crc(data[:4] + struct.pack(">H", version) + data[6:]))
        assert old.measurements() == IMAGE.measurements()


def test_registers_as_aws_documents_them() -> None:
    def extended(*parts: bytes) -> bytes:
        return hashlib.sha384(bytes(48) + hashlib.sha384(b"".join(parts)).digest()).digest()

    boot, application = IMAGE.ramdisks
    assert IMAGE.measurements() == {
        0: extended(IMAGE.kernel, IMAGE.cmdline, boot, application),
        1: extended(IMAGE.kernel, IMAGE.cmdline, boot),
        2: extended(application),
    }


@pytest.mark.parametrize("part", ["kernel", "cmdline", "boot", "application"])
def test_one_bit_changes_the_registers(part: str) -> None:
    def flip(data: bytes) -> bytes:
        return bytes([data[0] ^ 1]) + data[1:]

    boot, application = IMAGE.ramdisks
    changed = {
        "kernel": replace(IMAGE, kernel=flip(IMAGE.kernel)),
        "cmdline": replace(IMAGE, cmdline=flip(IMAGE.cmdline)),
        "boot": replace(IMAGE, ramdisks=(flip(boot), application)),
        "application": replace(IMAGE, ramdisks=(boot, flip(application))),
    }[part]
    before, after = IMAGE.measurements(), changed.measurements()
    differing = {index for index in before if before[index] != after[index]}
    assert differing == ({0, 2} if part == "application" else {0, 1})


def test_metadata_is_not_measured() -> None:
    assert replace(IMAGE, metadata=b"other").measurements() == IMAGE.measurements()


DATA = eif.write(IMAGE)


def test_every_cut_is_refused() -> None:
    for length in range(len(DATA)):
        with pytest.raises(MalformedError):
            eif.parse(DATA[:length])


def test_every_flipped_bit_is_refused() -> None:
    for at in range(len(DATA)):
        for bit in range(8):
            changed = bytearray(DATA)
            changed[at] ^= 1 << bit
            with pytest.raises(MalformedError):
                eif.parse(bytes(changed))


def sections(*kinds: int) -> bytes:
    """A file with consistent framing and the given section types, each holding one byte."""
    offsets = [548 + 13 * number for number in range(len(kinds))]
    pad = [0] * (32 - len(kinds))
    header = struct.pack(
        ">4sHHQQHH32Q32QII", b".eif", 4, 0, 0, 0, 0, len(kinds), *offsets, *pad, *[1] * len(kinds), *pad, 0, 0
    )
    return with_crc(header + b"".join(struct.pack(">HHQ", kind, 0, 1) + b"x" for kind in kinds))


def test_the_section_writer_of_this_test_is_right() -> None:
    assert eif.parse(sections(1, 2, 3, 3)).ramdisks == (b"x", b"x")


@pytest.mark.parametrize("kinds", [(1, 2, 3), (1, 2, 5, 3, 3), (1, 2, 3, 3, 5), (5, 1, 2, 3), (1, 2, 5, 3, 3, 4)])
def test_unmeasured_sections_may_stand_anywhere(kinds: tuple[int, ...]) -> None:
    assert len(eif.parse(sections(*kinds)).ramdisks) == kinds.count(3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\3\4" + DATA[4:],
        with_crc(DATA[:4] + b"\0\5" + DATA[6:]),
        with_crc(DATA[:4] + b"\0\1" + DATA[6:]),
        with_crc(DATA[:26] + b"\0\0" + DATA[28:]),
        with_crc(DATA[:26] + b"\0\x21" + DATA[28:]),
        with_crc(DATA + b"x"),
        with_crc(DATA[:28] + struct.pack(">Q", 547) + DATA[36:]),
        with_crc(DATA[:28] + struct.pack(">Q", 2**64 - 1) + DATA[36:]),
        with_crc(DATA[:284] + struct.pack(">Q", 2**63) + DATA[292:]),
        sections(2, 3),
        sections(1, 3),
        sections(1, 2),
        sections(1, 1, 2, 3),
        sections(1, 2, 2, 3),
        sections(1, 2, 3, 5, 5),
        sections(1, 2, 3, 4, 4),
        sections(1, 2, 3, 6),
        sections(1, 2, 3, 0),
        # The registers are over the sections in the file's order.
        sections(2, 1, 3),
        sections(3, 1, 2),
        sections(1, 3, 2),
        sections(1, 2, 3, 5, 3, 2),
        # Flags and fields that no version gives a meaning.
        with_crc(DATA[:6] + b"\0\2" + DATA[8:]),
        with_crc(DATA[:24] + b"\0\1" + DATA[26:]),
        with_crc(DATA[:275] + b"\1" + DATA[276:]),
        with_crc(DATA[:539] + b"\1" + DATA[540:]),
        with_crc(DATA[:540] + b"\0\0\0\1" + DATA[544:]),
        with_crc(DATA[:550] + b"\0\1" + DATA[552:]),
    ],
)
def test_must_fail(data: bytes) -> None:
    with pytest.raises(MalformedError):
        eif.parse(data)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_signed(curve: ec.EllipticCurve) -> None:
    key, certificate = issue(curve)
    signed = eif.signed(IMAGE, key, certificate)
    read = eif.parse(eif.write(signed))
    read.check_signature()
    der = x509.load_pem_x509_certificate(certificate).public_bytes(Encoding.DER)
    assert read.measurements()[8] == hashlib.sha384(bytes(48) + hashlib.sha384(der).digest()).digest()
    assert {index: read.measurements()[index] for index in (0, 1, 2)} == IMAGE.measurements()
    assert eif.write(eif.signed(IMAGE, key, certificate)) == eif.write(signed)


def test_a_signature_for_another_image_is_refused() -> None:
    signed = eif.signed(IMAGE, *issue(ec.SECP384R1()))
    with pytest.raises(NotGenuineError, match="another PCR0"):
        replace(signed, kernel=b"other").check_signature()
    with pytest.raises(NotGenuineError, match="not signed"):
        IMAGE.check_signature()


def test_a_signer_out_of_date_is_refused() -> None:
    signed = eif.signed(IMAGE, *issue(ec.SECP384R1()))
    now = datetime.now(UTC)
    signed.check_signer(now + timedelta(minutes=1))
    for then in (now - timedelta(days=1), now + timedelta(days=2)):
        with pytest.raises(NotGenuineError, match="not valid now"):
            signed.check_signer(then)
    with pytest.raises(NotGenuineError):
        IMAGE.check_signer(now)


def inspected(tmp_path: Path, image: eif.Image) -> subprocess.CompletedProcess[str]:
    (tmp_path / "image.eif").write_bytes(eif.write(image))
    words = [sys.executable, "-m", "cloister", "image", "inspect", "--json", str(tmp_path / "image.eif")]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)


def test_inspect(tmp_path: Path) -> None:
    signed = eif.signed(IMAGE, *issue(ec.SECP384R1()))
    done = inspected(tmp_path, signed)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["measurements"] == {f"PCR{index}": value.hex() for index, value in signed.measurements().items()}
    assert told["signature"] == "signature verifies"
    assert inspected(tmp_path, IMAGE).returncode == 0
    for wrong in (replace(signed, kernel=b"other"), eif.signed(IMAGE, *issue(ec.SECP384R1(), days=-1))):
        done = inspected(tmp_path, wrong)
        assert done.returncode == 4, done.stderr
        assert json.loads(done.stdout)["signature"] in done.stderr


def test_a_flipped_bit_in_the_signature_is_refused() -> None:
    signed = eif.signed(IMAGE, *issue(ec.SECP384R1()))
    at = signed.signature.rindex(b"\x18") + 1
    changed = signed.signature[:at] + bytes([signed.signature[at] ^ 1 | 0x20]) + signed.signature[at + 1 :]
    assert changed != signed.signature
    with pytest.raises((NotGenuineError, MalformedError)):
        replace(signed, signature=changed).check_signature()


@given(st.binary(max_size=300))
def test_any_signature_section(section: bytes) -> None:
    with pytest.raises((NotGenuineError, MalformedError)):
        replace(IMAGE, signature=section or b"x").check_signature()


def test_keys_that_do_not_fit() -> None:
    _, certificate = issue(ec.SECP384R1())
    other, _ = issue(ec.SECP384R1())
    with pytest.raises(UsageError, match="another key"):
        eif.signed(IMAGE, other, certificate)
    with pytest.raises(UsageError, match="PEM"):
        eif.signed(IMAGE, b"nothing", certificate)
    foreign, its = issue(ec.SECP256K1())
    with pytest.raises(UsageError, match="P-256"):
        eif.signed(IMAGE, foreign, its)


def test_too_many_sections() -> None:
    with pytest.raises(UsageError):
        eif.write(replace(IMAGE, ramdisks=(b"x",) * 40))
