"""What the SIMULATED KMS says no with: the error codes of the AWS KMS API Reference."""

from __future__ import annotations


class KmsError(Exception):
    """An error answer: `code` goes into `__type`, `message` is prose without secrets."""

    def __init__(self, code: str, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


def denied(identity: str, action: str, resource: str, *, explicit: bool) -> KmsError:
    """AccessDeniedException in AWS's words."""
    why = (
        "with an explicit deny in a resource-based policy"
        if explicit
        else f"because no resource-based policy allows the {action} action"
    )
    return KmsError(
        "AccessDeniedException",
        f"User: {identity} is not authorized to perform: {action} on resource: {resource} {why}",
    )


def invalid(message: str) -> KmsError:
    """ValidationException."""
    return KmsError("ValidationException", message)
