"""`make bench`: print what was measured on this machine, in this run."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cloister.bench import sealed, verification


def main() -> None:
    """Run everything and print tables, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m cloister.bench")
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each stream")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    document_ms = verification.document()
    with sealed.servers(options.model, options.threads) as (_, transport, _process):
        connect_ms = verification.cold_connect(str(transport.address), transport.session.policy)
    *rows, memory = asyncio.run(
        sealed.compare(options.model, options.threads, rounds=options.rounds, tokens=options.tokens)
    )
    result: dict[str, object] = {
        "schema": "cloister-bench/1",
        "document_ms": document_ms,
        "cold_connect_ms": connect_ms,
    }
    result |= {**memory, "streams": rows}
    if options.json:
        print(json.dumps(result))  # noqa: T201 - this is the output
        return
    console = Console()
    table = Table(title=f"{options.model.name}, {options.threads} thread(s), {options.rounds} rounds in turn, medians")
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.3f}" if name == "ratio" else f"{value:.1f}" for name, value in row.items()))
    console.print(table)
    console.print(f"verify one document {document_ms:.2f} ms, cold connect {connect_ms:.1f} ms")
    console.print(f"gateway process {memory['gateway_rss_mb']:.0f} MB")


if __name__ == "__main__":
    main()
