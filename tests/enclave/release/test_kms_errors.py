"""Every refusal that is known is explained on the page, in the program's words."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.enclave.release import kms_errors
from cloister.errors import ReleaseDeniedError

PAGE = (Path(__file__).parents[3] / "docs" / "key-release.md").read_text()


@pytest.mark.parametrize("code", [*kms_errors._DENIED, *kms_errors._UNDECIDED, "RequestExpired", "ThrottlingException"])
def test_the_page_explains_it(code: str) -> None:
    error = kms_errors.error_for(code, "11111111-2222-3333-4444-555555555555")
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{code}`"))
    reason = error.message.split(": ", 1)[1].rsplit(" (", 1)[0]
    assert reason in row
    assert error.hint in row
    assert f"| {error.exit_code} |" in row
    assert isinstance(error, ReleaseDeniedError) == (code in kms_errors._DENIED)
    assert "request 11111111-2222" in error.message


def test_a_request_identifier_that_is_none_is_left_out() -> None:
    assert "request" not in kms_errors.error_for("RequestExpired", "\x1b[31m evil").message.split("(")[1]
