"""Signed tokens of verification services: JSON Web Tokens, JWS compact serialisation (RFC 7515, 7517, 7519, 8725).

The caller states the one algorithm, the issuer and where its keys come from. A token's own `jku`, `jwk` and `x5u` are
never followed; its `x5c` is given back for a chain to a pinned anchor. Nothing in `claims` may be believed before
`verify` returned, and then only as the words of that issuer.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.errors import MalformedError, NotGenuineError, UndecidedError
from cloister.trust import chain, signatures
from cloister.trust.anchors import Anchor
from cloister.trust.certificates import load_certificate
from cloister.trust.chain import Profile
from cloister.trust.collateral import Collateral
from cloister.trust.signatures import Algorithm
from cloister.wire import strict_json
from cloister.wire.strict_json import decode_base64url

MAX_TOKEN = 64 * 1024
MAX_KEYS = 64
MAX_KEY_SET = 256 * 1024
MAX_CERTIFICATES = 8
MAX_LEEWAY = timedelta(seconds=60)
#: A day before the end of the calendar, in seconds: what a datetime can hold, with a leeway added.
MAX_TIME = 253_402_214_400
#: Header members that change what is signed, or how it is to be read: no token of ours has them.
_REFUSED = frozenset({"crit", "b64", "zip", "enc", "cty"})
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}\Z")

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


class Alg(StrEnum):
    """The signature algorithms of RFC 7518 section 3.1 that services use; `none` and MACs have no name here."""

    RS256 = "RS256"
    PS384 = "PS384"
    ES256 = "ES256"
    ES384 = "ES384"


_ALGORITHMS: Mapping[Alg, Algorithm] = {
    Alg.RS256: Algorithm.RSA_PKCS1_SHA256,
    Alg.PS384: Algorithm.RSA_PSS_SHA384,
    Alg.ES256: Algorithm.ECDSA_P256_SHA256,
    Alg.ES384: Algorithm.ECDSA_P384_SHA384,
}
_CURVES: Mapping[str, tuple[ec.EllipticCurve, int]] = {"P-256": (ec.SECP256R1(), 32), "P-384": (ec.SECP384R1(), 48)}
_COORDINATE: Mapping[Alg, int] = {Alg.ES256: 32, Alg.ES384: 48}


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of an issuer. `alg` is None where its entry does not say; `x5c` are DER certificates, leaf first."""

    kid: str
    alg: str | None
    public_key: PublicKey
    x5c: tuple[bytes, ...] = ()

    def fits(self, alg: Alg) -> bool:
        """May this key verify `alg`: does its entry allow it, and is it of that kind?"""
        if self.alg not in (None, alg):
            return False
        if isinstance(self.public_key, rsa.RSAPublicKey):
            return alg in (Alg.RS256, Alg.PS384)
        return _COORDINATE.get(alg) == (self.public_key.key_size + 7) // 8


@dataclass(frozen=True, kw_only=True)
class KeySet:
    """The keys of one issuer (RFC 7517 section 5)."""

    issuer: str
    keys: tuple[Key, ...]

    @classmethod
    def parse(cls, data: bytes) -> KeySet:
        """An item of `jwks` collateral: JSON {issuer, keys}; raises MalformedError.

        Entries of another type, use or without a `kid` are passed over (RFC 7517 section 5); one that claims to be an
        RSA or EC signing key must be one.
        """
        fields = strict_json.Fields(strict_json.loads(data, "key set", limit=MAX_KEY_SET), "key set")
        return cls.of_issuer(fields, fields.text("issuer"))

    @classmethod
    def of_issuer(cls, fields: strict_json.Fields, issuer: str) -> KeySet:
        """The keys in a JWK Set document that is known to be of `issuer`; raises MalformedError."""
        entries = fields.array("keys", limit=MAX_KEYS)
        keys = []
        for entry in entries:
            if not isinstance(entry, dict):
                raise MalformedError("key set: a key is not an object")
            key = _key(entry)
            if key is not None:
                keys.append(key)
        return cls(issuer=issuer, keys=tuple(keys))

    @classmethod
    def of(cls, collateral: Collateral, issuer: str) -> KeySet:
        """Every key of exactly that issuer; raises UndecidedError where the collateral has none, MalformedError."""
        sets = [found for found in map(cls.parse, collateral.of("jwks")) if found.issuer == issuer]
        keys = tuple(key for found in sets for key in found.keys)
        if not keys:
            raise UndecidedError(
                "the keys of the token's issuer are not at hand", hint=f"Fetch the key set of {issuer} over TLS."
            )
        return cls(issuer=issuer, keys=keys)

    def find(self, kid: str | None, alg: Alg) -> tuple[Key, ...]:
        """The keys with that `kid` that may verify `alg`: issuers have had one entry for each algorithm of a key.

        Raises UndecidedError for a `kid` that the set does not hold (keys rotate), NotGenuineError where no entry
        allows the algorithm.
        """
        named = tuple(key for key in self.keys if key.kid == kid)
        if kid is None or not named:
            raise UndecidedError(
                "the key that the token names is not in its issuer's key set",
                hint="Keys rotate: fetch the key set again; if it still lacks the key, the token is not the issuer's.",
            )
        found = tuple(key for key in named if key.fits(alg))
        if not found:
            raise NotGenuineError(f"the key that the token names is not one for {alg}")
        return found


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token as parsed. `claims` are a stranger's words until `verify`; `alg` is what the header says, no choice."""

    what: str
    alg: str
    kid: str | None
    x5c: tuple[bytes, ...]
    claims: dict[str, object]
    signature: bytes = field(repr=False)
    signed: bytes = field(repr=False)

    @classmethod
    def parse(cls, data: bytes, what: str, *, limit: int = MAX_TOKEN) -> Token:
        """One compact serialisation without anything around it (RFC 7515 section 7.1); raises MalformedError."""
        if len(data) > limit:
            raise MalformedError(f"{what}: {len(data)} bytes, the limit is {limit}")
        parts = data.split(b".")
        if len(parts) != 3 or not data.isascii():
            raise MalformedError(f"{what}: not a token of three parts")
        head, body, signature = (decode_base64url(part.decode("ascii"), what, limit=limit) for part in parts)
        header = strict_json.loads(head, f"{what} header", limit=limit)
        fields = strict_json.Fields(header, f"{what} header")
        if _REFUSED & set(header):
            raise MalformedError(f"{what} header: a member that no token here may have")
        if fields.has("typ") and fields.text("typ", limit=64).upper() != "JWT":
            raise MalformedError(f"{what} header: typ is not JWT")
        return cls(
            what=what,
            alg=fields.text("alg", limit=16),
            kid=fields.text("kid", limit=256) if fields.has("kid") else None,
            x5c=_x5c(header, f"{what} header"),
            claims=strict_json.loads(body, what, limit=limit),
            signature=signature,
            signed=parts[0] + b"." + parts[1],
        )

    def fields(self) -> strict_json.Fields:
        """Typed access to the claims."""
        return strict_json.Fields(self.claims, self.what)

    def verify(self, keys: KeySet, alg: Alg) -> Key:
        """The key of the issuer that signed this; raises NotGenuineError, or UndecidedError for an unknown key."""
        self._check_alg(alg)
        found = keys.find(self.kid, alg)
        for key in found[:-1]:
            try:
                self.verify_with(key.public_key, alg)
            except NotGenuineError:
                continue
            return key
        self.verify_with(found[-1].public_key, alg)
        return found[-1]

    def verify_with(self, key: PublicKey, alg: Alg) -> None:
        """Raises NotGenuineError unless `key` made the signature with exactly `alg` (RFC 7518 section 3)."""
        self._check_alg(alg)
        signature = self.signature
        size = _COORDINATE.get(alg)
        if size is not None:
            if len(signature) != 2 * size:
                raise NotGenuineError(f"{self.what}: the signature is not {2 * size} bytes")
            signature = signatures.from_raw(signature)
        signatures.check(key, _ALGORITHMS[alg], signature, self.signed, self.what)

    def _check_alg(self, alg: Alg) -> None:
        if self.alg != alg:
            raise NotGenuineError(f"{self.what}: it is not signed with {alg}")

    def check_issuer(self, issuer: str) -> None:
        """Raises NotGenuineError unless `iss` is exactly `issuer`."""
        if self.claims.get("iss") != issuer:
            raise NotGenuineError(f"{self.what}: another issuer than the one whose keys were used")

    def check_times(self, *, now: datetime, leeway: timedelta, max_age: timedelta) -> datetime:
        """When it was issued (`iat`); raises NotGenuineError outside exp, nbf, iat and `max_age`, MalformedError.

        `exp` and `iat` must be there. `leeway` forgives clocks and is cut to 60 s; `max_age` counts from `iat`.
        """
        leeway = min(leeway, MAX_LEEWAY)
        issued, expires = self._time("iat"), self._time("exp")
        starts = self._time("nbf") if "nbf" in self.claims else issued
        if expires <= max(issued, starts):
            raise NotGenuineError(f"{self.what}: it ends before it begins")
        if now >= expires + leeway:
            raise NotGenuineError(f"{self.what}: it expired at {expires:%Y-%m-%dT%H:%M:%SZ}")
        if now < max(issued, starts) - leeway:
            raise NotGenuineError(f"{self.what}: it is from the future", hint="Check this machine's clock.")
        if now - issued > max_age:
            age, allowed = (now - issued).total_seconds(), max_age.total_seconds()
            raise NotGenuineError(f"{self.what}: it is {age:.0f} s old, {allowed:.0f} allowed")
        return issued

    def _time(self, name: str) -> datetime:
        """A NumericDate (RFC 7519 section 2): seconds since 1970, fractions allowed."""
        value = self.claims.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise MalformedError(f"{self.what}: {name} is not a time")
        if not math.isfinite(value) or not 0 <= value < MAX_TIME:
            raise MalformedError(f"{self.what}: {name} is out of range")
        return datetime.fromtimestamp(value, UTC)


def strings(claims: Mapping[str, object], name: str, what: str, *, limit: int = 32) -> tuple[str, ...]:
    """A claim that is one string or a list of strings (`aud`, `eat_nonce`), as a tuple; raises MalformedError."""
    value = claims.get(name)
    items = value if isinstance(value, list) else [value]
    found = tuple(item for item in items if isinstance(item, str))
    if not found or len(found) != len(items) or len(found) > limit:
        raise MalformedError(f"{what}: {name} is neither a string nor a list of strings")
    return found


def validate_x5c(
    x5c: Sequence[bytes], anchors: Sequence[Anchor], *, now: datetime, profile: Profile
) -> tuple[Anchor, tuple[x509.Certificate, ...]]:
    """Validate an `x5c` (DER, leaf first) to a pinned anchor; the certificates come back leaf last, as in `chain`.

    A key that is believed for its chain is the last one's. Raises MalformedError or NotGenuineError.
    """
    if not x5c:
        raise NotGenuineError("the key has no certificate")
    return chain.validate(tuple(reversed(x5c[1:])), x5c[0], anchors, now=now, profile=profile)


def certificate_key(der: bytes, what: str) -> PublicKey:
    """The RSA or EC key of a certificate; raises MalformedError."""
    key = load_certificate(der, what).public_key()
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise MalformedError(f"{what}: its key is neither RSA nor EC")
    return key


def _key(entry: dict[str, object]) -> Key | None:
    fields = strict_json.Fields(entry, "key")
    if entry.get("kty") not in ("RSA", "EC") or entry.get("use", "sig") != "sig" or not fields.has("kid"):
        return None
    x5c = _x5c(entry, "key")
    if fields.has("n") or fields.has("crv") or not x5c:
        key = rsa_key(fields) if entry["kty"] == "RSA" else _ec(fields)
        if key is None:
            return None
        # RFC 7517 section 4.7: the first certificate's key must be the entry's.
        if x5c and _spki(key) != _spki(certificate_key(x5c[0], "key certificate")):
            raise MalformedError("key: its certificate is of another key")
    else:
        # Microsoft Azure Attestation has published entries that hold nothing but certificates.
        key = certificate_key(x5c[0], "key certificate")
    alg = fields.text("alg", limit=16) if fields.has("alg") else None
    return Key(kid=fields.text("kid", limit=256), alg=alg, public_key=key, x5c=x5c)


def rsa_key(fields: strict_json.Fields) -> rsa.RSAPublicKey:
    """`n` and `e` of a JWK (RFC 7518 section 6.3.1); raises MalformedError."""
    modulus, exponent = (int.from_bytes(fields.octets(name, limit=1024), "big") for name in ("n", "e"))
    try:
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError:
        raise MalformedError("key: not an RSA key") from None


def _ec(fields: strict_json.Fields) -> PublicKey | None:
    curve, size = _CURVES.get(fields.text("crv", limit=32), (None, 0))
    if curve is None:
        return None
    x, y = (int.from_bytes(fields.octets(name, size=size), "big") for name in ("x", "y"))
    try:
        return ec.EllipticCurvePublicNumbers(x, y, curve).public_key()
    except ValueError:
        raise MalformedError("key: not a point of its curve") from None


def _spki(key: PublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _x5c(members: Mapping[str, object], what: str) -> tuple[bytes, ...]:
    """Certificates in standard base64, each DER, the key's own first (RFC 7515 section 4.1.6)."""
    if "x5c" not in members:
        return ()
    value = members["x5c"]
    if not isinstance(value, list) or not 0 < len(value) <= MAX_CERTIFICATES:
        raise MalformedError(f"{what}: x5c is not a list of at most {MAX_CERTIFICATES} certificates")
    return tuple(_certificates(value, what))


def _certificates(items: Iterable[object], what: str) -> Iterable[bytes]:
    for item in items:
        if not isinstance(item, str) or not _BASE64.match(item):
            raise MalformedError(f"{what}: a certificate in x5c is not base64")
        try:
            yield base64.b64decode(item, validate=True)
        except (ValueError, binascii.Error):
            raise MalformedError(f"{what}: a certificate in x5c is not base64") from None
