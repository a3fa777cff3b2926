"""Is this token of Intel Trust Authority genuine? The steps are numbered as in README.md beside this file."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from cloister.errors import NotGenuineError, UndecidedError
from cloister.tee.claims import Claims
from cloister.tee.context import Context
from cloister.tee.ita.evidence import WHAT, Attestation
from cloister.tee.ita.roots import ANCHORS
from cloister.trust import crl, jwt, signatures
from cloister.trust.anchors import Anchor
from cloister.trust.chain import Profile
from cloister.trust.jwt import Alg, Key, KeySet, Token
from cloister.trust.signatures import Algorithm
from cloister.wire import strict_json

#: Exact values of `iss`: tokens of 2023 and 2024, tokens of 2025, and the European service.
ISSUERS = (
    "Intel Trust Authority",
    "https://portal.trustauthority.intel.com",
    "https://portal.eu.trustauthority.intel.com",
)
ALGORITHMS = (Alg.PS384, Alg.RS256)
PROFILE = Profile(algorithms=frozenset({Algorithm.RSA_PKCS1_SHA512, Algorithm.RSA_PKCS1_SHA384}))

CHECKS: tuple[tuple[str, str], ...] = (
    ("ita.token", "1. One token of at most 64 KiB, PS384 or RS256"),
    ("ita.key", "2. The key it names has a chain to Intel Trust Authority's root, valid now and not known as revoked"),
    ("ita.signature", "3. That key signed the token"),
    ("ita.times", "4. An issuer of the service, within the token's own times and the policy's age"),
    ("ita.claims", "5. The claims are those of one CPU TEE, of the released profile"),
    ("ita.held-data", "6. The quote's report data covers the held data and the service's nonce"),
)


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What the rules look at; `revocation_until` is None where no complete set of revocation lists was given."""

    attestation: Attestation
    algorithm: str
    issuer: str
    revocation_until: datetime | None


def verify(evidence: bytes, context: Context) -> Claims:
    """Claims of a genuine token, or MalformedError, NotGenuineError, UndecidedError (its key is not at hand)."""
    step_of = context.checklist.step
    with step_of("ita.token") as step:
        token = Token.parse(evidence, WHAT)
        if token.alg not in ALGORITHMS:
            raise NotGenuineError(f"{WHAT}: it is signed with neither PS384 nor RS256")
        algorithm = Alg(token.alg)
        step.detail = algorithm
    with step_of("ita.key") as step:
        key = _key(token, context)
        anchor, certificates = jwt.validate_x5c(
            key.x5c, context.roots("ita", ANCHORS), now=context.now, profile=PROFILE
        )
        until = _revocation(certificates, anchor, context)
        step.detail = certificates[-1].subject.rfc4514_string()
    with step_of("ita.signature"):
        # The chain vouches for the key; which algorithm its entry names is not looked at: two entries share one key.
        token.verify_with(key.public_key, algorithm)
    with step_of("ita.times") as step:
        issuer = token.fields().text("iss", limit=128)
        if issuer not in ISSUERS:
            raise NotGenuineError(f"{WHAT}: another issuer")
        issued = token.check_times(now=context.now, leeway=context.max_skew, max_age=context.max_age)
        step.detail = f"issued {issued:%Y-%m-%dT%H:%M:%SZ}"
    with step_of("ita.claims") as step:
        attestation = Attestation.parse(token)
        step.detail = f"{attestation.attester_type}, {attestation.tcb_status}"
    with step_of("ita.held-data"):
        _check_held_data(attestation)
    return Claims(
        tee="ita",
        genuine=anchor.genuine,
        debug=attestation.debug,
        measurements=attestation.registers,
        user_data=attestation.held_data,
        nonce=None,
        signed_at=issued,
        chain=tuple(certificate.subject.rfc4514_string() for certificate in certificates),
        facts={
            "attester": attestation.attester_type,
            "tcb_status": attestation.tcb_status,
            "advisories": " ".join(attestation.advisories),
            "root_sha256": anchor.sha256,
        },
        details=Verified(attestation=attestation, algorithm=algorithm, issuer=issuer, revocation_until=until),
    )


def _key(token: Token, context: Context) -> Key:
    """The entry that the token names, in any key set at hand, with certificates."""
    for data in context.collateral.of("ita-certs"):
        members = strict_json.Fields(strict_json.loads(data, "key set", limit=jwt.MAX_KEY_SET), "key set")
        for key in KeySet.of_issuer(members, "").keys:
            if key.kid == token.kid and key.x5c:
                return key
    raise UndecidedError(
        "the key that the token names is not at hand (ita-certs)", hint="Fetch the key set of Intel Trust Authority."
    )


def _revocation(certificates: Sequence[x509.Certificate], anchor: Anchor, context: Context) -> datetime | None:
    """Check every certificate below the root against its issuer's list; until when the lists hold, if all are there.

    A list that is at hand must verify, wherever it came from.
    """
    lists = context.collateral.of("ita-crl")
    if not lists:
        return None
    issuers = {certificates[0].subject.rfc4514_string(): certificates[0].public_key()}
    issuers |= {each.subject.rfc4514_string(): each.public_key() for each in certificates[1:-1]}
    issuers[anchor.subject] = signatures.public_key(anchor.spki)
    until: dict[str, datetime] = {}
    for data in lists:
        name = crl.issuer(data)
        if name not in issuers:
            raise NotGenuineError("a revocation list is of none of the key's issuers")
        found = crl.load(data, name, issuers[name], PROFILE, now=context.now)
        for certificate in certificates:
            if certificate.issuer.rfc4514_string() == name:
                crl.check_not_revoked(found, certificate, "a certificate of the token's key")
        assert found.next_update_utc is not None
        until[name] = found.next_update_utc
    needed = {certificate.issuer.rfc4514_string() for certificate in certificates[1:]}
    return min(until.values()) if needed <= set(until) else None


def _check_held_data(attestation: Attestation) -> None:
    """The service has checked this too; here it costs nothing, and the binding rests on it.

    TDX: SHA-512(nonce ‖ held data). SGX: SHA-256 of the same, then zeros. Seen in real tokens of 2023 and 2024.
    """
    nonce = attestation.nonce
    data = (nonce.val + nonce.iat if nonce is not None else b"") + attestation.held_data
    if not data:
        return
    digest = hashlib.sha512(data) if attestation.attester_type == "TDX" else hashlib.sha256(data)
    if not hmac.compare_digest(digest.digest().ljust(64, b"\x00"), attestation.report_data):
        raise NotGenuineError(f"{WHAT}: the quote does not cover the held data")
