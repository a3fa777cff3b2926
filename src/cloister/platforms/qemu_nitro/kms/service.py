"""The operations of the SIMULATED KMS (AWS KMS API Reference), without the network."""

from __future__ import annotations

import base64
import binascii
import json
import os
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.platforms.qemu_nitro.kms import envelope, iam, recipient
from cloister.platforms.qemu_nitro.kms.errors import KmsError, denied, invalid
from cloister.platforms.qemu_nitro.kms.recipient import Recipient
from cloister.platforms.qemu_nitro.kms.signature import Identity, authenticate
from cloister.platforms.qemu_nitro.kms.store import Key, Store
from cloister.trust.anchors import Anchor

Members = Mapping[str, object]

TARGET = "TrentService."
#: A ciphertext: this mark, the key's identifier, a nonce, and the plaintext under AES-256-GCM.
MARK = b"cloister-SIMULATED-kms-1"
NONCE = 12
MAX_PLAINTEXT = 4096
DATA_KEYS = {"AES_256": 32, "AES_128": 16}
DEFAULT_POLICY = (
    '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::%s:root"}, '
    '"Action": "kms:*", "Resource": "*"}]}'
)


class Service:
    """Answers signed requests; `anchor` is the SIMULATED root that attestation documents must chain to."""

    def __init__(
        self,
        store: Store,
        anchor: Anchor,
        *,
        region: str,
        account: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._anchor = anchor
        self._region = region
        self._account = account
        self._clock = clock
        self._operations: dict[str, Callable[[Identity, Members], dict[str, object]]] = {
            "CreateKey": self._create_key,
            "PutKeyPolicy": self._put_key_policy,
            "GetKeyPolicy": self._get_key_policy,
            "DescribeKey": self._describe_key,
            "DisableKey": lambda who, asked: self._set_state(who, asked, "kms:DisableKey", "Disabled"),
            "EnableKey": lambda who, asked: self._set_state(who, asked, "kms:EnableKey", "Enabled"),
            "Encrypt": self._encrypt,
            "Decrypt": self._decrypt,
            "GenerateDataKey": self._generate_data_key,
        }

    def answer(self, headers: Mapping[str, str], body: bytes) -> dict[str, object]:
        """The members of the answer to one request (`headers` in lower case); raises KmsError."""
        identity = authenticate(headers, body, self._store.identities, region=self._region, now=self._clock())
        operation = self._operations.get(headers.get("x-amz-target", "").removeprefix(TARGET))
        if operation is None:
            raise KmsError("UnknownOperationException", "the SIMULATED KMS does not have this operation")
        try:
            members = json.loads(body or b"{}")
        except ValueError:
            raise KmsError("SerializationException", "the body is not JSON") from None
        if not isinstance(members, dict):
            raise KmsError("SerializationException", "the body is not an object")
        return operation(identity, members)

    def arn(self, key: Key) -> str:
        """The key's full name."""
        return f"arn:aws:kms:{self._region}:{self._account}:key/{key.id}"

    # Management.

    def _create_key(self, identity: Identity, asked: Members) -> dict[str, object]:
        if not iam.matches_action(identity.actions, "kms:CreateKey"):
            raise denied(identity.arn, "kms:CreateKey", "*", explicit=False)
        policy = asked.get("Policy", DEFAULT_POLICY % self._account)
        key = self._store.create_key(_policy(policy))
        return {"KeyMetadata": self._metadata(key)}

    def _put_key_policy(self, identity: Identity, asked: Members) -> dict[str, object]:
        key = self._authorized(identity, "kms:PutKeyPolicy", asked)
        self._store.change_key(key.id, policy=_policy(asked.get("Policy")))
        return {}

    def _get_key_policy(self, identity: Identity, asked: Members) -> dict[str, object]:
        key = self._authorized(identity, "kms:GetKeyPolicy", asked)
        return {"Policy": key.policy, "PolicyName": "default"}

    def _describe_key(self, identity: Identity, asked: Members) -> dict[str, object]:
        return {"KeyMetadata": self._metadata(self._authorized(identity, "kms:DescribeKey", asked))}

    def _set_state(self, identity: Identity, asked: Members, action: str, state: str) -> dict[str, object]:
        key = self._authorized(identity, action, asked)
        self._store.change_key(key.id, state=state)
        return {}

    def _metadata(self, key: Key) -> dict[str, object]:
        return {
            "AWSAccountId": self._account, "KeyId": key.id, "Arn": self.arn(key), "CreationDate": key.created,
            "Enabled": key.state == "Enabled", "KeyState": key.state, "KeyUsage": "ENCRYPT_DECRYPT",
            "KeySpec": "SYMMETRIC_DEFAULT", "Origin": "AWS_KMS", "KeyManager": "CUSTOMER",
            "EncryptionAlgorithms": ["SYMMETRIC_DEFAULT"], "Description": "SIMULATED: protects nothing",
        }  # fmt: skip

    # Use.

    def _encrypt(self, identity: Identity, asked: Members) -> dict[str, object]:
        context = _context(asked)
        key = self._authorized(identity, "kms:Encrypt", asked, context=context, use=True)
        plaintext = _blob(asked, "Plaintext", MAX_PLAINTEXT)
        return {
            "CiphertextBlob": _text(_wrap(key, plaintext, context)),
            "KeyId": self.arn(key),
            "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
        }

    def _generate_data_key(self, identity: Identity, asked: Members) -> dict[str, object]:
        context, attested = _context(asked), self._recipient(asked)
        key = self._authorized(identity, "kms:GenerateDataKey", asked, context=context, attested=attested, use=True)
        size = DATA_KEYS.get(str(asked.get("KeySpec")))
        if size is None:
            raise invalid("KeySpec must be AES_256 or AES_128")
        plaintext = os.urandom(size)
        blob = _text(_wrap(key, plaintext, context))
        return {"CiphertextBlob": blob, "KeyId": self.arn(key)} | _plaintext(plaintext, attested)

    def _decrypt(self, identity: Identity, asked: Members) -> dict[str, object]:
        context, attested = _context(asked), self._recipient(asked)
        blob = _blob(asked, "CiphertextBlob", 6144)
        wrapped_by = self._key_of(blob)
        key = self._authorized(
            identity, "kms:Decrypt", asked, context=context, attested=attested, use=True, default=wrapped_by
        )
        if key is not wrapped_by:
            raise KmsError("IncorrectKeyException", "The key ID in the request does not identify the key in the blob")
        start = len(MARK) + 16
        try:
            plaintext = AESGCM(key.material).decrypt(
                blob[start : start + NONCE], blob[start + NONCE :], _associated(context)
            )
        except (InvalidTag, ValueError):
            raise _invalid_ciphertext() from None
        return {"KeyId": self.arn(key), "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"} | _plaintext(plaintext, attested)

    # What they share.

    def _recipient(self, asked: Members) -> Recipient | None:
        given = asked.get("Recipient")
        if given is None:
            return None
        if not isinstance(given, dict) or given.get("KeyEncryptionAlgorithm") != recipient.ALGORITHM:
            raise invalid(f"Recipient must have KeyEncryptionAlgorithm {recipient.ALGORITHM}")
        document = _blob(given, "AttestationDocument", 262144)
        return recipient.verify(document, anchor=self._anchor, now=self._clock())

    def _key_of(self, blob: bytes) -> Key:
        if not blob.startswith(MARK) or len(blob) < len(MARK) + 16 + NONCE + 16:
            raise _invalid_ciphertext()
        key = self._store.keys.get(str(uuid.UUID(bytes=blob[len(MARK) : len(MARK) + 16])))
        if key is None:
            raise _invalid_ciphertext()
        return key

    def _authorized(
        self,
        identity: Identity,
        action: str,
        asked: Members,
        *,
        context: Mapping[str, str] | None = None,
        attested: Recipient | None = None,
        use: bool = False,
        default: Key | None = None,
    ) -> Key:
        """The key that the request names (else `default`), if its policy allows the action."""
        given = asked.get("KeyId")
        if given is None and default is not None:
            key = default
        else:
            name = str(given)
            found = self._store.keys.get(name.removeprefix(f"arn:aws:kms:{self._region}:{self._account}:key/"))
            if found is None:
                raise KmsError("NotFoundException", "the key does not exist in this account and region")
            key = found
        conditions: dict[str, list[str]] = {
            "aws:principalarn": [identity.arn],
            "aws:principalaccount": [identity.arn.split(":")[4]],
            "aws:securetransport": ["true"],
            "kms:calleraccount": [identity.arn.split(":")[4]],
        }
        if context:
            conditions["kms:encryptioncontextkeys"] = list(context)
            conditions |= {f"kms:EncryptionContext:{name}".lower(): [value] for name, value in context.items()}
        if attested is not None:
            conditions |= attested.context
        request = iam.Request(principal=identity.arn, action=action, resource=self.arn(key), context=conditions)
        outcome = iam.evaluate(iam.parse(key.policy), request)
        own = iam.matches_action(identity.actions, action)
        # Within the account the key policy's word is enough; from another account both must allow it.
        direct = outcome is iam.Outcome.ALLOWED and (own or request.account == self._account)
        if not direct and not (outcome is iam.Outcome.DELEGATED and own):
            raise denied(identity.arn, action, self.arn(key), explicit=outcome is iam.Outcome.EXPLICITLY_DENIED)
        if use and key.state != "Enabled":
            if key.state == "Disabled":
                raise KmsError("DisabledException", f"{self.arn(key)} is disabled.")
            raise KmsError("KMSInvalidStateException", f"{self.arn(key)} is {key.state}.")
        return key


def _plaintext(plaintext: bytes, attested: Recipient | None) -> dict[str, object]:
    if attested is None:
        return {"Plaintext": _text(plaintext)}
    return {"CiphertextForRecipient": _text(envelope.seal(plaintext, attested.key))}


def _wrap(key: Key, plaintext: bytes, context: Mapping[str, str]) -> bytes:
    nonce = os.urandom(NONCE)
    sealed = AESGCM(key.material).encrypt(nonce, plaintext, _associated(context))
    return MARK + uuid.UUID(key.id).bytes + nonce + sealed


def _associated(context: Mapping[str, str]) -> bytes:
    return json.dumps(sorted(context.items())).encode("ascii")


def _invalid_ciphertext() -> KmsError:
    return KmsError("InvalidCiphertextException", "")


def _policy(given: object) -> str:
    if not isinstance(given, str):
        raise invalid("Policy is missing")
    iam.parse(given)
    return given


def _context(asked: Members) -> dict[str, str]:
    given = asked.get("EncryptionContext") or {}
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise invalid("EncryptionContext must map names to text")
    return given


def _blob(asked: Members, name: str, limit: int) -> bytes:
    given = asked.get(name)
    try:
        data = base64.b64decode(given, validate=True) if isinstance(given, str) else b""
    except (ValueError, binascii.Error):
        data = b""
    if not 0 < len(data) <= limit:
        raise invalid(f"{name} must be base64 of 1 to {limit} bytes")
    return data


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
