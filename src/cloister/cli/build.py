"""`cloister build` and `cloister image`: images from `cloister.toml`, and what is in an image file."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from cloister.cli import show
from cloister.errors import NotGenuineError, UsageError

image = typer.Typer(help="Look into image files; pin what goes into them.", no_args_is_help=True)

CONFIG = Annotated[Path, typer.Option("--config", "-c", help="What the image is to be.")]


@show.guarded
def build(
    config: CONFIG = Path("cloister.toml"),
    out: Annotated[Path, typer.Option(help="The folder to write into.")] = Path("cloister-image"),
    lock: Annotated[Path | None, typer.Option(help="A lock of Debian packages instead of this version's.")] = None,
    json: Annotated[bool, typer.Option("--json", help="measurements.json on standard output.")] = False,
) -> None:
    """Build an enclave image (EIF), its measurements, and the same root file system as an OCI layout."""
    made = _build(config, out, lock)
    if json:
        print(made.measurements.read_text("utf-8"), end="")
        return
    print(made.image)
    show.stderr.print(Text(f"{made.size / 1e6:.1f} MB"))
    for index, value in sorted(made.registers.items()):
        show.stderr.print(Text(f"PCR{index} {value.hex()}"), soft_wrap=True)


def _build(config: Path, out: Path, lock: Path | None):  # type: ignore[no-untyped-def]
    try:
        from cloister.image import build as builder
        from cloister.image import config as settings
    except ImportError:
        raise UsageError("building images needs more packages", hint="pip install 'cloister[build]'") from None
    return builder.build(settings.load(config), out, lock_file=lock)


@image.command()
@show.guarded
def inspect(
    file: Annotated[Path, typer.Argument(help="An EIF, from cloister build or nitro-cli.")],
    json: Annotated[bool, typer.Option("--json", help="As JSON on standard output.")] = False,
) -> None:
    """Check an image file's structure, checksum and signature; print what it measures to."""
    from cloister.image import eif

    try:
        if file.stat().st_size > eif.MAX_BYTES:
            raise UsageError(f"{file} is longer than any enclave image")
        read = eif.parse(file.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None
    signed = "not signed"
    if read.signature:
        try:
            read.check_signature()
            read.check_signer(datetime.now(UTC))
            signed = "signature verifies"
        except NotGenuineError as error:
            signed = error.message
    certificate = read.certificate
    document = {
        "schema": "cloister-image/1",
        "measurements": {f"PCR{index}": value.hex() for index, value in sorted(read.measurements().items())},
        "signature": signed,
        "signer": certificate.subject.rfc4514_string() if certificate else None,
        "signer_not_after": f"{certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}" if certificate else None,
        "cmdline": read.cmdline.decode("ascii", "replace"),
        "sections": {
            "kernel": len(read.kernel),
            "ramdisks": [len(each) for each in read.ramdisks],
            "metadata": read.metadata.decode("utf-8", "replace"),
        },
        "default_memory_mib": read.default_memory // (1024 * 1024),
        "default_cpus": read.default_cpus,
        "architecture": "arm64" if read.arm64 else "x86_64",
    }
    if json:
        show.print_json(document)
    else:
        for index, value in sorted(read.measurements().items()):
            print(f"PCR{index}", value.hex())
        print("signature:", signed)
        print("command line:", document["cmdline"])
        print(
            "kernel:",
            len(read.kernel),
            "bytes; ramdisks:",
            ", ".join(str(len(each)) for each in read.ramdisks),
            "bytes",
        )
    if read.signature and signed != "signature verifies":
        raise NotGenuineError(signed, hint="Do not run this image.")


@image.command()
@show.guarded
def lock(
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("cloister.lock.json"),
    suite: Annotated[str, typer.Option(help="Debian's release.")] = "bookworm",
) -> None:
    """Pin the newest Debian packages of an image (needs apt); afterwards: cloister build --lock FILE."""
    from cloister.image import build as builder
    from cloister.image import debian

    names = [package.name for package in builder.read_lock(None).packages]
    made = debian.resolve(suite, names)
    out.write_text(made.to_json())
    print(out)
