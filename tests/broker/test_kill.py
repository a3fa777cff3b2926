"""kill -9 between any two steps of a release: a key that left has an entry, and the broker starts again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import threading
import time
from pathlib import Path

import pytest
from tests.broker import lab as labs
from tests.broker.lab import Lab

from cloister.broker import store
from cloister.broker.ledger import verify
from cloister.errors import CloisterError, UndecidedError

#: The broker itself, which kills itself at one step of its first release.
PROGRAM = """
import os, signal, sys
from cloister.broker import ledger, service
from cloister.cli.main import app

STEP = {step!r}
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
append, write = ledger.Ledger.append, os.write

def half(file, data):
    write(file, data[: len(data) // 2])
    die()

def watched(self, event):
    if event["event"] != "release":
        return append(self, event)
    if STEP == "before the entry":
        die()
    if STEP == "in the entry":
        ledger.os.write = half
    if STEP == "before it is on the disk":
        ledger.os.fsync = die
    digest = append(self, event)
    if STEP == "after the entry":
        die()
    return digest

ledger.Ledger.append = watched
if STEP == "before the key is opened":
    service.KeyStore.get = die
app(["broker", "serve", *sys.argv[1:]])
"""


@pytest.mark.parametrize(
    ("step", "entries"),
    [
        ("before the key is opened", 0),
        ("before the entry", 0),
        ("in the entry", 0),
        ("before it is on the disk", 1),
        ("after the entry", 1),
    ],
)
def test_killed_at_a_step_nothing_left_without_an_entry(tmp_path: Path, step: str, entries: int) -> None:
    with labs.run(tmp_path, program=("-c", PROGRAM.format(step=step))) as lab:
        with pytest.raises(UndecidedError):
            lab.release().release(lab.wrapped)
        assert lab.process.wait(20) == -signal.SIGKILL
    with restarted(lab) as again:
        assert released(again) == entries
        assert again.release().release(again.wrapped) == lab.key
        assert released(again) == entries + 1
        cut = [entry for entry in again.ledger if "cut" in entry]
        assert len(cut) == (step == "in the entry")
    verify(tmp_path / "broker" / store.LEDGER)


def test_killed_at_any_moment_the_ledger_tells_of_every_key_that_left(tmp_path: Path) -> None:
    with labs.run(tmp_path) as lab:
        pass
    left = 0
    for delay in (0.02, 0.05, 0.09, 0.14):
        with restarted(lab) as running:
            stop, got = threading.Event(), [0, 0, 0]

            def ask(index: int, running: Lab = running, stop: threading.Event = stop, got: list[int] = got) -> None:
                while not stop.is_set():
                    with contextlib.suppress(CloisterError, OSError):
                        assert running.release().release(running.wrapped) == lab.key
                        got[index] += 1

            askers = [threading.Thread(target=ask, args=(index,)) for index in range(3)]
            for asker in askers:
                asker.start()
            # From the first release on, at some moment of those that follow.
            while not any(got):
                time.sleep(0.002)
            time.sleep(delay)
            running.process.kill()
            running.process.wait()
            stop.set()
            for asker in askers:
                asker.join(60)
            left += sum(got)
        with restarted(lab) as running:
            assert left <= released(running) <= left + 3 * 4
    verify(tmp_path / "broker" / store.LEDGER)


def released(lab: Lab) -> int:
    return sum(entry.get("outcome") == "released" for entry in lab.ledger)


@contextlib.contextmanager
def restarted(lab: Lab):
    process, line = labs.start(lab.folder)
    try:
        assert line, lab.log.read_text()
        yield dataclasses.replace(lab, process=process, url=json.loads(line)["url"])
    finally:
        labs.stop(process)
