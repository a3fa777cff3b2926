"""The key policy that is printed, and the command that prints it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cloister.errors import UsageError
from cloister.platforms.qemu_nitro.kms import iam
from cloister.policy.kms import KeyPolicy, from_measurements

ACCOUNT = "111122223333"
ROLE, OWNER = f"arn:aws:iam::{ACCOUNT}:role/enclave", f"arn:aws:iam::{ACCOUNT}:role/owner"
PCR0, PCR8 = "AB" * 48, "cd" * 48
KEY = f"arn:aws:kms:us-east-1:{ACCOUNT}:key/k"
ATTESTED = {"kms:recipientattestation:pcr0": ["ab" * 48], "kms:recipientattestation:imagesha384": ["ab" * 48]}
CONTEXT = {"kms:encryptioncontext:cloister:model": ["m"], "kms:encryptioncontext:cloister:version": ["1"]}


def policy(**changes: object) -> KeyPolicy:
    return KeyPolicy(**{"account": ACCOUNT, "role": ROLE, "pcr0": PCR0, **changes})


def outcome(rules: KeyPolicy, principal: str, action: str, context: dict[str, list[str]]) -> str:
    parsed = iam.parse(json.dumps(rules.document()))
    full = {"aws:principalarn": [principal], **context}
    return iam.evaluate(
        parsed, iam.Request(principal=principal, action=action, resource=KEY, context=full)
    ).name  # fmt: skip


@pytest.mark.parametrize("owner", [None, OWNER])
@pytest.mark.parametrize("action", ["kms:Decrypt", "kms:GenerateDataKey"])
def test_the_attested_role_and_nobody_else(owner: str | None, action: str) -> None:
    rules = policy(owner=owner)
    assert outcome(rules, ROLE, action, ATTESTED | CONTEXT) == "ALLOWED"
    assert outcome(rules, ROLE, action, CONTEXT) == "EXPLICITLY_DENIED"
    assert outcome(rules, ROLE, action, ATTESTED) == "DENIED"
    other = {name: ["ab" * 47 + "aa"] for name in ATTESTED}
    assert outcome(rules, ROLE, action, other | CONTEXT) == "DENIED"
    for principal in (f"arn:aws:iam::{ACCOUNT}:role/other", f"arn:aws:iam::{ACCOUNT}:root"):
        assert outcome(rules, principal, action, ATTESTED | CONTEXT) == "DENIED"
        assert outcome(rules, principal, action, CONTEXT) == "EXPLICITLY_DENIED"


def test_the_owner_makes_keys_and_opens_none() -> None:
    rules = policy(owner=OWNER)
    assert outcome(rules, OWNER, "kms:GenerateDataKey", CONTEXT) == "ALLOWED"
    assert outcome(rules, OWNER, "kms:GenerateDataKeyPair", CONTEXT) == "DENIED"
    assert outcome(rules, OWNER, "kms:Decrypt", CONTEXT) == "EXPLICITLY_DENIED"
    assert outcome(rules, OWNER, "kms:Decrypt", CONTEXT | ATTESTED) == "DENIED"
    assert outcome(rules, OWNER, "kms:ReEncryptFrom", CONTEXT) == "EXPLICITLY_DENIED"
    assert outcome(policy(), OWNER, "kms:GenerateDataKey", CONTEXT) == "EXPLICITLY_DENIED"


@pytest.mark.parametrize(
    "action", ["DeriveSharedSecret", "GenerateRandom", "GenerateDataKeyWithoutPlaintext", "ReEncryptFrom"]
)
def test_every_way_to_a_plaintext_is_denied_without_attestation(action: str) -> None:
    for rules in (policy(), policy(owner=OWNER)):
        for principal in (ROLE, f"arn:aws:iam::{ACCOUNT}:root", "arn:aws:iam::999999999999:role/x"):
            assert outcome(rules, principal, f"kms:{action}", CONTEXT) == "EXPLICITLY_DENIED"


def test_the_account_administers_and_neither_uses_nor_grants() -> None:
    root = f"arn:aws:iam::{ACCOUNT}:role/admin"
    for action in ("PutKeyPolicy", "ScheduleKeyDeletion", "DescribeKey", "DisableKey"):
        assert outcome(policy(), root, f"kms:{action}", {}) == "DELEGATED"
    for action in ("Encrypt", "CreateGrant", "Sign", "ReEncryptTo"):
        assert outcome(policy(), root, f"kms:{action}", ATTESTED | CONTEXT) == "DENIED"


def test_signer_and_version() -> None:
    rules = policy(pcr8=PCR8, model="m", version="1")
    signed = ATTESTED | {"kms:recipientattestation:pcr8": [PCR8]}
    assert outcome(rules, ROLE, "kms:Decrypt", signed | CONTEXT) == "ALLOWED"
    assert outcome(rules, ROLE, "kms:Decrypt", ATTESTED | CONTEXT) == "DENIED"
    later = CONTEXT | {"kms:encryptioncontext:cloister:version": ["2"]}
    assert outcome(rules, ROLE, "kms:Decrypt", signed | later) == "DENIED"


def test_no_use_is_allowed_to_everybody() -> None:
    for statement in policy(owner=OWNER, pcr8=PCR8).document()["Statement"]:
        assert statement["Effect"] == "Deny" or statement["Principal"]["AWS"] != "*"
        assert "kms:*" not in statement["Action"]
        assert statement["Sid"].isalnum()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pcr0": "00" * 48}, "zero"), ({"pcr8": "00" * 48}, "zero"), ({"pcr0": "ab" * 47}, "96 hex"),
        ({"pcr0": "ab" * 48 + "\n"}, "96 hex"), ({"pcr0": "*"}, "96 hex"), ({"account": "1"}, "12 digits"),
        ({"account": "11112222333٣"}, "12 digits"), ({"role": "*"}, "ARN"), ({"owner": "*"}, "ARN"),
        ({"role": f"arn:aws:iam::{ACCOUNT}:root"}, "ARN"), ({"role": ROLE + "*"}, "ARN"), ({"owner": ROLE}, "same"),
    ],
)  # fmt: skip
def test_must_fail(changes: dict[str, str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        policy(**changes)


def test_from_measurements() -> None:
    file = {"measurements": {"PCR0": PCR0, "PCR1": "11" * 48, "PCR2": "22" * 48, "PCR8": PCR8}}
    assert from_measurements(file, signed=False) == (PCR0, None)
    assert from_measurements(file, signed=True) == (PCR0, PCR8)
    for broken in ({}, {"measurements": []}, {"measurements": {}}, {"measurements": {"PCR0": None}}):
        with pytest.raises(UsageError):
            from_measurements(broken, signed=False)
    with pytest.raises(UsageError, match="PCR8"):
        from_measurements({"measurements": {"PCR0": PCR0}}, signed=True)


def _run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cloister", "policy", "kms", *options], capture_output=True, text=True, check=False
    )


def test_the_command(tmp_path: Path) -> None:
    file = tmp_path / "measurements.json"
    file.write_text(json.dumps({"measurements": {"PCR0": PCR0, "PCR8": PCR8}, "other": 1}))
    given = ("--measurements", str(file), "--account", ACCOUNT, "--role", ROLE)
    done = _run(*given, "--owner", OWNER, "--signer-pcr8", "--model", "m", "--version", "1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == policy(pcr8=PCR8, owner=OWNER, model="m", version="1").document()
    assert json.loads(_run(*given).stdout) == policy().document()


def test_the_command_refuses(tmp_path: Path) -> None:
    file = tmp_path / "measurements.json"
    file.write_text(json.dumps({"measurements": {"PCR0": "00" * 48}}))
    given = ("--account", ACCOUNT, "--role", ROLE)
    for path, more in ((file, ()), (file, ("--signer-pcr8",)), (tmp_path / "none", ())):
        done = _run("--measurements", str(path), *given, *more)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert not done.stdout
    file.write_text("[]")
    assert _run("--measurements", str(file), *given).returncode == 2


def test_the_page_shows_what_the_program_prints() -> None:
    page = (Path(__file__).parents[2] / "docs" / "key-release.md").read_text()
    shown = json.loads(page.split("```json\n")[1].split("```")[0])
    rules = policy(
        role=f"arn:aws:iam::{ACCOUNT}:role/cloister-replica", owner=f"arn:aws:iam::{ACCOUNT}:role/cloister-owner",
        pcr0=shown["Statement"][1]["Condition"]["StringEqualsIgnoreCase"]["kms:RecipientAttestation:PCR0"],
        pcr8=shown["Statement"][1]["Condition"]["StringEqualsIgnoreCase"]["kms:RecipientAttestation:PCR8"],
        model="notes",
    )  # fmt: skip
    assert shown == rules.document()
    for statement in [*shown["Statement"], *policy().document()["Statement"]]:
        assert f"`{statement['Sid']}`" in page
