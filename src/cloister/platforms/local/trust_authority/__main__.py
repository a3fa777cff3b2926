"""`python -m cloister.platforms.local.trust_authority`: run the SIMULATED Trust Authority.

In its folder it leaves what replicas and clients need (files.py). Once it listens it prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import secrets
import sys
from pathlib import Path

from cloister.errors import CloisterError
from cloister.platforms.local import serving
from cloister.platforms.local.trust_authority import files
from cloister.platforms.local.trust_authority.app import application
from cloister.platforms.local.trust_authority.service import AppraisalPolicy, Service
from cloister.tee.sim import tdx
from cloister.trust.anchors import Anchor


def main() -> int:
    """Serve until a signal ends it."""
    parser = argparse.ArgumentParser(prog="python -m cloister.platforms.local.trust_authority", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="folder for keys, roots and TLS (mode 0700)")
    parser.add_argument("--listen", default="127.0.0.1:0", help="HOST:PORT")
    parser.add_argument("--policies", type=Path, help='JSON list of {"id": UUID, "registers": {"mrtd": hex, ...}}')
    parser.add_argument("--quota", type=int, default=600, help="requests in a minute")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    state: Path = options.state
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    (state / files.PCS).mkdir(mode=0o700, exist_ok=True)
    try:
        policies = _policies(options.policies)
        anchor = Anchor.simulated(tdx.load_or_create_root(state / files.INTEL_ROOT).pem)
        listener, url = serving.listen(options.listen)
    except CloisterError as error:
        parser.error(error.message)
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"a file given is missing or not what it should be ({type(error).__name__})")
    service = Service(
        anchor, state / files.PCS, api_key=_api_key(state), url=url, policies=policies, quota=options.quota
    )
    (state / files.ROOT).write_text(service.root.pem, "ascii")
    ready = {"simulated": "SIMULATED, NOT INTEL TRUST AUTHORITY: its word proves nothing", "url": url}
    (state / files.READY).write_text(json.dumps(ready), "ascii")
    serving.run(application(service), listener, state, ready)
    return 0


def _policies(path: Path | None) -> list[AppraisalPolicy]:
    entries = json.loads(path.read_text("ascii")) if path is not None else []
    return [AppraisalPolicy(id=entry["id"], registers=dict(entry["registers"])) for entry in entries]


def _api_key(state: Path) -> str:
    """The key kept in the folder, made there when it is missing."""
    path = state / files.API_KEY
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(32))
    return path.read_text("ascii").strip()


if __name__ == "__main__":
    sys.exit(main())
