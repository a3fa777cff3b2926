"""Deterministic trees: the same entries give the same bytes, and other programs read them."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import tarfile
from pathlib import Path

import pytest

from cloister.errors import MalformedError, UsageError
from cloister.image import debian, oci
from cloister.image.tree import Tree, cpio, manifest, tar


def tree(*, backwards: bool = False) -> Tree:
    made = Tree()
    steps = [
        lambda: made.file("usr/bin/tool", b"#!", 0o755),
        lambda: made.link("bin", "usr/bin"),
        lambda: made.directory("tmp", 0o1777),
        lambda: made.file("etc/é", b"text"),
    ]
    for step in reversed(steps) if backwards else steps:
        step()
    return made


def read_cpio(data: bytes) -> dict[str, tuple[int, bytes, tuple[int, ...]]]:
    """An independent reader: name to mode, data, and the fields that must be zero."""
    found, at = {}, 0
    while True:
        assert data[at : at + 6] == b"070701"
        ino, mode, uid, gid, nlink, mtime, size, *rest, length, check = (
            int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)
        )
        name = data[at + 110 : at + 110 + length - 1].decode()
        start = (at + 110 + length + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        assert ino
        assert nlink
        found[name] = (mode, data[start : start + size], (uid, gid, mtime, check, *rest))
        at = (start + size + 3) // 4 * 4


def test_order_of_adding_does_not_matter() -> None:
    assert cpio(tree()) == cpio(tree(backwards=True))
    assert tar(tree()) == tar(tree(backwards=True))
    assert manifest(tree()) == manifest(tree(backwards=True))


def test_cpio_reads_back() -> None:
    found = read_cpio(cpio(tree()))
    assert list(found) == sorted(found) == ["bin", "etc", "etc/é", "tmp", "usr", "usr/bin", "usr/bin/tool"]
    assert found["usr/bin/tool"][:2] == (stat.S_IFREG | 0o755, b"#!")
    assert found["bin"][:2] == (stat.S_IFLNK | 0o777, b"usr/bin")
    assert found["tmp"][0] == stat.S_IFDIR | 0o1777
    assert {value for entry in found.values() for value in entry[2]} == {0}


def test_tar_reads_back() -> None:
    with tarfile.open(fileobj=io.BytesIO(tar(tree()))) as archive:
        members = {member.name: member for member in archive}
    assert members["bin"].linkname == "usr/bin"
    assert members["usr/bin/tool"].mode == 0o755
    assert {member.mtime for member in members.values()} == {0}


def test_manifest_names_everything() -> None:
    lines = manifest(tree()).decode().splitlines()
    assert lines[-1] == "end 7"
    assert f"f {hashlib.sha256(b'#!').hexdigest()} usr/bin/tool" in lines
    assert f"l {hashlib.sha256(b'usr/bin').hexdigest()} bin" in lines
    assert "d - tmp" in lines


@pytest.mark.parametrize("name", ["", "/", "a/../b", "a//b", "./a", "a\nb"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        Tree().file(name, b"")


def test_a_file_is_no_folder() -> None:
    made = Tree()
    made.file("a", b"")
    with pytest.raises(UsageError):
        made.file("a/b", b"")


def test_oci_layout_is_consistent(tmp_path: Path) -> None:
    digest = oci.write(tree(), tmp_path / "oci", name="x", command=b"/bin/a\n-b\n", environment=b"A=1\n")
    blobs = tmp_path / "oci" / "blobs" / "sha256"
    for blob in blobs.iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    index = json.loads((tmp_path / "oci" / "index.json").read_text())
    assert index["manifests"][0]["digest"] == digest
    document = json.loads((blobs / digest.removeprefix("sha256:")).read_text())
    config = json.loads((blobs / document["config"]["digest"].removeprefix("sha256:")).read_text())
    assert config["config"]["Entrypoint"] == ["/bin/a", "-b"]
    layer = (blobs / document["layers"][0]["digest"].removeprefix("sha256:")).read_bytes()
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    assert oci.write(tree(), tmp_path / "again", name="x", command=b"/bin/a\n-b\n", environment=b"A=1\n") == digest


def deb(path: Path, *, damage: str = "") -> Path:
    """A .deb with a file, a hard link to it and a link, in folders of an unmerged system."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:xz") as archive:
        for name, kind in (("./", tarfile.DIRTYPE), ("./bin/", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            archive.addfile(info)
        info = tarfile.TarInfo("./bin/a")
        info.size, info.mode = 4, 0o755
        archive.addfile(info, io.BytesIO(b"data"))
        info = tarfile.TarInfo("./bin/b")
        info.type, info.linkname = tarfile.LNKTYPE, "./bin/a"
        archive.addfile(info)
        info = tarfile.TarInfo("./lib64/ld.so")
        info.type, info.linkname = tarfile.SYMTYPE, "../lib/ld.so"
        archive.addfile(info)

    def part(name: str, data: bytes) -> bytes:
        size = b"x" if damage == "size" else str(len(data)).encode()
        return name.encode().ljust(48) + size.ljust(10) + b"`\n" + data + b"\n" * (len(data) % 2)

    data = b"!<arch>\n" + part("debian-binary", b"2.0\n") + part("control.tar.xz", b"c")
    if damage != "nodata":
        data += part("data.tar.xz", inner.getvalue())
    path.write_bytes(b"PK" + data if damage == "magic" else data)
    return path


def test_a_package_lands_in_a_merged_system(tmp_path: Path) -> None:
    found = {name: data for name, _, data in debian.members(deb(tmp_path / "x.deb"))}
    assert found == {"usr/bin": b"", "usr/bin/a": b"data", "usr/bin/b": b"data", "usr/lib64/ld.so": b""}


@pytest.mark.parametrize("damage", ["magic", "size", "nodata"])
def test_a_damaged_package(tmp_path: Path, damage: str) -> None:
    with pytest.raises(MalformedError):
        list(debian.members(deb(tmp_path / "x.deb", damage=damage)))


@pytest.mark.parametrize(
    "change",
    [
        lambda lock: lock.replace('"schema": "cloister-debian-lock/1"', '"schema": "x"'),
        lambda lock: lock.replace("pool/", "../"),
        lambda lock: lock.replace('"sha256": "', '"sha256": "g'),
        lambda lock: lock.replace('"size"', '"sizes"'),
        lambda lock: lock.replace('"packages": [', '"packages": [1, '),
        lambda lock: lock[:-20],
    ],
)
def test_locks_that_are_refused(change) -> None:
    package = debian.Package(name="a", version="1", archive="debian", path="pool/a", size=1, sha256="0" * 64)
    lock = debian.Lock(snapshot="20200101T000000Z", packages=(package,))
    assert debian.Lock.from_json(lock.to_json().encode()) == lock
    with pytest.raises(MalformedError):
        debian.Lock.from_json(change(lock.to_json()).encode())
