"""Ask a replica for evidence that answers a fresh nonce, over plain HTTP: nothing in it is secret."""

from __future__ import annotations

import httpx2

from cloister.client.session import Session
from cloister.client.transport import parse_address
from cloister.errors import UndecidedError
from cloister.policy.document import Policy

SECONDS = 15


def challenge(url: str, policy: Policy, *, limit: int) -> tuple[bytes, bytes | None]:
    """A bundle (bytes, to be verified) and the nonce it must answer; raises UndecidedError or UsageError."""
    request = Session(policy).challenge()
    target = parse_address(url).join(request.path)
    try:
        with httpx2.Client(timeout=SECONDS) as client:
            response = client.request(request.method, target, headers=dict(request.headers), content=request.body)
    except httpx2.TransportError as error:
        raise UndecidedError(f"the replica cannot be reached ({type(error).__name__})") from None
    if response.status_code != 200 or len(response.content) > limit:
        raise UndecidedError(
            f"the replica gave no evidence (HTTP {response.status_code})",
            hint="Is this the address of a Cloister replica?",
        )
    return response.content, request.nonce
