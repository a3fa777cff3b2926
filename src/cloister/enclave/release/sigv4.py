"""AWS Signature Version 4 for requests to `/` without a query, which is all that AWS's JSON protocols use.

Source: "Create a signed AWS API request", IAM User Guide. The signature proves who asks; what protects the data key is
the attestation document inside the request.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

ALGORITHM = "AWS4-HMAC-SHA256"
TIME_FORMAT = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What an AWS request is signed with; secrets stay out of its repr."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    #: None for a long-lived key.
    token: str | None = field(default=None, repr=False)
    #: Aware; None for a long-lived key.
    expires_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Where and when a signature counts: the credential scope and the time that heads the string to sign."""

    #: `x-amz-date`: basic ISO 8601 in UTC with seconds.
    time: str
    region: str
    service: str

    def __str__(self) -> str:
        return f"{self.time[:8]}/{self.region}/{self.service}/aws4_request"


def signed_headers(
    credentials: Credentials,
    headers: Mapping[str, str],
    body: bytes,
    *,
    region: str,
    service: str,
    now: datetime,
    method: str = "POST",
) -> dict[str, str]:
    """`headers` (with `host`) in lower case plus `x-amz-date`, the token and `authorization`, for a request to `/`."""
    scope = Scope(time=now.astimezone(UTC).strftime(TIME_FORMAT), region=region, service=service)
    signed = {name.lower(): value for name, value in headers.items()} | {"x-amz-date": scope.time}
    if credentials.token is not None:
        signed["x-amz-security-token"] = credentials.token
    value = signature(credentials.secret_access_key, scope, signed, body, method=method)
    names = ";".join(sorted(signed))
    return signed | {
        "authorization": f"{ALGORITHM} Credential={credentials.access_key_id}/{scope}, "
        f"SignedHeaders={names}, Signature={value}"
    }


def signature(secret: str, scope: Scope, headers: Mapping[str, str], body: bytes, *, method: str = "POST") -> str:
    """Steps 1 to 4 of the guide over exactly `headers` (lower-case names); 64 hex digits."""
    canonical = "\n".join(
        (
            method,
            "/",
            "",
            *(f"{name}:{' '.join(headers[name].split())}" for name in sorted(headers)),
            "",
            ";".join(sorted(headers)),
            hashlib.sha256(body).hexdigest(),
        )
    )
    to_sign = "\n".join((ALGORITHM, scope.time, str(scope), hashlib.sha256(canonical.encode()).hexdigest()))
    key = b"AWS4" + secret.encode()
    for part in str(scope).split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, to_sign.encode(), "sha256").hex()
