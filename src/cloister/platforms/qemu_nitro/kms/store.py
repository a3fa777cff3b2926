"""The SIMULATED KMS's state: keys and identities in one JSON file, in the clear, readable by its owner only."""

from __future__ import annotations

import base64
import json
import os
import secrets
import threading
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cloister.errors import UsageError
from cloister.platforms.qemu_nitro.kms.signature import Identity

FILE = "state.json"


@dataclass(kw_only=True)
class Key:
    """One KMS key."""

    id: str
    material: bytes = field(repr=False)
    policy: str
    state: str = "Enabled"
    created: float = 0.0


class Store:
    """Keys and identities; every change is written before it returns."""

    def __init__(self, folder: Path) -> None:
        """Open the state in `folder`, or start anew there; raises UsageError."""
        self._path = folder / FILE
        self._lock = threading.Lock()
        self.keys: dict[str, Key] = {}
        self.identities: dict[str, Identity] = {}
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._path.exists():
                self._load(json.loads(self._path.read_text("ascii")))
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError(f"the SIMULATED KMS's state in {folder} cannot be used", hint="Remove it.") from None

    def create_key(self, policy: str) -> Key:
        """A new enabled key."""
        key = Key(
            id=str(uuid.uuid4()),
            material=secrets.token_bytes(32),
            policy=policy,
            created=datetime.now(UTC).timestamp(),
        )
        with self._lock:
            self.keys[key.id] = key
            self._save()
        return key

    def change_key(self, key_id: str, *, policy: str | None = None, state: str | None = None) -> None:
        """Set a key's policy or state."""
        with self._lock:
            key = self.keys[key_id]
            key.policy = key.policy if policy is None else policy
            key.state = key.state if state is None else state
            self._save()

    def add_identity(self, access_key_id: str, identity: Identity) -> None:
        """Make an access key known."""
        with self._lock:
            self.identities[access_key_id] = identity
            self._save()

    def _load(self, state: dict[str, dict[str, dict[str, object]]]) -> None:
        for key_id, kept in state["keys"].items():
            material = base64.b64decode(str(kept["material"]))
            self.keys[key_id] = Key(
                id=key_id, material=material, policy=str(kept["policy"]), state=str(kept["state"]),
                created=float(str(kept["created"])),
            )  # fmt: skip
        for access_key_id, kept in state["identities"].items():
            actions, expires, token = kept["actions"], kept["expires_at"], kept["token"]
            assert isinstance(actions, list)
            self.identities[access_key_id] = Identity(
                arn=str(kept["arn"]),
                secret=str(kept["secret"]),
                token=None if token is None else str(token),
                expires_at=None if expires is None else datetime.fromisoformat(str(expires)),
                actions=tuple(str(action) for action in actions),
            )

    def _save(self) -> None:
        state = {
            "keys": {
                key.id: {
                    "material": base64.b64encode(key.material).decode("ascii"),
                    "policy": key.policy,
                    "state": key.state,
                    "created": key.created,
                }
                for key in self.keys.values()
            },
            "identities": {
                access_key_id: {
                    "arn": identity.arn,
                    "secret": identity.secret,
                    "token": identity.token,
                    "expires_at": None if identity.expires_at is None else identity.expires_at.isoformat(),
                    "actions": list(identity.actions),
                }
                for access_key_id, identity in self.identities.items()
            },
        }
        temporary = self._path.with_suffix(".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            json.dump(state, file)
        temporary.replace(self._path)
