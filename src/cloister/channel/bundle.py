"""The attestation bundle: key statement, freshness, evidence and endorsements in one JSON document.

Evidence travels as a CMW collection (draft-ietf-rats-msg-wrap): records of [media type, base64url value, indicator].
Indicator bits: 1 reference values, 2 endorsements, 4 evidence, 8 attestation results. `cpu` and `gpu` are evidence,
`ar` is an attestation result, and `KIND.N` (trust/collateral.py) are endorsements.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from cloister.channel import challenge
from cloister.channel.statement import MAX_STATEMENT, KeyStatement, binding
from cloister.errors import MalformedError
from cloister.tee.evidence import Offer, Offers, Role
from cloister.trust.collateral import KINDS, MAX_ITEM, Collateral, Item
from cloister.wire import strict_json
from cloister.wire.strict_json import decode_base64url, encode_base64url

MEDIA_TYPE = "application/json"
MAX_BUNDLE = 4 * 1024 * 1024
MAX_EVIDENCE = 512 * 1024
COLLECTION_TYPE = "tag:cloister,2026:cloister"
ENDORSEMENT, EVIDENCE, RESULT = 2, 4, 8
_INDICATORS = {Role.CPU: EVIDENCE, Role.GPU: EVIDENCE, Role.RESULT: RESULT}


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A received or made bundle.

    `statement_bytes` are the signed-over bytes, `statement` their meaning. `nonce` and `path` are present together,
    when the evidence answers a challenge. `offers` holds evidence or an attestation result, or both, and collateral.
    """

    statement_bytes: bytes
    statement: KeyStatement
    nonce: bytes | None
    path: tuple[challenge.Step, ...]
    offers: Offers

    @property
    def challenge(self) -> bytes | None:
        """F: the 32-byte challenge root, or None."""
        return None if self.nonce is None else challenge.root_from(self.nonce, self.path)

    @property
    def binding(self) -> bytes:
        """B: the 32 bytes that the evidence must carry."""
        return binding(self.statement_bytes, self.challenge)

    def to_bytes(self) -> bytes:
        """The bundle as JSON."""
        document: dict[str, object] = {"statement": encode_base64url(self.statement_bytes)}
        if self.nonce is not None:
            document["fresh"] = {"nonce": encode_base64url(self.nonce), "path": challenge.encode_path(self.path)}
        records: dict[str, object] = {"__cmwc_t": COLLECTION_TYPE}
        for offer in self.offers:
            records[offer.role] = [offer.media_type, encode_base64url(offer.data), _INDICATORS[offer.role]]
        for number, item in enumerate(self.offers.collateral.items):
            records[f"{item.kind}.{number}"] = [KINDS[item.kind], encode_base64url(item.data), ENDORSEMENT]
        document["cmw"] = records
        return json.dumps(document, separators=(",", ":")).encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes) -> Bundle:
        """Parse a received bundle; raises MalformedError. Nothing in it is trusted yet."""
        fields = strict_json.Fields(strict_json.loads(data, "bundle", limit=MAX_BUNDLE), "bundle")
        statement_bytes = fields.octets("statement", limit=MAX_STATEMENT)
        nonce: bytes | None = None
        path: tuple[challenge.Step, ...] = ()
        if fields.has("fresh"):
            fresh = fields.member("fresh")
            nonce = challenge.check_nonce(fresh.octets("nonce", limit=challenge.MAX_NONCE))
            path = challenge.decode_path(fresh.array("path", limit=challenge.MAX_PATH))
            fresh.done()
        collection = fields.member("cmw")
        if collection.text("__cmwc_t") != COLLECTION_TYPE:
            raise MalformedError("bundle: unknown collection type")
        offers = _offers(collection)
        fields.done()
        return cls(
            statement_bytes=statement_bytes,
            statement=KeyStatement.from_bytes(statement_bytes),
            nonce=nonce,
            path=path,
            offers=offers,
        )


def _offers(collection: strict_json.Fields) -> Offers:
    """Every record of a known name; one of another name is refused, because nobody here would check it."""
    offers, items = list[Offer](), list[Item]()
    for name in sorted(collection.names() - {"__cmwc_t"}, key=_order):
        kind = name.rpartition(".")[0]
        if name in set(Role):
            role = Role(name)
            media_type, data = _record(collection.array(name, limit=3), _INDICATORS[role], MAX_EVIDENCE)
            offers.append(Offer(role=role, media_type=media_type, data=data))
        elif kind in KINDS and name == f"{kind}.{_order(name)[1]}":
            media_type, data = _record(collection.array(name, limit=3), ENDORSEMENT, MAX_ITEM)
            if media_type != KINDS[kind]:
                raise MalformedError("bundle: an endorsement has another media type than its kind")
            items.append(Item(kind, data))
        else:
            raise MalformedError("bundle: a record of unknown name")
    if not any(offer.role is not Role.GPU for offer in offers):
        raise MalformedError("bundle: it holds neither evidence nor an attestation result")
    return Offers(offers=tuple(offers), collateral=Collateral.carried(items))


def _order(name: str) -> tuple[int, int]:
    """Offers first, then endorsements by number."""
    number = name.rpartition(".")[2]
    return (1, int(number)) if number.isdecimal() and number.isascii() and len(number) <= 4 else (0, 0)


def _record(items: list[object], expected: int, limit: int) -> tuple[str, bytes]:
    match items:
        case [str(media_type), str(value), int(indicator)] if indicator == expected and not isinstance(indicator, bool):
            if len(media_type) > 128 or not media_type.isascii() or not media_type.isprintable():
                raise MalformedError("bundle: bad media type")
            return media_type, decode_base64url(value, "bundle: a record", limit=limit)
    raise MalformedError(f"bundle: a record must be [media type, value, {expected}]")
