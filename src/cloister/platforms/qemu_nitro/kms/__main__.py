"""`python -m cloister.platforms.qemu_nitro.kms`: run the SIMULATED KMS for a lab.

Prints one JSON line once it listens: address, region, account and where the lab CA is.
"""

from __future__ import annotations

import argparse
import json
import logging
import socket
import sys
from datetime import datetime
from pathlib import Path

import uvicorn

from cloister.errors import CloisterError
from cloister.platforms import lab_tls as tls
from cloister.platforms.qemu_nitro.kms.app import application
from cloister.platforms.qemu_nitro.kms.service import Service
from cloister.platforms.qemu_nitro.kms.signature import Identity
from cloister.platforms.qemu_nitro.kms.store import Store
from cloister.trust.anchors import Anchor


def main() -> int:
    """Serve until a signal ends it."""
    parser = argparse.ArgumentParser(prog="python -m cloister.platforms.qemu_nitro.kms", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="folder for keys, identities and TLS (mode 0700)")
    parser.add_argument(
        "--root", type=Path, required=True, help="the SIMULATED root that documents must chain to (PEM)"
    )
    parser.add_argument(
        "--identities",
        type=Path,
        help="who may sign: JSON list of {AccessKeyId, SecretAccessKey, Token, Expiration, Arn, Actions}, last four of "
        "them the caller's session token, its end, role ARN, and what its own IAM policy allows",
    )
    parser.add_argument("--listen", default="127.0.0.1:0", help="HOST:PORT")
    parser.add_argument("--region", default="us-east-1")
    parser.add_argument("--account", default="111122223333")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    host, _, port = options.listen.rpartition(":")
    try:
        store = Store(options.state)
        for entry in json.loads(options.identities.read_text("ascii")) if options.identities else ():
            store.add_identity(entry["AccessKeyId"], _identity(entry))
        anchor = Anchor.simulated(options.root.read_text("ascii"))
    except CloisterError as error:
        parser.error(error.message)
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"a file given is missing or not what it should be ({type(error).__name__})")
    names = ("localhost", "127.0.0.1", f"kms.{options.region}.amazonaws.com")
    # Images measure the authority: it has to outlive a restart.
    if not (options.state / tls.SERVER).exists():
        tls.make(options.state, names)
    service = Service(store, anchor, region=options.region, account=options.account)
    listener = socket.create_server((host, int(port)))
    config = uvicorn.Config(
        application(service),
        ssl_certfile=options.state / tls.SERVER,
        ssl_keyfile=options.state / tls.KEY,
        log_level="warning",
        access_log=False,
        server_header=False,
    )
    address = listener.getsockname()
    ready = {
        "simulated": "SIMULATED, NOT AWS KMS: this protects nothing",
        "url": f"https://localhost:{address[1]}",
        "region": options.region,
        "account": options.account,
        "ca": str(options.state / tls.AUTHORITY),
    }
    # The backlog already holds whoever connects before the loop runs.
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()
    uvicorn.Server(config).run(sockets=[listener])
    return 0


def _identity(entry: dict[str, str | list[str] | None]) -> Identity:
    token, expiration, actions = entry.get("Token"), entry.get("Expiration"), entry.get("Actions") or ()
    return Identity(
        arn=str(entry["Arn"]),
        secret=str(entry["SecretAccessKey"]),
        token=None if token is None else str(token),
        expires_at=None if expiration is None else datetime.fromisoformat(str(expiration)),
        actions=tuple(actions),
    )


if __name__ == "__main__":
    sys.exit(main())
