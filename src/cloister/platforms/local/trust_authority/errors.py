"""What the SIMULATED Trust Authority says no with."""

from __future__ import annotations


class ServiceError(Exception):
    """An error answer: `message` is prose without secrets, `retry_after` are seconds.

    401 and 429 are the service's own codes. That all else which is wrong with a request gets 400 is an assumption.
    """

    def __init__(self, message: str, *, status: int = 400, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.retry_after = retry_after
