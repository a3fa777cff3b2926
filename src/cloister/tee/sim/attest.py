"""The simulated attester: documents in the format of the Nitro hypervisor, signed in software."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from cloister.errors import UndecidedError
from cloister.tee.evidence import Offers
from cloister.tee.sim.root import Issued, SimulatedRoot, issue

MEDIA_TYPE = "application/vnd.cloister.nitro-doc"
PROTECTED = cbor2.dumps({1: -35})
LEAF_LIFE = timedelta(hours=3)
MODULE_ID = "i-00000000000000000-enc0000000000000000"
REGISTERS = 16
#: The most bytes that the Nitro security module takes in each field of a request.
LIMITS = {"user_data": 512, "nonce": 512, "public_key": 1024}


def sign(payload: bytes, key: ec.EllipticCurvePrivateKey, *, protected: bytes = PROTECTED) -> bytes:
    """An untagged COSE_Sign1 over `payload` with ES384."""
    structure = cbor2.dumps(["Signature1", protected, b"", payload])
    r, s = decode_dss_signature(key.sign(structure, ec.ECDSA(SHA384())))
    return cbor2.dumps([protected, {}, payload, r.to_bytes(48, "big") + s.to_bytes(48, "big")])


class SimulatedNitro:
    """Implements tee.attester.Attester with given register values (index -> 48 bytes, the others zero)."""

    def __init__(
        self,
        root: SimulatedRoot,
        pcrs: Mapping[int, bytes],
        *,
        module_id: str = MODULE_ID,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._root = root
        self._pcrs = {index: pcrs.get(index, bytes(48)) for index in range(REGISTERS)}
        self.module_id = module_id
        self._clock = clock
        self._lock = threading.Lock()
        self._chain: list[Issued] = []

    def offer(self, user_data: bytes, nonce: bytes | None) -> Offers:
        """A document, as a replica's bundle carries it; raises UndecidedError."""
        return Offers.one(MEDIA_TYPE, self.attest(user_data, nonce))

    def attest(self, user_data: bytes, nonce: bytes | None) -> bytes:
        """A signed document; sizes are limited as the Nitro security module limits them, else UndecidedError."""
        return self.document(self._pcrs, user_data=user_data, nonce=nonce)

    def document(
        self,
        pcrs: Mapping[int, bytes],
        *,
        user_data: bytes | None = None,
        nonce: bytes | None = None,
        public_key: bytes | None = None,
    ) -> bytes:
        """A signed document that states `pcrs` as they are now; the same limits and error as `attest`."""
        for name, value in (("user_data", user_data), ("nonce", nonce), ("public_key", public_key)):
            if value is not None and len(value) > LIMITS[name]:
                raise UndecidedError(f"the attester refused the request: {name} holds at most {LIMITS[name]} bytes")
        with self._lock:
            now = self._clock()
            *bundle, leaf = self._certificates(now)
        payload = cbor2.dumps(
            {
                "module_id": self.module_id,
                "digest": "SHA384",
                "timestamp": int(now.timestamp() * 1000),
                "pcrs": dict(pcrs),
                "certificate": leaf.der,
                "cabundle": [self._root.issued.der, *(issued.der for issued in bundle)],
                "public_key": public_key,
                "user_data": user_data,
                "nonce": nonce,
            }
        )
        return sign(payload, leaf.key)

    def _certificates(self, now: datetime) -> list[Issued]:
        """Region, zone, instance and leaf; made again when the leaf is near its end."""
        if not self._chain or now > self._chain[-1].certificate.not_valid_after_utc - timedelta(minutes=10):
            start = now - timedelta(minutes=5)
            issuer, chain = self._root.issued, []
            for depth, (name, life) in enumerate((("region", 20), ("zone", 6), ("instance", 1))):
                issuer = issue(
                    f"SIMULATED {name}", issuer, start=start, life=timedelta(days=life), ca=True, path_length=2 - depth
                )
                chain.append(issuer)
            leaf = issue(f"SIMULATED {self.module_id}", issuer, start=start, life=LEAF_LIFE, ca=False)
            self._chain = [*chain, leaf]
        return self._chain
