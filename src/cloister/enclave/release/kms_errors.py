"""What each refusal of AWS KMS means, and what to check.

Source: "Common Errors" and the errors of Decrypt and GenerateDataKey in the AWS KMS API Reference. The service's own
message is never passed on: for a wrong signature it repeats the request's headers, the session token among them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from cloister.errors import CloisterError, MalformedError, ReleaseDeniedError, UndecidedError
from cloister.wire import strict_json

MAX_ERROR = 16 * 1024

#: Worth another try: the same request may succeed in a moment.
RETRIED = frozenset(
    {
        "ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded",
        "LimitExceededException",
        "KMSInternalException", "DependencyTimeoutException", "KeyUnavailableException", "ServiceUnavailableException",
        "InternalFailure",
    }
)  # fmt: skip

_DENIED: Mapping[str, tuple[str, str]] = {
    "AccessDeniedException": (
        "the key policy does not allow it",
        "Compare PCR0, PCR8, role and context with what `cloister policy kms` prints; a debug enclave has zeros there.",
    ),
    "InvalidCiphertextException": (
        "the wrapped key does not open: it or its encryption context was changed",
        "The manifest must be the one the wrapped key was made for: same model, same version, same bytes.",
    ),
    "IncorrectKeyException": (
        "the wrapped key was made under another KMS key",
        "Compare the key ARN in the manifest with the one the weights were sealed under.",
    ),
    "KMSInvalidStateException": ("the KMS key is not enabled", "It may be disabled or waiting for deletion."),
    "DisabledException": ("the KMS key is disabled", "Enable it, or seal the weights under another."),
    "NotFoundException": (
        "there is no such KMS key",
        "Check region, account and key identifier in the ARN.",
    ),
    "InvalidArnException": ("the key's ARN is not one", "Check the key ARN in the manifest."),
    "InvalidKeyUsageException": ("the KMS key is not for encryption", "Use a symmetric encryption key."),
    "UnsupportedOperationException": ("the KMS key cannot do this", "Use a symmetric encryption key."),
    "ValidationException": (
        "KMS does not accept the request, most often its attestation document",
        "The document must be a Nitro enclave's, minutes old at most, with an RSA key in it; check the clock.",
    ),
}  # fmt: skip

_CREDENTIALS = "The credentials come from the host agent; check the instance's role and the agent's log."
_UNDECIDED: Mapping[str, tuple[str, str]] = {
    "ExpiredTokenException": ("the AWS credentials have expired", _CREDENTIALS),
    "UnrecognizedClientException": ("AWS does not know the credentials", _CREDENTIALS),
    "InvalidClientTokenId": ("AWS does not know the credentials", _CREDENTIALS),
    "OptInRequired": ("the AWS account may not use KMS", _CREDENTIALS),
    "InvalidSignatureException": ("AWS refused the request's signature", _CREDENTIALS),
    "SignatureDoesNotMatch": ("AWS refused the request's signature", _CREDENTIALS),
    "IncompleteSignature": ("AWS refused the request's signature", _CREDENTIALS),
    "IncompleteSignatureException": ("AWS refused the request's signature", _CREDENTIALS),
    "MissingAuthenticationTokenException": ("AWS saw no credentials", _CREDENTIALS),
}
_CLOCK = (
    "AWS finds the request's time off by more than five minutes",
    "Set the clock of this machine; an enclave takes its time from the hypervisor.",
)
_BUSY = ("KMS is busy or out of order", "Try again later; the account's request quota may be used up.")

_CODE = re.compile(r"[A-Za-z]{1,64}\Z")
_REQUEST_ID = re.compile(r"[0-9a-fA-F-]{8,64}\Z")


def code_of(status: int, headers: Mapping[str, str], body: bytes) -> str:
    """The error code of a JSON 1.1 answer: `x-amzn-errortype` or `__type`, without namespace; `HTTP 503` for neither.

    A clock that AWS finds off has no code of its own: it becomes `RequestExpired`.
    """
    message = ""
    try:
        members = strict_json.loads(body, "KMS error", limit=MAX_ERROR)
        kind = members.get("__type")
        said = members.get("message", members.get("Message"))
        message = said if isinstance(said, str) else ""
    except MalformedError:
        kind = None
    named = headers.get("x-amzn-errortype") or (kind if isinstance(kind, str) else "")
    code = named.split(":")[0].rpartition("#")[2]
    if not _CODE.match(code):
        return "ServiceUnavailableException" if status >= 500 else f"HTTP {status}"
    if code == "InvalidSignatureException" and message.startswith(("Signature expired", "Signature not yet current")):
        return "RequestExpired"
    return code


def error_for(code: str, request_id: str | None) -> CloisterError:
    """The error to raise: ReleaseDeniedError where KMS decided, UndecidedError where it could not."""
    shown = f"{code}, request {request_id}" if request_id and _REQUEST_ID.match(request_id) else code
    if code in _DENIED:
        reason, hint = _DENIED[code]
        return ReleaseDeniedError(f"AWS KMS refused the key: {reason} ({shown})", hint=hint)
    if code in ("RequestExpired", "RequestTimeTooSkewed"):
        reason, hint = _CLOCK
    elif code in RETRIED:
        reason, hint = _BUSY
    else:
        reason, hint = _UNDECIDED.get(
            code, ("AWS KMS gave an answer that is not known here", "See the KMS API errors.")
        )
    return UndecidedError(f"no key from AWS KMS: {reason} ({shown})", hint=hint)
