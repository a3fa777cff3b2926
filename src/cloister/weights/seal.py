"""Seal a model file: read twice (digest, then encrypt), one segment in memory at a time."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.errors import UsageError
from cloister.weights import manifest
from cloister.weights.keys import KeyWrapper
from cloister.weights.stream import Layout, Sealer


def seal(
    source: Path, target: Path, *, model: str, version: int, owner: Ed25519PrivateKey, wrapper: KeyWrapper
) -> manifest.Manifest:
    """Write the container for `source`; whole or not at all. Raises UsageError and what the wrapper raises."""
    if not manifest.NAME.fullmatch(model) or version < 0:
        raise UsageError(
            "a sealed model needs a name of lower-case letters, digits, dot, dash, underscore, and a version from 0",
            hint="The name is what model.sealed in cloister.toml says.",
        )
    temporary = target.with_name(target.name + ".new")
    try:
        if source.resolve() == target.resolve():
            raise UsageError("the sealed file would take the place of the model file", hint="Give another --out.")
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
            if not size:
                raise UsageError("the model file is empty")
            key, wrapped = wrapper.generate(manifest.context(model, version))
            made = manifest.Manifest(model=model, version=version, size=size, sha256=digest, key=wrapped)
            sealer, layout = Sealer(key, hashlib.sha256(made.payload()).digest(), size), Layout(size)
            file.seek(0)
            again = hashlib.sha256()
            with temporary.open("wb") as out:
                out.write(manifest.sign(made, owner) + sealer.header)
                for index in range(layout.segments):
                    start, end = layout.plain(index)
                    plaintext = file.read(end - start)
                    again.update(plaintext)
                    out.write(sealer.seal(index, plaintext))
            if again.hexdigest() != digest or file.read(1):
                raise UsageError("the model file changed while it was read", hint="Seal it again.")
        temporary.replace(target)
    except OSError as error:
        raise UsageError(f"cannot seal: {error.strerror}", hint="Is there room for a second copy?") from None
    finally:
        temporary.unlink(missing_ok=True)
    return made
