"""The parent's configuration, and that its page says what the code does."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import tomllib
from pathlib import Path

import pytest

from cloister.errors import UsageError
from cloister.host.config import AgentConfig, EnclaveConfig
from cloister.host.relay import Address
from cloister.wire import telemetry

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "parent.md").read_text()
BASE = 'listen = "127.0.0.1:0"\nuds = "v"\n'


def rows(kind: type) -> list[str]:
    """The page's rows as the class has them: name, default, and the comment above the field."""
    source, made = inspect.getsource(kind), []
    for field in dataclasses.fields(kind):
        comment = re.search(rf"    #: ([^\n]+)\n    {field.name}: ", source)
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if default is dataclasses.MISSING:
            shown = "required"
        elif default is None:
            shown = ""
        else:
            value = f"{default.host}:{default.port}" if isinstance(default, Address) else default
            shown = f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"
        made.append("| " + " | ".join((f"`{field.name}`", shown, comment[1] if comment else "")).rstrip() + " |")
    return [re.sub(r" +", " ", row) for row in made]


@pytest.mark.parametrize("kind", [AgentConfig, EnclaveConfig])
def test_the_page_has_every_key(kind: type) -> None:
    page = [re.sub(r" +", " ", line) for line in PAGE.splitlines()]
    assert [row for row in rows(kind) if row not in page] == []


def test_the_page_has_the_allow_list() -> None:
    def fields(name: str) -> str:
        said = []
        for key, field in telemetry.EVENTS[name].items():
            if isinstance(field, telemetry.Number):
                said.append(f"`{key}`: up to {field.maximum} {field.unit}")
            else:
                said.append(f"`{key}`: {', '.join(field.words)}")
        return "; ".join(said)

    table = PAGE[PAGE.index("| event | fields |") :].split("\n\n")[0].splitlines()[2:]
    expected = [f"| `{name}` | {fields(name)} |".replace("|  |", "| |") for name in telemetry.EVENTS]
    assert table == expected
    for number in (telemetry.MAX_LINE, telemetry.BURST, telemetry.PER_MINUTE, telemetry.PER_MINUTE * 13):
        assert re.search(rf"\b{number}\b", PAGE)


def test_the_page_shows_a_configuration_that_is_one(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "host.toml").write_text(example)
    loaded = AgentConfig.load(tmp_path / "host.toml")
    assert loaded.cid == tomllib.loads(example)["cid"]
    assert loaded.enclave is not None
    assert loaded.enclave.start[0] == "nitro-cli"


@pytest.mark.parametrize(
    "line",
    [
        "heartbeat = 1", 'telemetry = "yes"', "connections = -1", "connections = true", "idle_seconds = 0",
        'idle_seconds = "long"', "egress = [1]", 'egress = "a:1"', "store = 1", 'name = "a b"', 'name = ""',
        'name = "' + "a" * 65 + '"', 'resolve = { "a:1" = 1 }', "cid = 3", "enclave = 1", "[enclave]",
        '[enclave]\nstart = "nitro-cli"', '[enclave]\nstart = ["x"]\nmore = 1', '[enclave]\nstart = ["x"]\nmisses = 0.5',
        "[enclave]\nstart = []",
    ],
)  # fmt: skip
def test_wrong_kinds_are_errors(tmp_path: Path, line: str) -> None:
    (tmp_path / "host.toml").write_text(BASE + line)
    with pytest.raises(UsageError):
        AgentConfig.load(tmp_path / "host.toml")


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    (tmp_path / "host.toml").write_text(BASE + "heartbeet = true")
    with pytest.raises(UsageError, match="heartbeet"):
        AgentConfig.load(tmp_path / "host.toml")
