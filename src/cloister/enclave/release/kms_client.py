"""A small AWS KMS client: JSON 1.1 over TLS over any stream (AWS KMS API Reference, "Making API requests").

Used by the enclave over the parent's egress pipe and by the owner over TCP. boto3 cannot be given a stream, and would
bring thirty packages into the measured image for two calls.
"""

from __future__ import annotations

import json
import logging
import random
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from cloister.enclave.net import CutError
from cloister.enclave.release import kms_errors, tls
from cloister.enclave.release.http1 import exchange
from cloister.enclave.release.sigv4 import Credentials, signed_headers
from cloister.errors import MalformedError, UndecidedError, UsageError
from cloister.wire import strict_json

MAX_ANSWER = 64 * 1024
ATTEMPTS = 5
#: Seconds; doubled at each attempt, with full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter").
FIRST_WAIT, LONGEST_WAIT = 0.2, 5.0

log = logging.getLogger(__name__)

_ARN = re.compile(r"arn:(aws[a-z-]*):kms:([a-z0-9-]{1,32}):(\d{12}):key/([A-Za-z0-9-]{1,64})\Z", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class KeyArn:
    """A KMS key's full name."""

    text: str
    partition: str
    region: str
    account: str

    @classmethod
    def parse(cls, text: str) -> KeyArn:
        """Raises UsageError: an alias or a bare key id would let another account's key slip in."""
        match = _ARN.match(text)
        if match is None:
            raise UsageError(
                "not a KMS key ARN", hint="For example arn:aws:kms:eu-central-1:111122223333:key/UUID; no alias."
            )
        return cls(text=text, partition=match[1], region=match[2], account=match[3])

    @property
    def host(self) -> str:
        """The regional endpoint (AWS General Reference, "AWS KMS endpoints")."""
        return f"kms.{self.region}.amazonaws.com" + (".cn" if self.partition == "aws-cn" else "")


class KmsClient:
    """Calls KMS operations; blocking. `connect` opens a new stream to the service for each attempt."""

    def __init__(
        self,
        connect: Callable[[], socket.socket],
        credentials: Callable[[], Credentials],
        *,
        host: str,
        region: str,
        tls_roots: str | None = None,
        authority: str | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`tls_roots` is PEM and replaces the system's store; `authority` is the Host header where it is not `host`."""
        self._connect = connect
        self._credentials = credentials
        self._host = host
        self._authority = authority or host
        self._region = region
        self._tls = tls.context(tls_roots)
        self._clock = clock
        self._sleep = sleep

    def call(self, operation: str, request: Mapping[str, object]) -> dict[str, object]:
        """The members of the answer; raises ReleaseDeniedError or UndecidedError."""
        body = json.dumps(request).encode("ascii")
        error: Exception | None = None
        for attempt in range(ATTEMPTS):
            if attempt:
                # Jitter keeps many replicas that start at once apart; it is no secret.
                self._sleep(random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2**attempt)))  # noqa: S311
            try:
                status, headers, data = self._attempt(operation, body)
            except CutError as cut:
                # The way there runs through the parent, which may restart: nothing was learned, nothing is lost.
                log.warning("KMS %s: not reached (attempt %d of %d)", operation, attempt + 1, ATTEMPTS)
                error = cut
                continue
            if status == 200:
                return _members(data)
            code = kms_errors.code_of(status, headers, data)
            error = kms_errors.error_for(code, headers.get("x-amzn-requestid"))
            log.warning("KMS %s: %s (attempt %d of %d)", operation, code, attempt + 1, ATTEMPTS)
            if code not in kms_errors.RETRIED:
                raise error
        assert error is not None
        raise error

    def _attempt(self, operation: str, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        try:
            credentials = self._credentials()
        except MalformedError as error:
            raise UndecidedError(error.message, hint=error.hint) from None
        now = self._clock()
        if credentials.expires_at is not None and credentials.expires_at <= now:
            raise kms_errors.error_for("ExpiredTokenException", None)
        headers = signed_headers(
            credentials,
            {
                "host": self._authority,
                "content-type": "application/x-amz-json-1.1",
                "x-amz-target": f"TrentService.{operation}",
            },
            body,
            region=self._region,
            service="kms",
            now=now,
        )
        stream = tls.wrap(self._tls, self._connect(), self._host)
        return exchange(stream, "POST", "/", headers, body, what="AWS KMS", limit=MAX_ANSWER)


def _members(data: bytes) -> dict[str, object]:
    try:
        return strict_json.loads(data, "KMS answer", limit=MAX_ANSWER)
    except MalformedError as error:
        raise UndecidedError(f"the answer of AWS KMS cannot be read: {error.message}") from None
