"""`python -m cloister.enclave`: what an image runs. Its words go to the console, which only debug enclaves have."""

from __future__ import annotations

import sys

from cloister.enclave import boot, net
from cloister.enclave.telemetry import Telemetry
from cloister.errors import CloisterError


def say(line: str) -> None:
    """One line on the console: fixed words and public names, never content."""
    print(f"cloister: {line}", file=sys.stderr, flush=True)  # noqa: T201 - the console is all there is


def main() -> int:
    """Exit status as the error tree has it."""
    telemetry = Telemetry(net.vsock)
    try:
        boot.start(boot.read(boot.CONFIG.read_bytes()), say, telemetry)
    except CloisterError as error:
        telemetry.failed(error)
        say(f"{error.message}. {error.hint}")
        return error.exit_code
    except OSError as error:
        say(f"cannot read the image's configuration: {error.strerror}")
        return 2
    finally:
        telemetry.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
