"""What verified evidence says, in terms common to every TEE (RFC 9334: the Claims that an appraisal looks at)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class Claims:
    """Facts that the signer of the evidence vouches for; made only by a `tee.<name>.verify`.

    `genuine` is False for evidence that chains to a simulated root, whatever else it says.
    `measurements` maps a register name (`pcr0`) to its lower-case hex value.
    `user_data` and `nonce` are exactly the signed bytes, None where the evidence has no such field.
    `signed_at` is the signer's own clock where the format has one, else None (SNP, TDX).
    `facts` are further strings worth showing (module id, TCB, advisories), never used for a decision.
    `tee` is the name of the format. `details` is that format's own verified value, for its rules; `inner` are the
    claims of evidence that this one envelops (an SNP report under a cloud's vTPM), each verified by its own format.
    """

    tee: str
    genuine: bool
    debug: bool
    measurements: Mapping[str, str]
    user_data: bytes | None
    nonce: bytes | None
    signed_at: datetime | None
    chain: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    details: object = None
    inner: tuple[Claims, ...] = ()

    def flat(self) -> Iterator[Claims]:
        """These claims and all that they envelop, outermost first."""
        yield self
        for inner in self.inner:
            yield from inner.flat()
