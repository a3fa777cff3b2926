"""Typed members of strict JSON: what each getter takes, and what it does not."""

from __future__ import annotations

import pytest

from cloister.errors import MalformedError
from cloister.wire.strict_json import Fields


def test_flags() -> None:
    fields = Fields({"yes": True, "no": False}, "x")
    assert (fields.flag("yes"), fields.flag("no")) == (True, False)
    for value in (1, 0, "true", None, []):
        with pytest.raises(MalformedError):
            Fields({"flag": value}, "x").flag("flag")
    with pytest.raises(MalformedError):
        fields.flag("missing")


def test_hex() -> None:
    fields = Fields({"value": "00ff", "none": ""}, "x")
    assert fields.hex("value", 2) == fields.hex("value") == fields.hex("value", limit=2) == b"\x00\xff"
    assert fields.hex("none") == b""
    for text, size, limit in (
        ("00ff", 1, 9), ("00ff", 3, 9), ("00ff", None, 1), ("00f", None, 9), ("00FF", 2, 9), ("0x00", 2, 9),
        ("00ff\n", None, 9), ("", 2, 9), ("00 ff", None, 9), ("0٠", 1, 9), (5, None, 9),
    ):  # fmt: skip
        with pytest.raises(MalformedError):
            Fields({"value": text}, "x").hex("value", size, limit=limit)
