"""Envelopes as KMS sends them: made by our encoder, by openssl, and by the real service."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from asn1crypto import cms as asn1
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.enclave.release.cms import MAX_ENVELOPE, Envelope, recipient_id
from cloister.errors import MalformedError
from cloister.platforms.qemu_nitro.kms import envelope

KEY = rsa.generate_private_key(65537, 2048)
CONTENT = bytes(range(32))
SEALED = envelope.seal(CONTENT, KEY.public_key())

#: The outline (offset, depth, tag, length; indefinite as "inf") of a real CiphertextForRecipient for a 32-byte key.
REAL_OUTLINE = """
0 0 SEQUENCE inf|2 1 OBJECT 9|13 1 [0] inf|15 2 SEQUENCE inf|17 3 INTEGER 1|20 3 SET 363|24 4 SEQUENCE 359|
28 5 INTEGER 1|31 5 [0] 32|65 5 SEQUENCE 60|67 6 OBJECT 9|78 6 SEQUENCE 47|80 7 [0] 15|82 8 SEQUENCE 13|
84 9 OBJECT 9|95 9 NULL 0|97 7 [1] 28|99 8 SEQUENCE 26|101 9 OBJECT 9|112 9 SEQUENCE 13|114 10 OBJECT 9|
125 10 NULL 0|127 5 OCTET 256|387 3 SEQUENCE inf|389 4 OBJECT 9|400 4 SEQUENCE 29|402 5 OBJECT 9|413 5 OCTET 16|
431 4 [0] inf|433 5 OCTET 48|483 5 EOC 0|485 4 EOC 0|487 3 EOC 0|489 2 EOC 0|491 1 EOC 0
""".replace("\n", "")

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")


def malformed(data: bytes, key: rsa.RSAPrivateKey = KEY) -> str:
    with pytest.raises(MalformedError) as error:
        Envelope.parse(data).open(key)
    return error.value.message


def test_round_trip() -> None:
    assert Envelope.parse(SEALED).open(KEY) == CONTENT


@needs_openssl
def test_our_encoder_writes_the_outline_of_a_real_answer() -> None:
    shown = subprocess.run(
        ["openssl", "asn1parse", "-inform", "DER"], input=SEALED, capture_output=True, check=True
    ).stdout.decode()
    found = re.findall(
        r"^ *(\d+):d=(\d+) +hl=\d+ l= *(inf|\d+) +(?:prim|cons): +(cont \[ \d \]|\w+)", shown, re.MULTILINE
    )
    outline = "|".join(
        f"{at} {depth} {tag.replace('cont ', '').replace(' ', '')} {length}" for at, depth, length, tag in found
    )
    assert outline == REAL_OUTLINE


def test_a_real_answer(vectors: Path) -> None:
    """A published pair of private key and CiphertextForRecipient, where the vectors have one."""
    folder = vectors / "kms"
    if not folder.is_dir():
        pytest.skip("no real KMS answer among the vectors")
    key = load_pem_private_key((folder / "recipient-key.pem").read_bytes(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    parsed = Envelope.parse((folder / "ciphertext-for-recipient.ber").read_bytes())
    assert parsed.recipient == recipient_id(key.public_key())
    assert parsed.open(key) == (folder / "plaintext.bin").read_bytes()


def _certificate(folder: Path) -> Path:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "recipient")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(KEY.public_key())
        .serial_number(1).not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectKeyIdentifier(recipient_id(KEY.public_key())), critical=False)
        .sign(KEY, SHA256())
    )  # fmt: skip
    path = folder / "recipient.pem"
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


def _openssl(folder: Path, *options: str, cipher: str = "-aes-256-cbc", recipients: int = 1) -> bytes:
    certificate = str(_certificate(folder))
    each = ["-recip", certificate, "-keyopt", "rsa_padding_mode:oaep", *options]
    return subprocess.run(
        ["openssl", "cms", "-encrypt", "-binary", "-outform", "DER", "-keyid", cipher, *each * recipients],
        input=CONTENT, capture_output=True, check=True,
    ).stdout  # fmt: skip


SHA256_OAEP = ("-keyopt", "rsa_oaep_md:sha256", "-keyopt", "rsa_mgf1_md:sha256")


@needs_openssl
@pytest.mark.parametrize("stream", [True, False])
def test_openssl_writes_what_we_read(tmp_path: Path, stream: bool) -> None:
    data = _openssl(tmp_path, *SHA256_OAEP, *(["-stream"] if stream else []))
    assert (b"\x30\x80" in data[:2]) == stream
    assert Envelope.parse(data).open(KEY) == CONTENT


@needs_openssl
def test_openssl_reads_what_the_emulator_writes(tmp_path: Path) -> None:
    _certificate(tmp_path)
    opened = subprocess.run(
        ["openssl", "cms", "-decrypt", "-inform", "DER", "-inkey", str(tmp_path / "key.pem")],
        input=SEALED, capture_output=True, check=True,
    ).stdout  # fmt: skip
    assert opened == CONTENT


@needs_openssl
@pytest.mark.parametrize(
    ("options", "more", "reason"),
    [
        ((), {}, "RSAES-OAEP and SHA-256"),
        (("-keyopt", "rsa_oaep_md:sha256", "-keyopt", "rsa_mgf1_md:sha1"), {}, "RSAES-OAEP and SHA-256"),
        ((*SHA256_OAEP, "-keyopt", "rsa_oaep_label:61"), {}, "RSAES-OAEP and SHA-256"),
        (SHA256_OAEP, {"cipher": "-aes-128-cbc"}, "AES-256-CBC"),
        (SHA256_OAEP, {"cipher": "-aes-256-gcm"}, "EnvelopedData"),
        (SHA256_OAEP, {"recipients": 2}, "one recipient"),
    ],
    ids=["sha1", "mgf1 with sha1", "label", "aes-128", "authenveloped", "two recipients"],
)
def test_must_fail_from_openssl(tmp_path: Path, options: tuple[str, ...], more: dict, reason: str) -> None:
    assert reason in malformed(_openssl(tmp_path, *options, **more))


def _changed(**changes: object) -> bytes:
    """The envelope with members replaced, encoded again."""
    info = asn1.ContentInfo.load(SEALED)
    data = info["content"]
    recipient = data["recipient_infos"][0].chosen
    places = {
        "version": (data, "version"), "recipient_version": (recipient, "version"), "key": (recipient, "encrypted_key"),
        "content": (data["encrypted_content_info"], "encrypted_content"),
        "content_type": (data["encrypted_content_info"], "content_type"),
        "rid": (recipient, "rid"), "attributes": (data, "unprotected_attrs"),
        "iv": (data["encrypted_content_info"]["content_encryption_algorithm"], "parameters"),
    }  # fmt: skip
    for name, value in changes.items():
        holder, member = places[name]
        holder[member] = value
    return info.dump(force=True)


def _identified(size: int) -> object:
    return asn1.RecipientIdentifier({"subject_key_identifier": os.urandom(size)})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "v0"}, "version 2"),
        ({"recipient_version": "v0"}, "key transport of version 2"),
        ({"rid": _identified(20)}, "recipient identifier"),
        ({"rid": _identified(32)}, "another key"),
        ({"key": b""}, "encrypted key"),
        ({"key": bytes(255)}, "encrypted key"),
        ({"key": bytes(384)}, "does not open"),
        ({"key": KEY.public_key().public_numbers().n.to_bytes(256, "big")}, "does not open"),
        ({"content": b""}, "encrypted content"),
        ({"content": bytes(17)}, "encrypted content"),
        ({"content": bytes(2048)}, "encrypted content"),
        ({"content_type": "signed_data"}, "not data"),
        ({"iv": bytes(12)}, "initialization vector"),
        ({"attributes": []}, "attributes"),
    ],
)
def test_must_fail(changes: dict[str, object], reason: str) -> None:
    assert reason in malformed(_changed(**changes))


def test_unchanged_it_opens() -> None:
    assert Envelope.parse(_changed()).open(KEY) == CONTENT


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x30\x80", b"\x30\x80\x00\x00", SEALED[:-2], SEALED[:-1], SEALED + b"\x00", SEALED * 2,
        b"\x30\x80" * 2000, b"\xa0\x80" * 2000, b"\x30\x84\xff\xff\xff\xff", b"\x00" * 100,
        SEALED.ljust(MAX_ENVELOPE + 1, b"\x00"), asn1.ContentInfo({"content_type": "data", "content": b"x"}).dump(),
    ],
    ids=range(13),
)  # fmt: skip
def test_not_an_envelope(data: bytes) -> None:
    assert malformed(data).startswith("CMS")


def test_another_key() -> None:
    assert "another key" in malformed(SEALED, rsa.generate_private_key(65537, 2048))


def test_one_answer_for_every_ciphertext_that_does_not_open() -> None:
    """Wrong padding of the content and a wrong key block cannot be told apart."""
    said = set()
    for at in (131, 200, 386, 466):
        changed = bytearray(SEALED)
        changed[at] ^= 0x80
        try:
            Envelope.parse(bytes(changed)).open(KEY)
        except MalformedError as error:
            said.add(error.message)
    assert said == {"CMS: the envelope does not open with this key"}


@settings(max_examples=400)
@given(st.integers(0, 8 * len(SEALED) - 1))
def test_bit_flips_never_bring_the_key_unless_they_change_nothing(bit: int) -> None:
    """No flip raises anything but ours. CBC authenticates nothing: a flip may bring another content, or, in a part
    that says the same twice (an explicit default), the same one."""
    changed = bytearray(SEALED)
    changed[bit // 8] ^= 1 << bit % 8
    try:
        opened = Envelope.parse(bytes(changed)).open(KEY)
    except MalformedError:
        return
    assert opened != CONTENT or not 31 <= bit // 8 < 483


@given(st.binary(max_size=600))
def test_noise(data: bytes) -> None:
    malformed(data)
