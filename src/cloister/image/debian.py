"""Debian packages by digest: a lock says which, any mirror may serve them, nothing is installed, no script runs.

Only making a lock (`resolve`) needs apt: it checks the archive's signatures. Afterwards a package is its SHA-256.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

from cloister.errors import MalformedError, UndecidedError, UsageError
from cloister.image import cache
from cloister.wire import strict_json

SCHEMA = "cloister-debian-lock/1"
#: Overridden by CLOISTER_DEBIAN_MIRROR (a base URL; the archive's name is added).
MIRROR = "http://deb.debian.org"
SNAPSHOT = "http://snapshot.debian.org/archive"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MAX_LOCK = 4 * 1024 * 1024
_MERGED = ("usr/bin", "usr/sbin", "usr/lib", "usr/lib32", "usr/lib64", "usr/libx32")


@dataclass(frozen=True, kw_only=True)
class Package:
    """One package, or one archive of a source package: where an archive keeps it and what its bytes are."""

    name: str
    version: str
    archive: str
    path: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Lock:
    """Packages pinned at one time; `snapshot` names that time for snapshot.debian.org."""

    snapshot: str
    packages: tuple[Package, ...]

    @property
    def digest(self) -> str:
        """Hex SHA-256 over the packages' digests, in order."""
        return hashlib.sha256("".join(package.sha256 for package in self.packages).encode("ascii")).hexdigest()

    def to_json(self) -> str:
        """The lock file's text."""
        document = {"schema": SCHEMA, "snapshot": self.snapshot, "packages": [asdict(each) for each in self.packages]}
        return json.dumps(document, indent=1) + "\n"

    @classmethod
    def from_json(cls, data: bytes) -> Lock:
        """Parse a lock file; raises MalformedError."""
        fields = _object(strict_json.loads(data, "Debian lock", limit=MAX_LOCK), "Debian lock")
        if fields.text("schema") != SCHEMA:
            raise MalformedError("Debian lock: another schema", hint="Make it again: cloister image lock.")
        packages = []
        for item in fields.array("packages", limit=2000):
            entry = _object(item, "Debian lock: package")
            package = Package(
                name=entry.text("name"),
                version=entry.text("version"),
                archive=entry.text("archive"),
                path=entry.text("path"),
                size=entry.integer("size"),
                sha256=entry.text("sha256"),
            )
            entry.done()
            if not re.fullmatch(r"[0-9a-f]{64}", package.sha256) or ".." in package.path:
                raise MalformedError("Debian lock: a package's digest or path is not one")
            packages.append(package)
        lock = cls(snapshot=fields.text("snapshot"), packages=tuple(packages))
        fields.done()
        return lock


def resolve(suite: str, names: Sequence[str], *, dependencies: bool = False, essential: bool = False) -> Lock:
    """The newest versions of `names` in `suite`, checked by apt's signatures; raises UsageError or UndecidedError.

    With `dependencies`, all that they depend on (recommendations left out), into an empty system.
    """
    with tempfile.TemporaryDirectory(prefix="cloister-apt-") as folder:
        environment = _private_apt(Path(folder), suite)
        _apt(environment, "update")
        if dependencies:
            wanted = [*names, *(["?essential"] if essential else [])]
            printed = _apt(environment, "install", "--print-uris", "--no-install-recommends", *wanted)
            names = [_field(line)[1].split("_")[0] for line in printed.splitlines() if line.startswith("'")]
        printed = _apt(environment, "download", "--print-uris", *names)
    packages = []
    for line in printed.splitlines():
        name, version, _ = unquote(_field(line)[1]).split("_")
        packages.append(_package(name, version, line))
    packages.sort(key=lambda package: package.name)
    return _now(packages)


def resolve_source(suite: str, name: str) -> Lock:
    """The upstream archive (`NAME.orig.tar.*`) of a source package, checked and raising as `resolve`."""
    with tempfile.TemporaryDirectory(prefix="cloister-apt-") as folder:
        environment = _private_apt(Path(folder), suite, kind="deb-src")
        _apt(environment, "update")
        printed = _apt(environment, "source", "--print-uris", name)
    packages = []
    for line in printed.splitlines():
        file = unquote(_field(line)[1])
        if ".orig.tar." in file:
            version, _, suffix = file.partition("_")[2].partition(".orig.")
            packages.append(_package(f"{name}.orig.{suffix}", version, line))
    return _now(packages)


def _package(name: str, version: str, line: str) -> Package:
    url, _, size, digest = _field(line)
    archive, path = re.sub(r"^https?://[^/]+/", "", unquote(url)).split("/", 1)
    sha256 = digest.removeprefix("SHA256:")
    return Package(name=name, version=version, archive=archive, path=path, size=int(size), sha256=sha256)


def _now(packages: Sequence[Package]) -> Lock:
    return Lock(snapshot=datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"), packages=tuple(packages))


def fetch(lock: Lock) -> Iterator[tuple[Package, Path]]:
    """Every package of the lock as a file in the cache, downloaded where it is not there yet.

    Raises UndecidedError when no source has a package, NotGenuineError never: other bytes count as not having it.
    """
    mirror = os.environ.get("CLOISTER_DEBIAN_MIRROR", MIRROR).rstrip("/")
    for package in lock.packages:
        sources = (
            f"{mirror}/{package.archive}/{package.path}",
            f"{SNAPSHOT}/{package.archive}/{lock.snapshot}/{package.path}",
        )
        yield package, cache.download(sources, package.sha256, what=f"{package.name} {package.version}")


def members(package: Path) -> Iterator[tuple[str, tarfile.TarInfo, bytes]]:
    """What a .deb installs, in its order: a relative name, the tar member, and a file's bytes (hard links too).

    Directories that a merged system links (`/bin`, `/lib`, `/lib64`, `/sbin`) move into `usr/`. Raises MalformedError.
    """
    with package.open("rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise MalformedError("not a Debian package")
        while header := file.read(60):
            part, size = header[:16].strip().rstrip(b"/"), header[48:58].strip()
            if header[58:] != b"`\n" or not size.isdigit():
                raise MalformedError("the Debian package is damaged")
            data = file.read(int(size))
            file.read(int(size) % 2)
            if part.startswith(b"data.tar"):
                break
        else:
            raise MalformedError("the Debian package holds no data")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            name = merged(member.name)
            # Newer releases bring the links of the merged system themselves.
            if name and not (member.issym() and name in _MERGED):
                content = archive.extractfile(member) if member.isfile() or member.islnk() else None
                yield name, member, content.read() if content is not None else b""


def merged(name: str) -> str:
    """A package's path on a system whose /bin, /lib, /lib64, /sbin are links into /usr; empty for the root."""
    name = name.removeprefix("./").strip("/")
    if name == ".":
        return ""
    return re.sub(r"^(bin|sbin|lib|lib32|lib64|libx32)(?=/|$)", r"usr/\1", name)


def unpack(lock: Lock, name: str, *, only: Iterable[str] | None = None) -> Path:
    """All packages of a lock unpacked into one folder of the cache, once: a system to `chroot` into or to run from."""
    wanted = None if only is None else set(only)

    def fill(folder: Path) -> None:
        for link in ("bin", "sbin", "lib", "lib64"):
            (folder / "usr" / link).mkdir(parents=True)
            (folder / link).symlink_to(f"usr/{link}")
        for package, file in fetch(lock):
            if wanted is not None and package.name not in wanted:
                continue
            for path, member, data in members(file):
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                if member.isdir():
                    target.mkdir(exist_ok=True)
                elif member.issym():
                    target.unlink(missing_ok=True)
                    target.symlink_to(member.linkname)
                elif member.isfile() or member.islnk():
                    target.unlink(missing_ok=True)
                    target.write_bytes(data)
                    target.chmod(member.mode & 0o777)

    return cache.folder(name, lock.digest, fill)


def _object(value: object, what: str) -> strict_json.Fields:
    if not isinstance(value, dict):
        raise MalformedError(f"{what}: not an object")
    return strict_json.Fields(value, what)


def _private_apt(folder: Path, suite: str, *, kind: str = "deb") -> dict[str, str]:
    """An apt of its own for one suite, so that nothing of it reaches the system's; raises UsageError without apt."""
    if shutil.which("apt-get") is None or not Path(KEYRING).exists():
        raise UsageError("making a lock needs apt and Debian's keyring", hint="Use a lock made on a Debian machine.")
    for each in (
        "etc/apt/apt.conf.d",
        "etc/apt/preferences.d",
        "etc/apt/sources.list.d",
        "lists/partial",
        "archives/partial",
    ):
        (folder / each).mkdir(parents=True)
    (folder / "status").touch()
    mirror = os.environ.get("CLOISTER_DEBIAN_MIRROR", MIRROR).rstrip("/")
    # A mirror that lags behind is refused as expired; the signatures are checked all the same.
    options = f"[check-valid-until=no signed-by={KEYRING}]"
    sources = [f"{kind} {options} {mirror}/debian {suite} main"]
    if suite not in ("sid", "unstable") and not suite.endswith("-backports"):
        sources.append(f"{kind} {options} {mirror}/debian-security {suite}-security main")
    (folder / "etc/apt/sources.list").write_text("\n".join(sources) + "\n")
    (folder / "apt.conf").write_text(
        f'Dir "{folder}";\nDir::State "{folder}";\nDir::State::status "{folder}/status";\n'
        f'Dir::State::lists "{folder}/lists";\nDir::Cache "{folder}";\nDir::Etc "{folder}/etc/apt";\n'
        'APT::Architecture "amd64";\nAPT::Architectures { "amd64"; };\n'
        'APT::Sandbox::User "";\n'
    )
    return {**os.environ, "APT_CONFIG": str(folder / "apt.conf"), "LC_ALL": "C"}


def _apt(environment: dict[str, str], *arguments: str) -> str:
    run = subprocess.run(  # noqa: S603 - apt with our own words; package names were checked by apt
        ["apt-get", "-qq", *arguments],  # noqa: S607 - wherever the system keeps it
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        cwd=environment["APT_CONFIG"].rpartition("/")[0],
    )
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UndecidedError(f"apt could not answer: {reason}", hint="Is the Debian mirror reachable?")
    return run.stdout


def _field(line: str) -> tuple[str, str, str, str]:
    match = re.fullmatch(r"'([^']+)' (\S+) (\d+) ?(\S*)", line.strip())
    if match is None:
        raise UndecidedError("apt printed something unexpected", hint="Report the version of apt.")
    return match[1], match[2], match[3], match[4]
