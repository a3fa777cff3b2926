"""The attester of the passport model (RFC 9334 section 5.1): a quote goes to the service, its token to clients."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence

from cloister.tee.evidence import Offer, Offers, Role
from cloister.tee.ita import MEDIA_TYPE
from cloister.tee.ita.client import TrustAuthority
from cloister.trust.collateral import Collateral
from cloister.trust.jwt import Alg

#: Seconds between two looks at the service's keys and lists.
REFRESH = 3600.0


class TrustAuthorityAttester:
    """Implements tee.attester.Attester over a quoting function: 64 bytes of report data in, a TDX quote out."""

    def __init__(
        self,
        service: TrustAuthority,
        quote: Callable[[bytes], bytes],
        *,
        policy_ids: Sequence[str] = (),
        algorithm: Alg = Alg.PS384,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = service
        self._quote = quote
        self._policy_ids = tuple(policy_ids)
        self._algorithm = algorithm
        self._clock = clock
        self._lock = threading.Lock()
        self._endorsements: tuple[float, Collateral] | None = None

    def offer(self, user_data: bytes, nonce: bytes | None) -> Offers:
        """A token whose held data is `user_data`, with the service's keys and lists; raises UndecidedError.

        The client's nonce needs no field of its own: B covers it. The service's own nonce keeps old quotes out.
        """
        del nonce
        given = self._service.nonce()
        quote = self._quote(hashlib.sha512(given.val + given.iat + user_data).digest())
        token = self._service.attest(
            quote, held_data=user_data, nonce=given, policy_ids=self._policy_ids, algorithm=self._algorithm
        )
        offer = Offer(role=Role.RESULT, media_type=MEDIA_TYPE, data=token)
        return Offers(offers=(offer,), collateral=self._collateral())

    def _collateral(self) -> Collateral:
        with self._lock:
            now = self._clock()
            if self._endorsements is None or now - self._endorsements[0] > REFRESH:
                self._endorsements = (now, self._service.endorsements())
            return self._endorsements[1]
