"""What each refusal of a key broker means, and what to check.

The broker's code is the last part of an error's `type`: the check that failed, for evidence. Its `detail` is never
shown: what others wrote does not belong on the console of an enclave.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from cloister.errors import CloisterError, MalformedError, ReleaseDeniedError, UndecidedError
from cloister.weights import kbs
from cloister.wire import strict_json

MAX_ERROR = 16 * 1024

_GRANT = "Compare the image's measurements.json with the broker's policy.toml; `cloister broker grant` adds an image."
_EVIDENCE = "The broker's ledger says what it saw; this image and the broker may be of different versions."
_ROOT = "On EC2 the root is AWS's. A SIMULATED enclave needs allow_simulated and its root in the broker's policy."
_CLOCK = "Compare the broker's clock with another; an enclave takes its time from the hypervisor."

DENIED: Mapping[str, tuple[str, str]] = {
    "version": ("it speaks another version of the protocol", "Image and broker must be of the same version."),
    "tee": ("it does not appraise evidence of this TEE", "Is it a broker of Cloister's?"),
    "policy.tee": ("its policy does not accept this TEE", "tee.accept in the broker's policy.toml."),
    "nitro.cose": ("the attestation document is not well formed", _EVIDENCE),
    "nitro.document": ("the attestation document is not well formed", _EVIDENCE),
    "nitro.chain": ("the evidence does not chain to a root that its policy names", _ROOT),
    "nitro.signature": ("the attestation document's signature does not verify", _EVIDENCE),
    "nitro.freshness": ("the evidence is too old, or from the future", _CLOCK),
    "policy.genuine": ("the evidence is SIMULATED and its policy does not allow that", _ROOT),
    "policy.debug": ("the enclave runs in debug mode", "Start it without --debug: its memory can be read."),
    "policy.binding": ("the evidence does not bind this key and challenge", "Somebody exchanged it on the way."),
    "policy.measurement": ("no grant names this image", _GRANT),
    "challenge": ("the answer is to another challenge", "Somebody exchanged it on the way."),
    "grant.image": ("no grant gives this model to this image", _GRANT),
    "grant.version": (
        "this version of the model is below the grant's minimum",
        "The store holds an old sealed file; or lower minimum_version in the broker's policy.toml.",
    ),
    "resource": (
        "it has no key for this model and version",
        "The weights were sealed at another broker, or the key was removed there.",
    ),
}
_UNDECIDED: Mapping[str, tuple[str, str]] = {
    "session": ("the session ended", "The broker was restarted or its policy changed meanwhile; try again."),
    "request": ("it cannot read the request", "Image and broker must be of the same version."),
    "too-large": ("it cannot read the request", "Image and broker must be of the same version."),
    "unavailable": ("it cannot decide now", "The broker's log says why; its disk may be full or its policy damaged."),
}
#: Worth another try from the start.
RETRIED = frozenset({"session", "unavailable", "busy"})

_CODE = re.compile(r"[a-z][a-z0-9.-]{0,63}")


def code_of(status: int, body: bytes) -> str:
    """The code of an error's body; `busy` for a 503 without one, else `HTTP 502`."""
    try:
        members = strict_json.loads(body, "KBS error", limit=MAX_ERROR)
        kind = members.get("type")
    except MalformedError:
        kind = None
    code = kind.removeprefix(kbs.ERRORS) if isinstance(kind, str) and kind.startswith(kbs.ERRORS) else ""
    if _CODE.fullmatch(code):
        return code
    return "busy" if status == 503 else f"HTTP {status}"


def error_for(code: str) -> CloisterError:
    """The error to raise: ReleaseDeniedError where the broker decided, UndecidedError where it could not."""
    if code in DENIED:
        reason, hint = DENIED[code]
        return ReleaseDeniedError(f"the key broker refused the key: {reason} ({code})", hint=hint)
    reason, hint = _UNDECIDED.get(code, ("it gave an answer that is not known here", "Is it a broker of Cloister's?"))
    if code == "busy":
        reason, hint = "it is busy", "Try again later."
    return UndecidedError(f"no key from the key broker: {reason} ({code})", hint=hint)
