"""Is this token of Google Cloud Attestation genuine? The steps are numbered as in README.md beside this folder."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509

from cloister.errors import NotGenuineError, UndecidedError
from cloister.tee.claims import Claims
from cloister.tee.context import Context
from cloister.tee.google.space.evidence import ISSUER, WHAT, Attestation
from cloister.trust import jwt
from cloister.trust.anchors import Anchor
from cloister.trust.chain import Profile
from cloister.trust.jwt import Alg, KeySet, Token
from cloister.trust.signatures import Algorithm
from cloister.wire.strict_json import encode_base64url

CHECKS: tuple[tuple[str, str], ...] = (
    ("google-space.token", "1. One token of at most 64 KiB, RS256"),
    ("google-space.key", "2. The issuer's key it names is at hand, or its certificates chain to a root that was given"),
    ("google-space.signature", "3. That key signed the token"),
    ("google-space.times", "4. The issuer is Google's, exactly; within the token's own times and the policy's age"),
    ("google-space.claims", "5. The claims are of the documented types and sizes"),
)
#: No token with a chain was at hand: what Google's certificate service signs with elsewhere.
_PROFILE = Profile(
    algorithms=frozenset({Algorithm.RSA_PKCS1_SHA256, Algorithm.RSA_PKCS1_SHA384, Algorithm.RSA_PKCS1_SHA512}),
    rooted=False,
)


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What the rules look at; `trusted_by` is `jwks` (keys that the caller had) or `pki` (a chain to its root)."""

    attestation: Attestation
    trusted_by: str


def verify(evidence: bytes, context: Context) -> Claims:
    """Claims of a genuine token, or MalformedError, NotGenuineError, UndecidedError (its key is not at hand).

    Keys come from `jwks` collateral of the issuer, which only the caller's own side can bring. A token with `x5c` needs
    the root of Google's PKI among `context.anchors["google-space"]`: none is built in.
    """
    step_of = context.checklist.step
    with step_of("google-space.token") as step:
        token = Token.parse(evidence, WHAT)
        if token.alg != Alg.RS256:
            raise NotGenuineError(f"{WHAT}: it is not signed with RS256")
        step.detail = "with certificates" if token.x5c else "with the name of a key"
    root: Anchor | None = None
    certificates: tuple[x509.Certificate, ...] = ()
    with step_of("google-space.key") as step:
        if token.x5c:
            root, certificates = _chain(token.x5c, context)
            step.detail = f"{certificates[-1].subject.rfc4514_string()}; root: {root.origin}"
        else:
            keys = KeySet.of(context.collateral, ISSUER)
            step.detail = f"{len(keys.find(token.kid, Alg.RS256))} key(s) of that name"
    with step_of("google-space.signature"):
        if token.x5c:
            token.verify_with(jwt.certificate_key(token.x5c[0], "the token's certificate"), Alg.RS256)
        else:
            token.verify(keys, Alg.RS256)
    with step_of("google-space.times") as step:
        token.check_issuer(ISSUER)
        issued = token.check_times(now=context.now, leeway=context.max_skew, max_age=context.max_age)
        step.detail = f"issued {issued:%Y-%m-%dT%H:%M:%SZ}"
    with step_of("google-space.claims") as step:
        attestation = Attestation.parse(token)
        step.detail = f"{attestation.swname} on {attestation.hwmodel}"
    return Claims(
        tee="google-space",
        genuine=root is None or root.genuine,
        debug=attestation.debug,
        measurements=_measurements(attestation),
        user_data=attestation.nonces[0].encode("utf-8") if len(attestation.nonces) == 1 else None,
        nonce=None,
        signed_at=issued,
        chain=tuple(certificate.subject.rfc4514_string() for certificate in certificates),
        facts=_facts(attestation) | ({} if root is None else {"root_sha256": root.sha256}),
        details=Verified(attestation=attestation, trusted_by="pki" if token.x5c else "jwks"),
    )


def bind(claims: Claims, binding: bytes, challenge: bytes | None) -> None:
    """Require that one of the token's nonces is B in base64url, 43 characters; raises NotGenuineError.

    Nonces are text: the service would mangle raw bytes. B covers the challenge.
    """
    del challenge
    assert isinstance(claims.details, Verified)
    wanted = encode_base64url(binding).encode("ascii")
    nonces = [nonce.encode("utf-8") for nonce in claims.details.attestation.nonces]
    if not any([hmac.compare_digest(nonce, wanted) for nonce in nonces]):  # noqa: C419 - all are compared
        raise NotGenuineError("the token does not carry this replica's key statement among its nonces")


def _chain(x5c: Sequence[bytes], context: Context) -> tuple[Anchor, tuple[x509.Certificate, ...]]:
    anchors = context.roots("google-space", ())
    if not anchors:
        raise UndecidedError(
            "the token has certificates, and no root for them was given",
            hint="Ask the replica for an OIDC token, or name the root of Google's PKI: google-space.pki_root_pem.",
        )
    last = hashlib.sha256(x5c[-1]).hexdigest()
    if len(x5c) > 1 and any(hmac.compare_digest(last, anchor.sha256) for anchor in anchors):
        x5c = x5c[:-1]
    return jwt.validate_x5c(x5c, anchors, now=context.now, profile=_PROFILE)


def _measurements(attestation: Attestation) -> dict[str, str]:
    container = attestation.container
    if container is None:
        return {}
    digests = {"image_digest": container.image_digest, "image_id": container.image_id}
    return {name: value for name, value in digests.items() if value}


def _facts(attestation: Attestation) -> dict[str, str]:
    """Without environment and arguments, which may be anybody's secrets."""
    container, instance = attestation.container, attestation.instance
    facts = {
        "hwmodel": attestation.hwmodel,
        "swname": attestation.swname,
        "swversion": "" if attestation.swversion is None else f"{attestation.swversion:06}",
        "support_attributes": " ".join(attestation.support_attributes),
        "image_reference": container.image_reference if container is not None else "",
        "project_id": instance.project_id,
        "zone": instance.zone,
        "instance_name": instance.instance_name,
        "gpu_cc_mode": attestation.gpu or "",
        "gpu_models": " ".join(attestation.gpu_models),
        "tcb_status": attestation.tcb_status or "",
    }
    return {name: value for name, value in facts.items() if value}
