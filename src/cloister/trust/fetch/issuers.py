"""The keys of token issuers (RFC 7517), and Intel Trust Authority's keys and lists.

`jwks` are worth what TLS to the issuer's host is worth. A token may name any issuer, so only those listed are asked.
"""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta

from cloister.errors import MalformedError, NotGenuineError, UndecidedError, UsageError
from cloister.trust import jwt
from cloister.trust.certificates import MAX_CRL, load_certificate
from cloister.trust.fetch.http import Http, check_url, origin
from cloister.trust.fetch.source import Source, crl_life, parameter
from cloister.trust.jwt import KeySet
from cloister.trust.need import Life, Need
from cloister.wire import strict_json
from cloister.wire.strict_json import Fields

GOOGLE = "https://confidentialcomputing.googleapis.com"
NRAS = "https://nras.attestation.nvidia.com"
#: Azure's public cloud: an instance's own name, and a region's or `shared` one's.
_MAA = re.compile(r"https://[a-z0-9]{3,24}(\.[a-z0-9]{2,8}){1,2}\.attest\.azure\.net", re.ASCII)
#: Where Google's discovery document points besides Google's issuer itself.
_GOOGLE_KEYS = "https://www.googleapis.com/service_accounts/v1/metadata/jwk/"
ITA = {"us": "https://portal.trustauthority.intel.com", "eu": "https://portal.eu.trustauthority.intel.com"}
_ITA_LISTS = {
    "ats-ca": "Intel Trust Authority ATS Signing CA",
    "root-ca": "Intel Trust Authority Root CA",
}
#: Keys rotate, and are withdrawn without a list.
JWKS_LIFE = timedelta(hours=1)


def jwks(need: Need, base: str) -> Source:
    """`issuer`, exactly as in its tokens. `base`, where given, is asked in the issuer's place."""
    issuer = need.parameters.get("issuer", "")
    if issuer not in (GOOGLE, NRAS) and not _MAA.fullmatch(issuer):
        raise UndecidedError(
            "the token's issuer is not one whose keys are fetched",
            hint="Known: Google Confidential Space, NVIDIA NRAS, Azure Attestation. Pass the keys of another as jwks.",
        )
    place = base or issuer

    def load(http: Http) -> bytes:
        if issuer == GOOGLE:
            url = _discovered(http, place)
        else:
            url = f"{place}/.well-known/jwks.json" if issuer == NRAS else f"{place}/certs"
        members = strict_json.loads(http.get(url, limit=jwt.MAX_KEY_SET).body, "key set", limit=jwt.MAX_KEY_SET)
        return json.dumps(
            {"issuer": issuer, "keys": Fields(members, "key set").array("keys", limit=jwt.MAX_KEYS)}
        ).encode()

    def life(data: bytes, fetched: datetime) -> Life:
        found = KeySet.parse(data)
        if found.issuer != issuer:
            raise NotGenuineError("the key set is another issuer's")
        if not found.keys:
            raise MalformedError("key set: no key that could verify a token")
        return Life(fetched, fetched + JWKS_LIFE)

    return Source(key=f"{place} {issuer}", load=load, life=life, fresh=JWKS_LIFE)


def _discovered(http: Http, place: str) -> str:
    """`jwks_uri` of Google's discovery document, if it is where it has to be (OpenID Connect Discovery, section 4)."""
    body = http.get(f"{place}/.well-known/openid-configuration", limit=jwt.MAX_KEY_SET).body
    fields = Fields(strict_json.loads(body, "discovery document", limit=jwt.MAX_KEY_SET), "discovery document")
    if fields.text("issuer") != GOOGLE:
        raise NotGenuineError("the discovery document is another issuer's")
    text = fields.text("jwks_uri")
    try:
        url = check_url(text)
    except UsageError:
        raise MalformedError("discovery document: jwks_uri is not a plain https URL") from None
    if origin(url) != origin(check_url(place)) and not str(url).startswith(_GOOGLE_KEYS):
        raise NotGenuineError("the discovery document points to a place that is not Google's")
    return str(url)


def ita_certs(need: Need, base: str) -> Source:
    """`region` (us, eu): Intel Trust Authority's key set; its keys have chains, which a verifier checks."""
    url = f"{base or ITA[parameter(need, 'region', 'us|eu')]}/certs"

    def life(data: bytes, _: datetime) -> Life:
        fields = Fields(strict_json.loads(data, "key set", limit=jwt.MAX_KEY_SET), "key set")
        chained = [key.x5c[0] for key in KeySet.of_issuer(fields, "").keys if key.x5c]
        if not chained:
            raise MalformedError("key set: no key has a chain")
        leaves = [load_certificate(der, "key certificate") for der in chained]
        return Life(min(leaf.not_valid_before_utc for leaf in leaves), max(leaf.not_valid_after_utc for leaf in leaves))

    return Source(
        key=url, load=lambda http: http.get(url, limit=jwt.MAX_KEY_SET).body, life=life, fresh=timedelta(hours=1)
    )


def ita_crl(need: Need, base: str) -> Source:
    """`region` (us, eu) and `list` (ats-ca, root-ca): what one of Intel Trust Authority's two CAs has revoked."""
    name = parameter(need, "list", "ats-ca|root-ca")
    url = f"{base or ITA[parameter(need, 'region', 'us|eu')]}/crl/{name}-crl.der"
    return Source(
        key=url,
        load=lambda http: http.get(url, limit=MAX_CRL).body,
        life=lambda data, _: crl_life(data, _ITA_LISTS[name], "Intel Trust Authority's CRL"),
        fresh=timedelta(days=1),
    )
