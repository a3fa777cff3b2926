"""Sessions: a challenge that is answered once, then a caller that may ask for keys for a while.

Both kinds are bounded; a newcomer takes the place of the oldest of its kind, so that a flood of challenges shortens the
time that others have to answer theirs and never turns an attested caller out.
"""

from __future__ import annotations

import base64
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec

from cloister.tee.claims import Claims
from cloister.weights.kbs import NONCE_BYTES

#: Seconds to answer a challenge, and to ask for keys after that.
CHALLENGE_LIFE, SESSION_LIFE = 60.0, 300.0
MAX_CHALLENGES, MAX_SESSIONS = 4096, 1024


class _Timed(Protocol):
    @property
    def ends(self) -> float: ...


T = TypeVar("T", bound=_Timed)


@dataclass(frozen=True, kw_only=True)
class Challenge:
    """A nonce that was sent, and when it ends (monotonic seconds)."""

    nonce: bytes
    ends: float

    @property
    def text(self) -> str:
        """The nonce as it travels (base64)."""
        return base64.b64encode(self.nonce).decode("ascii")


@dataclass(frozen=True, kw_only=True)
class Session:
    """An attested caller: its key, what its evidence said, and under which policy that was accepted."""

    key: ec.EllipticCurvePublicKey
    claims: Claims
    evidence_sha256: str
    policy_sha256: str
    ends: float


class _Bounded(Generic[T]):
    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self._limit, self._clock = limit, clock
        self._items: OrderedDict[str, T] = OrderedDict()

    def put(self, name: str, item: T) -> None:
        while self._items and (
            len(self._items) >= self._limit or next(iter(self._items.values())).ends <= self._clock()
        ):
            self._items.popitem(last=False)
        self._items[name] = item

    def get(self, name: str, *, take: bool = False) -> T | None:
        item = self._items.pop(name, None) if take else self._items.get(name)
        return item if item is not None and item.ends > self._clock() else None

    def __len__(self) -> int:
        return len(self._items)


class Sessions:
    """All sessions of one broker, in memory: a restart ends them. Safe to use from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._challenges = _Bounded[Challenge](MAX_CHALLENGES, clock)
        self._sessions = _Bounded[Session](MAX_SESSIONS, clock)

    def challenge(self) -> tuple[str, Challenge]:
        """A new session's name and its challenge."""
        made = Challenge(nonce=secrets.token_bytes(NONCE_BYTES), ends=self._clock() + CHALLENGE_LIFE)
        name = secrets.token_urlsafe(32)
        with self._lock:
            self._challenges.put(name, made)
        return name, made

    def answer(self, name: str) -> Challenge | None:
        """The session's challenge, once: whatever comes of the answer, it is used up."""
        with self._lock:
            return self._challenges.get(name, take=True)

    def attested(
        self, name: str, key: ec.EllipticCurvePublicKey, claims: Claims, evidence_sha256: str, policy_sha256: str
    ) -> None:
        """From now on this session may ask for keys."""
        session = Session(
            key=key,
            claims=claims,
            evidence_sha256=evidence_sha256,
            policy_sha256=policy_sha256,
            ends=self._clock() + SESSION_LIFE,
        )
        with self._lock:
            self._sessions.put(name, session)

    def get(self, name: str) -> Session | None:
        """An attested session that has not ended."""
        with self._lock:
            return self._sessions.get(name)

    def count(self) -> tuple[int, int]:
        """Challenges and attested sessions that are kept now."""
        with self._lock:
            return len(self._challenges), len(self._sessions)
