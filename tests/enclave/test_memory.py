"""The memory that starting takes, as the machine counts it."""

from __future__ import annotations

import mmap
import os

from cloister.enclave.memory import Watch

SIZE = 400 * 1024 * 1024


def test_anonymous_memory_and_memory_files_count_once_and_stay_counted() -> None:
    """The numbers are the whole machine's, so other processes disturb them: the bounds are wide."""
    watch = Watch()
    descriptor = os.memfd_create("weights")
    os.ftruncate(descriptor, SIZE)
    with mmap.mmap(descriptor, SIZE) as room:
        for at in range(0, SIZE, mmap.PAGESIZE):
            room[at] = 1
    # Freed again before the end: a peak is a peak.
    os.close(descriptor)
    peak = watch.end()
    assert 0.7 * SIZE < peak < 1.9 * SIZE
    assert watch.end() == peak
