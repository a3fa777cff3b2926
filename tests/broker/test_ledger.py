"""The chain: what breaks it, what a killed writer leaves, and that several writers keep one."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import resource
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.broker import ledger
from cloister.broker.ledger import Ledger, verify
from cloister.errors import CloisterError, MalformedError, NotGenuineError, UndecidedError, UsageError


def filled(path: Path, count: int = 5) -> bytes:
    book = Ledger(path)
    for number in range(count):
        book.append({"event": "test", "number": number})
    book.close()
    return path.read_bytes()


def test_every_entry_holds_the_digest_of_the_one_before(tmp_path: Path) -> None:
    lines = filled(tmp_path / "l").splitlines()
    previous = "0" * 64
    for number, line in enumerate(lines):
        entry = json.loads(line)
        assert (entry["seq"], entry["number"], entry["previous"]) == (number, number, previous)
        previous = hashlib.sha256(line).hexdigest()
    head = verify(tmp_path / "l")
    assert (head.entries, head.digest) == (5, previous)
    assert stat.S_IMODE((tmp_path / "l").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[1:],
        lambda lines: lines[:2] + lines[3:],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [lines[0], lines[0], *lines[1:]],
        lambda lines: [lines[0].replace(b"test", b"tesT"), *lines[1:]],
        lambda lines: [lines[0].replace(b":", b": "), *lines[1:]],
        lambda lines: [*lines[:-1], lines[-1].replace(b'"seq":4', b'"seq":5')],
        lambda lines: [*lines, lines[-1]],
        lambda lines: [*lines, b"{}"],
        lambda lines: [*lines, b""],
        lambda lines: [*lines[:3], b"not json", *lines[3:]],
    ],
)
def test_a_changed_file_is_refused(tmp_path: Path, change) -> None:
    path = tmp_path / "l"
    lines = change(filled(path).splitlines())
    path.write_bytes(b"\n".join(lines) + b"\n")
    for attempt in (lambda: verify(path), lambda: Ledger(path)):
        with pytest.raises((NotGenuineError, MalformedError)):
            attempt()
    assert path.read_bytes() == b"\n".join(lines) + b"\n"


@given(at=st.integers(0), bit=st.integers(0, 7))
def test_no_changed_bit_before_the_last_line_goes_unseen(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    path = tmp_path_factory.mktemp("l") / "l"
    whole = bytearray(filled(path, 3))
    whole[at % (bytes(whole)[:-1].rindex(b"\n") + 1)] ^= 1 << bit
    path.write_bytes(whole)
    with pytest.raises((NotGenuineError, MalformedError)):
        verify(path)


def test_an_end_that_was_cut_off_is_seen_by_who_noted_a_digest(tmp_path: Path) -> None:
    path = tmp_path / "l"
    whole = filled(path)
    noted = verify(path).digest
    assert verify(path, contains=noted).entries == 5
    Path(path).write_bytes(whole[: whole[:-1].rindex(b"\n") + 1])
    assert verify(path).entries == 4
    with pytest.raises(NotGenuineError, match="no entry of that digest"):
        verify(path, contains=noted)
    with pytest.raises(UsageError):
        verify(path, contains="abc")
    with pytest.raises(UsageError):
        verify(tmp_path / "missing")


def test_what_a_killed_writer_left_is_cut_off_and_told(tmp_path: Path) -> None:
    path = tmp_path / "l"
    whole = filled(path)
    torn = b'{"seq":5,"time":"2026'
    path.write_bytes(whole + torn)
    with pytest.raises(MalformedError, match="incomplete"):
        verify(path)
    book = Ledger(path)
    book.append({"event": "start"})
    book.append({"event": "next"})
    lines = path.read_bytes().splitlines()
    assert json.loads(lines[5])["cut"] == {"bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()}
    assert "cut" not in json.loads(lines[6])
    assert verify(path).entries == 7


def test_changes_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "l"
    whole = filled(path)
    book = Ledger(path)
    path.write_bytes(whole[:-100])
    with pytest.raises(NotGenuineError):
        book.append({"event": "x"})
    path.write_bytes(whole + b"{}\n")
    with pytest.raises(NotGenuineError):
        book.append({"event": "x"})
    path.unlink()
    with pytest.raises(UndecidedError):
        book.append({"event": "x"})
    path.write_bytes(whole)
    with pytest.raises(NotGenuineError):
        book.append({"event": "x"})


def test_no_room_leaves_no_half_entry(tmp_path: Path) -> None:
    """A limit on the size of files (setrlimit(2)) stands for a full disk: a short write, then an error."""
    import signal

    path = tmp_path / "l"
    before = filled(path)
    book = Ledger(path)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
        with pytest.raises(UndecidedError, match="cannot be written"):
            book.append({"event": "x"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    book.append({"event": "x"})
    assert verify(path).entries == 6


def test_own_members_cannot_be_given_and_entries_are_bounded(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "l")
    for event in ({"seq": 1}, {"previous": ""}, {"cut": 1}, {"x": "y" * ledger.MAX_ENTRY}):
        with pytest.raises(ValueError, match="entry"):
            book.append(event)
    assert book.head.entries == 0
    (tmp_path / "long").write_bytes(b"x" * (ledger.MAX_ENTRY + 2))
    with pytest.raises(CloisterError):
        verify(tmp_path / "long")


def _write(path: Path, count: int) -> None:
    book = Ledger(path)
    for number in range(count):
        book.append({"event": "test", "pid": os.getpid(), "number": number})


def test_several_writers_keep_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "l"
    writers = [multiprocessing.get_context("spawn").Process(target=_write, args=(path, 20)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert verify(path).entries == 60
