"""HTTP for collateral: TLS, one origin, bounded in time, size and tries. Nothing is logged."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import secrets
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2

from cloister.errors import UndecidedError, UsageError

MAX_REDIRECTS = 3
_BUSY = frozenset({429, 500, 502, 503, 504})
_MOVED = frozenset({301, 302, 303, 307, 308})
_SECONDS = re.compile(r"[0-9]{1,6}\Z")
_AGAIN = "The service is down or busy: try again later, or pass collateral that you have."


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Time as the caller wants it: the aware time of day, a wait in seconds, and a number from 0 to 1."""

    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = field(default=secrets.SystemRandom().random)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds for connecting, for each read and for one whole exchange; tries; the first and the longest wait."""

    connect: float = 5.0
    read: float = 15.0
    total: float = 45.0
    tries: int = 4
    first_wait: float = 1.0
    longest_wait: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a service said with status 200; header names in lower case."""

    body: bytes
    headers: Mapping[str, str]


class NotFound(UndecidedError):
    """The service answers, and does not know what it was asked for; or the cache does not, offline."""

    default_hint = "Services have said this in outages too; or the evidence names something that does not exist."


@dataclass(frozen=True)
class _Again:
    """A try that failed in a way that another may not; `after` seconds if the service said so."""

    reason: str
    after: float | None = None


class Http:
    """Asks services, one exchange at a time. It blocks; asynchronous code calls it in a thread.

    `tls` replaces the system's trusted roots (a private PCCS, a test).
    """

    def __init__(
        self, *, clock: Clock | None = None, limits: Limits | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._clock = clock or Clock()
        self._limits = limits or Limits()
        self._tls = tls

    def get(self, url: str, *, limit: int) -> Answer:
        """The answer, at most `limit` bytes; raises UndecidedError (NotFound for 404), UsageError for the address."""
        return self._ask("GET", url, limit, {}, None)

    def post(self, url: str, body: bytes, media_type: str, *, limit: int) -> Answer:
        """The answer to a body; raises as `get` does."""
        return self._ask("POST", url, limit, {"Content-Type": media_type}, body)

    def _ask(self, method: str, url: str, limit: int, headers: dict[str, str], body: bytes | None) -> Answer:
        target = check_url(url)
        headers |= {"Accept-Encoding": "identity", "User-Agent": "cloister"}
        reason = ""
        for attempt in range(self._limits.tries):
            outcome = self._follow(method, target, headers, body, limit)
            if isinstance(outcome, Answer):
                return outcome
            reason = outcome.reason
            if attempt + 1 < self._limits.tries:
                self._clock.sleep(self._wait(attempt, outcome, target.host))
        raise UndecidedError(f"{target.host} gave nothing in {self._limits.tries} tries ({reason})", hint=_AGAIN)

    def _follow(
        self, method: str, url: httpx2.URL, headers: Mapping[str, str], body: bytes | None, limit: int
    ) -> Answer | _Again:
        for _ in range(MAX_REDIRECTS + 1):
            outcome = asyncio.run(self._exchange(method, url, headers, body, limit))
            if not isinstance(outcome, httpx2.URL):
                return outcome
            url = outcome
        raise UndecidedError(f"{url.host} redirects in circles")

    def _wait(self, attempt: int, outcome: _Again, host: str) -> float:
        """Never less than the service asks for; otherwise twice as long each time, by chance up to half less."""
        if outcome.after is not None:
            if outcome.after > self._limits.longest_wait:
                raise UndecidedError(f"{host} asks to come back in {outcome.after:.0f} s", hint=_AGAIN)
            return outcome.after
        longest = min(self._limits.longest_wait, self._limits.first_wait * 2.0**attempt)
        return longest * (1 + self._clock.jitter()) / 2

    async def _exchange(
        self, method: str, url: httpx2.URL, headers: Mapping[str, str], body: bytes | None, limit: int
    ) -> Answer | httpx2.URL | _Again:
        """One exchange: an answer, where it moved to, or why to try again."""
        timeout = httpx2.Timeout(self._limits.read, connect=self._limits.connect)
        try:
            # The library's own limits are for each read: a service that drips bytes would be waited for forever.
            async with (
                asyncio.timeout(self._limits.total),
                httpx2.AsyncClient(verify=self._tls or True, timeout=timeout, follow_redirects=False) as client,
                client.stream(method, url, headers=headers, content=body) as response,
            ):
                return await self._read(response, limit)
        except (TimeoutError, httpx2.TimeoutException):
            return _Again("too slow")
        except httpx2.TransportError as error:
            return _Again(type(error).__name__)

    async def _read(self, response: httpx2.Response, limit: int) -> Answer | httpx2.URL | _Again:
        host, status = response.url.host, response.status_code
        if status in _BUSY:
            return _Again(f"HTTP {status}", self._retry_after(response))
        if status in _MOVED and response.request.method == "GET":
            return _moved(response)
        if status == 404:
            raise NotFound(f"{host} does not have it (HTTP 404)")
        if status != 200:
            raise UndecidedError(f"{host} refuses (HTTP {status})")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise UndecidedError(f"{host} compresses, which it was asked not to")
        body = bytearray()
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > limit:
                raise UndecidedError(f"{host} sends more than {limit} bytes")
        return Answer(body=bytes(body), headers={name.lower(): value for name, value in response.headers.items()})

    def _retry_after(self, response: httpx2.Response) -> float | None:
        """RFC 9110 section 10.2.3: seconds or a date; None where it is neither."""
        text = response.headers.get("retry-after", "").strip()
        if _SECONDS.match(text):
            return float(text)
        try:
            return max(0.0, (parsedate_to_datetime(text) - self._clock.now()).total_seconds())
        except (ValueError, TypeError):
            return None


def check_url(text: str) -> httpx2.URL:
    """An absolute https URL; http only to this machine itself. Raises UsageError."""
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL:
        raise UsageError("the address of a service is not a URL") from None
    if url.scheme not in ("https", "http") or not url.host or url.userinfo or url.fragment:
        raise UsageError("the address of a service is not a plain https URL")
    if url.scheme == "http" and not _is_loopback(url.host):
        raise UsageError(f"{url.host} must be asked over https")
    return url


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    """Scheme, host and port (None: the scheme's own); RFC 6454."""
    return url.scheme, url.host, url.port


def _moved(response: httpx2.Response) -> httpx2.URL:
    try:
        target = response.url.join(response.headers.get("location", ""))
    except httpx2.InvalidURL:
        target = httpx2.URL("")
    if origin(target) != origin(response.url) or target.userinfo:
        raise UndecidedError(
            f"{response.url.host} redirects to another place", hint="If that is right, name it with --base-url."
        )
    return target
