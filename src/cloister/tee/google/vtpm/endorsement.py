"""Google's launch endorsement of Compute Engine's firmware: which launch measurements are of which release.

Source: gce-tcb-verifier, `proto/endorsement.proto`. No endorsement that Google signed has been seen by this code, and
the root (GCE-cc-tcb-root_1) is not built in: a policy names it.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509

from cloister.errors import MalformedError, NotGenuineError
from cloister.trust import chain, signatures
from cloister.trust.anchors import Anchor
from cloister.trust.certificates import from_pem, load_certificate
from cloister.trust.chain import Profile
from cloister.trust.signatures import Algorithm
from cloister.wire.protobuf import Message

WHAT = "launch endorsement"
MAX_ENDORSEMENT = 512 * 1024
MAX_MEASUREMENTS = 2048
MAX_CERTIFICATE = 16 * 1024
MAX_BUNDLE = 64 * 1024
MAX_CHAIN = 8
_MEASUREMENT = 48
_U32 = (1 << 32) - 1
_MAX_TIME = 253_402_214_400
PROFILE = Profile(algorithms=frozenset({Algorithm.RSA_PSS_SHA256, Algorithm.RSA_PKCS1_SHA256}), rooted=False)


@dataclass(frozen=True, kw_only=True)
class SnpLaunch:
    """SEV-SNP: Google's security version of the firmware, and the launch measurement for each number of vCPUs."""

    svn: int
    measurements: Mapping[int, bytes]


@dataclass(frozen=True, kw_only=True)
class TdxLaunch:
    """TDX: Google's security version of the firmware, and (GiB of memory, all accepted early, MRTD) for each shape."""

    svn: int
    measurements: tuple[tuple[int, bool, bytes], ...]


@dataclass(frozen=True, kw_only=True)
class Endorsement:
    """One release of the firmware. `digest` is SHA-384 of the binary; `signed_at` is Google's clock."""

    signed_at: datetime
    digest: bytes
    snp: SnpLaunch | None
    tdx: TdxLaunch | None
    certificate: bytes
    bundle: bytes
    body: bytes
    signature: bytes

    @classmethod
    def parse(cls, data: bytes) -> Endorsement:
        """Read one VMLaunchEndorsement of at most 512 KiB; raises MalformedError."""
        if len(data) > MAX_ENDORSEMENT:
            raise MalformedError(f"{WHAT}: {len(data)} bytes, the limit is {MAX_ENDORSEMENT}")
        outer = Message(data, WHAT)
        body, signature = outer.octets(1, limit=MAX_ENDORSEMENT), outer.octets(2, limit=1024)
        outer.done()
        golden = Message(body, WHAT)
        snp, tdx = golden.message(7, f"{WHAT}: SEV-SNP"), golden.message(8, f"{WHAT}: TDX")
        # Fields that a later release of the message adds are Google's own words: they are passed over, not refused.
        return cls(
            signed_at=_time(golden.message(1, f"{WHAT}: time")),
            digest=golden.octets(5, size=48),
            snp=_snp(snp) if snp is not None else None,
            tdx=_tdx(tdx) if tdx is not None else None,
            certificate=golden.octets(4, limit=MAX_CERTIFICATE),
            bundle=golden.octets(6, limit=MAX_BUNDLE),
            body=body,
            signature=signature,
        )

    def svn_of(self, tee: str, measurement: bytes) -> int | None:
        """The security version under which that launch measurement (48 bytes) of `snp` or `tdx` is listed, or None."""
        if tee == "snp" and self.snp is not None:
            listed, svn = tuple(self.snp.measurements.values()), self.snp.svn
        elif tee == "tdx" and self.tdx is not None:
            listed, svn = tuple(mrtd for _, _, mrtd in self.tdx.measurements), self.tdx.svn
        else:
            return None
        return svn if any(hmac.compare_digest(each, measurement) for each in listed) else None


def verify(data: bytes, anchors: Sequence[Anchor], *, now: datetime, skew: timedelta) -> tuple[Endorsement, Anchor]:
    """An endorsement that a key under one of `anchors` signed (RSASSA-PSS SHA-256), at `now` (aware), and that anchor.

    Raises MalformedError or NotGenuineError.
    """
    endorsement = Endorsement.parse(data)
    leaf = load_certificate(endorsement.certificate, "endorsement key certificate")
    anchor, certificates = chain.validate(
        _intermediates(endorsement.bundle, leaf, anchors), leaf, anchors, now=now, profile=PROFILE
    )
    key = certificates[-1].public_key()
    signatures.check(key, Algorithm.RSA_PSS_SHA256, endorsement.signature, endorsement.body, f"the {WHAT}")
    if endorsement.signed_at - now > skew:
        raise NotGenuineError(f"the {WHAT} is from the future", hint="Check this machine's clock.")
    return endorsement, anchor


def _intermediates(bundle: bytes, leaf: x509.Certificate, anchors: Sequence[Anchor]) -> tuple[bytes, ...]:
    """PEM from the root down, the root included; none is needed where the root signed the leaf."""
    known = {anchor.subject for anchor in anchors}
    if leaf.issuer.rfc4514_string() in known or not bundle:
        return ()
    ders = from_pem(bundle, f"{WHAT}: its certificates", smallest=1, largest=MAX_CHAIN)
    above = [load_certificate(der, "intermediate") for der in ders]
    return tuple(der for der, each in zip(ders, above, strict=True) if each.subject.rfc4514_string() not in known)


def _time(message: Message | None) -> datetime:
    """A google.protobuf.Timestamp; its fraction is not needed."""
    seconds = message.integer(1, maximum=_MAX_TIME) if message is not None else 0
    return datetime.fromtimestamp(seconds, UTC)


def _snp(message: Message) -> SnpLaunch:
    return SnpLaunch(
        svn=message.integer(1, maximum=_U32),
        measurements=message.mapping(
            2, lambda entry: entry.octets(2, size=_MEASUREMENT), count=MAX_MEASUREMENTS, maximum=_U32
        ),
    )


def _tdx(message: Message) -> TdxLaunch:
    listed = message.messages(2, f"{WHAT}: TDX measurement", count=MAX_MEASUREMENTS)
    return TdxLaunch(
        svn=message.integer(1, maximum=_U32),
        measurements=tuple(
            (each.integer(1, maximum=_U32), each.flag(2), each.octets(3, size=_MEASUREMENT)) for each in listed
        ),
    )
