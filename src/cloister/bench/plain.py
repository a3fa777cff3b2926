"""llama.cpp's own HTTP server on loopback, with a replica's engine settings: the baseline of the sealed path.

    python -m cloister.bench.plain CONFIG MODEL PORT

CONFIG is JSON: model_id, context, slots, threads, batch.
"""

from __future__ import annotations

import json
import signal
import sys

import xllamacpp

from cloister.enclave.engine.params import llama_params


def main() -> None:
    """Serve in clear until a signal comes. Never part of a replica."""
    config, model, port = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    params = llama_params(config, model)
    params.hostnames = ["127.0.0.1"]
    params.port = port
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)  # noqa: T201 - whoever started us waits for this line
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
