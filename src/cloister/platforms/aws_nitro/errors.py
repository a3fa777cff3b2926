"""What nitro-cli's error codes mean for whoever started an enclave, and what to do.

Source: aws-nitro-enclaves-cli, src/common/document_errors.rs (codes) and src/enclave_proc/ (when they arise); the
process's exit status is the code's number. Codes that need no advice of their own fall back to the class of their
number. The program's own text is not repeated: it goes into a log beside the enclave's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cloister.errors import CloisterError, UndecidedError, UsageError

_CODE = re.compile(rb"\[ (E\d\d) \]")
RESTART = "/etc/nitro_enclaves/allocator.yaml and restart nitro-enclaves-allocator.service"


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """One code; `ours` where the launch itself has to change, not the machine's state."""

    says: str
    hint: str
    ours: bool = False


CODES: Mapping[str, Meaning] = {
    "E07": Meaning(
        says="the folder of enclave sockets cannot be read",
        hint="/run/nitro_enclaves must exist and be open to the group ne: systemctl restart nitro-enclaves-allocator.",
    ),
    "E11": Meaning(
        says="nitro-cli lost its connection to the enclave's process",
        hint="The enclave is gone, or its image's signing certificate has expired (PCR8).",
    ),
    "E19": Meaning(
        says="a file could not be opened: the image, the device /dev/nitro_enclaves or the CPU pool",
        hint="Is the user in the group ne, and is the instance launched with enclaves enabled?",
    ),
    "E21": Meaning(says="a CPU is not in the enclaves' pool", hint=f"Add it to cpu_pool in {RESTART}.", ours=True),
    "E22": Meaning(
        says="there are not enough CPUs in the enclaves' pool", hint=f"Raise cpu_count in {RESTART}.", ours=True
    ),
    "E26": Meaning(
        says="the memory is less than four times the image", hint="Raise memory_mib in cloister.toml.", ours=True
    ),
    "E27": Meaning(says="there is not enough huge page memory", hint=f"Raise memory_mib in {RESTART}.", ours=True),
    "E29": Meaning(
        says="the Nitro Enclaves driver refused a request",
        hint="Most often: the cid is taken or reserved, CPUs are not whole cores, memory and CPUs lie on two NUMA nodes"
        ", or four enclaves run already. BACKTRACE=1 makes nitro-cli say which.",
    ),
    "E35": Meaning(says="the image file cannot be read to its end", hint="Build it again.", ours=True),
    "E36": Meaning(
        says="the enclave started and did not report that it is up",
        hint="An expired signing certificate, an image for another architecture, too little memory, or a kernel that"
        " this hypervisor cannot boot. cloister up --debug shows its console.",
    ),
    "E39": Meaning(
        says="an enclave's process does not answer",
        hint="It may be starting or ending; an expired signing certificate (PCR8) looks the same.",
    ),
    "E44": Meaning(
        says="the console cannot be reached",
        hint="Nitro shows a console only in debug mode, and to one reader at a time.",
        ours=True,
    ),
    "E51": Meaning(says="nitro-cli has no folder for its files", hint="Set HOME or NITRO_CLI_ARTIFACTS."),
    "E58": Meaning(says="no enclave has that name, or more than one", hint="cloister status lists them.", ours=True),
    "E59": Meaning(
        says="the image's signature was refused",
        hint="Its signing certificate may have expired: sign the image again (with another one PCR8 changes).",
        ours=True,
    ),
}
#: Codes of wrong arguments (E01 to E03, E20) and of the driver's own requests (E28 to E33).
_ARGUMENTS = Meaning(says="nitro-cli does not accept the arguments", hint="Is it of version 1.2 or later?", ours=True)
_IOCTL = CODES["E29"]
_OTHER = Meaning(says="nitro-cli failed", hint="`nitro-cli explain --error-code CODE` describes the code.")


def explain(stderr: bytes, status: int, log: Path | None) -> CloisterError:
    """The error for what nitro-cli wrote to standard error and its exit status: a UsageError or an UndecidedError."""
    found = _CODE.findall(stderr)
    code = found[-1].decode("ascii") if found else f"E{status:02d}" if 0 < status < 100 else ""
    meaning = CODES.get(code) or (
        _ARGUMENTS if code in ("E01", "E02", "E03", "E20") else _IOCTL if "E28" <= code <= "E33" else _OTHER
    )
    kind = UsageError if meaning.ours else UndecidedError
    see = f" See {log}." if log is not None else ""
    return kind(f"{meaning.says} ({code or 'no code'})", hint=meaning.hint + see)
