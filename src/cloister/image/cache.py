"""What was fetched or built once, by digest: files checked when they come in, folders made whole or not at all.

The place is $XDG_CACHE_HOME/cloister (`~/.cache/cloister`); removing it loses nothing but time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import httpx2

from cloister.errors import UndecidedError

TIMEOUT = httpx2.Timeout(30.0)
CHUNK = 1024 * 1024


def home() -> Path:
    """The cache's folder, made where it is missing."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(base) / "cloister"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def download(sources: Iterable[str], sha256: str, *, what: str) -> Path:
    """The file with that SHA-256, from the cache or the first source that has it; raises UndecidedError."""
    target = home() / "files" / sha256
    if target.exists():
        return target
    target.parent.mkdir(exist_ok=True)
    reasons = []
    for source in sources:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".incoming-")
        try:
            digest = hashlib.sha256()
            with (
                os.fdopen(handle, "wb") as file,
                httpx2.stream("GET", source, timeout=TIMEOUT, follow_redirects=True) as answer,
            ):
                answer.raise_for_status()
                for piece in answer.iter_bytes(CHUNK):
                    digest.update(piece)
                    file.write(piece)
            if digest.hexdigest() == sha256:
                Path(temporary).chmod(0o644)
                Path(temporary).replace(target)
                return target
            reasons.append("other bytes than the lock names")
        except httpx2.HTTPStatusError as error:
            reasons.append(f"status {error.response.status_code}")
        except httpx2.HTTPError as error:
            reasons.append(type(error).__name__)
        finally:
            Path(temporary).unlink(missing_ok=True)
    raise UndecidedError(
        f"no source has {what} ({'; '.join(reasons)})",
        hint="Archives drop old versions: make the lock again, which changes the measurements.",
    )


def path(name: str, digest: str) -> Path:
    """Where `folder` keeps it, made or not."""
    return home() / f"{name}-{digest[:16]}"


def folder(name: str, digest: str, fill: Callable[[Path], None]) -> Path:
    """The folder `NAME-DIGEST`, filled once; two that fill it at once do not disturb each other."""
    target = path(name, digest)
    if target.exists():
        return target
    temporary = Path(tempfile.mkdtemp(dir=home(), prefix=".making-"))
    try:
        fill(temporary)
        temporary.chmod(0o755)
        try:
            temporary.rename(target)
        except OSError:
            if not target.exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target
