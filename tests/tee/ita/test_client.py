"""The client of the Trust Authority's API against a real TLS server that answers what a test says."""

from __future__ import annotations

import gzip
import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cloister.errors import MalformedError, UndecidedError, UsageError
from cloister.platforms import lab_tls
from cloister.tee.ita import client as clients
from cloister.tee.ita.client import SignedNonce, TrustAuthority

KEY = "an-api-key-that-nobody-may-see"
NONCE = json.dumps({"val": "dg==", "iat": "aQ==", "signature": "cw=="}).encode()
Answer = tuple[int, dict[str, str], bytes] | None


@dataclass
class Server:
    """Gives the answers in order; None hangs up. Keeps what was asked."""

    answers: list[Answer] = field(default_factory=list)
    asked: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)
    url: str = ""
    tls: str = ""

    def client(self, key: str = KEY) -> TrustAuthority:
        return TrustAuthority(key, api=self.url, portal=self.url, tls_roots=self.tls, sleep=self.slept.append)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            state.asked.append((self.command, self.path, headers, body))
            answer = state.answers.pop(0)
            if answer is None:
                self.close_connection = True
                return
            status, more, data = answer
            self.send_response(status)
            for name, value in {**more, "content-length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _do  # noqa: N815 - the library looks for these names

        def log_message(self, *arguments: object) -> None:
            pass

    lab_tls.make(tmp_path, ["localhost"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / lab_tls.SERVER, tmp_path / lab_tls.KEY)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        http.socket = context.wrap_socket(http.socket, server_side=True)
        state.url = f"https://localhost:{http.server_address[1]}"
        state.tls = (tmp_path / lab_tls.AUTHORITY).read_text()
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield state
        http.shutdown()


def test_what_goes_out(server: Server) -> None:
    server.answers = [(200, {}, NONCE), (200, {}, b'{"token": "a.b.c"}')]
    with server.client() as service:
        nonce = service.nonce()
        assert nonce == SignedNonce(val=b"v", iat=b"i", signature=b"s")
        assert service.attest(b"quote", held_data=b"held", nonce=nonce, policy_ids=["p"]) == b"a.b.c"
    (_, path, headers, _), (method, to, posted, body) = server.asked
    assert (path, to, method) == ("/appraisal/v2/nonce", "/appraisal/v2/attest", "POST")
    assert headers["x-api-key"] == posted["x-api-key"] == KEY
    assert headers["request-id"] != posted["request-id"]
    assert posted["content-type"] == "application/json"
    assert json.loads(body) == {
        "tdx": {"quote": "cXVvdGU=", "runtime_data": "aGVsZA==", "verifier_nonce": json.loads(NONCE)},
        "token_signing_alg": "PS384", "policy_ids": ["p"], "policy_must_match": True,
    }  # fmt: skip


def test_the_api_key_goes_to_the_api_alone(server: Server) -> None:
    server.answers = [(200, {}, b"k"), (200, {}, b"1"), (200, {}, b"2")]
    with server.client() as service:
        assert [item.data for item in service.endorsements().items] == [b"k", b"1", b"2"]
    assert all("x-api-key" not in headers for _, _, headers, _ in server.asked)
    # A redirect would carry it elsewhere.
    server.answers = [(302, {"location": f"{server.url}/elsewhere"}, b"")]
    with server.client() as service, pytest.raises(UndecidedError, match="HTTP 302"):
        service.nonce()
    assert not server.answers


def test_a_busy_service_is_asked_again_as_it_wishes(server: Server) -> None:
    server.answers = [(429, {"retry-after": "7"}, b""), (503, {}, b""), (500, {}, b""), (200, {}, NONCE)]
    with server.client() as service:
        service.nonce()
    assert server.slept[0] == 7
    assert all(0 <= pause <= clients.FIRST_WAIT * 2**3 for pause in server.slept[1:])
    assert len({headers["request-id"] for _, _, headers, _ in server.asked}) == 1


def test_it_gives_up(server: Server) -> None:
    for answers in ([(429, {}, b"")] * 4, [(429, {"retry-after": "21"}, b"")], [None] * 4, [(500, {}, b"")] * 4):
        server.answers = list(answers)
        with server.client() as service, pytest.raises(UndecidedError) as caught:
            service.nonce()
        assert not server.answers
        assert KEY not in caught.value.message + caught.value.hint


def test_a_retry_after_that_is_no_number_is_not_followed(server: Server) -> None:
    server.answers = [(429, {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, b""), (200, {}, NONCE)]
    with server.client() as service:
        service.nonce()
    assert server.slept[0] <= clients.FIRST_WAIT


def test_a_quote_is_not_sent_again_after_a_failure_halfway(server: Server) -> None:
    for answer in ((500, {}, b""), (502, {}, b""), None):
        server.answers = [answer]
        with server.client() as service, pytest.raises(UndecidedError):
            service.attest(b"quote")
        assert not server.answers
    server.answers = [(503, {}, b""), (200, {}, b'{"token": "a.b.c"}')]
    with server.client() as service:
        service.attest(b"quote")


@pytest.mark.parametrize(
    ("status", "why"), [(400, "refused"), (401, "API key"), (403, "may not"), (418, "out of order")]
)
def test_a_refusal_is_told_at_once_and_without_what_the_service_wrote(server: Server, status: int, why: str) -> None:
    server.answers = [(status, {}, f"words of a stranger, and {KEY}".encode())]
    with server.client() as service, pytest.raises(UndecidedError, match=why) as caught:
        service.nonce()
    assert f"HTTP {status}" in caught.value.message
    assert "stranger" not in caught.value.message
    assert KEY not in caught.value.message + caught.value.hint + repr(service.__class__)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"token": 1}', b'{"token": "\xc3\xa9"}', b'{"token": "a", "token": "b"}', b" " * 300_000],
)
def test_an_answer_that_is_none(server: Server, body: bytes) -> None:
    server.answers = [(200, {}, body)]
    with server.client() as service, pytest.raises(UndecidedError):
        service.attest(b"quote")


def test_an_answer_is_not_unpacked(server: Server) -> None:
    server.answers = [(200, {"content-encoding": "gzip"}, gzip.compress(NONCE))]
    with server.client() as service, pytest.raises(UndecidedError, match="cannot be read"):
        service.nonce()


def test_an_answer_without_end_is_left(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "WHOLE", 0.0)
    server.answers = [(200, {}, NONCE)]
    with server.client() as service, pytest.raises(UndecidedError, match="too long"):
        service.nonce()


def test_a_nonce_is_read_strictly() -> None:
    for data in (b"{}", NONCE.replace(b"dg==", b"dg"), NONCE.replace(b"dg==", b"!!!!"), NONCE[:-1]):
        with pytest.raises(MalformedError):
            SignedNonce.parse(data)


def test_another_server_is_not_talked_to(server: Server) -> None:
    stranger = TrustAuthority(KEY, api=server.url, portal=server.url, sleep=server.slept.append)
    with stranger as service, pytest.raises(UndecidedError, match="cannot be reached"):
        service.nonce()
    assert not server.asked


def test_wrong_words_of_the_caller() -> None:
    for key in ("", "two words", "line\n", "é"):
        with pytest.raises(UsageError, match="API key"):
            TrustAuthority(key)
    for url in ("http://api.trustauthority.intel.com", "https://", "https://user@host", "https://host/?q"):
        with pytest.raises(UsageError, match="https URL"):
            TrustAuthority(KEY, api=url)
    with pytest.raises(UsageError, match="PEM"):
        TrustAuthority(KEY, tls_roots="no PEM")
    with TrustAuthority(KEY) as service, pytest.raises(UsageError, match="at most 10"):
        service.attest(b"quote", policy_ids=["p"] * 11)
