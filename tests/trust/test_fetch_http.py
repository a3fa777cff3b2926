"""HTTP against servers that throttle, hang, drip, cut, flood and redirect."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from tests.trust.services import QUICK, Reply, Service, Time, serving, tls_pair

from cloister.errors import UndecidedError, UsageError
from cloister.trust.fetch.http import Http, Limits, NotFound


@pytest.fixture
def service() -> Iterator[Service]:
    with serving(lambda call: Reply(body=b"good")) as running:
        yield running


@pytest.fixture
def clock() -> Time:
    return Time()


def _http(clock: Time, limits: Limits = QUICK) -> Http:
    return Http(clock=clock.clock, limits=limits)


def _script(service: Service, *replies: Reply) -> None:
    """These in turn; once they are used up, the good one."""
    left = list(replies)
    service.answer = lambda call: left.pop(0) if left else Reply(body=b"good")


def test_an_answer(service: Service, clock: Time) -> None:
    answer = _http(clock).get(service.url + "/a?b=c", limit=4)
    assert answer.body == b"good"
    assert answer.headers["content-length"] == "4"
    assert (service.calls[0].method, service.calls[0].path) == ("GET", "/a?b=c")
    assert service.calls[0].headers["accept-encoding"] == "identity"
    assert "cookie" not in service.calls[0].headers
    assert clock.slept == []


def test_a_question_with_a_body(service: Service, clock: Time) -> None:
    _http(clock).post(service.url, b"\x00question", "application/ocsp-request", limit=4)
    assert (service.calls[0].method, service.calls[0].body) == ("POST", b"\x00question")
    assert service.calls[0].headers["content-type"] == "application/ocsp-request"


def test_throttling_is_waited_for_exactly(service: Service, clock: Time) -> None:
    date = format_datetime(clock.now + timedelta(seconds=17), usegmt=True)
    _script(service, Reply(429, headers={"Retry-After": "10"}), Reply(503, headers={"Retry-After": date}))
    assert _http(clock).get(service.url, limit=99).body == b"good"
    # The second wait is counted from a clock that the first has moved.
    assert clock.slept == [10.0, 7.0]
    assert len(service.calls) == 3


def test_a_long_throttle_is_not_waited_for_nor_cut_short(service: Service, clock: Time) -> None:
    _script(service, Reply(429, headers={"Retry-After": "3600"}))
    with pytest.raises(UndecidedError, match="3600 s"):
        _http(clock).get(service.url, limit=99)
    assert (clock.slept, len(service.calls)) == ([], 1)


@pytest.mark.parametrize("value", ["soon", "-1", "1e9", "", "9" * 40])
def test_a_throttle_that_says_nothing_readable(service: Service, clock: Time, value: str) -> None:
    _script(service, Reply(429, headers={"Retry-After": value}))
    assert _http(clock).get(service.url, limit=99).body == b"good"
    assert clock.slept == [1.0]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_waits_grow_and_end(service: Service, clock: Time, status: int) -> None:
    service.answer = lambda call: Reply(status)
    with pytest.raises(UndecidedError, match=f"4 tries.*{status}"):
        _http(clock, Limits(tries=4, longest_wait=3)).get(service.url, limit=99)
    assert clock.slept == [1.0, 2.0, 3.0]
    assert len(service.calls) == 4


@pytest.mark.parametrize("status", [400, 401, 403, 410, 304, 204])
def test_a_refusal_is_not_repeated(service: Service, clock: Time, status: int) -> None:
    service.answer = lambda call: Reply(status)
    with pytest.raises(UndecidedError, match=str(status)):
        _http(clock).get(service.url, limit=99)
    assert len(service.calls) == 1


def test_what_is_not_there_is_told_apart(service: Service, clock: Time) -> None:
    service.answer = lambda call: Reply(404)
    with pytest.raises(NotFound):
        _http(clock).get(service.url, limit=99)


def test_a_body_that_is_cut(service: Service, clock: Time) -> None:
    service.answer = lambda call: Reply(body=b"half", length=8)
    with pytest.raises(UndecidedError, match="3 tries"):
        _http(clock).get(service.url, limit=99)
    assert len(service.calls) == 3


def test_a_body_that_is_too_long_is_not_read_to_its_end(service: Service, clock: Time) -> None:
    service.answer = lambda call: Reply(body=b"x" * 10_000_000)
    with pytest.raises(UndecidedError, match="more than 1000 bytes"):
        _http(clock).get(service.url, limit=1000)
    assert len(service.calls) == 1


def test_a_compressed_body_is_refused(service: Service, clock: Time) -> None:
    service.answer = lambda call: Reply(body=b"x", headers={"Content-Encoding": "gzip"})
    with pytest.raises(UndecidedError, match="compresses"):
        _http(clock).get(service.url, limit=99)


def test_a_service_that_hangs(service: Service, clock: Time) -> None:
    def hang(call: object) -> Reply:
        service.over.wait(30)
        return Reply()

    service.answer = hang
    began = time.monotonic()
    with pytest.raises(UndecidedError, match="too slow"):
        _http(clock, Limits(read=0.2, total=20, tries=2)).get(service.url, limit=99)
    assert time.monotonic() - began < 10
    service.over.set()


def test_a_service_that_drips_never_outlives_the_total(clock: Time) -> None:
    """Each byte comes in time; the whole does not. Headers too: no limit of the library ends this."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                try:
                    while not stop.wait(0.05):
                        connection.sendall(b"a")
                except OSError:
                    pass

        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        try:
            with pytest.raises(UndecidedError, match="too slow"):
                url = f"http://127.0.0.1:{listener.getsockname()[1]}"
                _http(clock, Limits(read=5, total=0.7, tries=1)).get(url, limit=99)
            assert 0.6 < time.monotonic() - began < 10
        finally:
            stop.set()
            thread.join()


def test_nobody_listens(clock: Time) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(UndecidedError, match="ConnectError") as caught:
        _http(clock).get(f"http://127.0.0.1:{port}/secret-chip", limit=99)
    assert "secret-chip" not in str(caught.value)
    assert len(clock.slept) == 2


def test_a_redirect_within_the_service(service: Service, clock: Time) -> None:
    _script(service, Reply(302, headers={"Location": "/other?x=1"}))
    assert _http(clock).get(service.url + "/one", limit=99).body == b"good"
    assert [call.path for call in service.calls] == ["/one", "/other?x=1"]


def test_a_redirect_elsewhere_is_not_followed(service: Service, clock: Time) -> None:
    with serving(lambda call: Reply(body=b"evil")) as other:
        for place in (
            other.url,
            f"https://127.0.0.1:{service.port}/",
            "file:///etc/passwd",
            "//localhost/",
            "http://[",
            "",
        ):
            _script(service, Reply(302, headers={"Location": place}), Reply(500), Reply(500), Reply(500), Reply(500))
            with pytest.raises(UndecidedError, match=r"another place|circles|tries"):
                _http(clock).get(service.url + "/one", limit=99)
        assert other.calls == []


def test_a_redirect_in_circles(service: Service, clock: Time) -> None:
    service.answer = lambda call: Reply(301, headers={"Location": "/"})
    with pytest.raises(UndecidedError, match="circles"):
        _http(clock).get(service.url, limit=99)
    assert len(service.calls) == 4


def test_a_question_with_a_body_is_not_redirected(service: Service, clock: Time) -> None:
    service.answer = lambda call: Reply(307, headers={"Location": "/"})
    with pytest.raises(UndecidedError, match="307"):
        _http(clock).post(service.url, b"", "text/plain", limit=99)


@pytest.mark.parametrize(
    "url",
    ["http://example.org/", "ftp://127.0.0.1/", "127.0.0.1", "/path", "https://", "https://user:word@127.0.0.1/",
     "http://127.0.0.1.example.org/", "https://a/#b", "http://[", "http://10.0.0.1/"],
)  # fmt: skip
def test_addresses_that_are_refused(clock: Time, url: str) -> None:
    with pytest.raises(UsageError):
        _http(clock).get(url, limit=99)
    assert clock.slept == []


def test_tls_is_checked(clock: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, client = tls_pair(tmp_path)
    with serving(lambda call: Reply(body=b"good"), server) as service:
        assert Http(clock=clock.clock, limits=QUICK, tls=client).get(service.url, limit=99).body == b"good"
        with pytest.raises(UndecidedError, match="ConnectError"):
            _http(clock).get(service.url, limit=99)
        with pytest.raises(UndecidedError, match="ConnectError"):
            Http(clock=clock.clock, limits=QUICK, tls=client).get(
                service.url.replace("127.0.0.1", "localhost"), limit=99
            )
        assert len(service.calls) == 1
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert _http(clock).get(service.url, limit=99).body == b"good"
