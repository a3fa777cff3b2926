"""A broker in a process of its own, over TLS, with one key in it; and enclaves that ask for it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from tests.platforms.qemu_nitro.kms import lab as kms_lab

from cloister.broker import store
from cloister.broker.store import BrokerWrapper
from cloister.enclave.release.kbs import KbsRelease
from cloister.platforms import lab_tls as tls
from cloister.policy import release
from cloister.tee.nitro.rules import Measurement
from cloister.tee.sim.attest import SimulatedNitro
from cloister.tee.sim.root import SimulatedRoot
from cloister.weights import jwe, kbs, manifest
from cloister.weights.keys import WrappedKey
from cloister.wire.strict_json import encode_base64url

HOST = "broker.test"
PCR0, OTHER = "a1" * 48, "b2" * 48
CONTEXT = manifest.context("notes", 7)
PATH = "notes/data-key/7"


class Parent(kms_lab.Parent):
    """Carries bytes to the broker, if it is there."""

    def __init__(self, port: int, *, hosts: tuple[str, ...] = (HOST,)) -> None:
        super().__init__(port, b"", hosts=hosts)

    def _egress(self, stream: socket.socket) -> None:
        with contextlib.suppress(ConnectionRefusedError):
            super()._egress(stream)


def enclave(root: SimulatedRoot, pcr0: str = PCR0, *, age: timedelta = timedelta()) -> SimulatedNitro:
    """Signs documents with that PCR0, as if its clock were behind."""
    return SimulatedNitro(root, {0: bytes.fromhex(pcr0)}, clock=lambda: datetime.now(UTC) - age)


def grant(model: str = "notes", version: int = 5, pcr0: str = PCR0) -> release.Grant:
    return release.Grant(model=model, minimum_version=version, measurements=(Measurement(pcr0=pcr0),))


def policy(root: SimulatedRoot | None, *grants: release.Grant) -> str:
    text = release.beginning("test", root.pem if root is not None else None)
    return "\n".join([text, *(each.to_toml() for each in grants or (grant(),))])


@dataclass
class Answer:
    status: int
    cookie: str
    members: dict

    @property
    def code(self) -> str:
        return self.members["type"].removeprefix(kbs.ERRORS)


@dataclass
class Lab:
    """A running broker and what is needed to talk to it."""

    folder: Path
    root: SimulatedRoot
    url: str
    process: subprocess.Popen[str]
    log: Path
    key: bytes = b""
    wrapped: WrappedKey = field(default_factory=lambda: wrapped())

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def roots(self) -> str:
        return (self.folder / "tls" / tls.AUTHORITY).read_text()

    @property
    def ledger(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "broker" / store.LEDGER).read_text().splitlines()]

    def set_policy(self, text: str) -> None:
        path = self.folder / "broker" / store.POLICY
        path.with_suffix(".new").write_text(text)
        path.with_suffix(".new").replace(path)

    def release(
        self,
        attester: SimulatedNitro | None = None,
        *,
        parent: Parent | None = None,
        attest: Callable[[bytes, bytes], bytes] | None = None,
        **options: object,
    ) -> KbsRelease:
        parent = parent or Parent(self.port)
        return KbsRelease(
            parent.dial, attest=attest or (attester or enclave(self.root)).attest,
            **{"host": HOST, "port": 443, "tls_roots": self.roots, "sleep": lambda _: None, **options},
        )  # fmt: skip

    def ask(
        self, method: str, path: str, body: object = None, *, cookie: str = "", headers: Sequence[tuple[str, str]] = ()
    ) -> Answer:
        """One request by an HTTP client that is not ours."""
        context = ssl.create_default_context(cadata=self.roots)
        connection = http.client.HTTPSConnection("localhost", self.port, context=context, timeout=20)
        try:
            sent = dict(headers) | ({"Cookie": cookie} if cookie else {})
            data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
            connection.request(method, path, data, sent)
            answer = connection.getresponse()
            text = answer.read()
            return Answer(answer.status, (answer.getheader("set-cookie") or "").partition(";")[0], json.loads(text))
        finally:
            connection.close()

    def auth(self) -> Answer:
        return self.ask("POST", kbs.AUTH, {"version": kbs.VERSION, "tee": kbs.TEE, "extra-params": ""})

    def attested(self, attester: SimulatedNitro | None = None) -> tuple[str, ec.EllipticCurvePrivateKey]:
        """A session that may ask for keys, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        challenge = self.auth()
        body = attestation(challenge.members["nonce"], key, attester or enclave(self.root))
        assert self.ask("POST", kbs.ATTEST, body, cookie=challenge.cookie).status == 200
        return challenge.cookie, key


def wrapped(model: str = "notes", version: int = 7) -> WrappedKey:
    context = manifest.context(model, version)
    return WrappedKey(service="kbs", key_id=f"{model}/data-key/{version}", ciphertext=b"", context=context)


def attestation(
    nonce: str, key: ec.EllipticCurvePrivateKey, attester: SimulatedNitro, *, signed_nonce: str | None = None,
    signed_key: ec.EllipticCurvePrivateKey | None = None, document_nonce: bytes | None = None,
) -> dict:  # fmt: skip
    """The Attestation that answers a challenge; what is signed may be about something else."""
    import base64

    public = jwe.public_jwk(key.public_key())
    signed = jwe.public_jwk((signed_key or key).public_key())
    about = signed_nonce or nonce
    document = attester.attest(
        kbs.runtime_digest(about, signed), base64.b64decode(about) if document_nonce is None else document_nonce
    )
    return {
        "runtime-data": {"nonce": nonce, "tee-pubkey": public},
        "tee-evidence": {
            "primary_evidence": {"document": encode_base64url(document)},
            "additional_evidence": "",
        },
    }


def start(
    folder: Path, *options: str, program: Sequence[str] = ("-m", "cloister", "broker", "serve")
) -> tuple[subprocess.Popen[str], str]:
    """The broker of a folder; the process and its first line (empty if it did not start)."""
    with (folder / "broker.log").open("ab") as stderr:
        process = subprocess.Popen(
            [
                sys.executable, *program, str(folder / "broker"), "--listen", "127.0.0.1:0",
                "--certificate", str(folder / "tls" / tls.SERVER), "--private-key", str(folder / "tls" / tls.KEY),
                "--json", *options,
            ],
            stdout=subprocess.PIPE, stderr=stderr, text=True,
        )  # fmt: skip
    assert process.stdout is not None
    return process, process.stdout.readline()


def prepare(folder: Path, root: SimulatedRoot) -> tuple[bytes, WrappedKey]:
    """A broker's folder with one key, a policy with one grant, and a certificate."""
    folder.mkdir(parents=True, exist_ok=True)
    store.create(folder / "broker")
    (folder / "broker" / store.POLICY).write_text(policy(root))
    tls.make(folder / "tls", [HOST, "localhost"])
    return BrokerWrapper(folder / "broker").generate(CONTEXT)


@contextlib.contextmanager
def run(folder: Path, *options: str, program: Sequence[str] = ("-m", "cloister", "broker", "serve")) -> Iterator[Lab]:
    root = SimulatedRoot.create()
    key, kept = prepare(folder, root)
    process, line = start(folder, *options, program=program)
    try:
        assert line, (folder / "broker.log").read_text()
        yield Lab(folder, root, json.loads(line)["url"], process, folder / "broker.log", key, kept)
    finally:
        stop(process)


def stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(20)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
