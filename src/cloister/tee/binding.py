"""9. The evidence binds our key and answers our challenge: the same comparison for every TEE."""

from __future__ import annotations

import hmac

from cloister.errors import NotGenuineError
from cloister.tee.claims import Claims


def check_binding(claims: Claims, binding: bytes, challenge: bytes | None) -> None:
    """Require user_data == binding, and nonce == challenge (none where it is None); raises NotGenuineError.

    Whole values are compared, never prefixes, and the caller fixes their lengths. Evidence without the binding proves
    that some TEE exists, not that the key is in it.
    """
    if claims.user_data is None or not hmac.compare_digest(claims.user_data, binding):
        raise NotGenuineError("the evidence does not bind this replica's key statement")
    if not hmac.compare_digest(claims.nonce or b"", challenge or b""):
        raise NotGenuineError("the evidence does not answer this client's challenge")
