"""The client's state machine for one replica, without I/O: attest, appraise, seal, open. Shells do the sending.

A shell asks `key(now)`; without one it sends `challenge()` and gives the answer to `accept`. Then `seal` makes an
Exchange, whose `request` it sends and to which it feeds the answer as it comes.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass, field
from datetime import datetime

from cloister.channel import chunked
from cloister.channel.padding import pad
from cloister.channel.receipt import EXPORT_LABEL, EXPORT_LENGTH, TRAILER, Receipt, commitment
from cloister.client.appraisal import VerifiedKey, verify_bundle
from cloister.errors import (
    CloisterError,
    GatewayRefusedError,
    KeyRejectedError,
    MalformedError,
    OverLimitError,
    ReceiptError,
    ReplayError,
    TruncatedResponse,
    UndecidedError,
)
from cloister.policy.document import Policy
from cloister.policy.verdict import Verdict
from cloister.trust.collateral import Collateral
from cloister.wire import bhttp
from cloister.wire.strict_json import encode_base64url

GATEWAY_PATH = "/.well-known/ohttp-gateway"
ATTESTATION_PATH = "/.well-known/cloister/attestation"
NONCE_SIZE = 32
#: A relay that answers with an endless outer error is cut off here.
MAX_BUNDLE = 256 * 1024


@dataclass(frozen=True, kw_only=True)
class OuterRequest:
    """An HTTP request for a shell to send; it holds nothing secret. `path` is relative to the replica's address."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    nonce: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Completed:
    """How an exchange ended: with a receipt that fits it."""

    receipt: Receipt
    verdict: Verdict


class Session:
    """What one client knows of one replica address. Times are given by the caller (aware datetimes)."""

    def __init__(self, policy: Policy, collateral: Collateral | None = None) -> None:
        self.policy = policy
        self.collateral = collateral
        self._key: VerifiedKey | None = None

    @property
    def verdict(self) -> Verdict | None:
        """The verdict on the key in use."""
        return self._key.verdict if self._key is not None else None

    def key(self, now: datetime) -> VerifiedKey | None:
        """The verified key, or None when evidence must be fetched and appraised first."""
        if self._key is not None and now >= self._key.usable_until:
            self._key = None
        return self._key

    def forget(self) -> None:
        """Use the key no more."""
        self._key = None

    def challenge(self) -> OuterRequest:
        """The request for fresh evidence; its nonce goes back into `accept`."""
        nonce = secrets.token_bytes(NONCE_SIZE)
        body = json.dumps({"nonce": encode_base64url(nonce)}).encode()
        return OuterRequest(
            method="POST",
            path=ATTESTATION_PATH,
            headers=(("content-type", "application/json"), ("accept", "application/json")),
            body=body,
            nonce=nonce,
        )

    def accept(self, status: int, body: bytes, *, nonce: bytes | None, now: datetime) -> VerifiedKey:
        """Appraise the answer to `challenge`; raises the verifier's error with its verdict, or UndecidedError."""
        if status != 200:
            raise UndecidedError(
                f"the replica gave no evidence (HTTP {status})", hint="Is this the address of a Cloister replica?"
            )
        self._key = None
        self._key = verify_bundle(body, self.policy, now=now, nonce=nonce, collateral=self.collateral)
        return self._key

    def seal(self, request: bhttp.Request, now: datetime) -> Exchange:
        """Seal a request to the verified key; raises UndecidedError when there is none."""
        key = self.key(now)
        if key is None:
            raise UndecidedError("no verified key: fetch and appraise evidence first")
        return Exchange(key, request)


@dataclass(eq=False)
class Exchange:
    """One sealed request and its answer: `head` for status and headers, `feed` for each piece, `finish` at the end."""

    key: VerifiedKey
    inner: bhttp.Request
    request: OuterRequest = field(init=False)
    _sealer: chunked.RequestSealer = field(init=False)
    _opener: chunked.ResponseOpener = field(init=False)
    _decoder: bhttp.ResponseDecoder = field(init=False)
    _content: hashlib._Hash = field(init=False)
    _trailers: bhttp.Fields | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        expect = ("cloister-expect", encode_base64url(self.key.statement_binding))
        message = pad(
            bhttp.encode_request(
                bhttp.Request(
                    method=self.inner.method,
                    path=self.inner.path,
                    scheme=self.inner.scheme,
                    authority=self.inner.authority,
                    headers=(*self.inner.headers, expect),
                    content=self.inner.content,
                )
            )
        )
        if len(message) > chunked.MAX_REQUEST - 64 * 1024:
            raise OverLimitError("the request is larger than the sealed channel carries")
        self._sealer = chunked.RequestSealer(self.key.config)
        self._opener = self._sealer.response_opener()
        self._decoder = bhttp.ResponseDecoder()
        self._content = hashlib.sha256()
        self.request = OuterRequest(
            method="POST",
            path=GATEWAY_PATH,
            headers=(
                ("content-type", chunked.REQUEST_TYPE),
                ("accept", chunked.RESPONSE_TYPE),
                ("incremental", "?1"),
                ("cloister-key", self.key.kid),
            ),
            body=self._sealer.seal(message),
        )

    def head(self, status: int, content_type: str, retry_after: str | None = None) -> None:
        """Check the outer head; raises a ChannelError for anything but a sealed answer.

        Outer errors are unauthenticated: they never change what this client trusts.
        """
        if status == 200 and content_type == chunked.RESPONSE_TYPE:
            return
        if status == 422:
            raise KeyRejectedError("the replica does not accept the key (any more)")
        if status == 409:
            raise ReplayError("the replica says it has already received this request")
        if status == 413:
            raise OverLimitError("the replica says the request is too large")
        seconds = float(retry_after) if retry_after is not None and retry_after.isdecimal() else None
        raise GatewayRefusedError(
            f"the way to the replica answered HTTP {status} without a sealed answer",
            status=status,
            hint="A relay or the replica refused; nothing of the request was readable there.",
            retry_after=seconds,
        )

    def feed(self, data: bytes) -> list[bhttp.Event]:
        """What the next bytes of the outer body bring: Head, then Content. End is only given by `finish`."""
        events: list[bhttp.Event] = []
        for plaintext in self._opener.push(data):
            events += self._decode(plaintext)
        return events

    def finish(self) -> tuple[list[bhttp.Event], Completed]:
        """The end of the outer body: the last events, and the proof that the answer is whole.

        Raises TruncatedResponse or ReceiptError; what `feed` gave before is then not to be relied on.
        """
        events = self._decode(self._opener.finish())
        try:
            events += self._decoder.finish()
        except MalformedError:
            raise TruncatedResponse("the answer ended in the middle of a message") from None
        ends = [event for event in events if isinstance(event, bhttp.End)]
        trailers = ends[0].trailers if ends else self._trailers
        text = bhttp.single(trailers or (), TRAILER)
        if text is None:
            raise ReceiptError("the answer carries no receipt")
        receipt = Receipt.verify(text, self.key.bundle.statement.receipt_key)
        receipt.check(
            kid=self.key.kid,
            binding=self.key.statement_binding,
            request=self._sealer.transcript(),
            response=self._opener.transcript(),
            commitment=commitment(self._sealer.export(EXPORT_LABEL, EXPORT_LENGTH), self._content.digest()),
        )
        return events, Completed(receipt=receipt, verdict=self.key.verdict)

    def _decode(self, plaintext: bytes) -> list[bhttp.Event]:
        try:
            events = self._decoder.push(plaintext)
        except MalformedError as error:
            raise TruncatedResponse(f"the sealed answer is not a message: {error.message}") from None
        for event in events:
            if isinstance(event, bhttp.Content):
                self._content.update(event.data)
            elif isinstance(event, bhttp.End):
                self._trailers = event.trailers
        return events


def retryable(error: CloisterError) -> bool:
    """May a shell seal the same request anew, once, after fetching evidence again? Only if the key was not accepted."""
    return isinstance(error, KeyRejectedError)
