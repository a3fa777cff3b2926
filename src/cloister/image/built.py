"""What a build leaves in its folder, and reading it back: images are built on one machine and started on another."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cloister.errors import MalformedError, RefusedError, UsageError
from cloister.image import eif
from cloister.image.config import ImageConfig
from cloister.wire import strict_json

MEASUREMENTS_SCHEMA = "cloister-measurements/1"
MAX_MEASUREMENTS = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a build wrote."""

    image: Path
    measurements: Path
    registers: dict[int, bytes]
    size: int
    #: As `nitro.kernel` said: `small`, `aws`, or `own` for a path.
    kernel: str


def read(folder: Path, config: ImageConfig) -> Built:
    """An image that `cloister build` wrote before, for this configuration.

    Raises UsageError, MalformedError, or RefusedError where image, measurements and configuration do not fit.
    """
    image, file = folder / f"{config.name}.eif", folder / "measurements.json"
    try:
        data, document = image.read_bytes(), file.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read {error.filename}: {error.strerror}", hint="Give the folder that cloister build wrote."
        ) from None
    fields = strict_json.Fields(strict_json.loads(document, "measurements", limit=MAX_MEASUREMENTS), "measurements")
    if fields.text("schema") != MEASUREMENTS_SCHEMA:
        raise MalformedError("measurements: another schema", hint="Image and package are of different versions.")
    said, parts = fields.member("measurements"), fields.member("parts")
    registers = eif.parse(data).measurements()
    if {name: said.text(name) for name in said.names()} != {f"PCR{i}": value.hex() for i, value in registers.items()}:
        raise RefusedError(f"{image.name} is not the image that measurements.json describes", hint="Build it again.")
    if parts.text("replica_sha256") != hashlib.sha256(config.replica()).hexdigest():
        raise RefusedError("the image was built from another cloister.toml", hint="Build it again, or give that one.")
    return Built(image=image, measurements=file, registers=registers, size=len(data), kernel=parts.text("kernel"))
