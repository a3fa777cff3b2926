"""A small client of Intel Trust Authority's API: a nonce, a token for a quote, and what a verifier needs beside it.

Paths and members are those of Intel's own clients. Nothing that the service answers is trusted here: whoever relies on
a token verifies it (verify.py).
"""

from __future__ import annotations

import base64
import json
import random
import ssl
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import urlsplit

import httpx2

from cloister.errors import MalformedError, UndecidedError, UsageError
from cloister.trust.collateral import Collateral, Item
from cloister.trust.jwt import Alg
from cloister.wire import strict_json
from cloister.wire.strict_json import Fields

API, PORTAL = "https://api.trustauthority.intel.com", "https://portal.trustauthority.intel.com"
NONCE, ATTEST, CERTIFICATES = "/appraisal/v2/nonce", "/appraisal/v2/attest", "/certs"
LISTS = ("/crl/ats-ca-crl.der", "/crl/root-ca-crl.der")
#: The service takes no more.
MAX_POLICIES = 10
MAX_ANSWER = 256 * 1024
ATTEMPTS = 4
#: Seconds; doubled at each attempt, with full jitter. A service that asks for a longer pause is not waited for.
FIRST_WAIT, LONGEST_WAIT = 0.5, 20.0
#: Seconds for each step of an exchange, and for a whole answer.
TIMEOUT, WHOLE = 20.0, 60.0
_T = TypeVar("_T")
#: The service has not begun: the same request may be sent again, whatever it holds.
_TURNED_AWAY = frozenset({429, 503})
_FAILED = frozenset({500, 502, 504})
_REASONS: Mapping[int, tuple[str, str]] = {
    400: ("it refused the request", "The quote, its nonce, held data or a policy id is not what the service accepts."),
    401: ("it does not accept the API key", "Set the attestation API key of your subscription."),
    403: ("the API key may not do that", "Use an attestation API key; look at the subscription's state."),
    404: ("it does not know that path", "Check the service's address."),
    429: ("the request quota is used up", "Try again later."),
}


@dataclass(frozen=True, kw_only=True)
class SignedNonce:
    """A nonce of the service, to be signed over and handed back; `val`, `iat` and `signature` are the decoded bytes."""

    val: bytes
    iat: bytes
    signature: bytes

    @classmethod
    def parse(cls, data: bytes) -> SignedNonce:
        """The answer of the nonce endpoint; raises MalformedError."""
        fields = Fields(strict_json.loads(data, "nonce", limit=8192), "nonce")
        return cls(val=_octets(fields, "val"), iat=_octets(fields, "iat"), signature=_octets(fields, "signature"))

    def members(self) -> dict[str, str]:
        """As requests carry it."""
        return {"val": _base64(self.val), "iat": _base64(self.iat), "signature": _base64(self.signature)}


class TrustAuthority:
    """Calls the service; blocking, may be shared by threads. Close it, or use it as a context manager."""

    def __init__(
        self,
        api_key: str,
        *,
        api: str = API,
        portal: str = PORTAL,
        tls_roots: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`tls_roots` is PEM and replaces the usual roots; such a service is reached without the environment's proxy.

        Raises UsageError.
        """
        if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
            raise UsageError("the Trust Authority API key is not one line of ASCII", hint="Copy it from the portal.")
        self._api, self._portal = _address(api), _address(portal)
        # Never in an error, a log or a representation.
        self._key = api_key
        self._sleep = sleep
        self._http = httpx2.Client(verify=_tls(tls_roots), timeout=TIMEOUT, trust_env=tls_roots is None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def nonce(self) -> SignedNonce:
        """A new nonce; raises UndecidedError."""
        return _understood(SignedNonce.parse, self._call("GET", self._api + NONCE, again=True))

    def attest(
        self,
        quote: bytes,
        *,
        held_data: bytes | None = None,
        nonce: SignedNonce | None = None,
        policy_ids: Sequence[str] = (),
        policy_must_match: bool = True,
        algorithm: Alg = Alg.PS384,
    ) -> bytes:
        """A token about a TDX quote, unverified; raises UndecidedError whatever the reason why there is none.

        The quote's report data is SHA-512(nonce.val ‖ nonce.iat ‖ held_data); without both it is not looked at.
        """
        if len(policy_ids) > MAX_POLICIES:
            raise UsageError(f"the service takes at most {MAX_POLICIES} policy ids", hint="Name fewer.")
        tdx: dict[str, object] = {"quote": _base64(quote)}
        if held_data is not None:
            tdx["runtime_data"] = _base64(held_data)
        if nonce is not None:
            tdx["verifier_nonce"] = nonce.members()
        body: dict[str, object] = {"tdx": tdx, "token_signing_alg": str(algorithm)}
        if policy_ids:
            body |= {"policy_ids": list(policy_ids), "policy_must_match": policy_must_match}
        # A nonce is good once: after a failure halfway it may be used up. Only what was turned away is retried.
        return _understood(
            token_of, self._call("POST", self._api + ATTEST, body=json.dumps(body).encode(), again=False)
        )

    def endorsements(self) -> Collateral:
        """The service's key set and the revocation lists of its CAs, unverified; raises UndecidedError."""
        keys = self._call("GET", self._portal + CERTIFICATES, again=True, key=False)
        lists = [self._call("GET", self._portal + path, again=True, key=False) for path in LISTS]
        return Collateral((Item("ita-certs", keys), *(Item("ita-crl", data) for data in lists)))

    def _call(self, method: str, url: str, *, again: bool, body: bytes | None = None, key: bool = True) -> bytes:
        request = str(uuid.uuid4())
        headers = {"accept": "*/*", "accept-encoding": "identity", "request-id": request}
        if key:
            headers |= {"x-api-key": self._key, "accept": "application/json"}
        if body is not None:
            headers["content-type"] = "application/json"
        for attempt in range(ATTEMPTS):
            last = attempt == ATTEMPTS - 1
            # Jitter keeps replicas that start at once apart; it is no secret.
            pause = random.uniform(0, FIRST_WAIT * 2**attempt)  # noqa: S311
            try:
                status, asked, data = self._once(method, url, headers, body)
            except httpx2.TransportError as error:
                if last or not again:
                    raise UndecidedError(
                        f"Intel Trust Authority cannot be reached ({type(error).__name__}, request {request})"
                    ) from None
                self._sleep(pause)
                continue
            if status == 200:
                return data
            retry = status in _TURNED_AWAY or (again and status in _FAILED)
            if last or not retry or (asked is not None and asked > LONGEST_WAIT):
                reason, hint = _REASONS.get(status, ("it is out of order", "Try again later."))
                raise UndecidedError(
                    f"no answer from Intel Trust Authority: {reason} (HTTP {status}, request {request})", hint=hint
                )
            self._sleep(pause if asked is None else asked)
        raise AssertionError("the last attempt returns or raises")

    def _once(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, float | None, bytes]:
        """Status, the pause in seconds that the service asked for, and the body; UndecidedError for one too long."""
        with self._http.stream(method, url, headers=dict(headers), content=body) as response:
            data, end = b"", time.monotonic() + WHOLE
            # As it came: what is compressed could be of any size.
            for piece in response.iter_raw():
                data += piece
                if len(data) > MAX_ANSWER or time.monotonic() > end:
                    raise UndecidedError("the answer of Intel Trust Authority is too long")
            asked = response.headers.get("retry-after", "")
            return response.status_code, float(asked) if asked.isdecimal() and len(asked) < 7 else None, data


def _address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.query or parts.fragment or "@" in parts.netloc:
        raise UsageError("the Trust Authority's address is not an https URL", hint=f"For example {API}.")
    return url.rstrip("/")


def _tls(roots: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context() if roots is None else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if roots is not None:
        try:
            context.load_verify_locations(cadata=roots)
        except (ssl.SSLError, ValueError):
            raise UsageError("the pinned TLS roots are not PEM certificates") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _understood(parse: Callable[[bytes], _T], data: bytes) -> _T:
    try:
        return parse(data)
    except MalformedError as error:
        raise UndecidedError(f"the answer of Intel Trust Authority cannot be read: {error.message}") from None


def token_of(data: bytes) -> bytes:
    """The token in an answer of the attest endpoint, unverified; raises MalformedError."""
    fields = Fields(strict_json.loads(data, "token answer", limit=MAX_ANSWER), "token answer")
    token = fields.text("token", limit=MAX_ANSWER)
    if not token.isascii():
        raise MalformedError("token answer: the token is not ASCII")
    return token.encode("ascii")


def _octets(fields: Fields, name: str) -> bytes:
    try:
        return base64.b64decode(fields.text(name, limit=2048), validate=True)
    except ValueError:  # binascii.Error is one; so is what is not ASCII
        raise MalformedError(f"nonce: {name} is not base64") from None


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
