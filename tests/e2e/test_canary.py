"""A canary in prompt and API key is searched for in everything that others could see, and found nowhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx2
import psutil
import pytest
from tests.conftest import run_replica

from cloister.api import tenants
from cloister.cli.chat import KEY_VARIABLE, stream_chat
from cloister.client.transport import SealedTransport
from cloister.errors import ApiError

CANARY = "zanzibarquokka"
KEY = "sk-canaryvexillology"
FORMS = tuple(
    form for word in (CANARY, KEY) for form in (word.encode(), word.upper().encode(), word.encode().hex().encode(),
                                                word.encode("utf-16-le"), word.encode("utf-32-le"))
)  # fmt: skip


def _found(data: bytes) -> bool:
    return any(form in data for form in FORMS)


def _readable(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("stream", [True, False])
def test_a_canary_is_found_nowhere(tmp_path: Path, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    env = {**os.environ, "TMPDIR": str(temporary), "PYTHONDEVMODE": "1"}
    seen, proxy_log = tmp_path / "seen", tmp_path / "proxy.log"
    looked_at: dict[str, bytes] = {}
    allowed = tmp_path / "tenants.toml"
    allowed.write_text(tenants.to_toml(tenants.Tenant(id="a", key_sha256=tenants.fingerprint(KEY))))
    options = ("--state", str(tmp_path / "state"), "--tenants", str(allowed))
    with run_replica(tmp_path / "replica", *options, env=env) as replica:
        relay = subprocess.Popen(
            [sys.executable, "-m", "cloister.host.relay", "--to", replica.url[7:], "--capture", str(seen)],
            stdout=subprocess.PIPE, text=True, env=env,
        )  # fmt: skip
        assert relay.stdout is not None
        _, host, port = relay.stdout.readline().split()
        with proxy_log.open("wb") as log:
            proxy = subprocess.Popen(
                [sys.executable, "-m", "cloister", "connect", f"http://{host}:{port}", "-p", str(replica.policy_file),
                 "--listen", "127.0.0.1:0", "--json"],
                stdout=subprocess.PIPE, stderr=log, text=True, env=env,
            )  # fmt: skip
        assert proxy.stdout is not None
        base = json.loads(proxy.stdout.readline())["base_url"]
        try:
            messages = [{"role": "user", "content": f"Redact this note: Patient {CANARY}, MRN 12345678."}]
            with httpx2.Client(headers={"authorization": f"Bearer {KEY}"}, timeout=60) as client:
                answer = client.post(f"{base}/chat/completions", json={"messages": messages, "stream": stream})
                assert answer.status_code == 200
                # Requests that fail on the way carry it too: bad field, bad JSON, unknown route, over-long prompt.
                for body in ({"messages": messages, CANARY: 1}, {"messages": [{"role": CANARY, "content": CANARY}]},
                             {"messages": messages, "stop": [CANARY] * 9},
                             {"messages": [{"role": "user", "content": CANARY * 3000}], "stream": stream}):  # fmt: skip
                    refused = client.post(f"{base}/chat/completions", json=body)
                    assert refused.status_code == 400
                    assert not _found(refused.content)
                assert client.post(f"{base}/chat/completions", content=f'{{"{CANARY}'.encode()).status_code == 400
                assert client.post(f"{base}/{CANARY}", json={}).status_code == 404
                assert client.post(f"{base}/embeddings", json={"input": CANARY}).status_code == 200
                # Another's key, and a key in the wrong place.
                for headers in ({"authorization": f"Bearer {KEY}x"}, {"authorization": KEY}):
                    refused = client.post(f"{base}/chat/completions", json={"messages": messages}, headers=headers)
                    assert refused.status_code == 401
                    assert not _found(refused.content)
                # Sent to the outer port in clear by mistake: refused, and not remembered either.
                assert client.post(f"{replica.url}/v1/chat/completions", json={"messages": messages}).status_code == 426
            monkeypatch.setenv(KEY_VARIABLE, KEY)
            direct = SealedTransport(f"http://{host}:{port}", replica.policy)
            with pytest.raises(ApiError) as caught:
                list(stream_chat(direct, messages, **{CANARY: 1}))
            assert not _found(str(caught.value).encode())
            assert "".join(stream_chat(direct, messages, max_tokens=20))
            direct.close()
            family = [psutil.Process(replica.process.pid), psutil.Process(relay.pid), psutil.Process(proxy.pid)]
            family += [child for process in list(family) for child in process.children(recursive=True)]
            assert len(family) >= 4
            for process in family:
                for name in ("cmdline", "environ"):
                    looked_at[f"{process.pid} {name}"] = _readable(Path(f"/proc/{process.pid}/{name}"))
        finally:
            for process in (relay, proxy):
                process.terminate()
                process.wait(20)
                assert process.stdout is not None
                looked_at[f"{process.pid} stdout"] = process.stdout.read().encode()
                process.stdout.close()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            looked_at[str(path)] = _readable(path)
    captured = sum(len(data) for name, data in looked_at.items() if "seen" in name)
    assert captured > 10_000
    found = sorted(name for name, data in looked_at.items() if _found(data))
    # What was sent in clear by mistake went past the relay, straight to the replica: nothing may hold it.
    assert found == []


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    """The control: in any of its forms the canary is found."""
    for number, form in enumerate(FORMS):
        (tmp_path / str(number)).write_bytes(b"\x00\xff" + form + b"\x00")
        assert _found(_readable(tmp_path / str(number)))
    assert not _found(b"an ordinary line")
