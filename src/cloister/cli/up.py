"""`cloister up`: an enclave from `cloister.toml` to a verified answer, the same steps on every platform."""

from __future__ import annotations

import contextlib
import json as json_module
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from rich.text import Text

from cloister.channel.bundle import MAX_BUNDLE
from cloister.cli import show
from cloister.cli.enclaves import STATUS, stop, supervised
from cloister.client.appraisal import VerifiedKey, verify_bundle
from cloister.client.fetch import challenge
from cloister.errors import CloisterError, UndecidedError, UsageError
from cloister.platforms import registry, run
from cloister.platforms.platform import Launch, Platform
from cloister.platforms.state import Processes, folder
from cloister.policy.document import Policy
from cloister.policy.draft import draft
from cloister.weights import manifest

if TYPE_CHECKING:
    from cloister.image.config import ImageConfig

#: A machine that ends is noticed at once; this is for one that is merely slow, as an emulated one beside others is.
BOOT_SECONDS = 300.0
AGENT_SECONDS, POLL_SECONDS = 15.0, 0.25
#: Bytes of sealed weights a second, at worst: a slow store behind vsock.
SLOW_STORE = 10e6
#: For streams in progress at `cloister down`.
DRAIN_SECONDS = 3.0
_WAIVED = "The first look at an image that is at hand: its own registers already cover this."
_ZERO = "0" * 64
"""A digest that nothing has: replaced before the policy is used."""


@show.guarded
def up(
    config: Annotated[Path, typer.Option("--config", "-c", help="What the image is to be.")] = Path("cloister.toml"),
    platform: Annotated[
        str, typer.Option(help="aws-nitro: on an EC2 instance. qemu-nitro: emulated here, SIMULATED evidence.")
    ] = "qemu-nitro",
    image: Annotated[
        Path | None, typer.Option(help="The folder that cloister build wrote, instead of building now.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="The folder with NAME.sealed; default `store` beside cloister.toml.")
    ] = None,
    listen: Annotated[str, typer.Option(help="HOST:PORT for clients; port 0 takes a free one.")] = "127.0.0.1:0",
    cid: Annotated[int | None, typer.Option(help="The enclave's vsock context identifier; default a free one.")] = None,
    capture: Annotated[Path | None, typer.Option(help="Keep all that the parent sees in this folder.")] = None,
    debug: Annotated[bool, typer.Option(help="Nitro's debug mode: evidence that every policy refuses.")] = False,
    resolve: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:PORT=HOST:PORT",
            help="Where an allowed name leads instead of its public address: a private endpoint, a broker here.",
        ),
    ] = None,
    supervise: Annotated[bool, typer.Option(help="Start enclave and agent again when they end.")] = False,
    wait: Annotated[
        float, typer.Option(help="Seconds until it must serve, beside those for sealed weights at 10 MB/s.")
    ] = BOOT_SECONDS,
    json: Annotated[bool, typer.Option("--json", help="One line of JSON when it serves.")] = False,
) -> None:
    """Build, boot, verify: ends with an address and a policy for exactly this image."""
    from cloister.image import built as reader
    from cloister.image import config as settings

    chosen = settings.load(config)
    machine = registry.get(platform)
    home = folder(chosen.name)
    # A platform that cannot tell says why in its preflight.
    with contextlib.suppress(UndecidedError):
        if (running := machine.find(chosen.name)) is not None:
            raise UsageError(f"{chosen.name} is {running.state.lower()} already", hint=f"cloister down {chosen.name}")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    started = time.monotonic()
    if image is not None:
        built = reader.read(image, chosen)
    else:
        from cloister.image import build as builder

        built = builder.build(chosen, home / "image")
        _say(f"built {built.image.name}: {built.size / 1e6:.1f} MB in {time.monotonic() - started:.1f} s", json)
    shelf = (store or config.parent / "store").absolute()
    launch = machine.settle(
        Launch(
            name=chosen.name,
            image=built.image.absolute(),
            memory_mib=chosen.memory_mib,
            cpus=chosen.cpus,
            cid=cid,
            debug=debug,
            kernel=built.kernel,
            weights=_weights(chosen, shelf),
        )
    )
    machine.preflight(launch)
    if machine.simulated:
        show.simulated_banner()
    if debug:
        show.stderr.print(Text("debug mode: nothing in this enclave is confidential, every policy refuses it"))
    started = time.monotonic()
    limit = wait + launch.weights / SLOW_STORE
    try:
        serves: dict[str, object] = {"name": launch.name, "telemetry": True, "drain_seconds": DRAIN_SECONDS}
        if chosen.egress:
            serves["egress"] = list(chosen.egress)
        if launch.weights:
            serves |= {"store": str(shelf), **machine.release(chosen, built, config.parent)}
        if resolve:
            led = serves.get("resolve", {})
            assert isinstance(led, Mapping)
            serves["resolve"] = {**led, **_resolved(resolve, chosen.egress)}
        if supervise:
            serves["enclave"] = _enclave(machine, launch, home, limit)
        url = _agent(home, {"listen": listen, **machine.reach(launch), **_capture(capture), **serves})
        if supervise:
            _wait_supervised(launch, limit)
        else:
            machine.start(launch)
        measurements = {f"pcr{index}": value.hex() for index, value in built.registers.items()}
        evidence = _evidence(machine, launch, limit, url, _first(chosen.name, measurements, machine.root_pem()))
        policy = None if debug else _policy(chosen.name, evidence, measurements, machine.root_pem())
    except BaseException:
        # An interrupted start must not leave an enclave that nobody verified.
        stop(machine, chosen.name)
        raise
    seconds = time.monotonic() - started
    _say(f"booted{'' if debug else ' and verified'} in {seconds:.1f} s", json)
    path = home / "policy.toml"
    path.unlink(missing_ok=True)
    if policy is not None:
        path.write_text(policy[0])
    if json:
        show.print_json(
            {
                "schema": "cloister-up/1",
                "name": chosen.name,
                "platform": machine.name,
                "url": url,
                "policy": str(path) if policy is not None else None,
                "measurements": str(built.measurements),
                "model_sha256": policy[1].bundle.statement.model_sha256 if policy is not None else None,
                "seconds": round(seconds, 2),
                "simulated": machine.simulated,
                "debug": debug,
            }
        )
    else:
        print(url, flush=True)
        if policy is not None:
            show.stderr.print(Text(f'cloister chat {url} --policy {path} "..."'), soft_wrap=True)


def _weights(chosen: ImageConfig, shelf: Path) -> int:
    """Plaintext bytes of the sealed model in the store, its owner's signature checked; 0 for a model in the image."""
    from cloister.image.config import SealedModel

    if not isinstance(chosen.model, SealedModel):
        return 0
    file = shelf / f"{chosen.model.name}.sealed"
    try:
        with file.open("rb") as source:
            head = source.read(manifest.HEAD.size + manifest.MAX_ENVELOPE)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}", hint="cloister seal makes it; see --store.") from None
    return manifest.read(head, Ed25519PublicKey.from_public_bytes(chosen.model.owner)).manifest.size


def _resolved(entries: list[str], egress: tuple[str, ...]) -> dict[str, str]:
    """NAME:PORT=HOST:PORT as a mapping; only for what the measured image may reach."""
    found = dict(entry.partition("=")[::2] for entry in entries)
    for name, address in found.items():
        if name not in egress or not address:
            raise UsageError(
                "--resolve names an address that the image may not reach, or leads nowhere",
                hint=f"NAME:PORT=HOST:PORT with NAME:PORT out of: {', '.join(egress) or 'nothing'}.",
            )
    return found


def _capture(path: Path | None) -> dict[str, object]:
    return {} if path is None else {"capture": str(path.absolute())}


def _enclave(machine: Platform, launch: Launch, home: Path, seconds: float) -> dict[str, object]:
    """What the supervisor has to know."""
    start, end = run.commands(machine.name, launch, home / "launch.json")
    (home / STATUS).unlink(missing_ok=True)
    return {"start": start, "stop": end, "boot_seconds": seconds, "status": str(home / STATUS)}


def _agent(home: Path, settings: Mapping[str, object]) -> str:
    """Start the parent agent, by its supervisor where it has an enclave to keep up; the address for clients."""
    tables = {name: value for name, value in settings.items() if isinstance(value, Mapping)}
    lines = [f"{name} = {_toml(value)}" for name, value in settings.items() if name not in tables]
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{_toml(key)} = {_toml(value)}" for key, value in table.items())]
    (home / "host.toml").write_text("\n".join(lines) + "\n", "utf-8")
    module = "cloister.host.supervise" if "enclave" in settings else "cloister.host.agent"
    words = [sys.executable, "-m", module, "--config", str(home / "host.toml")]
    _, host, port = Processes(home).start("agent", words, ready=AGENT_SECONDS).split()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _toml(value: object) -> str:
    """Text, whole numbers, truth values and lists of text look the same in TOML and JSON."""
    return json_module.dumps(value, ensure_ascii=False)


def _first(name: str, measurements: dict[str, str], root: str | None) -> Policy:
    """A policy for the first look: the build's registers alone."""
    written = draft(
        name=name, measurements=measurements, model_sha256=_ZERO, config_sha256=_ZERO, simulated_root_pem=root
    )
    return replace(
        Policy.from_toml(written.encode()),
        model_sha256=None,
        config_sha256=None,
        waivers={"model.sha256": _WAIVED, "config.sha256": _WAIVED},
    )


def _evidence(
    machine: Platform, launch: Launch, seconds: float, url: str, first: Policy
) -> tuple[bytes, bytes | None, Policy]:
    """What the replica answers, as soon as it answers; raises UndecidedError with the enclave's last words."""
    limit = time.monotonic() + seconds
    while True:
        try:
            return (*challenge(url, first, limit=MAX_BUNDLE), first)
        except UndecidedError as error:
            hint = f"cloister logs {launch.name}"
            if _gone(machine, launch.name):
                raise UndecidedError(f"the enclave ended: {_last_words(machine, launch.name)}", hint=hint) from None
            if time.monotonic() > limit:
                raise UndecidedError(
                    f"the enclave gives no evidence after {seconds:.0f} s ({error.message});"
                    f" {_last_words(machine, launch.name)}",
                    hint=hint,
                ) from None
        time.sleep(POLL_SECONDS)


def _wait_supervised(launch: Launch, seconds: float) -> None:
    """Until the supervisor says that the enclave answers; raises UndecidedError."""
    limit = time.monotonic() + seconds
    while (state := supervised(launch.name)) != "running":
        if state in ("failed", "stopped") or time.monotonic() > limit:
            raise UndecidedError("the enclave does not come up", hint=f"cloister logs {launch.name}")
        time.sleep(POLL_SECONDS)


def _gone(machine: Platform, name: str) -> bool:
    """Is there certainly no such enclave any more? A platform that cannot tell just now has not said so."""
    try:
        return machine.find(name) is None
    except UndecidedError:
        return False


def _last_words(machine: Platform, name: str) -> str:
    """The replica's last line, else its init's, where there is a console; the kernel's own are of no help."""
    said: dict[str, str] = {}
    with contextlib.suppress(CloisterError):
        said = {line.partition(":")[0]: line for line in machine.console(name)}
    return said.get("cloister") or said.get("init") or "no word from its init"


def _policy(
    name: str, evidence: tuple[bytes, bytes | None, Policy], measurements: dict[str, str], root: str | None
) -> tuple[str, VerifiedKey]:
    """Appraise evidence by the build's measurements alone; then pin model and configuration too."""
    data, nonce, first = evidence
    key = verify_bundle(data, first, now=datetime.now(UTC), nonce=nonce)
    statement = key.bundle.statement
    policy = draft(
        name=name,
        measurements=measurements,
        model_sha256=statement.model_sha256,
        config_sha256=statement.config_sha256,
        simulated_root_pem=root,
    )
    return policy, key


def _say(line: str, quiet: bool) -> None:
    if not quiet:
        show.stderr.print(Text(line))
