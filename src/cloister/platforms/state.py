"""What `cloister up` leaves behind: a folder for each enclave with its processes' numbers, logs and configuration."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cloister.errors import UndecidedError, UsageError

STOP_SECONDS = 8.0


def folder(name: str) -> Path:
    """`$XDG_STATE_HOME/cloister/NAME`, for one enclave."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "cloister" / name


class Processes:
    """Processes that outlive the command that started them, by name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(
        self,
        name: str,
        words: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        ready: float | None = None,
    ) -> str:
        """Start one in a session of its own; its output goes to NAME.log.

        With `ready`, waits that many seconds for the first line of its standard output and returns it.
        Raises UsageError when it cannot start, UndecidedError when it ends or stays silent.
        """
        log = self._folder / f"{name}.log"
        out = self._folder / f"{name}.out"
        with log.open("ab") as errors, out.open("wb") as output:
            try:
                process = subprocess.Popen(  # noqa: S603 - our own programs
                    list(words),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=errors,
                    start_new_session=True,
                    env=dict(environment) if environment is not None else None,
                )
            except OSError as error:
                raise UsageError(f"cannot start {name}: {error.strerror}") from None
        (self._folder / f"{name}.pid").write_text(f"{process.pid} {_started(process.pid)}")
        limit = time.monotonic() + (ready or 0)
        while ready is not None:
            if line := out.read_text("utf-8", "replace").partition("\n")[0]:
                # Someone else's child from now on.
                process.returncode = 0
                return line
            if process.poll() is not None or time.monotonic() > limit:
                raise UndecidedError(f"{name} did not start", hint=f"See {log}.")
            time.sleep(0.02)
        process.returncode = 0
        return ""

    def alive(self, name: str) -> bool:
        """Is the process that was started under that name still there?"""
        return self._pid(name) is not None

    def stop(self, *names: str) -> None:
        """End them in order; no error when they are gone."""
        for name in names:
            pid = self._pid(name)
            if pid is not None:
                for number in (signal.SIGTERM, signal.SIGKILL):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
                    limit = time.monotonic() + STOP_SECONDS
                    while self._pid(name) is not None and time.monotonic() < limit:
                        time.sleep(0.02)
                    if self._pid(name) is None:
                        break
            (self._folder / f"{name}.pid").unlink(missing_ok=True)

    def _pid(self, name: str) -> int | None:
        try:
            number, started = (self._folder / f"{name}.pid").read_text().split()
        except (OSError, ValueError):
            return None
        # The start time tells it from another process that got the same number.
        return int(number) if _started(int(number)) == started else None


def _started(pid: int) -> str:
    """When a process started, in ticks since boot; empty when it is gone or only waits for its parent (proc(5))."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
