"""A lab for key release: the SIMULATED KMS in its own process, a parent that carries bytes, an enclave that attests."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cbor2

from cloister.enclave.release import credentials
from cloister.enclave.release.kms import KmsRelease
from cloister.enclave.release.sigv4 import Credentials
from cloister.platforms.aws_nitro.owner import KmsWrapper
from cloister.policy.kms import KeyPolicy
from cloister.tee.sim.attest import sign
from cloister.tee.sim.root import SimulatedRoot, issue
from cloister.wire.ports import CREDENTIALS, EGRESS

ACCOUNT, REGION = "111122223333", "us-east-1"
KMS_HOST = f"kms.{REGION}.amazonaws.com"
PCR0, PCR8 = "a1" * 48, "b2" * 48
CONTEXT = {"cloister:model": "notes", "cloister:version": "7"}
IN_AN_HOUR = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")


def role(name: str) -> str:
    return f"arn:aws:iam::{ACCOUNT}:role/{name}"


#: Access key of each identity: who it is and what its own policy allows.
IDENTITIES = {
    "enclave": {"AccessKeyId": "ASIAENCLAVE000000001", "SecretAccessKey": "e" * 36 + "/+Zk", "Token": "tokenENCLAVE==",
                "Expiration": IN_AN_HOUR, "Arn": role("enclave"), "Actions": []},
    "other": {"AccessKeyId": "ASIAOTHER00000000001", "SecretAccessKey": "o" * 40, "Token": "tokenOTHER==",
              "Expiration": IN_AN_HOUR, "Arn": role("other"), "Actions": ["kms:*"]},
    "expired": {"AccessKeyId": "ASIAEXPIRED000000001", "SecretAccessKey": "x" * 40, "Token": "tokenEXPIRED==",
                "Expiration": "2020-01-01T00:00:00Z", "Arn": role("enclave"), "Actions": []},
    "owner": {"AccessKeyId": "AKIAOWNER00000000001", "SecretAccessKey": "w" * 40, "Arn": role("owner"),
              "Actions": ["kms:GenerateDataKey"]},
    "admin": {"AccessKeyId": "AKIAADMIN00000000001", "SecretAccessKey": "a" * 40, "Arn": role("admin"),
              "Actions": ["kms:*"]},
    "foreigner": {"AccessKeyId": "AKIAFOREIGN000000001", "SecretAccessKey": "f" * 40,
                  "Arn": "arn:aws:iam::999999999999:role/enclave", "Actions": ["kms:*"]},
}  # fmt: skip


def keys_of(name: str) -> Credentials:
    entry = IDENTITIES[name]
    return Credentials(
        access_key_id=entry["AccessKeyId"], secret_access_key=entry["SecretAccessKey"], token=entry.get("Token")
    )


class Enclave:
    """Signs attestation documents with any registers, key and time."""

    def __init__(self, root: SimulatedRoot, pcrs: dict[int, str] | None = None) -> None:
        self.root = root
        self.pcrs = {0: PCR0, 8: PCR8} if pcrs is None else pcrs
        start = datetime.now(UTC) - timedelta(hours=1)
        region = issue("SIMULATED region", root.issued, start=start, life=timedelta(days=20), ca=True, path_length=1)
        zone = issue("SIMULATED zone", region, start=start, life=timedelta(days=6), ca=True, path_length=0)
        leaf = issue("SIMULATED leaf", zone, start=start, life=timedelta(hours=3), ca=False)
        self.links = [region, zone, leaf]
        self.age = timedelta()
        self.documents: list[bytes] = []

    def attest(self, public_key: bytes | None) -> bytes:
        payload = {
            "module_id": "i-0-enc0", "digest": "SHA384",
            "timestamp": int((datetime.now(UTC) - self.age).timestamp() * 1000),
            "pcrs": {index: bytes.fromhex(self.pcrs.get(index, "00" * 48)) for index in range(16)},
            "certificate": self.links[-1].der,
            "cabundle": [self.root.issued.der, *(link.der for link in self.links[:-1])],
            "public_key": public_key, "user_data": None, "nonce": None,
        }  # fmt: skip
        self.documents.append(sign(cbor2.dumps(payload), self.links[-1].key))
        return self.documents[-1]


class Parent:
    """Answers the enclave's dials over socket pairs: credentials, and CONNECT to one host, carried to `port`."""

    def __init__(self, port: int, handed: bytes, *, hosts: tuple[str, ...] = (KMS_HOST,)) -> None:
        self.port, self.handed, self.hosts = port, handed, hosts
        self.carried = bytearray()

    def dial(self, port: int) -> socket.socket:
        inside, outside = socket.socketpair()
        inside.settimeout(20)
        serve = {CREDENTIALS: self._credentials, EGRESS: self._egress}[port]
        threading.Thread(target=serve, args=(outside,), daemon=True).start()
        return inside

    def _credentials(self, stream: socket.socket) -> None:
        with stream:
            assert _head(stream).startswith(b"GET /credentials HTTP/1.1\r\n")
            stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self.handed) + self.handed)

    def _egress(self, stream: socket.socket) -> None:
        with stream:
            target = _head(stream).split(b" ")[1].decode()
            if target not in [f"{host}:443" for host in self.hosts]:
                stream.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", self.port)) as service:
                stream.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                back = threading.Thread(target=self._carry, args=(service, stream), daemon=True)
                back.start()
                self._carry(stream, service)
                back.join(20)

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.carried += data
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def _head(stream: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += stream.recv(1)
    return head


@dataclass
class Lab:
    """A running SIMULATED KMS and what is needed to talk to it."""

    url: str
    ca: str
    root: SimulatedRoot
    log: Path
    process: subprocess.Popen[str]
    key_arn: str = ""
    enclave: Enclave = field(init=False)

    def __post_init__(self) -> None:
        self.enclave = Enclave(self.root)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def boto(self, name: str):
        import boto3
        from botocore.config import Config

        keys = keys_of(name)
        return boto3.client(
            "kms", region_name=REGION, endpoint_url=self.url, verify=self.ca,
            aws_access_key_id=keys.access_key_id, aws_secret_access_key=keys.secret_access_key,
            aws_session_token=keys.token, config=Config(retries={"max_attempts": 0}, proxies={}),
        )  # fmt: skip

    def parent(self, name: str = "enclave", **options: object) -> Parent:
        entry = IDENTITIES[name]
        handed = {"Token": "none", "Expiration": IN_AN_HOUR} | {
            member: entry[member]
            for member in ("AccessKeyId", "SecretAccessKey", "Token", "Expiration")
            if member in entry
        }
        return Parent(self.port, json.dumps(handed).encode(), **options)

    def release(
        self,
        enclave: Enclave | None = None,
        *,
        parent: Parent | None = None,
        attest: Callable[[bytes], bytes] | None = None,
        identity: str | None = None,
        key_arn: str | None = None,
        **options: object,
    ) -> KmsRelease:
        parent = parent or self.parent()
        handed = (lambda: keys_of(identity)) if identity else (lambda: credentials.from_parent(parent.dial))
        return KmsRelease(
            parent.dial, region=REGION, key_arn=key_arn or self.key_arn, credentials=handed,
            attest=attest or (enclave or self.enclave).attest,
            **{"tls_roots": Path(self.ca).read_text(), **options},
        )  # fmt: skip

    def wrapper(self, name: str = "owner") -> KmsWrapper:
        return KmsWrapper(
            key_arn=self.key_arn, credentials=lambda: keys_of(name), endpoint=self.url.removeprefix("https://"),
            tls_roots=Path(self.ca).read_text(),
        )  # fmt: skip


def policy(**changes: object) -> str:
    """The policy that `cloister policy kms` writes for this lab."""
    options = {"account": ACCOUNT, "role": role("enclave"), "owner": role("owner"), "pcr0": PCR0, "pcr8": PCR8}
    return json.dumps(KeyPolicy(**{**options, **changes}).document())


@contextlib.contextmanager
def run(folder: Path, root: SimulatedRoot | None = None) -> Iterator[Lab]:
    """The SIMULATED KMS with the lab's identities and one key under the lab's policy, until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    root = root or SimulatedRoot.create()
    (folder / "root.pem").write_text(root.pem)
    (folder / "identities.json").write_text(json.dumps(list(IDENTITIES.values())))
    log = folder / "kms.log"
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "cloister.platforms.qemu_nitro.kms", "--state", str(folder / "state"),
                "--root", str(folder / "root.pem"), "--identities", str(folder / "identities.json"),
                "--region", REGION, "--account", ACCOUNT,
            ],
            stdout=subprocess.PIPE, stderr=stderr, text=True,
        )  # fmt: skip
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, log.read_text()
        ready = json.loads(line)
        lab = Lab(ready["url"], ready["ca"], root, log, process)
        lab.key_arn = lab.boto("admin").create_key(Policy=policy())["KeyMetadata"]["Arn"]
        yield lab
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
