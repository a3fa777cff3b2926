"""Every error Cloister raises on purpose.

    CloisterError                 1  (1 is also any bug: an exception that is not in this tree)
    ├── UsageError                2  the caller's own words, file or option are wrong
    │   ├── PolicyDocumentError   2  a policy that cannot be read, or has a hole
    │   └── ApiError              2  a request outside what the API offers, with its HTTP status and code
    ├── MalformedError            3  bytes from a stranger that do not parse
    ├── NotGenuineError           4  evidence that no trusted hardware root signed, or that was changed
    ├── RefusedError              5  genuine, but not what the policy accepts
    ├── UndecidedError            6  could not be checked: service, file or collateral out of reach; never success
    ├── ChannelError              7  the sealed channel
    │   ├── KeyRejectedError      7  the replica does not hold (or no longer holds) the key
    │   ├── ReplayError           7  this very request was already received once
    │   ├── OverLimitError        7  larger than the wire format allows
    │   ├── TruncatedResponse     7  the answer ended without its final chunk
    │   ├── ReceiptError          7  the receipt is missing or does not fit what was received
    │   └── GatewayRefusedError   7  an unauthenticated outer error: load, route, intermediary
    ├── ReleaseDeniedError        8  a key-release service said no
    └── EngineError               9  the inference engine
        ├── ModelLoadError        9  llama.cpp cannot load the file
        └── EngineCrashed         9  the worker process ended while it was needed

Messages say what to do next (`hint`) and never carry content: no prompt, answer, key or token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from cloister.policy.verdict import Verdict


class CloisterError(Exception):
    """Base of the tree: `exit_code` for the command line, `hint` says what to do next."""

    exit_code: ClassVar[int] = 1
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self.default_hint if hint is None else hint
        #: Set by an appraisal: the ordered checks as far as they came (policy.verdict.Verdict).
        self.verdict: Verdict | None = None


class UsageError(CloisterError):
    """The caller's own words, file or option are wrong."""

    exit_code = 2


class PolicyDocumentError(UsageError):
    """A policy that cannot be read, or that leaves a rule neither stated nor waived."""

    default_hint = "State the rule, or waive it with a [[waive]] entry that gives the reason."


class ApiError(UsageError):
    """A request outside what the API offers; `status`, `code` and `kind` are in the OpenAI error vocabulary.

    The message is a fixed text: it may name a field of that vocabulary, never a value.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        kind: str = "invalid_request_error",
        param: str | None = None,
    ) -> None:
        super().__init__(message, hint="")
        self.status = status
        self.code = code
        self.kind = kind
        self.param = param


class MalformedError(CloisterError):
    """Bytes from a stranger that do not parse; nothing in them was acted on."""

    exit_code = 3
    default_hint = "The sender is broken or not what it claims to be; do not retry with looser checks."


class NotGenuineError(CloisterError):
    """Evidence that no trusted root signed, that was changed, or that binds another key."""

    exit_code = 4
    default_hint = "Send nothing to this replica."


class RefusedError(CloisterError):
    """Genuine evidence of something the policy does not accept."""

    exit_code = 5
    default_hint = "Compare the failed check with your policy; update the policy only from a source you trust."


class UndecidedError(CloisterError):
    """A check could not be made; never success."""

    exit_code = 6
    default_hint = "Check the address and the network, then try again."


class ChannelError(CloisterError):
    """The sealed channel between client and replica."""

    exit_code = 7


class KeyRejectedError(ChannelError):
    """The replica does not hold this key (any more), or the request was changed on its way."""

    default_hint = "Fetch and verify the evidence again, then seal the request anew."


class ReplayError(ChannelError):
    """The replica has already received this very request."""

    default_hint = "Seal the request anew only if running it twice is acceptable."


class OverLimitError(ChannelError):
    """Larger than the wire format allows."""

    default_hint = "Send a smaller request."


class TruncatedResponse(ChannelError):
    """The answer ended without its authenticated final chunk: treat what came as unfinished."""

    default_hint = "The connection, a relay or the replica failed; ask again. Do not act on the partial answer."


class ReceiptError(ChannelError):
    """The receipt is missing or does not fit the request and the answer."""

    default_hint = "Do not rely on this answer; verify the replica again."


class GatewayRefusedError(ChannelError):
    """An outer HTTP error; unauthenticated, so it changes nothing that the client trusts."""

    def __init__(self, message: str, *, status: int, hint: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.retry_after = retry_after


class ReleaseDeniedError(CloisterError):
    """A key-release service refused the key."""

    exit_code = 8


class EngineError(CloisterError):
    """The inference engine."""

    exit_code = 9


class ModelLoadError(EngineError):
    """llama.cpp cannot load the model file."""

    default_hint = (
        "Check that the file is a complete GGUF of an architecture llama.cpp knows, and that it fits in memory."
    )


class EngineCrashed(EngineError):
    """The worker process ended while it was needed; the supervisor starts another."""

    default_hint = "Ask again: a new worker is being started."
