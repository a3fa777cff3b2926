"""Key release by the model owner's key broker (KBS attestation protocol 0.4.0), over TLS that ends here.

1. Ask for a challenge; the broker opens a session.
2. Make an EC key that lives for this one call; have the Nitro security module sign a document over the digest of
   challenge and key, and over the challenge itself.
3. Send both. The broker appraises the document under its own policy.
4. Ask for the data key of the manifest's model and version; it comes encrypted to the key of step 2.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import random
import re
import time
from collections.abc import Callable, Mapping

from cryptography.hazmat.primitives.asymmetric import ec

from cloister.enclave.net import Dial, egress
from cloister.enclave.release import kbs_errors, tls
from cloister.enclave.release.http1 import exchange
from cloister.errors import CloisterError, MalformedError, ReleaseDeniedError, UndecidedError
from cloister.weights import jwe, kbs
from cloister.weights.keys import KEY_BYTES, WrappedKey
from cloister.wire import strict_json

MAX_ANSWER = 16 * 1024
ATTEMPTS = 4
#: Seconds; doubled at each attempt, with full jitter.
FIRST_WAIT, LONGEST_WAIT = 0.5, 5.0
_SESSION = re.compile(rf"{kbs.COOKIE}=([A-Za-z0-9_-]{{1,128}})(?:;|\Z)")
_WHAT = "the key broker"

log = logging.getLogger(__name__)


class KbsRelease:
    """Implements weights.keys.KeyRelease inside an enclave; blocking.

    `attest` turns user data (48 bytes) and a nonce (32 bytes) into an attestation document. `tls_roots` (PEM) are the
    roots of the broker's certificate, measured with the image.
    """

    def __init__(
        self,
        dial: Dial,
        *,
        host: str,
        port: int,
        attest: Callable[[bytes, bytes], bytes],
        tls_roots: str,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._dial, self._host, self._port = dial, host, port
        self._attest = attest
        self._tls = tls.context(tls_roots)
        self._sleep = sleep

    def release(self, wrapped: WrappedKey) -> bytes:
        """The data key (32 bytes); raises ReleaseDeniedError or UndecidedError."""
        try:
            resource = kbs.Resource.of(wrapped.context)
        except MalformedError:
            resource = None
        if resource is None or wrapped.service != kbs.SERVICE or wrapped.key_id != str(resource) or wrapped.ciphertext:
            raise ReleaseDeniedError(
                "the manifest names another key or service than this replica's measured configuration",
                hint="Seal the weights with `cloister seal --broker`, or change the image.",
            )
        error: CloisterError | None = None
        for attempt in range(ATTEMPTS):
            if attempt:
                # Jitter keeps many replicas that start at once apart; it is no secret.
                self._sleep(random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2**attempt)))  # noqa: S311
            try:
                return self._once(resource)
            except _Again as again:
                error = again.error
                log.warning("%s (attempt %d of %d)", error.message, attempt + 1, ATTEMPTS)
        assert error is not None
        raise error

    def _once(self, resource: kbs.Resource) -> bytes:
        request = {"version": kbs.VERSION, "tee": kbs.TEE, "extra-params": ""}
        headers, body = self._call("POST", kbs.AUTH, {}, json.dumps(request).encode("ascii"))
        session = _SESSION.match(headers.get("set-cookie", ""))
        if session is None:
            raise _unreadable("it opened no session")
        cookie = {"cookie": f"{kbs.COOKIE}={session[1]}"}
        text, nonce = read_challenge(body)
        key = ec.generate_private_key(ec.SECP256R1())
        public = jwe.public_jwk(key.public_key())
        document = self._attest(kbs.runtime_digest(text, public), nonce)
        evidence = {"document": strict_json.encode_base64url(document)}
        attestation = {
            "runtime-data": {"nonce": text, "tee-pubkey": public},
            "tee-evidence": {"primary_evidence": evidence, "additional_evidence": ""},
        }
        self._call("POST", kbs.ATTEST, cookie, json.dumps(attestation).encode("ascii"))
        _, body = self._call("GET", f"{kbs.RESOURCE}/{resource}", cookie, None)
        try:
            data_key = jwe.open_sealed(body, key)
        except MalformedError as error:
            raise _unreadable(error.message) from None
        if len(data_key) != KEY_BYTES:
            raise _unreadable("what it released is not a 32-byte key")
        return data_key

    def _call(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[Mapping[str, str], bytes]:
        """One exchange on a connection of its own: headers and body of a 200; raises what its error means."""
        kind = {"content-type": "application/json"} if body is not None else {}
        sent = {"host": f"{self._host}:{self._port}", "accept": "application/json", **kind, **headers}
        stream = tls.wrap(self._tls, egress(self._dial, self._host, self._port), self._host)
        try:
            status, received, data = exchange(stream, method, path, sent, body, what=_WHAT, limit=MAX_ANSWER)
        except UndecidedError as error:
            raise _Again(error) from None
        if status == 200:
            return received, data
        code = kbs_errors.code_of(status, data)
        refusal = kbs_errors.error_for(code)
        raise _Again(refusal) if code in kbs_errors.RETRIED else refusal


class _Again(Exception):
    """The error to raise unless another attempt goes better."""

    def __init__(self, error: CloisterError) -> None:
        super().__init__()
        self.error = error


def read_challenge(body: bytes) -> tuple[str, bytes]:
    """The nonce of a Challenge as it was sent (base64) and its 32 bytes; raises UndecidedError."""
    try:
        fields = strict_json.Fields(strict_json.loads(body, "Challenge", limit=MAX_ANSWER), "Challenge")
        text = fields.text("nonce", limit=64)
        fields.has("extra-params")
        fields.done()
        nonce = base64.b64decode(text, validate=True)
        if len(nonce) != kbs.NONCE_BYTES:
            raise MalformedError("Challenge: the nonce has not 32 bytes")
    except MalformedError as error:
        raise _unreadable(error.message) from None
    except (ValueError, binascii.Error):
        raise _unreadable("Challenge: the nonce is not base64") from None
    return text, nonce


def _unreadable(why: str) -> UndecidedError:
    return UndecidedError(f"the answer of {_WHAT} does not hold: {why}", hint="Is it a broker of Cloister's?")
