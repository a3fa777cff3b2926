"""Debian packages as files: what a package installs, under the names of a system with merged /usr."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from cloister.errors import MalformedError
from cloister.image import debian


def package(*members: tuple[str, bytes | str | None]) -> bytes:
    """A .deb whose data hold files (bytes), links (text) and directories (None)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if content is None:
                member.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
            else:
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content if isinstance(content, bytes) else b""))
    data = packed.getvalue()
    return b"!<arch>\n" + b"data.tar/".ljust(48) + str(len(data)).encode().ljust(10) + b"`\n" + data


def test_names_of_a_merged_system(tmp_path: Path) -> None:
    """The links of a merged system, which newer releases ship, are the unpacker's; links in those folders are kept."""
    file = tmp_path / "p.deb"
    file.write_bytes(
        package(("./", None), ("./bin", "usr/bin"), ("./lib64", "usr/lib64"), ("./usr/bin", None), ("./bin/sh", "dash"),
                ("./usr/bin/dash", b"shell"), ("./lib/x", b"x"), ("./usr/lib/y", "x"))
    )  # fmt: skip
    found = {name: member.linkname or data for name, member, data in debian.members(file)}
    assert found == {
        "usr/bin": b"", "usr/bin/sh": "dash", "usr/bin/dash": b"shell", "usr/lib/x": b"x", "usr/lib/y": "x",
    }  # fmt: skip


@pytest.mark.parametrize("data", [b"", b"!<arch>\n", b"!<arch>\n" + b"data.tar".ljust(58) + b"``", package()[8:]])
def test_no_package(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "p.deb").write_bytes(data)
    with pytest.raises(MalformedError):
        list(debian.members(tmp_path / "p.deb"))


def test_a_source_archive_is_pinned_under_a_name_without_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = "http://m.example/debian/pool/main/q/q"
    printed = (
        f"'{folder}/q_1-1.dsc' q_1-1.dsc 7 SHA256:{'b' * 64}\n"
        f"'{folder}/q_1%2bds.orig.tar.xz' q_1+ds.orig.tar.xz 8 SHA256:{'a' * 64}\n"
    )
    monkeypatch.setattr(debian, "_private_apt", lambda *_, **__: {})
    monkeypatch.setattr(debian, "_apt", lambda _, command, *__: printed if command == "source" else "")
    (pinned,) = debian.resolve_source("trixie", "q").packages
    path = "pool/main/q/q/q_1+ds.orig.tar.xz"
    assert pinned == debian.Package(
        name="q.orig.tar.xz", version="1+ds", archive="debian", path=path, size=8, sha256="a" * 64
    )
