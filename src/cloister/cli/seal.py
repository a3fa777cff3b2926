"""`cloister seal`: weights that only measured code opens; `cloister owner`: the key that signs them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from cloister.cli import show
from cloister.errors import UsageError
from cloister.weights import manifest
from cloister.weights.keys import KeyWrapper

MODEL = Annotated[Path, typer.Argument(help="A GGUF file.")]


@show.guarded
def seal(
    model: MODEL,
    name: Annotated[str, typer.Option(help="The model's name: model.sealed in cloister.toml.")],
    version: Annotated[int, typer.Option(help="Counts up; images refuse versions below their minimum.")],
    owner: Annotated[Path, typer.Option(help="The owner's private key (see cloister owner).")],
    kms_key: Annotated[str | None, typer.Option(help="ARN of the KMS key that wraps the data key.")] = None,
    broker: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Instead: the folder of your own key broker, on this machine.")
    ] = None,
    broker_key: Annotated[Path | None, typer.Option(help="The broker's key, where it is not in its folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write; default NAME.sealed.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="HOST:PORT of KMS instead of the region's.")] = None,
    endpoint_roots: Annotated[Path | None, typer.Option(help="PEM of the roots of its certificate.")] = None,
    json: Annotated[bool, typer.Option("--json", help="The manifest on standard output.")] = False,
) -> None:
    """Encrypt a model under a data key from AWS KMS or your key broker; sign what it is."""
    from cloister.weights.seal import seal as seal_file

    target = out or Path(f"{name}.sealed")
    made = seal_file(
        model,
        target,
        model=name,
        version=version,
        owner=load_owner(owner),
        wrapper=_wrapper(kms_key, endpoint, endpoint_roots, broker, broker_key),
    )
    if json:
        show.print_json({"schema": "cloister-sealed/1", **describe(made)})
    else:
        print(target)


def _wrapper(
    kms_key: str | None, endpoint: str | None, endpoint_roots: Path | None, broker: Path | None, broker_key: Path | None
) -> KeyWrapper:
    if (kms_key is None) == (broker is None):
        raise UsageError("give either --kms-key or --broker", hint="Who keeps the key: AWS KMS, or your own broker?")
    if kms_key is not None:
        from cloister.platforms.aws_nitro.owner import KmsWrapper

        if broker_key is not None:
            raise UsageError("--broker-key goes with --broker")
        roots = endpoint_roots.read_text("ascii") if endpoint_roots is not None else None
        return KmsWrapper(key_arn=kms_key, endpoint=endpoint, tls_roots=roots)
    from cloister.broker.store import BrokerWrapper

    if endpoint is not None or endpoint_roots is not None:
        raise UsageError("--endpoint and --endpoint-roots go with --kms-key")
    assert broker is not None
    return BrokerWrapper(broker, broker_key)


@show.guarded
def owner(
    out: Annotated[Path, typer.Argument(help="The private key's file; the public one gets .pub.pem.")],
) -> None:
    """Make an owner's key (Ed25519): it signs the manifests of sealed models, and images name its public half."""
    key = Ed25519PrivateKey.generate()
    public = out.with_suffix(".pub.pem")
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise UsageError(f"cannot make {out}: {error.strerror}", hint="Existing keys are never overwritten.") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    print(public)


@show.guarded
def sealed(
    file: Annotated[Path, typer.Argument(help="A file that cloister seal wrote.")],
    json: Annotated[bool, typer.Option("--json", help="As JSON on standard output.")] = False,
) -> None:
    """Show what a sealed file says about itself; nothing is verified by that."""
    try:
        with file.open("rb") as source:
            head = manifest.read(source.read(manifest.HEAD.size + manifest.MAX_ENVELOPE), None)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None
    described = describe(head.manifest)
    if json:
        show.print_json({"schema": "cloister-sealed/1", **described})
        return
    for name, value in described.items():
        print(f"{name}: {value}")


def load_owner(path: Path) -> Ed25519PrivateKey:
    """The owner's private key; raises UsageError."""
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="cloister owner makes one.") from None
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError("the owner's key must be an unencrypted Ed25519 key in PEM", hint="cloister owner makes one.")
    return key


def describe(made: manifest.Manifest) -> dict[str, object]:
    """A manifest for people."""
    return {
        "model": made.model,
        "version": made.version,
        "size": made.size,
        "sha256": made.sha256,
        "service": made.key.service,
        "key_id": made.key.key_id,
    }
