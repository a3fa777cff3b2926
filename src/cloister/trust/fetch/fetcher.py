"""A need answered from the cache or, where that is stale, from the service; never with what has expired."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext

from cloister.errors import CloisterError, MalformedError, NotGenuineError, UndecidedError, UsageError
from cloister.trust.collateral import MAX_ITEM, Item
from cloister.trust.fetch import amd, intel, issuers, nvidia
from cloister.trust.fetch.cache import Cache, Entry
from cloister.trust.fetch.http import Clock, Http, NotFound, check_url
from cloister.trust.fetch.source import Source
from cloister.trust.need import Life, Need

#: Kinds that can be fetched: how, and where if the caller does not say (empty: the need decides among listed places).
SOURCES: Mapping[str, tuple[Callable[[Need, str], Source], str]] = {
    "amd-vcek": (amd.vcek, amd.BASE),
    "amd-ask": (amd.ask, amd.BASE),
    "amd-crl": (amd.crl, amd.BASE),
    "intel-collateral": (intel.collateral, intel.BASE),
    "nvidia-rim": (nvidia.rim, nvidia.RIM_BASE),
    "nvidia-ocsp": (nvidia.ocsp, nvidia.OCSP_BASE),
    "ita-certs": (issuers.ita_certs, ""),
    "ita-crl": (issuers.ita_crl, ""),
    "jwks": (issuers.jwks, ""),
}
#: Failures that are remembered for those who wait for the same answer.
MAX_FAILURES = 256


class Fetcher:
    """Answers needs. It blocks and may be shared by threads; any number of processes may share the cache.

    `bases` replaces a kind's service (a PCCS, a mirror): whoever names one for `jwks` trusts it as the issuer. With
    `offline` no socket is opened. With `refresh` the service is asked whatever the cache has (keys that rotated), and
    its answer may be older than what was kept.
    """

    def __init__(
        self,
        cache: Cache,
        *,
        http: Http | None = None,
        clock: Clock | None = None,
        bases: Mapping[str, str] | None = None,
        offline: bool = False,
        refresh: bool = False,
    ) -> None:
        if offline and refresh:
            raise UsageError("what is asked for anew cannot be had offline")
        self._cache = cache
        self._clock = clock or Clock()
        self._http = http or Http(clock=self._clock)
        self._bases = {kind: _base(kind, url) for kind, url in (bases or {}).items()}
        self._offline = offline
        self._refresh = refresh
        self._failures: dict[str, tuple[int, UndecidedError]] = {}
        self._count = 0
        self._guard = threading.Lock()

    def get(self, need: Need) -> Item:
        """The item; raises UndecidedError where neither the cache nor the service has a good one, MalformedError."""
        with self._guard:
            began = self._count
        # The cache first, so that what was found by trying is not tried again.
        for ask in (False,) if self._offline else (True,) if self._refresh else (False, True):
            alternative: Need | None = need
            while alternative is not None:
                try:
                    return Item(alternative.kind, self._get(alternative, began, ask=ask))
                except NotFound as error:
                    failure, alternative = error, alternative.otherwise
        raise failure

    def _get(self, need: Need, began: int, *, ask: bool) -> bytes:
        if need.kind not in SOURCES:
            raise UndecidedError(f"{need.kind} is not fetched from anywhere", hint="Its owner must send it along.")
        make, base = SOURCES[need.kind]
        source = make(need, self._bases.get(need.kind, base))
        # Many that miss at once ask once: the others wait here and then find the answer, or the failure.
        with self._cache.lock(source.key):
            kept, life = self._kept(source)
            fresh = kept is not None and self._clock.now() < kept.fetched + source.fresh
            if kept is not None and (self._offline or (fresh and not self._refresh)):
                return kept.data
            if not ask:
                raise NotFound(
                    f"{need.kind} is not in the cache, and this is offline", hint="Fetch it once while online."
                )
            try:
                return self._ask(need, source, None if self._refresh else life, began)
            except UndecidedError:
                if kept is None:
                    raise
                return kept.data

    def _kept(self, source: Source) -> tuple[Entry, Life] | tuple[None, None]:
        """What the cache has, if it is an answer and holds now; anything else is forgotten."""
        entry = self._cache.load(source.key)
        if entry is None:
            return None, None
        now = self._clock.now()
        try:
            life = source.life(entry.data, entry.fetched)
            # From the future: written under a clock that was wrong, so that its age means nothing.
            if entry.fetched <= now and life.start <= now <= life.until:
                return entry, life
        except CloisterError:
            pass
        self._cache.discard(source.key)
        return None, None

    def _ask(self, need: Need, source: Source, kept: Life | None, began: int) -> bytes:
        with self._guard:
            at, failure = self._failures.get(source.key, (-1, None))
        if failure is not None and at >= began:
            raise type(failure)(failure.message, hint=failure.hint)
        try:
            with self._cache.lock(source.serial, "host") if source.serial else nullcontext():
                data = source.load(self._http)
            return self._accept(need, source, data, kept)
        except (MalformedError, NotGenuineError) as error:
            # A lie is worth no more than silence.
            lie = UndecidedError(
                f"the service gave no {need.kind}: {error.message}",
                hint="A proxy or portal may answer in its place; or the service has changed.",
            )
            self._failed(source, lie)
            raise lie from None
        except UndecidedError as error:
            self._failed(source, error)
            raise

    def _failed(self, source: Source, error: UndecidedError) -> None:
        with self._guard:
            self._failures.pop(source.key, None)
            self._failures[source.key] = (self._count, error)
            self._count += 1
            if len(self._failures) > MAX_FAILURES:
                del self._failures[next(iter(self._failures))]

    def _accept(self, need: Need, source: Source, data: bytes, kept: Life | None) -> bytes:
        """Keep a good answer; raises MalformedError, NotGenuineError or UndecidedError for any other."""
        now = self._clock.now().replace(microsecond=0)
        life = source.life(data, now)
        if life.until < now or life.start > now:
            when = "expired" if life.until < now else "from the future"
            raise UndecidedError(f"the service gave {need.kind} that is {when}", hint="Check this machine's clock.")
        if kept is not None and life.start < kept.start:
            raise UndecidedError(f"the service gave an older {need.kind} than before")
        if len(data) > MAX_ITEM:
            raise UndecidedError(f"the service gave {need.kind} of more than {MAX_ITEM} bytes")
        self._cache.store(Entry(kind=need.kind, key=source.key, fetched=now, until=life.until, data=data))
        return data


def _base(kind: str, url: str) -> str:
    if kind not in SOURCES:
        raise UsageError(f"{kind} is not fetched", hint=f"Kinds with a service: {', '.join(SOURCES)}.")
    check_url(url)
    return url.rstrip("/")
