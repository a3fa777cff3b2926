"""Writes the AWS KMS key policy under which only the measured image gets the data key.

Sources: AWS KMS Developer Guide, "AWS KMS condition keys for attested platforms" (kms:RecipientAttestation:PCR<n>, and
ImageSha384, which is PCR0), "kms:EncryptionContext:context-key", "Key policies"; IAM User Guide, "Policy evaluation
logic" (an explicit deny beats every allow and every grant) and the condition operator Null.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from cloister.errors import UsageError

PCR0, PCR8 = "kms:RecipientAttestation:PCR0", "kms:RecipientAttestation:PCR8"
IMAGE = "kms:RecipientAttestation:ImageSha384"
MODEL, VERSION = "kms:EncryptionContext:cloister:model", "kms:EncryptionContext:cloister:version"

#: What the account may do with the key: everything that neither uses it nor lets somebody else use it.
ADMINISTRATION = (
    "kms:DescribeKey", "kms:GetKeyPolicy", "kms:PutKeyPolicy", "kms:ListKeyPolicies", "kms:ListGrants",
    "kms:RevokeGrant", "kms:ListResourceTags", "kms:TagResource", "kms:UntagResource", "kms:UpdateKeyDescription",
    "kms:CreateAlias", "kms:UpdateAlias", "kms:DeleteAlias", "kms:EnableKey", "kms:DisableKey",
    "kms:EnableKeyRotation", "kms:DisableKeyRotation", "kms:GetKeyRotationStatus", "kms:ScheduleKeyDeletion",
    "kms:CancelKeyDeletion",
)  # fmt: skip
#: What brings a plaintext out of KMS, or moves it under a key with another policy.
OPENING = ("kms:Decrypt", "kms:ReEncryptFrom", "kms:GenerateRandom", "kms:DeriveSharedSecret")
MAKING = ("kms:GenerateDataKey*",)

_ACCOUNT = re.compile(r"\d{12}\Z", re.ASCII)
_PRINCIPAL = re.compile(r"arn:(aws[a-z-]*):iam::\d{12}:(role|user)/[A-Za-z0-9+=,.@_/-]{1,512}\Z", re.ASCII)
_PCR = re.compile(r"[0-9a-fA-F]{96}\Z", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class KeyPolicy:
    """What the policy is made from; `pcr8` where the image is signed; the rest narrows it further."""

    #: The account that owns the key.
    account: str
    #: The role of the instance that runs the enclave.
    role: str
    pcr0: str
    pcr8: str | None = None
    #: The principal that seals weights: may make data keys in the clear, never decrypt one.
    owner: str | None = None
    model: str | None = None
    version: str | None = None

    def __post_init__(self) -> None:
        """Raises UsageError for what would make a policy that AWS refuses, or that lets anybody in."""
        if not _ACCOUNT.match(self.account):
            raise UsageError("the account is not 12 digits", hint="The AWS account that owns the key.")
        for principal in (self.role, self.owner):
            if principal is not None and not _PRINCIPAL.match(principal):
                raise UsageError(
                    "not the ARN of an IAM role or user", hint="For example arn:aws:iam::111122223333:role/cloister."
                )
        if self.owner == self.role:
            raise UsageError(
                "owner and role are the same", hint="The instance's role must not get data keys in the clear."
            )
        for name, value in (("PCR0", self.pcr0), ("PCR8", self.pcr8)):
            if value is not None and not _PCR.match(value):
                raise UsageError(f"{name} is not 96 hex digits", hint="Take it from the image's measurements.json.")
            if value is not None and not int(value, 16):
                raise UsageError(f"{name} is zero: a debug or unsigned enclave", hint="Every debug enclave has it.")

    def document(self) -> dict[str, object]:
        """The policy, ready for `aws kms create-key --policy`; docs/key-release.md explains every line."""
        partition = self.role.split(":")[1]
        statements = [
            {
                "Sid": "AdministrationWithoutUse",
                "Effect": "Allow",
                "Principal": {"AWS": f"arn:{partition}:iam::{self.account}:root"},
                "Action": list(ADMINISTRATION),
                "Resource": "*",
            },
            {
                "Sid": "AttestedImage",
                "Effect": "Allow",
                "Principal": {"AWS": self.role},
                "Action": ["kms:Decrypt", "kms:GenerateDataKey"],
                "Resource": "*",
                "Condition": {"StringEqualsIgnoreCase": self._registers(), **self._context()},
            },
            *self._denials(),
        ]
        if self.owner is not None:
            statements.insert(2, {
                "Sid": "OwnerMakesDataKeys",
                "Effect": "Allow",
                "Principal": {"AWS": self.owner},
                "Action": ["kms:GenerateDataKey", "kms:DescribeKey"],
                "Resource": "*",
            })  # fmt: skip
        return {"Version": "2012-10-17", "Id": "cloister-key-release", "Statement": statements}

    def _registers(self) -> dict[str, str]:
        return {PCR0: self.pcr0.lower()} | ({} if self.pcr8 is None else {PCR8: self.pcr8.lower()})

    def _context(self) -> dict[str, dict[str, str]]:
        """Exact values where given; otherwise the context must at least name model and version."""
        equal = {name: value for name, value in ((MODEL, self.model), (VERSION, self.version)) if value is not None}
        named = {name: "false" for name in (MODEL, VERSION) if name not in equal}
        return ({"StringEquals": equal} if equal else {}) | ({"Null": named} if named else {})

    def _denials(self) -> list[dict[str, object]]:
        """`Null: true` holds exactly where the request has no such key: where it came without attestation."""

        def deny(sid: str, actions: tuple[str, ...], **more: Mapping[str, str]) -> dict[str, object]:
            return {
                "Sid": sid,
                "Effect": "Deny",
                "Principal": {"AWS": "*"},
                "Action": list(actions),
                "Resource": "*",
                "Condition": {"Null": {IMAGE: "true"}, **more},
            }

        if self.owner is None:
            return [deny("NothingWithoutAttestation", (*OPENING, *MAKING))]
        return [
            deny("NothingOpensWithoutAttestation", OPENING),
            deny("NobodyElseMakesDataKeys", MAKING, ArnNotEquals={"aws:PrincipalArn": self.owner}),
        ]


def from_measurements(measurements: Mapping[str, object], *, signed: bool) -> tuple[str, str | None]:
    """PCR0 and, if `signed`, PCR8 from a measurements.json; raises UsageError."""
    values = measurements.get("measurements")
    if not isinstance(values, dict):
        raise UsageError("the file has no measurements", hint="Give the measurements.json that the image build wrote.")
    found: list[str] = []
    for name in ("PCR0", "PCR8") if signed else ("PCR0",):
        value = values.get(name)
        if not isinstance(value, str):
            raise UsageError(
                f"the measurements have no {name}",
                hint="Sign the image, or leave --signer-pcr8 out." if name == "PCR8" else "Build the image again.",
            )
        found.append(value)
    return found[0], found[1] if signed else None
