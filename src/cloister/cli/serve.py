"""`cloister serve`: a replica on this machine, with a simulated TEE."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from cloister.api import tenants as api_tenants
from cloister.cli import show
from cloister.errors import UsageError
from cloister.host.relay import Address


@show.guarded
def serve(
    model: Annotated[Path | None, typer.Option(help="A GGUF file; without it, the bundled demo model.")] = None,
    model_id: Annotated[str | None, typer.Option(help="The name clients ask for.")] = None,
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0 takes a free one.")] = "127.0.0.1:8080",
    context: Annotated[int, typer.Option(help="Tokens of context for each request; 0: from the model.")] = 0,
    slots: Annotated[int, typer.Option(help="Requests that run at once.")] = 4,
    threads: Annotated[int | None, typer.Option(help="Engine threads; default: one less than there are CPUs.")] = None,
    batch: Annotated[int | None, typer.Option(help="Prompt tokens between two looks for a cancelled request.")] = None,
    queue: Annotated[int, typer.Option(help="Requests that may wait for a slot.")] = 64,
    key_life: Annotated[int, typer.Option(help="Seconds that a key serves.")] = 3600,
    key_grace: Annotated[int, typer.Option(help="Seconds that it opens requests after that.")] = 600,
    tenants: Annotated[Path | None, typer.Option(help="[[tenant]] entries: only their API keys may ask.")] = None,
    state: Annotated[Path | None, typer.Option(help="Keep the simulated root in this folder.")] = None,
    evidence: Annotated[str, typer.Option(help="What the simulated TEE gives: nitro, tdx or ita.")] = "nitro",
    trust_authority: Annotated[
        Path | None, typer.Option(help="Folder of a running SIMULATED Trust Authority, for --evidence ita.")
    ] = None,
    write_policy: Annotated[Path | None, typer.Option(help="Write a policy for exactly this replica.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One line of JSON when ready.")] = False,
) -> None:
    """Serve a model sealed, on an ordinary machine: the evidence is SIMULATED and proves nothing about it."""
    try:
        from cloister.channel.keyring import KeySchedule
        from cloister.enclave import main
        from cloister.enclave.engine.config import BUNDLED_MODEL, EngineConfig
        from cloister.platforms.local import replica

        tee = replica.simulated(evidence, state=state, trust_authority=trust_authority)
    except ImportError:
        raise UsageError("the engine is not installed", hint="pip install 'cloister[serve]'") from None

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    address = Address.parse(listen)
    if key_life < 2:
        raise UsageError("--key-life must be at least 2 seconds", hint="An hour is the default.")
    allowed = _tenants(tenants) if tenants is not None else ()
    config = main.ReplicaConfig(
        engine=EngineConfig(
            model=model or BUNDLED_MODEL, model_id=model_id, context=context, slots=slots, threads=threads, batch=batch,
            queue=queue,
        ),
        schedule=KeySchedule(serve=key_life, grace=key_grace, early=max(1, min(300, key_life // 4))),
        tenants=allowed,
        host=address.host,
        port=address.port,
    )  # fmt: skip
    show.simulated_banner()

    def on_ready(ready: main.Ready) -> None:
        if write_policy is not None:
            write_policy.write_text(tee.draft(ready.info.model_sha256, ready.config_sha256))
        info = ready.info
        if json:
            show.print_json(
                {
                    "schema": "cloister-serve/1",
                    "url": ready.url,
                    "model": info.model_id,
                    "model_sha256": info.model_sha256,
                    "config_sha256": ready.config_sha256,
                    "simulated": True,
                    "engine_pid": ready.engine_pid,
                }
            )
        else:
            print(ready.url, flush=True)
            show.stderr.print(
                Text(f"serving {info.model_id} ({info.parameters / 1e6:.1f} M parameters, context {info.context})")
            )

    def on_progress(progress: object) -> None:
        if not json:
            stage, done = getattr(progress, "stage", ""), getattr(progress, "done", None)
            if done is None or done >= 1:
                show.stderr.print(Text(f"{stage} done" if done else f"{stage} …", style="dim"))

    asyncio.run(main.run(config, tee.attester, on_progress=on_progress, on_ready=on_ready))


def _tenants(path: Path) -> tuple[api_tenants.Tenant, ...]:
    try:
        return api_tenants.from_toml(path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", hint="cloister tenant new ID makes entries."
        ) from None
