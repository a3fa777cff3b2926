"""AWS credentials as the parent hands them in: from a stranger, and harmless even if he lies.

They decide on whose account AWS books the call, nothing more. KMS answers a request that carries an attestation
document only with an envelope for the key in that document, whoever signed the request, and the private half never
leaves the enclave. A parent that hands in wrong credentials, or another account's, gets a denial: no key, no service.
One that keeps a copy has what the instance's role gave it anyway, and the key policy denies that role any use of the
key without attestation. Which KMS key is asked is measured configuration, and the answer must name it.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from cloister.enclave.net import Dial
from cloister.enclave.release.http1 import exchange
from cloister.enclave.release.sigv4 import Credentials
from cloister.errors import MalformedError, UndecidedError
from cloister.wire import strict_json
from cloister.wire.ports import CREDENTIALS

MAX_CREDENTIALS = 16 * 1024
_HINT = "The host agent takes them from the instance's role; see its log."

# They end in header lines: no space, no control character, nothing that could start another line.
_ACCESS_KEY_ID = re.compile(r"[A-Z0-9]{16,128}\Z")
_SECRET = re.compile(r"[A-Za-z0-9/+=]{16,256}\Z")
_TOKEN = re.compile(r"[A-Za-z0-9/+=_.-]{1,8192}\Z")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z", re.ASCII)


def decode(data: bytes) -> Credentials:
    """The four members of the instance metadata service's answer and no others; raises MalformedError."""
    fields = strict_json.Fields(strict_json.loads(data, "credentials", limit=MAX_CREDENTIALS), "credentials")
    credentials = Credentials(
        access_key_id=_matching(fields, "AccessKeyId", _ACCESS_KEY_ID),
        secret_access_key=_matching(fields, "SecretAccessKey", _SECRET),
        token=_matching(fields, "Token", _TOKEN),
        expires_at=_time(_matching(fields, "Expiration", _TIME)),
    )
    fields.done()
    return credentials


def from_parent(dial: Dial) -> Credentials:
    """Ask the parent anew (they change every few hours); raises MalformedError or UndecidedError."""
    status, _, data = exchange(
        dial(CREDENTIALS), "GET", "/credentials", {"host": "parent"}, None,
        what="the parent's credentials service", limit=MAX_CREDENTIALS,
    )  # fmt: skip
    if status != 200:
        raise UndecidedError(f"the parent has no AWS credentials to give (HTTP {status})", hint=_HINT)
    return decode(data)


def _matching(fields: strict_json.Fields, name: str, pattern: re.Pattern[str]) -> str:
    value = fields.text(name, limit=8192)
    if not pattern.match(value):
        raise MalformedError(f"credentials: {name} has an impossible form", hint=_HINT)
    return value


def _time(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise MalformedError("credentials: Expiration is no time", hint=_HINT) from None
