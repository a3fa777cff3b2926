"""Intel Trust Authority's tokens: as a whole, and their claims apart, which base64 keeps a mutation from reaching."""

from __future__ import annotations

import json

from tests.tee.ita import signer

from cloister.tee.ita.evidence import WHAT, Attestation
from cloister.tee.ita.formats import FORMATS
from cloister.trust.jwt import MAX_TOKEN, Token
from cloister.wire import strict_json

CLAIMS = (signer.tdx(), signer.sgx(), signer.nested(signer.tdx(), nvgpu={"x-nvidia-overall-att-result": True}))


def _claims(data: bytes) -> object:
    claims = strict_json.loads(data, WHAT, limit=MAX_TOKEN)
    return Attestation.parse(Token(what=WHAT, alg="PS384", kid=None, x5c=(), claims=claims, signature=b"", signed=b""))


TARGETS = (
    ("ita-token", lambda: [signer.token(claims) for claims in CLAIMS], FORMATS[0].parse),
    ("ita-claims", lambda: [json.dumps(claims).encode() for claims in CLAIMS], _claims),
)
