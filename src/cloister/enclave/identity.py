"""Who this replica is: its keys over time and the evidence that binds each of them.

Evidence for a key without a challenge is asked for once and cached with it. Evidence that answers client nonces is
gathered: whoever arrives while the TEE is signing waits for the next signature, which answers all of them at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cloister.channel import challenge
from cloister.channel.bundle import Bundle
from cloister.channel.keyring import Keyring, KeySchedule, ReplicaFacts, ReplicaKey, make_key
from cloister.channel.statement import binding
from cloister.errors import GatewayRefusedError
from cloister.tee.attester import Attester
from cloister.tee.evidence import Offers

log = logging.getLogger(__name__)

#: Nonces that may wait for the next signature; more are turned away before they cost anything.
MAX_WAITING = 4096
#: Seconds between looks at the key schedule.
TICK = 1.0
#: How long cached evidence is given out before it is asked for anew, in seconds. Clients bound its age themselves.
EVIDENCE_LIFE = 120.0


@dataclass(eq=False)
class _Cached:
    bundle: bytes
    made_at: float


@dataclass(eq=False)
class _Waiting:
    nonce: bytes
    answer: asyncio.Future[bytes] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Identity:
    """Keys and evidence of one replica; `start` before serving, `run` beside it."""

    def __init__(
        self,
        attester: Attester,
        facts: ReplicaFacts,
        schedule: KeySchedule,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._attester = attester
        self._facts = facts
        self._clock = clock
        self._epoch = 0
        self._cache: dict[str, _Cached] = {}
        self._waiting: dict[str, list[_Waiting]] = {}
        self._signing: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.keyring = Keyring(schedule)

    async def start(self) -> None:
        """Make the first key and its evidence; raises what the attester raises."""
        await self.rotate()

    async def run(self) -> None:
        """Rotate and forget keys as the schedule says, until cancelled."""
        while True:
            await asyncio.sleep(TICK)
            try:
                await self.tick()
            except Exception as error:  # noqa: BLE001 - a device that fails now may answer at the next tick
                # The current key serves on until its own end; the class name is all that may be said of the cause.
                log.warning("key rotation failed (%s), trying again", type(error).__name__)

    async def tick(self) -> None:
        """One look at the schedule."""
        now = int(self._clock())
        for kid in self.keyring.forget(now):
            self._cache.pop(kid, None)
        if self.keyring.due(now):
            await self.rotate()

    async def rotate(self) -> None:
        """Publish a new key, but only once its evidence is there."""
        self._epoch += 1
        key = make_key(
            self._facts,
            self.keyring.schedule,
            epoch=self._epoch,
            now=int(self._clock()),
            key_id=self.keyring.free_key_id(),
        )
        self._cache[key.kid] = await self._sign_cached(key)
        self.keyring.add(key)

    async def bundle(self, kid: str | None) -> bytes:
        """The cached bundle of a key (default: the newest), renewed when it is old."""
        key = self._key(kid)
        cached = self._cache[key.kid]
        if self._clock() - cached.made_at > EVIDENCE_LIFE:
            cached = self._cache[key.kid] = await self._sign_cached(key)
        return cached.bundle

    async def fresh_bundle(self, nonce: bytes, kid: str | None) -> bytes:
        """A bundle whose evidence answers `nonce` (16 to 64 bytes)."""
        key = self._key(kid)
        waiting = self._waiting.setdefault(key.kid, [])
        if len(waiting) >= MAX_WAITING:
            raise GatewayRefusedError("too many clients wait for evidence", status=503, retry_after=1)
        entry = _Waiting(challenge.check_nonce(nonce))
        waiting.append(entry)
        if key.kid not in self._signing:
            self._signing.add(key.kid)
            task = asyncio.create_task(self._answer(key))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await entry.answer

    def _key(self, kid: str | None) -> ReplicaKey:
        return self.keyring.current() if kid is None else self.keyring.find(kid)

    async def _sign_cached(self, key: ReplicaKey) -> _Cached:
        offers = await asyncio.to_thread(self._attester.offer, binding(key.statement_bytes, None), None)
        return _Cached(self._pack(key, offers, None, ()), self._clock())

    async def _answer(self, key: ReplicaKey) -> None:
        """Sign for everyone who waits, until nobody does."""
        try:
            while batch := self._waiting.pop(key.kid, []):
                root, paths = challenge.gather([entry.nonce for entry in batch])
                try:
                    bound = binding(key.statement_bytes, root)
                    offers = await asyncio.to_thread(self._attester.offer, bound, root)
                except Exception as error:  # noqa: BLE001 - whatever the device raised belongs to those who wait
                    for entry in batch:
                        if not entry.answer.done():
                            entry.answer.set_exception(error)
                    continue
                for entry, path in zip(batch, paths, strict=True):
                    if not entry.answer.done():
                        entry.answer.set_result(self._pack(key, offers, entry.nonce, path))
        finally:
            self._signing.discard(key.kid)

    def _pack(self, key: ReplicaKey, offers: Offers, nonce: bytes | None, path: tuple[challenge.Step, ...]) -> bytes:
        return Bundle(
            statement_bytes=key.statement_bytes,
            statement=key.statement,
            nonce=nonce,
            path=path,
            offers=offers,
        ).to_bytes()
