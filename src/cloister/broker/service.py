"""The broker without HTTP: challenge, appraisal, release. Blocking; every answer is either members or a Denied.

The policy is read anew for every decision, and a session ends when it has changed since: what the owner takes back is
gone at once. A policy that cannot be read denies everything.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from cloister.broker.ledger import Ledger
from cloister.broker.messages import Attestation, Request
from cloister.broker.sessions import Session, Sessions
from cloister.broker.store import LEDGER, POLICY, KeyStore
from cloister.errors import CloisterError, MalformedError, UndecidedError
from cloister.policy import release
from cloister.policy.release import ReleasePolicy
from cloister.tee import nitro
from cloister.tee.checks import Status
from cloister.weights import jwe, kbs

log = logging.getLogger(__name__)


class Denied(Exception):
    """An answer that is no key: HTTP status, a code for programs, a sentence that holds no content."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(code)
        self.status, self.code, self.detail = status, code, detail


class Broker:
    """One broker over its folder. Raises UsageError, or what a broken ledger raises, when made."""

    def __init__(
        self,
        folder: Path,
        *,
        key: Path | None = None,
        sessions: Sessions | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._policy_path = folder / POLICY
        self._store = KeyStore(folder, key)
        self._sessions = sessions if sessions is not None else Sessions()
        self._clock = clock
        policy = self.policy()
        self._ledger = Ledger(folder / LEDGER)
        self._ledger.append({"event": "start", "policy_sha256": policy.sha256})

    def policy(self) -> ReleasePolicy:
        """The policy as it is now; raises PolicyDocumentError or UndecidedError."""
        try:
            return ReleasePolicy.from_toml(self._policy_path.read_bytes())
        except OSError as error:
            raise UndecidedError(
                f"cannot read {self._policy_path}: {error.strerror}", hint="cloister broker grant writes one."
            ) from None

    def auth(self, body: bytes) -> tuple[str, dict[str, object]]:
        """A session's name and the members of its Challenge."""
        try:
            request = Request.parse(body)
        except MalformedError as error:
            raise Denied(401, "request", error.message) from None
        if request.version != kbs.VERSION:
            raise Denied(401, "version", f"this broker speaks version {kbs.VERSION} of the protocol")
        if request.tee != kbs.TEE:
            raise Denied(401, "tee", f"this broker appraises evidence of {kbs.TEE}")
        name, challenge = self._sessions.challenge()
        return name, {"nonce": challenge.text, "extra-params": ""}

    def attest(self, name: str, body: bytes) -> dict[str, object]:
        """The answer to a good Attestation. There is no token in it: the session is the only way on."""
        challenge = self._sessions.answer(name)
        if challenge is None:
            raise Denied(401, "session", "no session waits for this answer: it has ended, or it was answered before")
        try:
            attestation = Attestation.parse(body)
        except MalformedError as error:
            raise Denied(401, "request", error.message) from None
        event: dict[str, object] = {
            "event": "appraisal",
            "evidence_sha256": hashlib.sha256(attestation.document).hexdigest(),
        }
        if not hmac.compare_digest(attestation.nonce.encode(), challenge.text.encode()):
            self._note({**event, "outcome": "not-genuine", "code": "challenge"})
            raise Denied(401, "challenge", "the answer is to another challenge")
        policy = self._policy_now()
        event["policy_sha256"] = policy.sha256
        try:
            claims = release.attest(
                attestation.document,
                nitro.MEDIA_TYPE,
                policy,
                binding=kbs.runtime_digest(challenge.text, jwe.public_jwk(attestation.key)),
                challenge=challenge.nonce,
                now=self._clock(),
            )
        except CloisterError as error:
            raise self._refused(401, event, error) from None
        self._note({**event, "outcome": "accepted", "simulated": not claims.genuine, **_measured(claims.measurements)})
        self._sessions.attested(name, attestation.key, claims, str(event["evidence_sha256"]), policy.sha256)
        return {"token": ""}

    def resource(self, name: str, path: str) -> dict[str, str]:
        """The members of a JWE that holds a data key, for the session's own key."""
        session = self._sessions.get(name)
        if session is None:
            raise Denied(401, "session", "no attested session of that name: attest first")
        try:
            resource = kbs.Resource.parse(path)
        except MalformedError:
            raise Denied(404, "resource", "there is no such resource") from None
        policy = self._policy_now()
        if policy.sha256 != session.policy_sha256:
            raise Denied(401, "session", "the policy has changed since: attest again")
        event = {"event": "release", "resource": str(resource), **_told(session)}
        try:
            release.release(session.claims, policy, model=resource.model, version=resource.version, now=self._clock())
        except CloisterError as error:
            raise self._refused(403, event, error) from None
        try:
            key = self._store.get(resource)
        except UndecidedError as error:
            raise self._unavailable(error) from None
        if key is None:
            self._note({**event, "outcome": "refused", "code": "resource"})
            raise Denied(404, "resource", "there is no such resource")
        answer = jwe.seal(key, session.key)
        # Last of all, and on the disk before the key leaves.
        self._note({**event, "outcome": "released"})
        return answer

    def close(self) -> None:
        """Close the ledger."""
        self._ledger.close()

    def _policy_now(self) -> ReleasePolicy:
        try:
            return self.policy()
        except CloisterError as error:
            raise self._unavailable(error) from None

    def _refused(self, status: int, event: dict[str, object], error: CloisterError) -> Denied:
        """Note what an appraisal found and make the answer: the code is the check that failed."""
        verdict = error.verdict
        if verdict is None:
            return self._unavailable(error)
        code = next((check.id for check in verdict.checks if check.status is Status.FAILED), "policy")
        # Only what proved genuine is noted: before that, measurements are a stranger's words.
        measured = {**_measured(verdict.measurements), "simulated": verdict.simulated} if verdict.tee else {}
        self._note({**event, "outcome": str(verdict.outcome), "code": code, **measured})
        return Denied(status, code, error.message)

    def _note(self, event: dict[str, object]) -> None:
        try:
            self._ledger.append(event)
        except CloisterError as error:
            raise self._unavailable(error) from None

    def _unavailable(self, error: CloisterError) -> Denied:
        log.error("nothing is released: %s", error.message)
        return Denied(503, "unavailable", "the broker cannot decide now; its log says why")


def _told(session: Session) -> dict[str, object]:
    return {
        "evidence_sha256": session.evidence_sha256,
        "policy_sha256": session.policy_sha256,
        "simulated": not session.claims.genuine,
        **_measured(session.claims.measurements),
    }


def _measured(measurements: Mapping[str, str]) -> dict[str, object]:
    """Registers that say something, as an entry holds them."""
    return {"measurements": {name: value for name, value in measurements.items() if value.strip("0")}}
