"""`cloister broker`: the model owner's own key-release service, for whoever has no cloud KMS."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from cloister.cli import show
from cloister.cli.policy import read_measurements
from cloister.errors import PolicyDocumentError, UsageError

app = typer.Typer(
    help="Your own key-release service: appraises replicas, releases data keys, keeps a ledger.", no_args_is_help=True
)
ledger = typer.Typer(help="What the broker appraised and released.", no_args_is_help=True)
app.add_typer(ledger, name="ledger")

FOLDER = Annotated[Path, typer.Argument(help="The broker's folder.")]
KEY = Annotated[Path | None, typer.Option("--key", help="The broker's key, where it is not in the folder.")]
MODEL = Annotated[str, typer.Option(help="The model's name, as it was sealed.")]
VERSION = Annotated[int, typer.Option(help="The model's version, as it was sealed.")]


@app.command()
@show.guarded
def init(folder: FOLDER, key: KEY = None) -> None:
    """Make a broker: its folder, and the key under which it keeps data keys. Keep a copy of both."""
    from cloister.broker import store

    store.create(folder, key)
    print(folder)


@app.command()
@show.guarded
def grant(
    folder: FOLDER,
    model: MODEL,
    minimum_version: Annotated[int, typer.Option(help="No keys of older versions.")],
    measurements: Annotated[Path, typer.Option(help="The image's measurements.json.")],
    signer_pcr8: Annotated[bool, typer.Option("--signer-pcr8", help="Demand the image's signer (PCR8) too.")] = False,
    label: Annotated[str, typer.Option(help="What people call the image.")] = "",
    simulated_root: Annotated[
        Path | None, typer.Option(help="In a new policy: accept SIMULATED evidence under this root (PEM).")
    ] = None,
) -> None:
    """Add a grant to the policy (policy.toml in the folder): this image gets the keys of this model."""
    from cloister.broker.store import POLICY
    from cloister.policy import release
    from cloister.tee.nitro.rules import Measurement

    path = folder / POLICY
    pcr0, pcr8 = read_measurements(measurements, signed=signer_pcr8)
    stated = (Measurement(pcr0=pcr0, pcr8=pcr8, label=label),)
    added = release.Grant(model=model, minimum_version=minimum_version, measurements=stated).to_toml()
    try:
        if path.exists():
            if simulated_root is not None:
                raise UsageError(f"{path} is there already", hint="Edit its [tee] by hand.")
            before = path.read_text("utf-8")
        else:
            root = simulated_root.read_text("ascii") if simulated_root is not None else None
            before = release.beginning(folder.resolve().name, root)
        text = f"{before.rstrip()}\n\n{added}"
        release.ReleasePolicy.from_toml(text.encode("utf-8"))
        # The broker reads it at any moment: whole or not at all.
        temporary = path.with_suffix(".new")
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot change {path} ({type(error).__name__})") from None
    except PolicyDocumentError as error:
        raise PolicyDocumentError(f"{path}: {error.message}", hint=error.hint) from None
    print(path)


@app.command()
@show.guarded
def serve(
    folder: FOLDER,
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0 takes a free one.")] = "127.0.0.1:8443",
    certificate: Annotated[Path | None, typer.Option(help="PEM with its chain.")] = None,
    private_key: Annotated[Path | None, typer.Option(help="PEM of the certificate's key.")] = None,
    behind_terminator: Annotated[
        bool, typer.Option(help="No TLS here: something on this machine ends it. Loopback addresses only.")
    ] = False,
    key: KEY = None,
    json: Annotated[bool, typer.Option("--json", help="One line of JSON when ready.")] = False,
) -> None:
    """Release keys to replicas whose evidence the policy accepts (KBS attestation protocol 0.4.0)."""
    from cloister.broker import server
    from cloister.broker.service import Broker
    from cloister.enclave.hardening import leave_no_dump
    from cloister.host.relay import Address

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    address = Address.parse(listen)
    if (certificate is None) != (private_key is None) or (certificate is None) != behind_terminator:
        raise UsageError(
            "TLS needs --certificate and --private-key; going without it, --behind-terminator",
            hint="Replicas verify the certificate against the roots that are measured with their image.",
        )
    tls = None
    if certificate is not None and private_key is not None:
        tls = server.Tls(certificate=certificate, key=private_key)
    leave_no_dump()
    broker = Broker(folder, key=key)
    policy = broker.policy()
    if policy.allow_simulated:
        show.simulated_banner()

    def on_ready(url: str) -> None:
        if json:
            show.print_json({"schema": "cloister-broker/1", "url": url, "simulated": policy.allow_simulated})
        else:
            print(url, flush=True)
            show.stderr.print(Text(f"{len(policy.grants)} grants in policy {policy.name!r}"))

    try:
        server.serve(broker, address.host, address.port, tls, on_ready)
    finally:
        broker.close()


@app.command()
@show.guarded
def remove(folder: FOLDER, model: MODEL, version: VERSION, key: KEY = None) -> None:
    """Give up a data key: what was sealed under it opens nowhere any more."""
    from cloister.broker.ledger import Ledger
    from cloister.broker.store import LEDGER, KeyStore
    from cloister.weights.kbs import Resource

    store, resource = KeyStore(folder, key), Resource(model=model, version=version)
    Resource.parse(str(resource))
    book = Ledger(folder / LEDGER)
    try:
        if not store.has(resource):
            raise UsageError(f"the broker has no key for {resource}")
        book.append({"event": "removal", "resource": str(resource)})
        store.remove(resource)
    finally:
        book.close()
    print(resource)


@ledger.command()
@show.guarded
def verify(
    folder: FOLDER,
    contains: Annotated[
        str | None, typer.Option(metavar="DIGEST", help="A digest noted earlier: shows that the end was not cut off.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON on standard output.")] = False,
) -> None:
    """Check the ledger's chain; print how many entries there are and the last one's digest, to be noted elsewhere."""
    from cloister.broker import ledger as book
    from cloister.broker.store import LEDGER

    head = book.verify(folder / LEDGER, contains=contains)
    if json:
        show.print_json({"schema": "cloister-ledger/1", "entries": head.entries, "digest": head.digest})
    else:
        print(head.entries, head.digest)
