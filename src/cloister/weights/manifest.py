"""The signed head of a sealed container: which model, which version, whose, under which wrapped key.

File: magic (8 bytes) ‖ u32 length ‖ DSSE envelope ‖ stream (`stream.py`), whose associated data is SHA-256 of the
signed payload: neither half can be exchanged. The envelope is in-toto's DSSE v1 with one Ed25519 signature over
PAE(type, payload) (github.com/secure-systems-lab/dsse, protocol.md).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cloister.errors import MalformedError, NotGenuineError, RefusedError
from cloister.weights.keys import WrappedKey
from cloister.wire import strict_json

MAGIC = b"CLSEAL\x00\x01"
HEAD = struct.Struct(">8sI")
MAX_ENVELOPE = 64 * 1024
PAYLOAD_TYPE = "application/vnd.cloister.sealed-model+json"
TYPE = "cloister.sealed-model/1"
MAX_SIZE = 1 << 42
#: A model's name: part of a file name and of a URL's path, and safe to print.
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What the owner signed."""

    model: str
    version: int
    #: Plaintext bytes and their SHA-256 (hex).
    size: int
    sha256: str
    key: WrappedKey

    def payload(self) -> bytes:
        """The signed bytes."""
        document = {
            "type": TYPE,
            "model": self.model,
            "version": self.version,
            "size": self.size,
            "sha256": self.sha256,
            "key": {
                "service": self.key.service,
                "key_id": self.key.key_id,
                "ciphertext": strict_json.encode_base64url(self.key.ciphertext),
                "context": dict(self.key.context),
            },
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("utf-8")


@dataclass(frozen=True, kw_only=True)
class Head:
    """A verified head: the manifest, the stream's associated data, and where the stream starts in the file."""

    manifest: Manifest
    associated: bytes
    stream_at: int


def context(model: str, version: int) -> dict[str, str]:
    """What a key service binds to the data key."""
    return {"cloister:model": model, "cloister:version": str(version)}


def pae(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode("ascii"), len(payload), payload)


def sign(manifest: Manifest, owner: Ed25519PrivateKey) -> bytes:
    """Magic, length and envelope."""
    payload = manifest.payload()
    signature = owner.sign(pae(payload))
    envelope = json.dumps(
        {
            "payloadType": PAYLOAD_TYPE,
            "payload": base64.b64encode(payload).decode("ascii"),
            "signatures": [{"sig": base64.b64encode(signature).decode("ascii")}],
        }
    ).encode("ascii")
    return HEAD.pack(MAGIC, len(envelope)) + envelope


def length(start: bytes) -> int:
    """Bytes of the whole head, from its first 12; raises MalformedError."""
    if len(start) < HEAD.size:
        raise MalformedError("sealed weights: the file is too short")
    magic, size = HEAD.unpack_from(start)
    if magic != MAGIC or not 0 < size <= MAX_ENVELOPE:
        raise MalformedError("not sealed weights", hint="cloister seal makes them from a GGUF file.")
    return int(HEAD.size + size)


def read(data: bytes, owner: Ed25519PublicKey | None) -> Head:
    """The head at the start of `data`; raises MalformedError, or NotGenuineError for another owner's.

    Without `owner` nothing is verified: only for showing what a file says.
    """
    end = length(data)
    if len(data) < end:
        raise MalformedError("sealed weights: the head is cut")
    outer = strict_json.Fields(
        strict_json.loads(data[HEAD.size : end], "sealed weights", limit=MAX_ENVELOPE), "sealed weights"
    )
    signatures = outer.array("signatures", limit=1)
    if outer.text("payloadType") != PAYLOAD_TYPE or len(signatures) != 1 or not isinstance(signatures[0], dict):
        raise MalformedError("sealed weights: not an envelope of this type")
    entry = strict_json.Fields(signatures[0], "sealed weights: signature")
    payload, signature = _base64(outer, "payload"), _base64(entry, "sig")
    outer.done()
    if owner is not None:
        try:
            owner.verify(signature, pae(payload))
        except InvalidSignature:
            raise NotGenuineError(
                "the sealed weights are signed by somebody else than their owner",
                hint="The image names the owner's public key; seal with the private half of it.",
            ) from None
    return Head(manifest=_manifest(payload), associated=hashlib.sha256(payload).digest(), stream_at=end)


def check(manifest: Manifest, *, model: str, minimum_version: int) -> None:
    """Raises RefusedError unless it is that model, at least that version, and its key is bound to just these."""
    if manifest.model != model:
        raise RefusedError("the store gave the sealed weights of another model", hint="Look into the store's folder.")
    if manifest.version < minimum_version:
        raise RefusedError(
            f"the sealed weights are version {manifest.version}, older than this image accepts ({minimum_version})",
            hint="Somebody put an old file back, or the new one was not copied.",
        )
    if dict(manifest.key.context) != context(manifest.model, manifest.version):
        raise RefusedError("the sealed weights' key is bound to another model or version")


def _manifest(payload: bytes) -> Manifest:
    fields = strict_json.Fields(strict_json.loads(payload, "manifest", limit=MAX_ENVELOPE), "manifest")
    if fields.text("type") != TYPE:
        raise MalformedError("manifest: another type")
    key = fields.member("key")
    bound = key.member("context")
    wrapped = WrappedKey(
        service=key.text("service", limit=32),
        key_id=key.text("key_id", limit=2048),
        ciphertext=key.octets("ciphertext", limit=8192),
        context={name: bound.text(name, limit=256) for name in sorted(bound.names())},
    )
    key.done()
    manifest = Manifest(
        model=fields.text("model", limit=63),
        version=fields.integer("version"),
        size=fields.integer("size", minimum=1, maximum=MAX_SIZE),
        sha256=fields.text("sha256", limit=64),
        key=wrapped,
    )
    fields.done()
    if not NAME.fullmatch(manifest.model):
        raise MalformedError("manifest: model is not a name")
    if not all(text.isascii() and text.isprintable() for text in (wrapped.service, wrapped.key_id)):
        raise MalformedError("manifest: the key's service or name is not printable ASCII")
    if len(manifest.sha256) != 64 or set(manifest.sha256) - set("0123456789abcdef"):
        raise MalformedError("manifest: sha256 is not a digest")
    return manifest


def _base64(fields: strict_json.Fields, name: str) -> bytes:
    try:
        return base64.b64decode(fields.text(name, limit=MAX_ENVELOPE), validate=True)
    except (ValueError, binascii.Error):
        raise MalformedError(f"sealed weights: {name} is not base64") from None
