"""The ledger: one JSON object a line for every appraisal and release, each with the digest of the line before it.

An entry is on the disk before what it tells of is sent: nothing is released without one. It holds no key material.
The chain shows changed, removed and inserted lines; that the *end* was cut off or the last line changed sees only who
noted a digest earlier.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cloister.errors import MalformedError, NotGenuineError, UndecidedError, UsageError
from cloister.wire import strict_json

FIRST = "0" * 64
MAX_ENTRY = 16 * 1024
_BLOCK = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_OWN = ("seq", "time", "previous")


@dataclass(frozen=True, kw_only=True)
class Head:
    """Where a ledger stands: how many entries, the digest of the last line (hex), and where it ends."""

    entries: int = 0
    digest: str = FIRST
    size: int = 0


class Ledger:
    """Appends to one file; several processes may, each entry under a lock on the file."""

    def __init__(self, path: Path) -> None:
        """Open the ledger, or begin one (mode 0600), and check all of it; raises as `verify` does."""
        self._path = path
        self._lock = threading.Lock()
        self._head = Head()
        self._cut: dict[str, object] | None = None
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            sync(path.parent)
        except OSError as error:
            raise UsageError(f"cannot open the ledger {path}: {error.strerror}") from None
        try:
            with self._lock:
                fcntl.flock(self._file, fcntl.LOCK_EX)
                try:
                    self._catch_up()
                finally:
                    fcntl.flock(self._file, fcntl.LOCK_UN)
        except BaseException:
            os.close(self._file)
            raise

    @property
    def head(self) -> Head:
        """The last entry that this process knows of."""
        return self._head

    def append(self, event: Mapping[str, object]) -> str:
        """Write an entry and wait until it is on the disk; its digest.

        Raises UndecidedError when it cannot be written, and Malformed- or NotGenuineError when somebody else changed
        the file: then nothing may be released.
        """
        with self._lock:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX)
                try:
                    return self._append(event)
                finally:
                    fcntl.flock(self._file, fcntl.LOCK_UN)
            except OSError as error:
                raise UndecidedError(
                    f"the ledger cannot be written: {error.strerror}", hint="Is the disk full? Nothing is released."
                ) from None

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _append(self, event: Mapping[str, object]) -> str:
        there, ours = self._path.stat(), os.fstat(self._file)
        if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            raise _changed(self._head.entries)
        self._catch_up()
        head = self._head
        entry: dict[str, object] = {
            "seq": head.entries,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "previous": head.digest,
            **({"cut": self._cut} if self._cut is not None else {}),
            **event,
        }
        line = json.dumps(entry, separators=(",", ":"), ensure_ascii=True).encode("ascii") + b"\n"
        if len(line) > MAX_ENTRY or any(name in event for name in (*_OWN, "cut")):
            raise ValueError("not an entry of a ledger")
        try:
            # One call: what a kill leaves is all of it or a line without its end.
            if os.write(self._file, line) != len(line):
                raise OSError(28, "no room for a whole entry")
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, head.size)
            raise
        self._head = follow(head, line[:-1])
        self._cut = None
        return self._head.digest

    def _catch_up(self) -> None:
        """Check what others appended since; a last line without its end, of a writer that was killed, is cut off."""
        if os.fstat(self._file).st_size < self._head.size:
            raise _changed(self._head.entries)
        self._head, rest = _read(self._file, self._head)
        if rest:
            self._cut = {"bytes": len(rest), "sha256": hashlib.sha256(rest).hexdigest()}
            os.ftruncate(self._file, self._head.size)


def sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk (fsync(2))."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def verify(path: Path, *, contains: str | None = None) -> Head:
    """Check a whole ledger; raises MalformedError, NotGenuineError where the chain is broken, or UsageError.

    `contains` is a digest noted earlier: a ledger without it was cut, or is another one.
    """
    if contains is not None and not _DIGEST.fullmatch(contains):
        raise UsageError("a digest has 64 lower-case hex digits")
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    seen = set[str]()
    try:
        fcntl.flock(file, fcntl.LOCK_SH)
        head, rest = _read(file, Head(), seen if contains is not None else None)
    finally:
        os.close(file)
    if rest:
        raise MalformedError(
            f"the ledger ends in an incomplete entry after {head.entries}",
            hint="Its writer was killed, or there was no room; the broker cuts it off and says so when it starts.",
        )
    if contains is not None and contains not in seen:
        raise NotGenuineError(
            "the ledger has no entry of that digest", hint="Its end was cut off, or it is another ledger."
        )
    return head


def _read(file: int, head: Head, seen: set[str] | None = None) -> tuple[Head, bytes]:
    """Follow the chain from `head` to the end; the new head, and what comes after the last line's end."""
    rest = b""
    at = head.size
    while block := os.pread(file, _BLOCK, at):
        at += len(block)
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            head = follow(head, line)
            if seen is not None:
                seen.add(head.digest)
        if len(rest) > MAX_ENTRY:
            raise MalformedError(f"ledger entry {head.entries} is too long")
    return head, rest


def follow(head: Head, line: bytes) -> Head:
    """The head after one more line; raises MalformedError, or NotGenuineError where it does not continue the chain."""
    fields = strict_json.loads(line, f"ledger entry {head.entries}", limit=MAX_ENTRY)
    if fields.get("previous") != head.digest or fields.get("seq") != head.entries:
        raise _changed(head.entries)
    return Head(entries=head.entries + 1, digest=hashlib.sha256(line).hexdigest(), size=head.size + len(line) + 1)


def _changed(entry: int) -> NotGenuineError:
    return NotGenuineError(
        f"the ledger's chain is broken at entry {entry}: somebody changed the file",
        hint="Keep it as it is, find out who, and start with a new folder and new keys if it was not you.",
    )
