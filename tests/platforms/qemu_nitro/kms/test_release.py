"""The enclave gets its key from the SIMULATED KMS; everybody else is told why not."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.platforms.qemu_nitro.kms import lab as labs
from tests.platforms.qemu_nitro.kms.lab import CONTEXT, IDENTITIES, KMS_HOST, PCR0, PCR8, Enclave, Lab, keys_of

from cloister.enclave.release.cms import Envelope
from cloister.enclave.release.kms_client import KmsClient
from cloister.errors import CloisterError, MalformedError, ReleaseDeniedError, UndecidedError, UsageError
from cloister.platforms import lab_tls as tls
from cloister.tee.sim.root import SimulatedRoot


def spki(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def refused(error: pytest.ExceptionInfo[CloisterError], code: str) -> None:
    """The error names what the service said and tells what to check."""
    assert code in error.value.message
    assert error.value.hint
    for entry in IDENTITIES.values():
        for secret in ("SecretAccessKey", "Token"):
            assert str(entry.get(secret, "?")) not in error.value.message + error.value.hint


def test_the_owner_seals_and_the_enclave_opens(lab: Lab) -> None:
    key, wrapped = lab.wrapper().generate(CONTEXT)
    assert len(key) == 32
    assert wrapped.key_id == lab.key_arn
    assert wrapped.context == CONTEXT
    assert key not in wrapped.ciphertext
    assert lab.release().release(wrapped) == key
    again, _ = lab.wrapper().generate(CONTEXT)
    assert again != key


def test_the_enclave_makes_keys_for_itself(lab: Lab) -> None:
    key, wrapped = lab.release().generate(CONTEXT)
    assert lab.release().release(wrapped) == key


def test_the_parent_sees_neither_key_nor_credentials_in_what_it_carries(lab: Lab) -> None:
    key, wrapped = lab.wrapper().generate(CONTEXT)
    parent = lab.parent()
    assert lab.release(parent=parent).release(wrapped) == key
    carried = bytes(parent.carried)
    assert len(carried) > 4000
    for secret in (key, wrapped.ciphertext, b"TrentService", b"tokenENCLAVE"):
        assert secret not in carried


@pytest.mark.parametrize(
    "pcrs",
    [
        {0: f"{int(PCR0, 16) ^ 1:096x}", 8: PCR8},
        {0: f"{int(PCR0, 16) ^ 1 << 383:096x}", 8: PCR8},
        {0: PCR0, 8: "b3" * 48},
        {0: PCR0},
        {},
        {8: PCR8},
        {1: PCR0, 8: PCR8},
    ],
    ids=["last bit", "first bit", "other signer", "unsigned", "debug", "debug, signed", "value in PCR1"],
)
def test_another_image_is_denied(lab: Lab, pcrs: dict[int, str]) -> None:
    _, wrapped = lab.wrapper().generate(CONTEXT)
    with pytest.raises(ReleaseDeniedError) as error:
        lab.release(Enclave(lab.root, pcrs)).release(wrapped)
    refused(error, "AccessDeniedException")
    assert "PCR0" in error.value.hint


@pytest.mark.parametrize("age", [timedelta(minutes=6), timedelta(hours=2), -timedelta(minutes=6)])
def test_a_stale_document_is_denied(lab: Lab, age: timedelta) -> None:
    _, wrapped = lab.wrapper().generate(CONTEXT)
    enclave = Enclave(lab.root)
    enclave.age = age
    with pytest.raises(ReleaseDeniedError) as error:
        lab.release(enclave).release(wrapped)
    refused(error, "ValidationException")


def test_a_foreign_root_is_denied(lab: Lab) -> None:
    _, wrapped = lab.wrapper().generate(CONTEXT)
    with pytest.raises(ReleaseDeniedError) as error:
        lab.release(Enclave(SimulatedRoot.create())).release(wrapped)
    refused(error, "ValidationException")


def test_a_changed_document_is_denied(lab: Lab) -> None:
    _, wrapped = lab.wrapper().generate(CONTEXT)

    def attest(public_key: bytes) -> bytes:
        wrong = Enclave(lab.root, {0: "c3" * 48, 8: PCR8}).attest(public_key)
        return wrong.replace(b"\xc3" * 48, bytes.fromhex(PCR0))

    with pytest.raises(ReleaseDeniedError) as error:
        lab.release(attest=attest).release(wrapped)
    refused(error, "ValidationException")


@pytest.mark.parametrize("public_key", [None, b"not a key", b""], ids=["none", "nonsense", "empty"])
def test_a_document_without_a_key_is_denied(lab: Lab, public_key: bytes | None) -> None:
    _, wrapped = lab.wrapper().generate(CONTEXT)
    with pytest.raises(ReleaseDeniedError) as error:
        lab.release(attest=lambda _: lab.enclave.attest(public_key)).release(wrapped)
    refused(error, "ValidationException")


def test_a_replayed_document_brings_an_envelope_that_nobody_else_opens(lab: Lab) -> None:
    """KMS has no nonce: whoever holds a fresh document and the role may send it again, and gains nothing."""
    _, wrapped = lab.wrapper().generate(CONTEXT)
    lab.release().release(wrapped)
    document = lab.enclave.documents[-1]
    answer = lab.boto("enclave").decrypt(
        CiphertextBlob=wrapped.ciphertext, EncryptionContext=CONTEXT,
        Recipient={"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": document},
    )  # fmt: skip
    assert "Plaintext" not in answer
    own = rsa.generate_private_key(65537, 2048)
    with pytest.raises(MalformedError, match="another key"):
        Envelope.parse(answer["CiphertextForRecipient"]).open(own)


def test_a_document_for_another_public_key_brings_nothing(lab: Lab) -> None:
    _, wrapped = lab.wrapper().generate(CONTEXT)
    other = spki(rsa.generate_private_key(65537, 2048))
    with pytest.raises(UndecidedError, match="another key"):
        lab.release(attest=lambda _: lab.enclave.attest(other)).release(wrapped)


@pytest.mark.parametrize(
    ("context", "code"),
    [
        ({"cloister:model": "notes", "cloister:version": "8"}, "InvalidCiphertextException"),
        (CONTEXT | {"more": "x"}, "InvalidCiphertextException"),
        ({"cloister:model": "notes"}, "AccessDeniedException"),
        ({}, "AccessDeniedException"),
    ],
)
def test_a_wrong_context_is_denied(lab: Lab, context: dict[str, str], code: str) -> None:
    _, wrapped = lab.wrapper().generate(CONTEXT)
    with pytest.raises(ReleaseDeniedError) as error:
        lab.release().release(dataclasses.replace(wrapped, context=context))
    refused(error, code)


def test_a_policy_for_one_version_denies_the_others(lab: Lab) -> None:
    admin = lab.boto("admin")
    arn = admin.create_key(Policy=labs.policy(model="notes", version="8"))["KeyMetadata"]["Arn"]
    release = lab.release(key_arn=arn)
    with pytest.raises(ReleaseDeniedError) as error:
        release.generate(CONTEXT)
    refused(error, "AccessDeniedException")
    release.generate(CONTEXT | {"cloister:version": "8"})


@pytest.mark.parametrize("at", [0, 30, 44, 60, -1])
def test_a_changed_ciphertext_is_denied(lab: Lab, at: int) -> None:
    _, wrapped = lab.wrapper().generate(CONTEXT)
    changed = bytearray(wrapped.ciphertext)
    changed[at] ^= 1
    with pytest.raises(ReleaseDeniedError) as error:
        lab.release().release(dataclasses.replace(wrapped, ciphertext=bytes(changed)))
    refused(error, "InvalidCiphertextException")


@pytest.mark.parametrize("name", ["enclave", "owner", "other", "admin", "foreigner"])
def test_nobody_decrypts_without_attestation(lab: Lab, name: str) -> None:
    _, wrapped = lab.wrapper().generate(CONTEXT)
    boto = lab.boto(name)
    with pytest.raises(boto.exceptions.ClientError, match=r"AccessDenied.*explicit deny"):
        boto.decrypt(CiphertextBlob=wrapped.ciphertext, EncryptionContext=CONTEXT)


@pytest.mark.parametrize("name", ["enclave", "other", "admin", "foreigner"])
def test_only_the_owner_makes_keys_without_attestation(lab: Lab, name: str) -> None:
    with pytest.raises(ReleaseDeniedError) as error:
        lab.wrapper(name).generate(CONTEXT)
    refused(error, "AccessDeniedException")


@pytest.mark.parametrize("name", ["owner", "other", "admin", "foreigner"])
def test_another_role_is_denied_even_with_the_right_image(lab: Lab, name: str) -> None:
    _, wrapped = lab.wrapper().generate(CONTEXT)
    with pytest.raises(ReleaseDeniedError) as error:
        lab.release(identity=name).release(wrapped)
    refused(error, "AccessDeniedException")


def test_the_account_administers_and_does_not_use(lab: Lab) -> None:
    admin = lab.boto("admin")
    assert json.loads(admin.get_key_policy(KeyId=lab.key_arn)["Policy"]) == json.loads(labs.policy())
    assert admin.describe_key(KeyId=lab.key_arn)["KeyMetadata"]["Arn"] == lab.key_arn
    with pytest.raises(admin.exceptions.ClientError, match="AccessDenied"):
        admin.encrypt(KeyId=lab.key_arn, Plaintext=b"x")
    other = lab.boto("enclave")
    with pytest.raises(other.exceptions.ClientError, match="AccessDenied"):
        other.put_key_policy(KeyId=lab.key_arn, Policy=labs.policy())


def test_expired_credentials(lab: Lab) -> None:
    _, wrapped = lab.wrapper().generate(CONTEXT)
    # Handed in by the parent with their time: seen here. Without it: seen by the service.
    for release in (lab.release(parent=lab.parent("expired")), lab.release(identity="expired")):
        with pytest.raises(UndecidedError) as error:
            release.release(wrapped)
        refused(error, "ExpiredTokenException")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"secret_access_key": "n" * 40}, "InvalidSignatureException"),
        ({"access_key_id": "ASIAUNKNOWN000000001"}, "UnrecognizedClientException"),
        ({"token": "tokenWRONG"}, "UnrecognizedClientException"),
        ({"token": None}, "UnrecognizedClientException"),
    ],
)
def test_wrong_credentials(lab: Lab, change: dict[str, str], code: str) -> None:
    _, wrapped = lab.wrapper().generate(CONTEXT)
    release = lab.release()
    release._client._credentials = lambda: dataclasses.replace(keys_of("enclave"), **change)
    with pytest.raises(UndecidedError) as error:
        release.release(wrapped)
    refused(error, code)


@pytest.mark.parametrize("off", [timedelta(minutes=6), -timedelta(minutes=6)])
def test_a_wrong_clock(lab: Lab, off: timedelta) -> None:
    _, wrapped = lab.wrapper().generate(CONTEXT)
    release = lab.release(identity="enclave")
    release._client._clock = lambda: datetime.now(UTC) + off
    with pytest.raises(UndecidedError, match="RequestExpired") as error:
        release.release(wrapped)
    assert "clock" in error.value.hint


def test_a_disabled_key(lab: Lab) -> None:
    admin = lab.boto("admin")
    arn = admin.create_key(Policy=labs.policy())["KeyMetadata"]["Arn"]
    _, wrapped = lab.release(key_arn=arn).generate(CONTEXT)
    admin.disable_key(KeyId=arn)
    with pytest.raises(ReleaseDeniedError) as error:
        lab.release(key_arn=arn).release(wrapped)
    refused(error, "DisabledException")
    admin.enable_key(KeyId=arn)
    lab.release(key_arn=arn).release(wrapped)


def test_other_keys(lab: Lab) -> None:
    _, wrapped = lab.wrapper().generate(CONTEXT)
    second = lab.boto("admin").create_key(Policy=labs.policy())["KeyMetadata"]["Arn"]
    with pytest.raises(ReleaseDeniedError, match="measured configuration"):
        lab.release(key_arn=second).release(wrapped)
    with pytest.raises(ReleaseDeniedError) as error:
        lab.release(key_arn=second).release(dataclasses.replace(wrapped, key_id=second))
    refused(error, "IncorrectKeyException")
    missing = lab.key_arn[:-4] + "0000"
    with pytest.raises(ReleaseDeniedError) as error:
        lab.release(key_arn=missing).release(dataclasses.replace(wrapped, key_id=missing))
    refused(error, "NotFoundException")
    with pytest.raises(UsageError, match="ARN"):
        lab.release(key_arn="alias/mine")
    with pytest.raises(UsageError, match="region"):
        lab.release(key_arn=lab.key_arn.replace("us-east-1", "eu-west-1"))


def test_a_parent_that_answers_in_place_of_kms(lab: Lab, tmp_path: Path) -> None:
    """Whoever has no certificate for the host sees a TLS alert and not one byte of the request."""
    _, wrapped = lab.wrapper().generate(CONTEXT)
    tls.make(tmp_path, [KMS_HOST])
    with pytest.raises(UndecidedError, match="TLS certificate"):
        lab.release(tls_roots=(tmp_path / "ca.pem").read_text()).release(wrapped)
    with pytest.raises(UndecidedError, match="TLS certificate"):
        # The system's store does not hold the lab's authority either.
        lab.release(tls_roots=None).release(wrapped)
    with pytest.raises(UndecidedError, match="TLS certificate"):
        # A certificate of the right authority for another name.
        parent = lab.parent(hosts=("kms.eu-west-1.amazonaws.com",))
        lab.release(parent=parent, endpoint_host="kms.eu-west-1.amazonaws.com").release(wrapped)
    with pytest.raises(UndecidedError, match="allow-list"):
        lab.release(parent=lab.parent(hosts=())).release(wrapped)


def test_a_service_that_ignores_attestation_is_not_believed(lab: Lab) -> None:
    _, wrapped = lab.wrapper().generate(CONTEXT)
    release = lab.release()
    release._client.call = lambda *_: {"KeyId": lab.key_arn, "Plaintext": "AAAA"}
    with pytest.raises(UndecidedError, match="in the clear"):
        release.release(wrapped)
    release._client.call = lambda *_: {"KeyId": lab.key_arn[:-1] + "x", "CiphertextForRecipient": "AAAA"}
    with pytest.raises(ReleaseDeniedError, match="another key"):
        release.release(wrapped)
    release._client.call = lambda *_: {"KeyId": lab.key_arn, "CiphertextForRecipient": "AAAA"}
    with pytest.raises(UndecidedError, match="CMS"):
        release.release(wrapped)


def test_state_survives_a_restart_and_belongs_to_its_owner(tmp_path: Path) -> None:
    pytest.importorskip("boto3")
    root = SimulatedRoot.create()
    with labs.run(tmp_path, root) as first:
        key, wrapped = first.wrapper().generate(CONTEXT)
        arn = first.key_arn
    with labs.run(tmp_path, root) as second:
        assert second.release(key_arn=arn).release(wrapped) == key
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    for name in ("state.json", "server-key.pem"):
        assert stat.S_IMODE((tmp_path / "state" / name).stat().st_mode) == 0o600


def test_canary_nothing_secret_in_logs_and_errors(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key, wrapped = lab.wrapper().generate(CONTEXT)
    assert lab.release().release(wrapped) == key
    shown = [repr(keys_of("enclave")), repr(wrapped)]
    for attempt in (
        lambda: lab.release(Enclave(lab.root, {})).release(wrapped),
        lambda: lab.release(identity="expired").release(wrapped),
        lambda: lab.release(identity="other").release(wrapped),
    ):
        with pytest.raises(CloisterError) as error:
            attempt()
        shown += [str(error.value), error.value.hint, repr(error.value)]
    logged = "\n".join([*shown, caplog.text, lab.log.read_text()])
    secrets = [
        str(entry[name]) for entry in IDENTITIES.values() for name in ("SecretAccessKey", "Token") if name in entry
    ]
    import base64

    for secret in (*secrets, key.hex(), repr(key)[2:-1], base64.b64encode(key).decode()):
        assert secret not in logged
    assert "AccessDeniedException" in logged


class Throttling(threading.Thread):
    """A KMS that says something else `times` times before it answers with an empty object."""

    def __init__(self, folder: Path, times: int, answer: bytes) -> None:
        super().__init__(daemon=True)
        tls.make(folder, ["localhost"])
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(folder / tls.SERVER, folder / tls.KEY)
        self.roots = (folder / tls.AUTHORITY).read_text()
        self.times, self.answer, self.asked = times, answer, 0
        self.listener = socket.create_server(("127.0.0.1", 0))

    def run(self) -> None:
        while True:
            try:
                raw, _ = self.listener.accept()
            except OSError:
                return
            with self.context.wrap_socket(raw, server_side=True) as stream:
                request = b""
                while b"\r\n\r\n{" not in request or not request.endswith(b"}"):
                    request += stream.recv(65536)
                self.asked += 1
                if self.asked <= self.times:
                    stream.sendall(self.answer)
                else:
                    stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    def client(self, waits: list[float]) -> KmsClient:
        return KmsClient(
            lambda: socket.create_connection(self.listener.getsockname(), 20), lambda: keys_of("enclave"),
            host="localhost", region="us-east-1", tls_roots=self.roots, sleep=waits.append,
        )  # fmt: skip


def http(status: int, body: bytes, *headers: bytes) -> bytes:
    head = b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n" % (status, len(body))
    return head + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body


@pytest.fixture
def throttling(tmp_path: Path):
    started: list[Throttling] = []

    def start(times: int, answer: bytes) -> Throttling:
        started.append(Throttling(tmp_path, times, answer))
        started[-1].start()
        return started[-1]

    yield start
    for service in started:
        service.listener.shutdown(socket.SHUT_RDWR)
        service.listener.close()
        service.join(20)


def test_throttling_is_waited_out(throttling) -> None:
    waits: list[float] = []
    service = throttling(3, http(400, b'{"__type":"ThrottlingException","message":"Rate exceeded"}'))
    assert service.client(waits).call("Decrypt", {}) == {}
    assert service.asked == 4
    assert len(waits) == 3
    assert all(0 <= wait <= 5 for wait in waits)


def test_a_cut_way_is_tried_again(throttling) -> None:
    service = throttling(2, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{")
    assert service.client([]).call("Decrypt", {}) == {}
    assert service.asked == 3


@pytest.mark.parametrize(
    ("answer", "code", "kind", "asked"),
    [
        (http(400, b'{"__type":"ThrottlingException"}'), "ThrottlingException", UndecidedError, 5),
        (http(503, b"<html>busy"), "ServiceUnavailableException", UndecidedError, 5),
        (http(500, b'{"__type":"KMSInternalException"}'), "KMSInternalException", UndecidedError, 5),
        (http(400, b'{"__type":"com.amazonaws.kms#NotFoundException"}'), "NotFoundException", ReleaseDeniedError, 1),
        (http(400, b"{}", b"x-amzn-errortype: AccessDeniedException:http://x/"), "AccessDenied", ReleaseDeniedError, 1),
        (http(400, b'{"__type":"KMSInvalidStateException"}'), "KMSInvalidState", ReleaseDeniedError, 1),
        (http(400, b'{"__type":"NeverHeardOfException"}'), "NeverHeardOf", UndecidedError, 1),
        (http(400, b'{"__type":"bad\\u001b[31m"}'), "HTTP 400", UndecidedError, 1),
        (http(302, b""), "HTTP 302", UndecidedError, 1),
        (http(200, b"[]"), "cannot be read", UndecidedError, 1),
        (http(200, b"x" * 70000), "more than", UndecidedError, 1),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "middle", UndecidedError, 5),
        (b"SSH-2.0-x\r\n", "BadStatusLine", UndecidedError, 1),
    ],
)
def test_answers_of_a_bad_day(throttling, answer: bytes, code: str, kind: type[CloisterError], asked: int) -> None:
    service = throttling(99, answer)
    with pytest.raises(kind) as error:
        service.client([]).call("Decrypt", {})
    assert code in error.value.message
    assert service.asked == asked


def test_a_signature_error_does_not_repeat_the_token(throttling) -> None:
    said = b'{"__type":"InvalidSignatureException","message":"... x-amz-security-token:tokenENCLAVE== ..."}'
    with pytest.raises(UndecidedError) as error:
        throttling(99, http(403, said)).client([]).call("Decrypt", {})
    refused(error, "InvalidSignatureException")


def test_the_program_tells_that_it_is_simulated(lab: Lab) -> None:
    assert re.search("SIMULATED", lab.boto("admin").describe_key(KeyId=lab.key_arn)["KeyMetadata"]["Description"])
    assert os.path.basename(lab.ca) == "ca.pem"
