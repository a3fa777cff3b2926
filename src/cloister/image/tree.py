"""A root file system in memory, and its deterministic forms: a newc cpio archive, a tar layer, a manifest.

Names are relative POSIX paths; owners are root, times are zero, order is by name: nothing of the machine gets in.
"""

from __future__ import annotations

import hashlib
import io
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field

from cloister.errors import UsageError


@dataclass(frozen=True)
class Entry:
    """A directory, a regular file or a symbolic link (whose target is `data`)."""

    mode: int
    data: bytes = b""


@dataclass
class Tree:
    """Entries by name; adding makes the missing parents."""

    entries: dict[str, Entry] = field(default_factory=dict)

    def directory(self, name: str, mode: int = 0o755) -> None:
        """Add a directory."""
        self.put(name, Entry(stat.S_IFDIR | mode))

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self.put(name, Entry(stat.S_IFREG | mode, data))

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self.put(name, Entry(stat.S_IFLNK | 0o777, target.encode("utf-8")))

    def remove(self, name: str) -> None:
        """Remove a name and everything under it; no error when it is missing."""
        for found in [entry for entry in self.entries if entry == name or entry.startswith(name + "/")]:
            del self.entries[found]

    def __iter__(self) -> Iterator[tuple[str, Entry]]:
        return iter(sorted(self.entries.items()))

    def put(self, name: str, entry: Entry) -> None:
        """Add an entry under a name."""
        name = name.strip("/")
        parts = name.split("/")
        if not name or any(part in ("", ".", "..") for part in parts) or "\n" in name:
            raise UsageError(f"{name!r} is not a name for a file in an image")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            if not stat.S_ISDIR(self.entries.setdefault(parent, Entry(stat.S_IFDIR | 0o755)).mode):
                raise UsageError(f"{parent} is a file and a directory of the image at once")
        self.entries[name] = entry

    @property
    def size(self) -> int:
        """Bytes of all regular files."""
        return sum(len(entry.data) for entry in self.entries.values() if stat.S_ISREG(entry.mode))


def cpio(tree: Tree) -> bytes:
    """The tree as a newc archive (Linux: Documentation/driver-api/early-userspace/buffer-format)."""
    out = io.BytesIO()

    def put(name: str, number: int, entry: Entry) -> None:
        encoded = name.encode("utf-8") + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, 0, 0, len(encoded), 0)
        out.write(b"070701" + b"".join(b"%08X" % value for value in fields) + encoded)
        out.write(bytes(-out.tell() % 4) + entry.data)
        out.write(bytes(-out.tell() % 4))

    for number, (name, entry) in enumerate(tree, 1):
        put(name, number, entry)
    put("TRAILER!!!", 0, Entry(0))
    out.write(bytes(-out.tell() % 512))
    return out.getvalue()


def tar(tree: Tree) -> bytes:
    """The tree as an uncompressed pax tar: an OCI image layer."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, entry in tree:
            info = tarfile.TarInfo(name)
            info.mode, info.mtime = stat.S_IMODE(entry.mode), 0
            if stat.S_ISDIR(entry.mode):
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            elif stat.S_ISLNK(entry.mode):
                info.type, info.linkname = tarfile.SYMTYPE, entry.data.decode("utf-8")
                archive.addfile(info)
            else:
                info.size = len(entry.data)
                archive.addfile(info, io.BytesIO(entry.data))
    return out.getvalue()


def manifest(tree: Tree) -> bytes:
    """What `init` checks before it starts anything, a line for each entry, in order of name.

    `f SHA256 NAME`, `l SHA256-OF-TARGET NAME`, `d - NAME`; then `end COUNT`, so that a cut manifest is no short one.
    """
    lines = []
    for name, entry in tree:
        kind = "d" if stat.S_ISDIR(entry.mode) else "l" if stat.S_ISLNK(entry.mode) else "f"
        digest = "-" if kind == "d" else hashlib.sha256(entry.data).hexdigest()
        lines.append(f"{kind} {digest} {name}\n")
    return ("".join(lines) + f"end {len(lines)}\n").encode("utf-8")
