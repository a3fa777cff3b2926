"""The simulated TD: quotes of version 4 under a SIMULATED Intel root, with the collateral that fits them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from cloister.tee.evidence import Offer, Offers, Role
from cloister.tee.sim import intel
from cloister.tee.sim.root import SimulatedRoot
from cloister.trust.collateral import Collateral, Item

MEDIA_TYPE = "application/vnd.cloister.tdx-quote"
REPORT_DATA = 64
#: How long certificates and collateral live, and when new collateral is made.
DAYS = 366
LIFE, RENEW = timedelta(days=30), timedelta(days=1)


def create_root(now: datetime | None = None) -> SimulatedRoot:
    """A root that stands for the Intel SGX Root CA, valid for a year."""
    start = (now or datetime.now(UTC)) - timedelta(hours=1)
    return SimulatedRoot(intel.issue(intel.ROOT_NAME, None, ca=True, start=start, days=DAYS))


@dataclass(frozen=True, kw_only=True)
class Registers:
    """What a simulated TD measured, 48 bytes each: firmware, and RTMR0 to RTMR3."""

    mrtd: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]

    def named(self) -> dict[str, str]:
        """As claims name them."""
        return {"mrtd": self.mrtd.hex(), **{f"rtmr{index}": value.hex() for index, value in enumerate(self.rtmrs)}}


class SimulatedTdx:
    """Implements tee.attester.Attester: one platform under the root, and one TD on it."""

    def __init__(
        self, root: SimulatedRoot, registers: Registers, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._root = root.issued
        self._registers = registers
        self._clock = clock
        self._lock = threading.Lock()
        start = root.issued.certificate.not_valid_before_utc
        self._ca = intel.issue("SIMULATED Intel SGX PCK Platform CA", self._root, ca=True, start=start, days=DAYS)
        self._signing = intel.issue("SIMULATED Intel SGX TCB Signing", self._root, ca=False, start=start, days=DAYS)
        self._pck = intel.issue(
            "SIMULATED Intel SGX PCK Certificate", self._ca, ca=False, start=start, days=DAYS,
            extension=intel.pck_extension(svn=2),
        )  # fmt: skip
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._chain = "".join(map(intel.pem, (self._pck, self._ca, self._root))).encode("ascii")
        self._made: tuple[datetime, bytes] | None = None

    def offer(self, user_data: bytes, nonce: bytes | None) -> Offers:
        """A quote whose report data is `user_data` and zeros, and collateral; the nonce is in B already."""
        del nonce
        offer = Offer(role=Role.CPU, media_type=MEDIA_TYPE, data=self.quote(user_data.ljust(REPORT_DATA, b"\x00")))
        return Offers(offers=(offer,), collateral=self.collateral())

    def quote(self, report_data: bytes) -> bytes:
        """A signed quote over `report_data` (64 bytes)."""
        if len(report_data) != REPORT_DATA:
            raise ValueError(f"report data has {REPORT_DATA} bytes")
        body = intel.td_report(mrtd=self._registers.mrtd, rtmrs=self._registers.rtmrs, report_data=report_data)
        signed = intel.header(tdx=True) + body
        return intel.sign_quote(signed, attestation_key=self._key, pck=self._pck, chain=self._chain)

    def collateral(self) -> Collateral:
        """What a verifier needs to know of the platform, as Intel's PCS would say it; made anew once a day."""
        with self._lock:
            now = self._clock()
            if self._made is None or now - self._made[0] > RENEW:
                self._made = (now, self._endorse(now - timedelta(hours=1)))
            return Collateral((Item("intel-collateral", self._made[1]),))

    def publish(self, folder: Path) -> None:
        """Write the collateral into a folder, from which a simulated service takes it: that is its PCS."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "intel-collateral.json").write_bytes(self.collateral().items[0].data)

    def _endorse(self, start: datetime) -> bytes:
        members = intel.collateral(
            intel.tcb_info(tdx=True, issued=start, life=LIFE),
            intel.qe_identity(tdx=True, issued=start, life=LIFE),
            signing=self._signing,
            ca=self._ca,
            root=self._root,
            root_crl=intel.crl(self._root, start=start),
            pck_crl=intel.crl(self._ca, start=start),
        )
        return json.dumps(members).encode("ascii")


def load_or_create_root(path: Path) -> SimulatedRoot:
    """The root kept in `path`, made there when it is missing or over; raises UsageError."""
    return SimulatedRoot.load_or_create(path, create_root)
