"""Runs nitro-cli and reads what it prints. nitro-cli itself has never run here: shapes and codes are from its source.

Standard output is JSON, standard error words and `[ Exx ]`; exit status is the code's number. Its output is a foreign
program's: bounded, strict in what is used. Members that are not used are ignored, because versions differ in them, and
nothing here decides what an enclave is: evidence does.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cloister.errors import MalformedError, UndecidedError, UsageError
from cloister.platforms.aws_nitro.errors import explain
from cloister.platforms.platform import Launch, Running
from cloister.wire import strict_json

PROGRAM = "nitro-cli"
MAX_OUTPUT = 1024 * 1024
#: More than any parent may run.
MAX_ENCLAVES = 64
SECONDS = 30.0
#: Each part of the time that nitro-cli itself waits for an enclave's first sign: 90 s for every 6 GiB of image and
#: 90 s for every 100 GiB of memory (src/enclave_proc/resource_manager.rs).
BOOT_SECONDS, BOOT_IMAGE, BOOT_MEMORY_MIB = 90.0, 6 * 1024**3, 100 * 1024
#: A console is a stream that does not end; this is how long one look lasts.
CONSOLE_SECONDS = 2
STATES = frozenset({"RUNNING", "TERMINATING", "EMPTY"})
DEBUG = "DEBUG_MODE"

_ID = re.compile(r"i-[0-9a-f]{8,32}-enc[0-9a-f]{1,32}\Z", re.ASCII)
_REGISTER = re.compile(r"PCR\d{1,2}\Z", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{96}\Z", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Described:
    """One entry of `describe-enclaves`."""

    running: Running
    cpu_ids: tuple[int, ...]
    debug: bool


def parse_describe(data: bytes) -> tuple[Described, ...]:
    """What `nitro-cli describe-enclaves` printed; raises MalformedError."""
    entries = strict_json.loads_array(data, "describe-enclaves", limit=MAX_OUTPUT)
    if len(entries) > MAX_ENCLAVES:
        raise MalformedError(f"describe-enclaves: {len(entries)} enclaves, the limit is {MAX_ENCLAVES}")
    found = [entry for entry in entries if isinstance(entry, dict)]
    if len(found) != len(entries):
        raise MalformedError("describe-enclaves: not an array of objects")
    return tuple(_described(strict_json.Fields(entry, "describe-enclaves")) for entry in found)


def parse_run(data: bytes) -> Running:
    """What `nitro-cli run-enclave` printed when the enclave was up; raises MalformedError."""
    return _running(strict_json.Fields(strict_json.loads(data, "run-enclave", limit=MAX_OUTPUT), "run-enclave"))[0]


def parse_terminate(data: bytes) -> bool:
    """Did `nitro-cli terminate-enclave` end it? Raises MalformedError."""
    members = strict_json.loads(data, "terminate-enclave", limit=MAX_OUTPUT)
    ended = members.get("Terminated")
    if not isinstance(ended, bool):
        raise MalformedError("terminate-enclave: Terminated must be true or false")
    return ended


def _described(fields: strict_json.Fields) -> Described:
    running, cpu_ids = _running(fields, described=True)
    return Described(running=running, cpu_ids=cpu_ids, debug=DEBUG in fields.text("Flags", limit=64))


def _running(fields: strict_json.Fields, *, described: bool = False) -> tuple[Running, tuple[int, ...]]:
    identifier = fields.text("EnclaveID", limit=80)
    # It goes back onto a command line.
    if not _ID.match(identifier):
        raise MalformedError("nitro-cli: EnclaveID is not an enclave's identifier")
    name = fields.text("EnclaveName", limit=256)
    if not name.isprintable():
        raise MalformedError("nitro-cli: EnclaveName is not printable")
    state = fields.text("State", limit=32) if described else "RUNNING"
    if state not in STATES:
        raise MalformedError("nitro-cli: State is not one of its words")
    cpu_ids = fields.array("CPUIDs", limit=4096)
    if not all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in cpu_ids):
        raise MalformedError("nitro-cli: CPUIDs must be numbers")
    running = Running(
        name=name,
        id=identifier,
        state=state,
        cid=fields.integer("EnclaveCID", maximum=2**32 - 1),
        cpus=fields.integer("NumberOfCPUs", maximum=4096),
        memory_mib=fields.integer("MemoryMiB"),
        measurements=_measurements(fields) if fields.has("Measurements") else {},
    )
    return running, tuple(each for each in cpu_ids if isinstance(each, int))


def _measurements(fields: strict_json.Fields) -> dict[str, str]:
    member = fields.member("Measurements")
    values = {name: member.text(name, limit=96) for name in member.names() if _REGISTER.match(name)}
    if not all(_DIGEST.match(value) for value in values.values()):
        raise MalformedError("nitro-cli: a measurement is not 96 hex digits")
    return values


class NitroCli:
    """The program on PATH; blocking. What it writes to standard error is kept in `log`."""

    def __init__(self, log: Path | None = None) -> None:
        self._log = log

    @staticmethod
    def present() -> bool:
        """Is it installed?"""
        return shutil.which(PROGRAM) is not None

    def run(self, launch: Launch, cid: int) -> Running:
        """Start an enclave and wait until its init reported; raises UsageError, UndecidedError, MalformedError."""
        words = [
            "run-enclave",
            *("--eif-path", str(launch.image)),
            *("--memory", str(launch.memory_mib)),
            *("--cpu-count", str(launch.cpus)),
            *("--enclave-cid", str(cid)),
            *("--enclave-name", launch.name),
            *(["--debug-mode"] if launch.debug else []),
        ]
        return parse_run(self._call(words, seconds=SECONDS + boot_seconds(launch)))

    def describe(self) -> tuple[Described, ...]:
        """Every enclave of this instance that this user may see."""
        return parse_describe(self._call(["describe-enclaves"]))

    def console(self, identifier: str) -> str:
        """The console of an enclave in debug mode, as far as it comes in `CONSOLE_SECONDS`."""
        words = ["console", "--enclave-id", identifier, "--disconnect-timeout", str(CONSOLE_SECONDS)]
        return self._call(words, cut=True).decode("utf-8", "replace")

    def terminate(self, identifier: str) -> None:
        """End an enclave; raises UndecidedError when nitro-cli says that it did not."""
        if not parse_terminate(self._call(["terminate-enclave", "--enclave-id", identifier])):
            raise UndecidedError("nitro-cli did not end the enclave", hint="nitro-cli describe-enclaves shows it.")

    def _call(self, words: Sequence[str], *, seconds: float = SECONDS, cut: bool = False) -> bytes:
        # Files and not pipes: an enclave's process inherits them and outlives the command.
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            try:
                status = subprocess.run(  # noqa: S603 - words are ours, identifiers were checked
                    [PROGRAM, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=errors,
                    timeout=seconds,
                    check=False,
                ).returncode
            except OSError as error:
                raise UsageError(f"cannot run {PROGRAM}: {error.strerror}", hint=INSTALL) from None
            except subprocess.TimeoutExpired:
                raise UndecidedError(
                    f"nitro-cli {words[0]} did not end in {seconds:.0f} s", hint="nitro-cli describe-enclaves"
                ) from None
            output.seek(0)
            errors.seek(0)
            data, said = output.read(MAX_OUTPUT + (0 if cut else 1)), errors.read(MAX_OUTPUT)
        if self._log is not None and said:
            with self._log.open("ab") as log:
                log.write(said)
        if status != 0:
            raise explain(said, status, self._log)
        return data


INSTALL = "On Amazon Linux 2023: dnf install aws-nitro-enclaves-cli; then add the user to the group ne."


def boot_seconds(launch: Launch) -> float:
    """How long nitro-cli waits for an enclave's first sign of life at most."""
    parts = -(-launch.image.stat().st_size // BOOT_IMAGE) + -(-launch.memory_mib // BOOT_MEMORY_MIB)
    return BOOT_SECONDS * parts
