"""Credentials from the parent: a stranger's words that end in header lines."""

from __future__ import annotations

import json
import socket
import threading
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.enclave.release.credentials import MAX_CREDENTIALS, decode, from_parent
from cloister.errors import MalformedError, UndecidedError
from cloister.wire.ports import CREDENTIALS

GOOD = {
    "AccessKeyId": "ASIAEXAMPLE000000001",
    "SecretAccessKey": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
    "Token": "IQoJb3JpZ2luX2VjE/+=_.-",
    "Expiration": "2026-06-01T12:00:00Z",
}


def test_good() -> None:
    found = decode(json.dumps(GOOD).encode())
    assert found.access_key_id == GOOD["AccessKeyId"]
    assert found.secret_access_key == GOOD["SecretAccessKey"]
    assert found.token == GOOD["Token"]
    assert found.expires_at == datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "change",
    [
        *({name: ""} for name in GOOD),
        *({name: None} for name in GOOD),
        *({name: ...} for name in GOOD),
        *({name: GOOD[name] + "\r\nx-injected: 1"} for name in GOOD),
        *({name: GOOD[name] + "\n"} for name in GOOD),
        {"Token": "x" * 9000}, {"Token": "ключ"}, {"SecretAccessKey": "with space in the middle"},
        {"Expiration": "2026-13-01T12:00:00Z"}, {"Expiration": "2026-06-01T12:00:00+02:00"}, {"Expiration": 5},
        {"AccessKeyId": ["x"]}, {"Endpoint": "evil.example"}, {"Expiration": "٢٠٢٦-06-01T12:00:00Z"},
    ],
)  # fmt: skip
def test_must_fail(change: dict[str, object]) -> None:
    members = {name: value for name, value in (GOOD | change).items() if value is not ...}
    with pytest.raises(MalformedError) as error:
        decode(json.dumps(members).encode())
    for value in members.values():
        assert not isinstance(value, str) or not value or value not in error.value.message


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"null", b'{"Token":1,"Token":2}', b"{" * 100_000, b"\xff"])
def test_not_credentials(data: bytes) -> None:
    with pytest.raises(MalformedError):
        decode(data)


@given(st.binary(max_size=300))
def test_noise(data: bytes) -> None:
    with pytest.raises(MalformedError):
        decode(data)


def _parent(answer: bytes):
    def dial(port: int) -> socket.socket:
        assert port == CREDENTIALS
        inside, outside = socket.socketpair()
        inside.settimeout(20)

        def serve() -> None:
            with outside:
                assert outside.recv(4096) == b"GET /credentials HTTP/1.1\r\nhost: parent\r\nconnection: close\r\n\r\n"
                outside.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        return inside

    return dial


def test_from_the_parent() -> None:
    body = json.dumps(GOOD).encode()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    assert from_parent(_parent(answer)) == decode(body)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "RemoteDisconnected"),
        (b"nonsense\r\n\r\n", "BadStatusLine"),
        (b"HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n", "HTTP 503"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (MAX_CREDENTIALS + 1), "more than"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{", "middle"),
    ],
)
def test_a_parent_that_does_not_help(answer: bytes, reason: str) -> None:
    with pytest.raises(UndecidedError, match=reason):
        from_parent(_parent(answer))
