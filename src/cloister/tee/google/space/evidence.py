"""The claims of a Google Cloud Attestation token (Google's reference of token claims, read in 2026).

A Confidential Space token speaks of a container, a token of a plain confidential VM (`swname` is GCE) of none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from cloister.errors import MalformedError
from cloister.trust import jwt
from cloister.trust.jwt import Token
from cloister.wire.strict_json import Fields

WHAT = "Google attestation token"
ISSUER = "https://confidentialcomputing.googleapis.com"
#: Google has said 10 to 74 bytes, and later 8 to 88.
MIN_NONCE, MAX_NONCE, MAX_NONCES = 8, 88, 6
MAX_ITEMS = 256
MAX_TEXT = 4096
NO_DEBUG = "disabled-since-boot"
CONFIDENTIAL_SPACE = "CONFIDENTIAL_SPACE"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})\Z")
_VERSION = re.compile(r"(?:20)?([0-9]{6})\Z")


@dataclass(frozen=True, kw_only=True)
class Container:
    """What runs: digests are lower-case hex SHA-256. `args` is the whole argv.

    `signatures` are (key_id, algorithm) of the signatures that the launcher checked.
    """

    image_reference: str
    image_digest: str
    image_id: str
    restart_policy: str
    args: tuple[str, ...]
    cmd_override: tuple[str, ...]
    env: Mapping[str, str]
    env_override: Mapping[str, str]
    signatures: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Instance:
    """Which virtual machine, in Google's words; each is empty where the token does not say."""

    project_id: str
    project_number: str
    zone: str
    instance_id: str
    instance_name: str


@dataclass(frozen=True, kw_only=True)
class Attestation:
    """What Google says of one virtual machine.

    `swversion` is YYMM## as a number, None where there is none. `gpu` is the confidential computing mode of the GPUs
    (ON, OFF, DEVTOOLS), None where the token speaks of none. `tcb_status` is of TDX machines alone.
    """

    audience: str
    subject: str
    nonces: tuple[str, ...]
    hwmodel: str
    swname: str
    swversion: int | None
    secure_boot: bool
    debug_status: str
    support_attributes: tuple[str, ...]
    monitoring: bool | None
    container: Container | None
    instance: Instance
    service_accounts: tuple[str, ...]
    gpu: str | None
    gpu_models: tuple[str, ...]
    tcb_status: str | None

    @property
    def debug(self) -> bool:
        """May an operator look inside: a debug image, or GPUs in their development mode?"""
        return self.debug_status != NO_DEBUG or self.gpu == "DEVTOOLS"

    @classmethod
    def parse(cls, token: Token) -> Attestation:
        """Read the claims strictly; raises MalformedError. Claims of other purposes are passed over."""
        top = token.fields()
        mods = top.member("submods") if top.has("submods") else Fields({}, WHAT)
        space = _member(mods, "confidential_space")
        monitoring = _member(space, "monitoring_enabled")
        gpu = _member(mods, "nvidia_gpu")
        return cls(
            audience=_line(top, "aud", 512),
            subject=_line(top, "sub", 1024) if top.has("sub") else "",
            nonces=_nonces(token),
            hwmodel=_line(top, "hwmodel", 64),
            swname=_line(top, "swname", 64),
            swversion=_version(top),
            secure_boot=top.flag("secboot"),
            debug_status=_line(top, "dbgstat", 64),
            support_attributes=_lines(space, "support_attributes"),
            monitoring=monitoring.flag("memory") if monitoring.has("memory") else None,
            container=_container(mods.member("container")) if mods.has("container") else None,
            instance=_instance(_member(mods, "gce")),
            service_accounts=_lines(top, "google_service_accounts"),
            gpu=_line(gpu, "cc_mode", 32) if mods.has("nvidia_gpu") else None,
            gpu_models=_gpu_models(gpu),
            tcb_status=_tcb_status(top),
        )


def _nonces(token: Token) -> tuple[str, ...]:
    """One is a string, several are a list."""
    if "eat_nonce" not in token.claims:
        return ()
    found = jwt.strings(token.claims, "eat_nonce", WHAT, limit=MAX_NONCES)
    if any(not MIN_NONCE <= len(nonce.encode("utf-8")) <= MAX_NONCE for nonce in found):
        raise MalformedError(f"{WHAT}: a nonce that is not {MIN_NONCE} to {MAX_NONCE} bytes")
    return found


def _version(top: Fields) -> int | None:
    """A list of one version; the documents have the year in four digits, tokens in two."""
    found = _lines(top, "swversion")
    if not found:
        return None
    version = _VERSION.match(found[0])
    if len(found) != 1 or version is None:
        raise MalformedError(f"{WHAT}: swversion is not one version of the form YYMM##")
    return int(version[1])


def _container(fields: Fields) -> Container:
    return Container(
        image_reference=_line(fields, "image_reference", 1024),
        image_digest=_digest(fields, "image_digest"),
        image_id=_digest(fields, "image_id") if fields.has("image_id") else "",
        restart_policy=_line(fields, "restart_policy", 32),
        args=_texts(fields, "args"),
        cmd_override=_texts(fields, "cmd_override"),
        env=_map(fields, "env"),
        env_override=_map(fields, "env_override"),
        signatures=_signatures(fields),
    )


def _instance(fields: Fields) -> Instance:
    names = ("project_id", "project_number", "zone", "instance_id", "instance_name")
    return Instance(**{name: _line(fields, name, 256) if fields.has(name) else "" for name in names})


def _signatures(fields: Fields) -> tuple[tuple[str, str], ...]:
    return tuple(
        (_line(each, "key_id", 128), _line(each, "signature_algorithm", 64))
        for each in _objects(fields, "image_signatures")
    )


def _gpu_models(fields: Fields) -> tuple[str, ...]:
    """The models of the GPUs that a token of a machine with some lists, as far as it says."""
    return tuple(_line(each, "hwmodel", 64) for each in _objects(fields, "gpus") if each.has("hwmodel"))


def _tcb_status(top: Fields) -> str | None:
    """`tdx` is a list of objects in the documents; a single object is read as well."""
    if not top.has("tdx") or top.is_null("tdx"):
        return None
    value = top.value("tdx")
    parts = _objects(top, "tdx") if isinstance(value, list) else (top.member("tdx"),)
    found = {_line(part, "gcp_attester_tcb_status", 64) for part in parts if part.has("gcp_attester_tcb_status")}
    if len(found) > 1:
        raise MalformedError(f"{WHAT}: two TCB statuses")
    return found.pop() if found else None


def _member(fields: Fields, name: str) -> Fields:
    """A member object, empty where there is none."""
    return fields.member(name) if fields.has(name) and not fields.is_null(name) else Fields({}, WHAT)


def _objects(fields: Fields, name: str) -> tuple[Fields, ...]:
    items = fields.array(name, limit=MAX_ITEMS) if fields.has(name) and not fields.is_null(name) else []
    found = tuple(Fields(item, f"{WHAT}: {name}") for item in items if isinstance(item, dict))
    if len(found) != len(items):
        raise MalformedError(f"{WHAT}: {name} is not a list of objects")
    return found


def _line(fields: Fields, name: str, limit: int) -> str:
    """Text that a verdict may show: without control characters."""
    value = fields.text(name, limit=limit)
    if not value.isprintable():
        raise MalformedError(f"{WHAT}: {name} is not printable")
    return value


def _digest(fields: Fields, name: str) -> str:
    digest = _DIGEST.match(fields.text(name, limit=128))
    if digest is None:
        raise MalformedError(f"{WHAT}: {name} is not sha256: and 64 lower-case hex digits")
    return digest[1]


def _texts(fields: Fields, name: str) -> tuple[str, ...]:
    """A list of strings; null and absence are the empty list."""
    items = fields.array(name, limit=MAX_ITEMS) if fields.has(name) and not fields.is_null(name) else []
    found = tuple(item for item in items if isinstance(item, str) and len(item) <= MAX_TEXT)
    if len(found) != len(items):
        raise MalformedError(f"{WHAT}: {name} is not a list of strings")
    return found


def _lines(fields: Fields, name: str) -> tuple[str, ...]:
    found = _texts(fields, name)
    if not all(item.isprintable() for item in found):
        raise MalformedError(f"{WHAT}: {name} is not printable")
    return found


def _map(fields: Fields, name: str) -> dict[str, str]:
    inner = _member(fields, name)
    if len(inner.names()) > MAX_ITEMS:
        raise MalformedError(f"{WHAT}: {name} has more than {MAX_ITEMS} members")
    return {key: inner.text(key, limit=32 * 1024) for key in inner.names()}
