"""A replica with tenants: the official client with the right key, a wrong one, none; and what the policy sees of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from tests.conftest import Replica, run_replica

import cloister
from cloister.api import tenants
from cloister.cli.chat import KEY_VARIABLE
from cloister.errors import RefusedError

KEYS = {"clinic-1": tenants.new_key(), "clinic-2": tenants.new_key()}
HELLO = [{"role": "user", "content": "hello"}]


def _file(path: Path, *names: str) -> Path:
    entries = [tenants.Tenant(id=name, key_sha256=tenants.fingerprint(KEYS[name])) for name in names]
    path.write_text("".join(map(tenants.to_toml, entries)))
    return path


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    folder = tmp_path_factory.mktemp("guarded")
    with run_replica(folder / "r", "--tenants", str(_file(folder / "tenants.toml", *KEYS))) as replica:
        yield replica


def _client(replica: Replica, http: object, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{replica.url}/v1", api_key=key, http_client=http, max_retries=0)


@pytest.mark.parametrize("name", KEYS)
def test_the_right_key_is_served(guarded: Replica, name: str) -> None:
    with cloister.http_client(guarded.url, policy=guarded.policy) as http:
        client = _client(guarded, http, KEYS[name])
        assert [model.id for model in client.models.list()] == ["cloister-notes"]
        stream = client.chat.completions.create(model="cloister-notes", messages=HELLO, max_tokens=5, stream=True)
        assert [chunk for chunk in stream if chunk.choices]
        assert client.embeddings.create(model="cloister-notes", input="asthma").data


@pytest.mark.parametrize(
    "key", ["none", tenants.new_key(), KEYS["clinic-1"][:-1], tenants.fingerprint(KEYS["clinic-1"])]
)
def test_a_wrong_key_is_refused_inside_on_every_route(guarded: Replica, key: str) -> None:
    with cloister.http_client(guarded.url, policy=guarded.policy) as http:
        client = _client(guarded, http, key)
        for ask in (
            lambda: client.chat.completions.create(model="cloister-notes", messages=HELLO),
            lambda: client.chat.completions.create(model="cloister-notes", messages=HELLO, stream=True),
            lambda: client.completions.create(model="cloister-notes", prompt="x"),
            lambda: client.embeddings.create(model="cloister-notes", input="x"),
            lambda: client.models.list(),
        ):
            with pytest.raises(openai.AuthenticationError) as caught:
                ask()
            assert caught.value.code == "invalid_api_key"
            assert caught.value.type == "invalid_request_error"
            assert caught.value.response.headers["www-authenticate"] == "Bearer"
            assert key not in str(caught.value)
        # The refusal came through the sealed channel, with a receipt: no relay can have made it.
        assert http._transport.last is not None


def test_no_key_is_refused_and_learns_no_route(guarded: Replica) -> None:
    with cloister.http_client(guarded.url, policy=guarded.policy) as http:
        for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/healthz"), ("GET", "/v1/x"),
                             ("GET", "/v1/completions")):  # fmt: skip
            assert http.request(method, guarded.url + path, json={}).status_code == 401
        twice = [("authorization", f"Bearer {KEYS['clinic-1']}")] * 2
        assert http.get(guarded.url + "/v1/models", headers=twice).status_code == 401


def test_the_command_line_bears_a_key_from_its_environment(guarded: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        sys.executable,
        "-m",
        "cloister",
        "chat",
        guarded.url,
        "-p",
        str(guarded.policy_file),
        "--max-tokens",
        "4",
        "hi",
    ]
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    refused = subprocess.run(words, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "API key" in refused.stderr
    monkeypatch.setenv(KEY_VARIABLE, KEYS["clinic-2"])
    assert subprocess.run(words, capture_output=True, text=True).returncode == 0


def test_tenants_are_part_of_the_attested_configuration(guarded: Replica, replica: Replica, tmp_path: Path) -> None:
    with run_replica(tmp_path / "r", "--tenants", str(_file(tmp_path / "tenants.toml", "clinic-1"))) as fewer:
        digests = {running.ready["config_sha256"] for running in (guarded, replica, fewer)}
        assert len(digests) == 3
        text = guarded.policy_file.read_text().replace(guarded.ready["config_sha256"], fewer.ready["config_sha256"])
    with pytest.raises(RefusedError, match=r"config"):
        cloister.http_client(guarded.url, policy=cloister.Policy.from_toml(text.encode()))


def test_a_file_that_names_nobody_does_not_start_an_open_replica(tmp_path: Path) -> None:
    for text in ("", "tenant = []\n", "[[tenants]]\n"):
        file = tmp_path / "tenants.toml"
        file.write_text(text)
        done = subprocess.run([sys.executable, "-m", "cloister", "serve", "--listen", "127.0.0.1:0", "--tenants", str(file)],
                              capture_output=True, text=True, timeout=60)  # fmt: skip
        assert done.returncode == 3, done.stderr
        assert not done.stdout
