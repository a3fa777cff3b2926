"""A platform's verbs as commands, for a supervisor that imports no platform (cloister.host.supervise).

    python -m cloister.platforms.run start qemu-nitro LAUNCH.json
    python -m cloister.platforms.run stop qemu-nitro LAUNCH.json

`start` returns when the machine runs; what an earlier one left behind is ended first.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from cloister.errors import CloisterError, UsageError
from cloister.platforms import registry
from cloister.platforms.platform import Launch


def commands(platform: str, launch: Launch, file: Path) -> tuple[list[str], list[str]]:
    """Write the launch to `file` and return the words that start and that stop it."""
    file.write_text(json.dumps({**asdict(launch), "image": str(launch.image.absolute())}))
    words = [sys.executable, "-m", "cloister.platforms.run"]
    return [*words, "start", platform, str(file)], [*words, "stop", platform, str(file)]


def read(file: Path) -> Launch:
    """The launch that `commands` wrote; raises UsageError."""
    try:
        fields = json.loads(file.read_text("utf-8"))
        return Launch(**{**fields, "image": Path(fields["image"])})
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            f"{file} is not the description of a launch", hint="`cloister up --supervise` writes it."
        ) from None


def main(arguments: list[str] | None = None) -> int:
    """Exit status as the error tree has it."""
    parser = argparse.ArgumentParser(prog="python -m cloister.platforms.run", description="Start or stop an enclave.")
    parser.add_argument("verb", choices=("start", "stop"))
    parser.add_argument("platform", choices=registry.NAMES)
    parser.add_argument("launch", type=Path)
    options = parser.parse_args(arguments)
    try:
        machine, launch = registry.get(options.platform), read(options.launch)
        machine.stop(launch.name)
        if options.verb == "start":
            machine.start(launch)
    except CloisterError as error:
        print(f"{error.message}. {error.hint}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
