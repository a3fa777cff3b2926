"""Tenants: who may ask a replica, told apart by API key. Configurations hold hashes, keys are never stored.

A plain SHA-256 is enough because `new_key` makes keys of 256 random bits: there is nothing to guess from a hash.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field

from cloister.errors import ApiError, MalformedError
from cloister.wire import strict_json

MAX_TENANTS = 1024
MAX_FILE = 512 * 1024
KEY_PREFIX = "clo-"

_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_EMPTY = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, kw_only=True)
class Tenant:
    """One tenant: a name, and the hex SHA-256 of its API key."""

    id: str
    key_sha256: str = field(repr=False)


def new_key() -> str:
    """A fresh API key of 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def fingerprint(key: str) -> str:
    """Hex SHA-256 of an API key."""
    return hashlib.sha256(key.encode("utf-8")).hexdigest()


def read(entries: Sequence[object]) -> tuple[Tenant, ...]:
    """The tenants of a configuration; raises MalformedError.

    The error quotes nothing: a key may stand where a hash belongs. An empty list is refused: it would let everybody in
    where somebody wanted to name who may.
    """
    if not 1 <= len(entries) <= MAX_TENANTS:
        raise MalformedError(f"tenant: there must be from 1 to {MAX_TENANTS}", hint="Leave it out to serve everybody.")
    tenants = []
    for number, entry in enumerate(entries):
        what = f"tenant[{number}]"
        if not isinstance(entry, dict):
            raise MalformedError(f"{what}: not a table", hint="[[tenant]] with id and key_sha256.")
        fields = strict_json.Fields(entry, what)
        tenant = Tenant(id=fields.text("id"), key_sha256=fields.text("key_sha256"))
        fields.done()
        if not _ID.fullmatch(tenant.id):
            raise MalformedError(f"{what}: id must be lower-case letters, digits, dot, dash, underscore", hint="")
        if not _SHA256.fullmatch(tenant.key_sha256) or tenant.key_sha256 == _EMPTY:
            raise MalformedError(
                f"{what}: key_sha256 must be the SHA-256 of a key, 64 lower-case hex digits",
                hint="cloister tenant new ID makes key and entry.",
            )
        tenants.append(tenant)
    for name in ("id", "key_sha256"):
        if len({getattr(tenant, name) for tenant in tenants}) < len(tenants):
            raise MalformedError(f"tenant: one {name} twice", hint="Each tenant has a name and a key of its own.")
    return tuple(tenants)


def from_toml(data: bytes) -> tuple[Tenant, ...]:
    """The tenants of a file that holds nothing but `[[tenant]]` entries; raises MalformedError."""
    try:
        document = tomllib.loads(data.decode("utf-8")) if len(data) <= MAX_FILE else {}
    except (ValueError, RecursionError):
        # The parser's own message may quote the input.
        raise MalformedError("tenants: not TOML", hint="cloister tenant new ID makes entries.") from None
    listed = document.get("tenant")
    if set(document) != {"tenant"} or not isinstance(listed, list):
        raise MalformedError("tenants: a file of [[tenant]] entries and nothing else", hint="cloister tenant new ID.")
    return read(listed)


def to_toml(tenant: Tenant) -> str:
    """The entry for `cloister.toml` or a file of tenants."""
    return f'[[tenant]]\nid = "{tenant.id}"\nkey_sha256 = "{tenant.key_sha256}"\n'


def identify(tenants: Sequence[Tenant], authorization: str | None) -> Tenant:
    """Whose key an Authorization field bears (RFC 6750 section 2.1); raises ApiError 401 `invalid_api_key`.

    Every hash is compared, and in constant time: how long it takes tells nothing about the key.
    """
    scheme, _, key = (authorization or "").partition(" ")
    offered = hashlib.sha256(key.strip(" ").encode("utf-8", "replace")).hexdigest()
    found = None
    for tenant in tenants:
        if hmac.compare_digest(offered, tenant.key_sha256):
            found = tenant
    if found is None or scheme.lower() != "bearer":
        raise ApiError("The API key is missing or not one of this replica's.", status=401, code="invalid_api_key")
    return found
