"""Where the owner's AWS credentials come from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cloister.errors import UndecidedError, UsageError
from cloister.platforms.aws_nitro.owner import KmsWrapper, own_credentials

KEY = "arn:aws:kms:us-east-1:111122223333:key/k"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "PROFILE"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def test_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert own_credentials().token is None
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    found = own_credentials()
    assert (found.access_key_id, found.secret_access_key, found.token) == ("AKIDENV", "secret", "token")


def test_then_what_boto3_finds(tmp_path: Path) -> None:
    pytest.importorskip("boto3")
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = AKIDFILE\naws_secret_access_key = s\n")
    assert own_credentials().access_key_id == "AKIDFILE"


def test_none_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no AWS credentials"):
        own_credentials()
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(UsageError, match="no AWS credentials"):
        own_credentials()


def test_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(UndecidedError, match="cannot be reached"):
        KmsWrapper(key_arn=KEY, endpoint="127.0.0.1:1").generate({})
    with pytest.raises(UsageError, match="HOST:PORT"):
        KmsWrapper(key_arn=KEY, endpoint="x:https")
    with pytest.raises(UsageError, match="PEM"):
        KmsWrapper(key_arn=KEY, tls_roots="nonsense")
