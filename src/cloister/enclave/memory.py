"""How much memory starting takes, as the kernel counts it: the number that an enclave's size has to cover."""

from __future__ import annotations

import threading
from pathlib import Path

SAMPLE_SECONDS = 0.1
_MEMINFO, _STATUS = Path("/proc/meminfo"), Path("/proc/self/status")


class Watch:
    """From its making to `end`: by how much available memory fell at most, plus what this process had before.

    In an enclave nothing else runs, so this counts the replica and its engine, memory files, page tables and socket
    buffers, each once; not the image's own files.
    """

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._before = _kib(_MEMINFO, "MemAvailable:") + _kib(_STATUS, "RssAnon:")
        self._peak = 0
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)
        self._thread.start()

    def end(self) -> int:
        """Stop looking; the peak in bytes."""
        self._ended.set()
        self._thread.join()
        return self._peak

    def _run(self) -> None:
        over = False
        while not over:
            over = self._ended.wait(SAMPLE_SECONDS)
            self._peak = max(self._peak, 1024 * (self._before - _kib(_MEMINFO, "MemAvailable:")))


def _kib(path: Path, name: str) -> int:
    """One line of a table under /proc (proc(5)), in KiB."""
    return next(int(line.split()[1]) for line in path.read_text("ascii").splitlines() if line.startswith(name))
