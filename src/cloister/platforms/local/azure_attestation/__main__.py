"""`python -m cloister.platforms.local.azure_attestation`: run the SIMULATED Azure Attestation for TDX quotes.

`--state` is a folder as the SIMULATED Trust Authority has one: `intel-root.pem` and `pcs/` (trust_authority/files.py).
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from cloister.errors import CloisterError
from cloister.platforms.local import serving
from cloister.platforms.local.azure_attestation.app import application
from cloister.platforms.local.azure_attestation.service import Service
from cloister.platforms.local.trust_authority import files
from cloister.tee.sim import tdx
from cloister.trust.anchors import Anchor


def main() -> int:
    """Serve until a signal ends it."""
    parser = argparse.ArgumentParser(prog="python -m cloister.platforms.local.azure_attestation", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="folder for TLS, the root of quotes, and collateral")
    parser.add_argument("--listen", default="127.0.0.1:0", help="HOST:PORT")
    parser.add_argument("--compliant", action="append", default=[], help="an MRTD (hex) that passes for Azure's")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    state: Path = options.state
    (state / files.PCS).mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        anchor = Anchor.simulated(tdx.load_or_create_root(state / files.INTEL_ROOT).pem)
        listener, url = serving.listen(options.listen)
    except CloisterError as error:
        parser.error(error.message)
    service = Service(state / files.PCS, url=url, tdx=(anchor,), compliant=options.compliant)
    ready = {"simulated": "SIMULATED, NOT AZURE ATTESTATION: its word proves nothing", "url": url}
    serving.run(application(service), listener, state, ready)
    return 0


if __name__ == "__main__":
    sys.exit(main())
