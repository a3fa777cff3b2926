"""Data keys at rest: one file each, encrypted under the broker's own key with AES-256-GCM-SIV (RFC 8452).

The resource and the key's context are associated data, so a file under another name does not open.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from cloister.broker.ledger import Ledger, sync
from cloister.errors import MalformedError, UndecidedError, UsageError
from cloister.weights import kbs
from cloister.weights.keys import KEY_BYTES, WrappedKey
from cloister.wire import strict_json

SCHEMA = "cloister-broker-key/1"
KEY, KEYS, LEDGER, POLICY = "broker.key", "keys", "ledger.jsonl", "policy.toml"
NONCE = 12
MAX_FILE = 4096


def create(folder: Path, key: Path | None = None) -> None:
    """Make a broker's folder and its key (in `key`, if given: better kept apart); raises UsageError if one is there."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / KEYS).mkdir(mode=0o700)
        _write(key or folder / KEY, secrets.token_bytes(KEY_BYTES))
    except OSError as error:
        raise UsageError(
            f"cannot make a broker in {folder}: {error.strerror}", hint="An existing one is never overwritten."
        ) from None


class KeyStore:
    """The keys in one folder."""

    def __init__(self, folder: Path, key: Path | None = None) -> None:
        """Read the broker's key; raises UsageError for one that is missing, damaged, or readable by others."""
        path = key or folder / KEY
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                secret = file.read(KEY_BYTES + 1)
        except OSError as error:
            raise UsageError(
                f"cannot read the broker's key {path}: {error.strerror}", hint="cloister broker init makes one."
            ) from None
        if stat.S_IMODE(mode) & 0o077:
            raise UsageError(f"others may read the broker's key {path}", hint=f"chmod 600 {path}")
        if len(secret) != KEY_BYTES or not (folder / KEYS).is_dir():
            raise UsageError(f"{folder} is not a broker's folder", hint="cloister broker init makes one.")
        self._keys = folder / KEYS
        self._aead = AESGCMSIV(secret)

    def deposit(self, resource: kbs.Resource, key: bytes) -> None:
        """Keep a new data key (32 bytes); raises UsageError if there is one, UndecidedError if it cannot be written."""
        if len(key) != KEY_BYTES:
            raise ValueError("a data key has 32 bytes")
        nonce = secrets.token_bytes(NONCE)
        sealed = self._aead.encrypt(nonce, key, _associated(resource))
        members = {
            "schema": SCHEMA,
            "resource": str(resource),
            "nonce": strict_json.encode_base64url(nonce),
            "ciphertext": strict_json.encode_base64url(sealed),
        }
        target = self._path(resource)
        temporary = target.with_name(f".{secrets.token_hex(8)}.new")
        try:
            _write(temporary, (json.dumps(members) + "\n").encode("ascii"))
            # A link, unlike a rename, never takes the place of a key that is there.
            os.link(temporary, target)
            sync(self._keys)
        except FileExistsError:
            raise _taken(resource) from None
        except OSError as error:
            raise UndecidedError(f"the key cannot be kept: {error.strerror}") from None
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def has(self, resource: kbs.Resource) -> bool:
        """Is there a key, whether it opens or not?"""
        return self._path(resource).exists()

    def get(self, resource: kbs.Resource) -> bytes | None:
        """The data key, None if there is none; raises UndecidedError for a file that does not open."""
        try:
            with self._path(resource).open("rb") as file:
                data = file.read(MAX_FILE + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UndecidedError(f"a key cannot be read: {error.strerror}") from None
        try:
            return self._open(data, resource)
        except (MalformedError, InvalidTag, ValueError):
            raise UndecidedError(
                f"the file of {resource} does not open", hint="It was changed, or the broker's key is another one."
            ) from None

    def remove(self, resource: kbs.Resource) -> None:
        """Forget a key: nobody opens what was sealed under it any more; raises UsageError if there is none."""
        try:
            self._path(resource).unlink()
            sync(self._keys)
        except OSError as error:
            raise UsageError(f"the key of {resource} cannot be removed: {error.strerror}") from None

    def _open(self, data: bytes, resource: kbs.Resource) -> bytes:
        fields = strict_json.Fields(strict_json.loads(data, "broker key", limit=MAX_FILE), "broker key")
        schema, named = fields.text("schema"), fields.text("resource")
        nonce, sealed = fields.octets("nonce", size=NONCE), fields.octets("ciphertext", size=KEY_BYTES + 16)
        fields.done()
        if schema != SCHEMA or named != str(resource):
            raise MalformedError("broker key: of another schema or resource")
        return self._aead.decrypt(nonce, sealed, _associated(resource))

    def _path(self, resource: kbs.Resource) -> Path:
        # A model's name has no slash, and a version is a number: two resources never share a file.
        return self._keys / f"{resource.model}@{resource.version}.json"


class BrokerWrapper:
    """Implements weights.keys.KeyWrapper on the owner's machine: makes data keys and keeps them in the store."""

    def __init__(self, folder: Path, key: Path | None = None) -> None:
        """Open a broker's folder; raises UsageError, or what a broken ledger raises."""
        self._store = KeyStore(folder, key)
        self._ledger = Ledger(folder / LEDGER)

    def generate(self, context: Mapping[str, str]) -> tuple[bytes, WrappedKey]:
        """A fresh data key (32 bytes) and its name at the broker; raises UsageError or UndecidedError."""
        try:
            resource = kbs.Resource.of(context)
        except MalformedError as error:
            raise UsageError(f"no key for this model and version: {error.message}") from None
        key = secrets.token_bytes(KEY_BYTES)
        if self._store.has(resource):
            raise _taken(resource)
        self._ledger.append({"event": "deposit", "resource": str(resource)})
        self._store.deposit(resource, key)
        return key, WrappedKey(service=kbs.SERVICE, key_id=str(resource), ciphertext=b"", context=dict(context))


def _taken(resource: kbs.Resource) -> UsageError:
    return UsageError(
        f"the broker has a key for {resource}", hint="Raise --version; or give the old one up: cloister broker remove"
    )


def _associated(resource: kbs.Resource) -> bytes:
    bound = {"schema": SCHEMA, "resource": str(resource), "context": resource.context}
    return json.dumps(bound, sort_keys=True, separators=(",", ":")).encode("ascii")


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
