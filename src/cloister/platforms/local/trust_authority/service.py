"""The operations of the SIMULATED Trust Authority, without the network; steps are numbered as in docs/ita.md."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cloister.errors import CloisterError
from cloister.platforms.local import authority
from cloister.platforms.local.authority import Authority
from cloister.platforms.local.trust_authority.errors import ServiceError
from cloister.platforms.local.trust_authority.nonces import Nonces
from cloister.platforms.local.trust_authority.requests import ALGORITHMS, AttestRequest
from cloister.platforms.local.trust_authority.tokens import claims_of
from cloister.tee.claims import Claims
from cloister.trust.anchors import Anchor
from cloister.trust.collateral import Collateral

TOKEN_LIFE = timedelta(minutes=5)
MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, kw_only=True)
class AppraisalPolicy:
    """A policy that a tenant made in the service: registers (lower-case hex) that must match, by claim name."""

    id: str
    registers: Mapping[str, str]

    def matches(self, claims: Claims) -> bool:
        """Do the quote's registers fit?"""
        return all(
            hmac.compare_digest(claims.measurements.get(name, ""), value) for name, value in self.registers.items()
        )

    def shown(self) -> dict[str, str]:
        """As tokens name it."""
        text = json.dumps(dict(self.registers), sort_keys=True)
        return {"id": self.id, "version": "v1", "hash": hashlib.sha384(text.encode()).hexdigest()}


class Service:
    """Answers requests; `anchor` is the SIMULATED root that quotes must chain to, `pcs` a folder with collateral."""

    def __init__(
        self,
        anchor: Anchor,
        pcs: Path,
        *,
        api_key: str,
        url: str,
        policies: Sequence[AppraisalPolicy] = (),
        quota: int = 600,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`url` is the service's own; `quota` are requests in a minute."""
        self._anchor, self._pcs, self._url = anchor, pcs, url
        self._api_key = api_key
        self._policies = {each.id: each for each in policies}
        self._quota = quota
        self._clock = clock
        self._lock = threading.Lock()
        self._recent: deque[datetime] = deque()
        self._nonces = Nonces(clock)
        start = clock() - timedelta(hours=1)
        self.root = Authority.issue(
            "cloister SIMULATED Trust Authority Root CA - NOT INTEL", None, ca=True, start=start
        )
        self._ca = Authority.issue("SIMULATED Trust Authority ATS Signing CA", self.root, ca=True, start=start)
        self._leaf = Authority.issue("SIMULATED Trust Authority Token Signing", self._ca, ca=False, start=start)

    def key_set(self) -> dict[str, object]:
        """One entry for each algorithm, both of the same key and `kid`, as the service has them."""
        entries = [
            self._leaf.entry((self._ca, self.root), alg=str(alg), use="sig", key_ops=["verify"]) for alg in ALGORITHMS
        ]
        return {"keys": entries}

    def revocations(self, name: str) -> bytes | None:
        """A revocation list by its file name, None for another."""
        issuer = {"ats-ca-crl.der": self._ca, "root-ca-crl.der": self.root}.get(name)
        return None if issuer is None else issuer.revocations(self._clock())

    def nonce(self, api_key: str) -> dict[str, str]:
        """A new nonce; raises ServiceError."""
        self._admit(api_key)
        return self._nonces.make()

    def attest(self, api_key: str, body: bytes, *, version: int) -> dict[str, str]:
        """A token about a quote; raises ServiceError."""
        self._admit(api_key)  # 1., 2.
        # 3.
        try:
            asked = AttestRequest.parse(body, version=version)
        except CloisterError as error:
            raise ServiceError(error.message) from None
        # 4.
        unknown = [each for each in asked.policy_ids if each not in self._policies]
        if unknown:
            raise ServiceError("policy_ids: a policy that does not exist")
        # 5.
        if asked.nonce is not None:
            self._nonces.redeem(asked.nonce)
        # 6.
        now = self._clock()
        try:
            claims = authority.verify("tdx", asked.quote, (self._anchor,), Collateral.from_folder(self._pcs), now=now)
        except CloisterError as error:
            raise ServiceError(f"quote verification failed: {error.message}") from None
        # 7.
        self._check_report_data(asked, claims)
        # 8.
        named = [self._policies[each] for each in asked.policy_ids]
        matched = [each.shown() for each in named if each.matches(claims)]
        unmatched = [each.shown() for each in named if not each.matches(claims)]
        if unmatched and asked.policy_must_match:
            raise ServiceError("policy_must_match: a policy was not matched")
        # 9.
        body_claims = claims_of(asked, claims) | authority.times(now, TOKEN_LIFE) | {"jti": str(uuid.uuid4())}
        if named:
            body_claims |= {"policy_ids_matched": matched, "policy_ids_unmatched": unmatched}
        return {"token": self._leaf.sign(body_claims, asked.algorithm, jku=f"{self._url}/certs")}

    def _admit(self, api_key: str) -> None:
        if not hmac.compare_digest(api_key.encode(), self._api_key.encode()):
            raise ServiceError("unauthorized", status=401)
        with self._lock:
            now = self._clock()
            while self._recent and now - self._recent[0] >= MINUTE:
                self._recent.popleft()
            if len(self._recent) >= self._quota:
                wait = MINUTE - (now - self._recent[0])
                raise ServiceError("too many requests", status=429, retry_after=max(1, round(wait.total_seconds())))
            self._recent.append(now)

    @staticmethod
    def _check_report_data(asked: AttestRequest, claims: Claims) -> None:
        """SHA-512(nonce ‖ held data), as in real tokens; with neither there is nothing to compare (an assumption)."""
        if asked.nonce is None and asked.held_data is None:
            return
        nonce = asked.nonce.val + asked.nonce.iat if asked.nonce is not None else b""
        expected = hashlib.sha512(nonce + (asked.held_data or b"")).digest()
        if claims.user_data is None or not hmac.compare_digest(claims.user_data, expected):
            raise ServiceError("quote verification failed: its report data does not cover the nonce and the data")
