"""Collateral on disk, by the SHA-256 of what was asked: $XDG_CACHE_HOME/cloister/collateral (`~/.cache/...`).

Whoever can write there could as well replace the program; damage is what is guarded against. A file is one line of JSON
and the item; it is replaced whole or not at all.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cloister.errors import MalformedError, UsageError
from cloister.trust.collateral import KINDS, MAX_ITEM
from cloister.wire import strict_json

FORMAT = "cloister-collateral/1"
MAX_HEADER = 8 * 1024
MAX_KEY = 2048
_LAST = 253_402_214_400


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An item as it was kept: the question, when it came, until when it holds (whole seconds), its bytes."""

    kind: str
    key: str
    fetched: datetime
    until: datetime
    data: bytes

    def to_bytes(self) -> bytes:
        """As in a file."""
        header = {
            "format": FORMAT,
            "kind": self.kind,
            "key": self.key,
            "fetched": int(self.fetched.timestamp()),
            "until": min(int(self.until.timestamp()), _LAST),
            "sha256": hashlib.sha256(self.data).hexdigest(),
        }
        return json.dumps(header).encode() + b"\n" + self.data

    @classmethod
    def from_bytes(cls, content: bytes) -> Entry:
        """Raises MalformedError for a file that was not written by `to_bytes`, or not to its end."""
        head, line, data = content.partition(b"\n")
        fields = strict_json.Fields(strict_json.loads(head, "cache", limit=MAX_HEADER), "cache")
        if not line or fields.text("format") != FORMAT or len(data) > MAX_ITEM:
            raise MalformedError("cache: not a file of this format")
        if not hmac.compare_digest(fields.text("sha256"), hashlib.sha256(data).hexdigest()):
            raise MalformedError("cache: damaged")
        entry = cls(
            kind=fields.text("kind"),
            key=fields.text("key", limit=MAX_KEY),
            fetched=datetime.fromtimestamp(fields.integer("fetched", maximum=_LAST), UTC),
            until=datetime.fromtimestamp(fields.integer("until", maximum=_LAST), UTC),
            data=data,
        )
        fields.done()
        if entry.kind not in KINDS or not entry.key.isprintable():
            raise MalformedError("cache: an item of unknown kind, or for no question")
        return entry


class Cache:
    """A folder of entries that processes share; it and its files are readable by their owner only."""

    def __init__(self, folder: Path | None = None) -> None:
        """Without a folder the user's own; raises UsageError where it cannot be used."""
        self.folder = folder or _home()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.folder.stat()
            if found.st_uid != os.getuid():
                raise UsageError(
                    f"{self.folder} belongs to somebody else", hint="Set XDG_CACHE_HOME to a folder of yours."
                )
            if found.st_mode & 0o077:
                self.folder.chmod(0o700)
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> UsageError:
        return UsageError(
            f"cannot keep collateral in {self.folder}: {error.strerror}",
            hint="Set XDG_CACHE_HOME to a folder of yours.",
        )

    def load(self, key: str) -> Entry | None:
        """What was kept for that question; a damaged file, or one of another question, is removed."""
        entry = self._read(self._path(key))
        if entry is not None and entry.key != key:
            self.discard(key)
            return None
        return entry

    def store(self, entry: Entry) -> None:
        """Keep it in place of what was there."""
        target = self._path(entry.key)
        try:
            handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=".incoming-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(entry.to_bytes())
                    file.flush()
                    os.fsync(file.fileno())
                Path(temporary).replace(target)
            finally:
                Path(temporary).unlink(missing_ok=True)
        except OSError as error:
            raise self._unusable(error) from None

    def discard(self, key: str) -> None:
        """Forget it."""
        self._path(key).unlink(missing_ok=True)

    def entries(self) -> list[Entry]:
        """All that is kept, by kind and question."""
        found = [self._read(path) for path in sorted(self.folder.glob("*.item"))]
        return sorted((entry for entry in found if entry is not None), key=lambda each: (each.kind, each.key))

    @contextmanager
    def lock(self, name: str, kind: str = "item") -> Iterator[None]:
        """One thread of one process at a time; whoever holds it is bounded by the limits of its requests.

        Names share 256 files of their kind, for a stranger may cause any number of them. Only locks of different kinds
        may be held together, and all in the same order.
        """
        try:
            file = (self.folder / f"{kind}-{hashlib.sha256(name.encode()).hexdigest()[:2]}.lock").open("ab")
        except OSError as error:
            raise self._unusable(error) from None
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _path(self, key: str) -> Path:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.item"

    @staticmethod
    def _read(path: Path) -> Entry | None:
        try:
            with path.open("rb") as file:
                content = file.read(MAX_HEADER + MAX_ITEM + 2)
            return Entry.from_bytes(content)
        except FileNotFoundError:
            return None
        except (OSError, MalformedError):
            with suppress(OSError):
                path.unlink()
            return None


def _home() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cloister" / "collateral"
