"""Checks the Signature Version 4 of requests to the SIMULATED KMS ("Authenticating requests", IAM User Guide)."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cloister.enclave.release.sigv4 import TIME_FORMAT, Scope, signature
from cloister.platforms.qemu_nitro.kms.errors import KmsError

MAX_SKEW = timedelta(minutes=5)

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/, ]+)/(\d{8})/([^/, ]+)/([^/, ]+)/aws4_request, ?"
    r"SignedHeaders=([a-z0-9;-]+), ?Signature=([0-9a-f]{64})\Z"
)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Whom an access key belongs to; `actions` is what its own (IAM) policy allows, `*` included."""

    arn: str
    secret: str = field(repr=False)
    token: str | None = field(default=None, repr=False)
    expires_at: datetime | None = None
    actions: tuple[str, ...] = ()


def authenticate(
    headers: Mapping[str, str], body: bytes, identities: Mapping[str, Identity], *, region: str, now: datetime
) -> Identity:
    """Who signed this request; `headers` in lower case. Raises KmsError."""
    given = headers.get("authorization")
    if given is None:
        raise KmsError("MissingAuthenticationTokenException", "the request is not signed")
    match = _AUTHORIZATION.match(given)
    if match is None:
        raise KmsError("IncompleteSignatureException", "the Authorization header is not a Signature Version 4")
    access_key, day, asked_region, service, names, presented = match.groups()
    signed = names.split(";")
    needed = {"host"} | {name for name in headers if name.startswith("x-amz-")}
    if not needed <= set(signed) or not set(signed) <= set(headers):
        raise KmsError("IncompleteSignatureException", "host and every x-amz header must be there and signed")
    time = headers.get("x-amz-date", "")
    if (day, asked_region, service) != (time[:8], region, "kms"):
        raise KmsError("InvalidSignatureException", f"the credential should be scoped to kms in {region}")
    identity = identities.get(access_key)
    if identity is None or headers.get("x-amz-security-token") != identity.token:
        raise KmsError("UnrecognizedClientException", "The security token included in the request is invalid.")
    expected = signature(
        identity.secret,
        Scope(time=time, region=region, service=service),
        {name: headers[name] for name in signed},
        body,
    )
    if not hmac.compare_digest(expected, presented):
        raise KmsError("InvalidSignatureException", "The request signature we calculated does not match.")
    _check_time(time, now)
    if identity.expires_at is not None and identity.expires_at <= now:
        raise KmsError("ExpiredTokenException", "The security token included in the request is expired")
    return identity


def _check_time(time: str, now: datetime) -> None:
    try:
        at = datetime.strptime(time, TIME_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        raise KmsError("IncompleteSignatureException", "x-amz-date is no time") from None
    if at < now - MAX_SKEW:
        raise KmsError("InvalidSignatureException", f"Signature expired: {time} is now earlier than allowed")
    if at > now + MAX_SKEW:
        raise KmsError("InvalidSignatureException", f"Signature not yet current: {time} is still later than allowed")
