"""A key broker that says something else than it should: TLS sockets, its words made by hand."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.enclave.release.kbs import ATTEMPTS, KbsRelease
from cloister.errors import CloisterError, ReleaseDeniedError, UndecidedError
from cloister.platforms import lab_tls as tls
from cloister.weights import jwe, kbs, manifest
from cloister.weights.keys import WrappedKey
from cloister.wire import strict_json

NONCE = base64.b64encode(bytes(32)).decode()
WRAPPED = WrappedKey(service="kbs", key_id="notes/data-key/7", ciphertext=b"", context=manifest.context("notes", 7))


def http(status: int, body: object, *headers: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} x", f"Content-Length: {len(data)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + data


COOKIE = "Set-Cookie: kbs-session-id=abc; Path=/kbs; Secure"
CHALLENGE = http(200, {"nonce": NONCE, "extra-params": ""}, COOKIE)
ATTESTED = http(200, {"token": ""})


def seal(public: ec.EllipticCurvePublicKey) -> bytes:
    return http(200, jwe.seal(b"k" * 32, public))


class Broker(threading.Thread):
    """Answers each connection with the next of `answers`; the last again and again. A callable gets the caller's key."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        tls.make(folder, ["localhost"])
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(folder / tls.SERVER, folder / tls.KEY)
        self.roots = (folder / tls.AUTHORITY).read_text()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.answers: list[bytes | Callable[[ec.EllipticCurvePublicKey], bytes]] = []
        self.requests: list[bytes] = []

    def run(self) -> None:
        public = None
        while True:
            try:
                raw, _ = self.listener.accept()
            except OSError:
                return
            with self.context.wrap_socket(raw, server_side=True) as stream:
                head, _, body = self._request(stream)
                self.requests.append(head + body)
                if b'"tee-pubkey"' in body:
                    members = json.loads(body)["runtime-data"]["tee-pubkey"]
                    public = jwe.read_jwk(strict_json.Fields(members, "JWK"))
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                stream.sendall(answer if isinstance(answer, bytes) else answer(public))

    def _request(self, stream: ssl.SSLSocket) -> tuple[bytes, bytes, bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            data += stream.recv(65536)
        head, between, body = data.partition(b"\r\n\r\n")
        length = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        while len(body) < sum(length):
            body += stream.recv(65536)
        return head, between, body

    def release(self, *answers: bytes | Callable[[ec.EllipticCurvePublicKey], bytes]) -> bytes:
        self.answers = list(answers)
        return KbsRelease(
            self._dial, host="localhost", port=443, attest=lambda data, nonce: b"document", tls_roots=self.roots,
            sleep=lambda _: None,
        ).release(WRAPPED)  # fmt: skip

    def _dial(self, _port: int) -> socket.socket:
        inside, outside = socket.socketpair()
        inside.settimeout(20)
        threading.Thread(target=self._carry, args=(outside,), daemon=True).start()
        return inside

    def _carry(self, near: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += near.recv(1)
        assert head.startswith(b"CONNECT localhost:443 HTTP/1.1\r\n")
        near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        with near, socket.create_connection(self.listener.getsockname()) as far:
            back = threading.Thread(target=copy, args=(far, near), daemon=True)
            back.start()
            copy(near, far)
            back.join(20)


def copy(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    running = Broker(tmp_path)
    running.start()
    yield running
    running.listener.shutdown(socket.SHUT_RDWR)
    running.listener.close()
    running.join(20)


def test_the_three_requests(broker: Broker) -> None:
    assert broker.release(CHALLENGE, ATTESTED, seal) == b"k" * 32
    auth, attest, resource = broker.requests
    assert auth.startswith(b"POST /kbs/v0/auth HTTP/1.1\r\n")
    assert b"cookie" not in auth.lower()
    assert attest.startswith(b"POST /kbs/v0/attest HTTP/1.1\r\n")
    assert resource.startswith(b"GET /kbs/v0/resource/notes/data-key/7 HTTP/1.1\r\n")
    for request in (attest, resource):
        assert b"\r\ncookie: kbs-session-id=abc\r\n" in request


def error(status: int, code: object, detail: str = "") -> bytes:
    return http(status, {"type": f"{kbs.ERRORS}{code}", "detail": detail})


@pytest.mark.parametrize(
    ("answers", "kind", "said", "asked"),
    [
        # A challenge that is none, or no session.
        ((http(200, b"{"),), UndecidedError, "no session", 1),
        ((http(200, {"nonce": NONCE, "extra-params": ""}, "Set-Cookie: other=abc"),), UndecidedError, "no session", 1),
        ((http(200, b"{", COOKIE),), UndecidedError, "strict JSON", 1),
        ((http(200, {"nonce": "AAAA"}, COOKIE),), UndecidedError, "32 bytes", 1),
        ((http(200, {"nonce": "!" * 44}, COOKIE),), UndecidedError, "base64", 1),
        ((http(200, {"nonce": "é" * 44}, COOKIE),), UndecidedError, "base64", 1),
        ((http(200, {"nonce": NONCE, "more": 1}, COOKIE),), UndecidedError, "unknown member", 1),
        # Refusals.
        ((error(401, "version"),), ReleaseDeniedError, "version", 1),
        ((CHALLENGE, error(401, "policy.measurement")), ReleaseDeniedError, "names this image", 2),
        ((CHALLENGE, ATTESTED, error(403, "grant.version")), ReleaseDeniedError, "minimum", 3),
        ((CHALLENGE, ATTESTED, error(404, "resource")), ReleaseDeniedError, "no key", 3),
        ((CHALLENGE, error(401, "\x1b[31m")), UndecidedError, "HTTP 401", 2),
        ((http(404, b"<html>"),), UndecidedError, "HTTP 404", 1),
        ((http(302, b"", "Location: https://else.test/"),), UndecidedError, "HTTP 302", 1),
        ((http(401, b"x" * 20000),), UndecidedError, "more than", ATTEMPTS),
        # Worth another try.
        ((error(503, "unavailable"),), UndecidedError, "cannot decide", ATTEMPTS),
        ((http(503, b"Service Unavailable"),), UndecidedError, "busy", ATTEMPTS),
        ((b"SSH-2.0-x\r\n",), UndecidedError, "BadStatusLine", ATTEMPTS),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{",), UndecidedError, "middle", ATTEMPTS),
        # What should be the key.
        ((CHALLENGE, ATTESTED, http(200, b"k" * 32)), UndecidedError, "strict JSON", 3),
        ((CHALLENGE, ATTESTED, http(200, {"protected": "e30"})), UndecidedError, "missing", 3),
        ((CHALLENGE, ATTESTED, lambda public: http(200, jwe.seal(b"short", public))), UndecidedError, "32-byte", 3),
        (
            (CHALLENGE, ATTESTED, lambda _: seal(ec.generate_private_key(ec.SECP256R1()).public_key())),
            UndecidedError, "does not open", 3,
        ),
    ],
)  # fmt: skip
def test_answers_of_a_bad_day(
    broker: Broker, answers: tuple[bytes, ...], kind: type[CloisterError], said: str, asked: int
) -> None:
    with pytest.raises(kind) as failure:
        broker.release(*answers)
    assert said in failure.value.message
    assert failure.value.hint
    assert len(broker.requests) == asked


def test_it_starts_anew_when_the_session_ended(broker: Broker) -> None:
    gone = error(401, "session")
    assert broker.release(CHALLENGE, ATTESTED, gone, CHALLENGE, gone, CHALLENGE, ATTESTED, seal) == b"k" * 32
    # With another key each time.
    bodies = [json.loads(request[request.index(b"{") :]) for request in broker.requests if b"/attest" in request]
    assert len({body["runtime-data"]["tee-pubkey"]["x"] for body in bodies}) == 3


def test_what_the_broker_wrote_is_not_shown(broker: Broker) -> None:
    with pytest.raises(ReleaseDeniedError) as failure:
        broker.release(error(401, "tee", "zanzibarquokka"))
    assert "zanzibarquokka" not in failure.value.message + failure.value.hint
