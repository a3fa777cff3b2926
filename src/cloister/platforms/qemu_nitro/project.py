"""A lab project: a model sealed under a key of the SIMULATED KMS, and the `cloister.toml` that opens it in an enclave.

The steps are those of EC2 (make a key, seal, build, put the key policy for the build, start); only KMS, its certificate
authority, the credentials and the root of the evidence are made here, and say so.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from cloister.enclave.release.kms_client import KmsClient
from cloister.enclave.release.sigv4 import Credentials
from cloister.errors import UsageError
from cloister.platforms.aws_nitro.owner import KmsWrapper
from cloister.platforms.qemu_nitro import lab
from cloister.platforms.state import Processes
from cloister.policy.kms import KeyPolicy
from cloister.tee.sim.root import SimulatedRoot
from cloister.weights.seal import seal

ACCOUNT, REGION = "111122223333", "us-east-1"
HOST = f"kms.{REGION}.amazonaws.com"
KMS_SECONDS = 20.0
_LIFE = timedelta(days=3650)


def _role(name: str) -> str:
    return f"arn:aws:iam::{ACCOUNT}:role/{name}"


class Project:
    """One lab folder: `cloister.toml`, owner's key, sealed model, the SIMULATED KMS's state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kms = folder / "kms"

    def create(self, model: Path, *, name: str, memory_mib: int, minimum_version: int = 1) -> Path:
        """Make everything in an empty folder; returns the `cloister.toml`. Raises UsageError."""
        if self.folder.exists() and any(self.folder.iterdir()):
            raise UsageError(f"{self.folder} is not empty", hint="Choose a new folder.")
        (self.folder / "store").mkdir(mode=0o700, parents=True)
        self.kms.mkdir(mode=0o700)
        self._write_identities()
        owner = Ed25519PrivateKey.generate()
        self._private("owner.pem", owner.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public = owner.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (self.folder / "owner.pub.pem").write_bytes(public)
        processes = Processes(self.folder)
        try:
            port = self.start_kms(processes)
            created = self._client(port, "admin").call("CreateKey", {"Policy": _administered()})
            metadata = created["KeyMetadata"]
            assert isinstance(metadata, dict)
            arn = str(metadata["Arn"])
            # Until an image is known, only the owner may make data keys, and nobody may decrypt.
            self._put(port, arn, "f" * 96)
            wrapper = KmsWrapper(
                key_arn=arn,
                credentials=lambda: self._credentials("owner"),
                endpoint=f"localhost:{port}",
                tls_roots=self._roots(),
            )
            target = self.folder / "store" / f"{name}.sealed"
            seal(model, target, model=name, version=minimum_version, owner=owner, wrapper=wrapper)
        finally:
            processes.stop("kms")
        path = self.folder / "cloister.toml"
        path.write_text(
            f'[image]\nname = "{name}"\n\n[model]\nsealed = "{name}"\nowner = "owner.pub.pem"\n'
            f"minimum_version = {minimum_version}\n\n"
            f'[release]\nservice = "aws-kms"\nregion = "{REGION}"\nkey = "{arn}"\n'
            f'# The SIMULATED KMS has an authority of its own; leave this out for AWS.\nroots = "kms/ca.pem"\n\n'
            f"[nitro]\nmemory_mib = {memory_mib}\ncpus = 1\n"
        )
        return path

    def start_kms(self, processes: Processes) -> int:
        """Start the SIMULATED KMS; returns its port on loopback."""
        root = self.kms / "attestation-root.pem"
        root.write_text(SimulatedRoot.load_or_create(lab.simulated_root()).pem)
        words = [
            sys.executable,
            "-m",
            "cloister.platforms.qemu_nitro.kms",
            "--state",
            str(self.kms),
            "--root",
            str(root),
            "--identities",
            str(self.kms / "identities.json"),
            "--region",
            REGION,
            "--account",
            ACCOUNT,
        ]
        ready = json.loads(processes.start("kms", words, ready=KMS_SECONDS))
        return int(str(ready["url"]).rpartition(":")[2])

    def allow(self, port: int, key_arn: str, pcr0: str) -> None:
        """Put the key policy of `cloister policy kms` for a build's PCR0."""
        self._put(port, key_arn, pcr0)

    def write_credentials(self) -> Path:
        """The instance role's credentials as the metadata service would give them, for the parent agent."""
        entry = self._identities()["enclave"]
        names = ("AccessKeyId", "SecretAccessKey", "Token", "Expiration")
        self._private("credentials.json", json.dumps({name: entry[name] for name in names}).encode("ascii"))
        return self.folder / "credentials.json"

    def _put(self, port: int, key_arn: str, pcr0: str) -> None:
        policy = KeyPolicy(account=ACCOUNT, role=_role("enclave"), pcr0=pcr0, owner=_role("owner"))
        request = {"KeyId": key_arn, "PolicyName": "default", "Policy": json.dumps(policy.document())}
        self._client(port, "admin").call("PutKeyPolicy", request)

    def _client(self, port: int, who: str) -> KmsClient:
        return KmsClient(
            lambda: socket.create_connection(("127.0.0.1", port), timeout=KMS_SECONDS),
            lambda: self._credentials(who),
            host="localhost",
            authority=f"localhost:{port}",
            region=REGION,
            tls_roots=self._roots(),
        )

    def _roots(self) -> str:
        return (self.kms / "ca.pem").read_text("ascii")

    def _credentials(self, who: str) -> Credentials:
        entry = self._identities()[who]
        return Credentials(
            access_key_id=entry["AccessKeyId"], secret_access_key=entry["SecretAccessKey"], token=entry.get("Token")
        )

    def _identities(self) -> dict[str, dict[str, str]]:
        entries = json.loads((self.kms / "identities.json").read_text("ascii"))
        return {entry["Arn"].rpartition("/")[2]: entry for entry in entries}

    def _write_identities(self) -> None:
        until = (datetime.now(UTC) + _LIFE).strftime("%Y-%m-%dT%H:%M:%SZ")
        actions = {"enclave": [], "owner": ["kms:GenerateDataKey"], "admin": ["kms:*"]}
        entries = [
            {
                "AccessKeyId": f"ASIA{secrets.token_hex(8).upper()}",
                "SecretAccessKey": secrets.token_urlsafe(30).replace("-", "/").replace("_", "+"),
                "Token": secrets.token_hex(24),
                "Expiration": until,
                "Arn": _role(name),
                "Actions": allowed,
            }
            for name, allowed in actions.items()
        ]
        descriptor = os.open(self.kms / "identities.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(entries, file)

    def _private(self, name: str, data: bytes) -> None:
        descriptor = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)


def _administered() -> str:
    """A policy for the first moment: the account administers, nobody uses."""
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"},
        "Action": ["kms:PutKeyPolicy", "kms:DescribeKey"],
        "Resource": "*",
    }
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})
