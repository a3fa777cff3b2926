"""What a token needs from Intel Trust Authority; its `iss`, a stranger's word, chooses between two known services."""

from __future__ import annotations

from cloister.tee.ita.evidence import WHAT
from cloister.tee.ita.verify import ISSUERS
from cloister.trust.jwt import Token
from cloister.trust.need import Need


def needs(evidence: bytes) -> tuple[Need, ...]:
    """The key set, and the lists of both CAs; raises MalformedError."""
    token = Token.parse(evidence, WHAT)
    region = {"region": "eu" if token.claims.get("iss") == ISSUERS[-1] else "us"}
    return (
        Need(kind="ita-certs", parameters=region),
        *(Need(kind="ita-crl", parameters={**region, "list": name}) for name in ("ats-ca", "root-ca")),
    )
