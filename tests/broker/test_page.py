"""The page says what the program does, in its words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cloister.broker import app, messages, server, sessions
from cloister.enclave.release import kbs_errors
from cloister.errors import ReleaseDeniedError
from cloister.policy import release
from cloister.weights import kbs

PAGE = (Path(__file__).parents[2] / "docs" / "broker.md").read_text()


@pytest.mark.parametrize("code", [*kbs_errors.DENIED, *kbs_errors._UNDECIDED, "busy"])
def test_the_page_explains_every_denial(code: str) -> None:
    error = kbs_errors.error_for(code)
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{code}` | {error.exit_code} "))
    assert error.message.split(": ", 1)[1].rsplit(" (", 1)[0] in row
    assert error.hint in row
    assert isinstance(error, ReleaseDeniedError) == (code in kbs_errors.DENIED)


def test_its_policy_is_one() -> None:
    (text,) = re.findall(r"```toml\n(schema = .*?)```", PAGE, re.DOTALL)
    policy = release.ReleasePolicy.from_toml(text.encode())
    assert policy.grants[0].minimum_version == 7


def test_its_checks_are_in_order() -> None:
    rows = [f"| `{check}` | {title} |" for check, title in release.ATTESTATION]
    assert "\n".join(rows) in PAGE
    flowing = " ".join(PAGE.split())
    for check, title in release.RELEASE:
        assert f"`{check}` ({title})" in flowing


def test_its_numbers() -> None:
    assert f"version **{kbs.VERSION}**" in PAGE
    assert f"at most {sessions.MAX_CHALLENGES} challenges" in PAGE
    assert f"{sessions.MAX_SESSIONS} attested sessions" in PAGE
    assert f"at most {server.MAX_CONNECTIONS} connections" in PAGE
    assert (sessions.CHALLENGE_LIFE, sessions.SESSION_LIFE, app.BODY_SECONDS) == (60, 300, 10)
    for size in (messages.MAX_REQUEST, messages.MAX_ATTESTATION):
        assert f"{size // 1024} KiB at" in PAGE
