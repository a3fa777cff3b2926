"""Sealed weights from the parent's store into memory that llama.cpp maps: decrypted as they come, never on a disk.

The store is untrusted: what it sends opens under the released key at exactly one place, or the replica does not start.
A cut stream goes on from the last whole segment.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import mmap
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cloister.enclave.net import Dial
from cloister.errors import RefusedError, UndecidedError
from cloister.weights import manifest
from cloister.weights.keys import KeyRelease
from cloister.weights.stream import HEADER, SEGMENT, Layout, Opener
from cloister.wire.ports import STORE

#: Attempts in a row that brought no whole segment.
ATTEMPTS = 5
BACKOFF_SECONDS = 0.5
#: The head is asked for in one go; it is shorter.
HEAD_BYTES = manifest.HEAD.size + manifest.MAX_ENVELOPE

_CONTENT_RANGE = re.compile(r"bytes (\d{1,15})-\d{1,15}/(\d{1,15})")


@dataclass(kw_only=True)
class Transfer:
    """How the segments came: over how many connections, in how many seconds, how many of them waiting for bytes."""

    connections: int = 0
    seconds: float = 0.0
    waited: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Opened:
    """Weights in a sealed memory file (memfd_create(2)): nobody can write to it any more, this process included."""

    descriptor: int
    manifest: manifest.Manifest
    transfer: Transfer

    @property
    def path(self) -> str:
        """What this process can open it by."""
        return f"/proc/self/fd/{self.descriptor}"


def fetch(
    dial: Dial,
    name: str,
    *,
    model: str,
    owner: Ed25519PublicKey,
    minimum_version: int,
    release: KeyRelease,
    progress: Callable[[float], None] = lambda _done: None,
) -> Opened:
    """Fetch and open `name`; raises Refused-, NotGenuine-, Malformed-, ReleaseDenied- or UndecidedError."""
    head = manifest.read(_whole(dial, name, 0, HEAD_BYTES), owner)
    described = head.manifest
    manifest.check(described, model=model, minimum_version=minimum_version)
    # Before the key is asked for: a file with another length cannot open.
    total = head.stream_at + Layout(described.size).ciphertext
    stream_header = _whole(dial, name, head.stream_at, HEADER, total=total)
    opener = Opener(release.release(described.key), stream_header, head.associated, described.size)
    transfer = Transfer()
    descriptor = os.memfd_create("weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, described.size)
        with (
            mmap.mmap(descriptor, described.size) as room,
            # Closed here: an exception's traceback would keep the generator, and its connection, alive.
            contextlib.closing(_segments(dial, name, head.stream_at, opener, transfer)) as segments,
        ):
            digest = _fill(segments, opener, room, transfer, progress)
        if digest != described.sha256:
            raise RefusedError("the weights have another digest than their owner signed", hint="Seal the model again.")
        fcntl.fcntl(
            descriptor,
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL,
        )
    except BaseException:
        os.close(descriptor)
        raise
    return Opened(descriptor=descriptor, manifest=described, transfer=transfer)


def _fill(
    segments: Iterator[memoryview],
    opener: Opener,
    room: mmap.mmap,
    transfer: Transfer,
    progress: Callable[[float], None],
) -> str:
    """Decrypt every segment into place while a second thread hashes those before; hex SHA-256 of the plaintext."""
    layout, view, began = opener.layout, memoryview(room), time.monotonic()
    digest = hashlib.sha256()
    done: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def hash_behind() -> None:
        while (index := done.get()) is not None:
            start, end = layout.plain(index)
            digest.update(view[start:end])

    hasher = threading.Thread(target=hash_behind, name="weights-digest")
    hasher.start()
    try:
        for index, segment in enumerate(segments):
            start, end = layout.plain(index)
            with view[start:end] as target:
                opener.open_into(index, segment, target)
            done.put(index)
            progress((index + 1) / layout.segments)
    finally:
        done.put(None)
        hasher.join()
        view.release()
    transfer.seconds = time.monotonic() - began
    return digest.hexdigest()


def _segments(
    dial: Dial, name: str, stream_at: int, opener: Opener, transfer: Transfer
) -> Generator[memoryview, None, None]:
    """Every segment's ciphertext in order, over as many connections as it takes; each view is good until the next."""
    layout, buffer = opener.layout, memoryview(bytearray(SEGMENT))
    index = failures = 0
    while index < layout.segments:
        before = index
        first = stream_at + layout.sealed(index)[0]
        with (
            contextlib.suppress(OSError, http.client.HTTPException, UndecidedError),
            _get(dial, name, first, stream_at + layout.ciphertext) as answer,
        ):
            transfer.connections += 1
            while index < layout.segments:
                start, end = layout.sealed(index)
                piece = buffer[: end - start]
                waiting = time.monotonic()
                if not _read_all(answer, piece):
                    break
                transfer.waited += time.monotonic() - waiting
                yield piece
                index += 1
        failures = 0 if index > before else failures + 1
        if failures >= ATTEMPTS:
            raise UndecidedError(
                f"the model store stopped after {index} of {layout.segments} segments",
                hint="Look at the host agent's log.",
            )
        if index < layout.segments:
            time.sleep(BACKOFF_SECONDS * failures)


def _read_all(answer: http.client.HTTPResponse, target: memoryview) -> bool:
    at = 0
    while at < len(target):
        size = answer.readinto(target[at:])
        if not size:
            return False
        at += size
    return True


def _whole(dial: Dial, name: str, start: int, size: int, *, total: int | None = None) -> bytes:
    """`size` bytes from `start` of a file of `total` bytes, fewer only where that is unknown; raises UndecidedError.

    A file of another length raises RefusedError.
    """
    reason = "it was cut"
    for attempt in range(ATTEMPTS):
        try:
            with _get(dial, name, start, start + size, total=total) as answer:
                data = answer.read(size)
                # A length is left over where the answer was cut, or is longer than what was asked for.
                if not answer.length and (len(data) == size or total is None):
                    return data
                reason = "its answer has another length than was asked for"
        except UndecidedError as error:
            reason = error.message
        except (OSError, http.client.HTTPException) as error:
            reason = type(error).__name__
        time.sleep(BACKOFF_SECONDS * attempt)
    raise UndecidedError(
        f"the model store does not give {name}: {reason}", hint="Is the sealed file in the store's folder?"
    )


@contextlib.contextmanager
def _get(
    dial: Dial, name: str, start: int, end: int, *, total: int | None = None
) -> Iterator[http.client.HTTPResponse]:
    """The answer to a range request, on a connection of its own; RefusedError if the file is not `total` bytes long."""
    connection = http.client.HTTPConnection("parent")
    connection.sock = dial(STORE)
    with contextlib.closing(connection):
        connection.request("GET", f"/models/{name}", headers={"Range": f"bytes={start}-{end - 1}"})
        # Closed by itself: a connection forgets the answer of a server that says it will close.
        with connection.getresponse() as answer:
            span = _CONTENT_RANGE.fullmatch(answer.getheader("Content-Range", ""))
            if answer.status != 206 or span is None or int(span[1]) != start:
                raise UndecidedError(f"the model store answered {answer.status}, not the range that was asked for")
            if total is not None and int(span[2]) != total:
                raise RefusedError(
                    f"the sealed file has {span[2]} bytes, by its manifest it has {total}",
                    hint="It was cut, or something was appended: copy it into the store again.",
                )
            yield answer
