"""The root file system of every image: Debian's Python, hashed wheels, this package's measured part, one configuration.

No shell, no package manager, no tools. Byte code is compiled by the image's own Python and checked against its source
by hash, never by time.
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import tempfile
import zipfile
from importlib import resources
from pathlib import Path

import cloister
from cloister.errors import MalformedError, UndecidedError
from cloister.image import cache, debian
from cloister.image.config import BrokerSettings, ImageConfig, KmsSettings, ModelInImage
from cloister.image.tree import Tree

PACKAGES = "usr/lib/python3/dist-packages"
PYTHON = "usr/bin/python3.11"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
#: What of this package runs inside a TEE (and what it stands on): folders and files.
MEASURED = (
    *("wire", "channel", "api", "weights", "enclave"),
    *("trust/__init__.py", "trust/collateral.py"),
    *("tee/__init__.py", "tee/attester.py", "tee/evidence.py", "tee/nitro/__init__.py", "tee/nitro/attest.py"),
)
#: Decoders of evidence and the owner's side of sealing have no business in an image.
LEFT_OUT = (
    *(f"cloister/wire/{each}.py" for each in ("cose", "protobuf", "tcg_log", "toml", "tpm", "xml")),
    "cloister/weights/seal.py",
)
#: The model that comes with the package.
BUNDLED = "cloister/enclave/engine/bundled"
#: From Debian's packages: what a replica never needs.
DROPPED = (
    "etc",
    "var",
    "boot",
    "home",
    "media",
    "mnt",
    "opt",
    "srv",
    "root",
    "usr/share",
    "usr/sbin",
    "usr/games",
    "usr/include",
    "usr/src",
    "usr/lib/os-release",
    f"{LIBRARIES}/gconv",
    f"{LIBRARIES}/audit",
    "usr/lib/valgrind",
    "usr/lib/debug",
    "usr/lib/locale",
    *(
        f"usr/lib/python3.11/{each}"
        for each in (
            "test",
            "idlelib",
            "tkinter",
            "turtledemo",
            "turtle.py",
            "ensurepip",
            "lib2to3",
            "pydoc_data",
            "pydoc.py",
            "distutils",
            "unittest",
            "venv",
            "wsgiref",
            "xmlrpc",
            "curses",
            "dbm",
            "sqlite3",
            "config-3.11-x86_64-linux-gnu",
            "pdb.py",
            "doctest.py",
            "antigravity.py",
            "smtplib.py",
            "smtpd.py",
            "ftplib.py",
            "telnetlib.py",
            "nntplib.py",
            "poplib.py",
            "imaplib.py",
            "mailbox.py",
        )
    ),
)
#: The roots that AWS services' certificates chain to (Amazon Trust Services), of those that Debian ships.
AMAZON_ROOTS = (
    "Amazon_Root_CA_1",
    "Amazon_Root_CA_2",
    "Amazon_Root_CA_3",
    "Amazon_Root_CA_4",
    "Starfield_Services_Root_Certificate_Authority_-_G2",
)
_PLATFORMS = (
    "manylinux_2_36_x86_64",
    "manylinux_2_35_x86_64",
    "manylinux_2_34_x86_64",
    "manylinux_2_28_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
)


def build(config: ImageConfig, lock: debian.Lock) -> Tree:
    """The whole tree for one configuration; raises UsageError, UndecidedError or MalformedError."""
    tree = system(lock)
    configure(tree, config, lock)
    return tree


def system(lock: debian.Lock) -> Tree:
    """What all images of a lock share: Debian's part, the wheels, this package; raises as `build`."""
    base = _base(lock)
    tree = _from_folder(base)
    _add_package(tree, base)
    return tree


def configure(tree: Tree, config: ImageConfig, lock: debian.Lock) -> None:
    """Add one image's own files: configuration, roots, model; raises as `build`."""
    tree.file("etc/cloister/replica.json", config.replica())
    match config.release:
        case KmsSettings(roots=roots):
            tree.file("etc/cloister/roots.pem", roots if roots is not None else _amazon_roots(lock))
        case BrokerSettings(roots=roots):
            tree.file("etc/cloister/roots.pem", roots)
    if config.model != ModelInImage(path=None, id=config.model.id):
        # Weights that nobody will run would only be more to carry and to measure.
        tree.remove(f"{PACKAGES}/{BUNDLED}")
    if isinstance(config.model, ModelInImage) and config.model.path is not None:
        tree.file("models/model.gguf", config.model.path.read_bytes())
    tree.file("etc/passwd", b"root:x:0:0:root:/:/usr/sbin/nologin\n")
    tree.file("etc/hosts", b"127.0.0.1 localhost\n")
    for name in ("dev", "proc", "sys", "run", "var"):
        tree.directory(name)
    tree.directory("tmp", 0o1777)


def requirements() -> bytes:
    """The hashed wheels of the image."""
    return resources.files("cloister.image").joinpath("enclave.requirements.txt").read_bytes()


def wheels() -> list[Path]:
    """The wheels as files, fetched by pip under their hashes; raises UndecidedError."""

    def fill(folder: Path) -> None:
        (folder / "requirements.txt").write_bytes(requirements())
        platforms = [word for each in _PLATFORMS for word in ("--platform", each)]
        run = subprocess.run(  # noqa: S603 - pip of this very Python
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--disable-pip-version-check",
                "--no-deps",
                "--require-hashes",
                "--only-binary",
                ":all:",
                "--python-version",
                "3.11",
                "--implementation",
                "cp",
                "--abi",
                "cp311",
                "--abi",
                "abi3",
                "--abi",
                "none",
                *platforms,
                "-d",
                str(folder),
                "-r",
                str(folder / "requirements.txt"),
            ],
            check=False,
            capture_output=True,
            text=True,
        )
        if run.returncode:
            reason = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UndecidedError(
                f"pip could not fetch the image's wheels: {reason}", hint="Is the package index reachable?"
            )

    return sorted(cache.folder("wheels", hashlib.sha256(requirements()).hexdigest(), fill).glob("*.whl"))


def _base(lock: debian.Lock) -> Path:
    """Debian's part and the wheels, compiled; made once for each pair of locks."""
    rules = hashlib.sha256(repr((DROPPED, PACKAGES)).encode("utf-8")).hexdigest()
    digest = hashlib.sha256(
        (lock.digest + hashlib.sha256(requirements()).hexdigest() + rules).encode("ascii")
    ).hexdigest()

    def fill(folder: Path) -> None:
        tree = Tree()
        for link in ("bin", "sbin", "lib", "lib64"):
            tree.directory(f"usr/{link}")
            tree.link(link, f"usr/{link}")
        for _, file in debian.fetch(lock):
            for name, member, data in debian.members(file):
                if member.isdir():
                    if name not in tree.entries:
                        tree.directory(name, member.mode & 0o777)
                elif member.issym():
                    tree.link(name, member.linkname)
                elif member.isfile() or member.islnk():
                    tree.file(name, data, member.mode & 0o755)
        for name in DROPPED:
            tree.remove(name)
        for name in [each for each in tree.entries if each.startswith("usr/bin/") and each != PYTHON]:
            tree.remove(name)
        for wheel in wheels():
            _add_wheel(tree, wheel)
        _to_folder(tree, folder)
        _compile(folder, folder, ("usr/lib/python3.11", PACKAGES))

    return cache.folder("rootfs", digest, fill)


def _add_wheel(tree: Tree, wheel: Path) -> None:
    """A wheel's files (PEP 427) without its scripts; of its record only what `importlib.metadata` reads."""
    with zipfile.ZipFile(wheel) as archive:
        for item in archive.infolist():
            name = item.filename
            first, _, rest = name.partition("/")
            if first.endswith(".data"):
                kind, _, name = rest.partition("/")
                if kind not in ("purelib", "platlib"):
                    continue
            if first.endswith(".dist-info") and rest != "METADATA":
                continue
            if item.is_dir() or name.endswith(".pyc"):
                continue
            if ".." in name.split("/") or name.startswith("/"):
                raise MalformedError("a wheel names a file outside its folder")
            tree.file(f"{PACKAGES}/{name}", archive.read(item))


def _add_package(tree: Tree, base: Path) -> None:
    """This package's measured part, compiled."""
    source = Path(cloister.__file__).parent
    part = Tree()
    for name in ("__init__.py", "errors.py", *MEASURED):
        path = source / name
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts and file.suffix not in (".pyc", ".md"):
                part.file(f"cloister/{file.relative_to(source).as_posix()}", file.read_bytes())
    for name in LEFT_OUT:
        part.remove(name)
    with tempfile.TemporaryDirectory(prefix="cloister-image-") as folder:
        root = Path(folder)
        inside = Tree()
        for name, entry in part:
            if stat.S_ISREG(entry.mode):
                inside.file(f"{PACKAGES}/{name}", entry.data)
        _to_folder(inside, root)
        _compile(base, root, (f"{PACKAGES}/cloister",))
        for name, entry in _from_folder(root):
            if stat.S_ISREG(entry.mode):
                tree.file(name, entry.data)


def _compile(base: Path, root: Path, folders: tuple[str, ...]) -> None:
    """Compile with the image's own Python, run from `base` through its own dynamic linker: no chroot, no root."""
    linker = base / LIBRARIES / "ld-linux-x86-64.so.2"
    run = subprocess.run(  # noqa: S603 - the image's Python, on our own folder
        [
            str(linker),
            "--library-path",
            str(base / LIBRARIES),
            str(base / PYTHON),
            "-S",
            "-m",
            "compileall",
            "-q",
            "-f",
            "-j",
            "1",
            "--invalidation-mode",
            "checked-hash",
            "-s",
            str(root),
            "-p",
            "/",
            *(str(root / each) for each in folders),
        ],
        check=False,
        capture_output=True,
        text=True,
        env={
            "PYTHONHOME": str(base / "usr"),
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "LC_ALL": "C.UTF-8",
        },
    )
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or run.stdout.strip().splitlines() or ["no reason given"])[-1]
        raise UndecidedError(f"the image's byte code could not be compiled: {reason}")


def _amazon_roots(lock: debian.Lock) -> bytes:
    for package, file in debian.fetch(lock):
        if package.name == "ca-certificates":
            found = {
                name.rpartition("/")[2].removesuffix(".crt"): data
                for name, _, data in debian.members(file)
                if name.startswith("usr/share/ca-certificates/mozilla/")
            }
            return b"".join(found[name] for name in AMAZON_ROOTS)
    raise MalformedError("Debian lock: ca-certificates is missing")


def _to_folder(tree: Tree, folder: Path) -> None:
    for name, entry in tree:
        target = folder / name
        if stat.S_ISDIR(entry.mode):
            target.mkdir(parents=True, exist_ok=True)
        elif stat.S_ISLNK(entry.mode):
            target.symlink_to(entry.data.decode("utf-8"))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(entry.data)
            target.chmod(stat.S_IMODE(entry.mode))


def _from_folder(folder: Path) -> Tree:
    tree = Tree()
    for at, directories, files in os.walk(folder):
        for name in directories + files:
            path = Path(at) / name
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink():
                tree.link(relative, str(path.readlink()))
            elif path.is_dir():
                tree.directory(relative)
            else:
                tree.file(relative, path.read_bytes(), 0o755 if path.stat().st_mode & 0o100 else 0o644)
    return tree
