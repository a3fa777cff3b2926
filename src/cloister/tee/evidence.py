"""What a replica offers to a verifier: evidence and attestation results, each with its media type, and collateral."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from cloister.trust.collateral import Collateral


class Role(StrEnum):
    """Where something stands in a bundle (PROTOCOL.md section 4.6): the name of its record."""

    CPU = "cpu"
    GPU = "gpu"
    #: An attestation result: a verification service's signed word about evidence (RFC 9334 section 8.4).
    RESULT = "ar"


@dataclass(frozen=True, kw_only=True)
class Offer:
    """One piece of evidence or one attestation result; the media type is a claim until the bytes verify."""

    role: Role
    media_type: str
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Offers:
    """At most one offer of each role, and the collateral that came with them. Nothing in it is trusted yet."""

    offers: tuple[Offer, ...]
    collateral: Collateral = field(default_factory=Collateral)

    @classmethod
    def one(cls, media_type: str, data: bytes, *, role: Role = Role.CPU) -> Offers:
        """A single offer."""
        return cls(offers=(Offer(role=role, media_type=media_type, data=data),))

    def __iter__(self) -> Iterator[Offer]:
        return iter(self.offers)

    def __post_init__(self) -> None:
        if len({offer.role for offer in self.offers}) != len(self.offers):
            raise ValueError("two offers of one role")

    def gpu(self) -> Offer | None:
        """The GPUs' evidence, if there is any."""
        return next((offer for offer in self.offers if offer.role is Role.GPU), None)
