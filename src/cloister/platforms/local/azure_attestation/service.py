"""The operations of the SIMULATED Azure Attestation, without the network."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cloister.errors import CloisterError
from cloister.platforms.local import authority
from cloister.platforms.local.authority import Authority
from cloister.platforms.local.azure_attestation.requests import AttestRequest
from cloister.platforms.local.trust_authority.tokens import of_td
from cloister.tee.claims import Claims
from cloister.tee.snp.verify import Verified
from cloister.trust.anchors import Anchor
from cloister.trust.collateral import Collateral, Item
from cloister.trust.jwt import Alg

TOKEN_LIFE = timedelta(hours=8)
#: What the provider's policy is: without one of a tenant's, Microsoft's default issues a token for whatever verifies.
POLICY = b"version= 1.0; authorizationrules { => permit(); }; issuancerules { };"
COMPLIANT = "azure-compliant-cvm"


class AttestationError(Exception):
    """An error answer: `code` and `message` as in Microsoft's REST guidelines, without secrets."""

    def __init__(self, code: str, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


class Service:
    """Answers requests; `tdx` and `snp` are the SIMULATED roots that evidence must chain to, `pcs` holds collateral.

    `url` is the provider's own address and the issuer of its tokens; `compliant` are launch measurements and MRTDs
    (lower-case hex) of which it says that they are Azure's.
    """

    def __init__(
        self,
        pcs: Path,
        *,
        url: str,
        tdx: Sequence[Anchor] = (),
        snp: Sequence[Anchor] = (),
        compliant: Sequence[str] = (),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._roots = {"tdx": tuple(tdx), "snp": tuple(snp)}
        if any(anchor.genuine for anchors in self._roots.values() for anchor in anchors):
            raise ValueError("a simulated service vouches for simulated evidence alone")
        self._pcs, self._url, self._compliant, self._clock = pcs, url, frozenset(compliant), clock
        start = clock() - timedelta(hours=1)
        self._key = Authority.issue("SIMULATED Azure Attestation - NOT MICROSOFT", None, ca=False, start=start)

    def key_set(self) -> dict[str, object]:
        """One self-signed certificate, and no members of the key itself: as the service has published some."""
        x5c = [base64.b64encode(self._key.der).decode("ascii")]
        return {"keys": [{"kty": "RSA", "kid": self._key.kid, "x5c": x5c}]}

    def attest(self, body: bytes, *, tdx: bool) -> dict[str, str]:
        """A token about a TDX quote or an SNP report; raises AttestationError."""
        name, now = "tdx" if tdx else "snp", self._clock()
        # 1. The request.
        try:
            asked = AttestRequest.parse(body, tdx=tdx)
        except CloisterError as error:
            raise AttestationError("InvalidParameter", error.message) from None
        # 2. The evidence.
        try:
            beside = tuple(map(Item, ("amd-vcek", "amd-ask"), asked.certificates[:2]))
            collateral = Collateral(beside) + Collateral.from_folder(self._pcs)
            claims = authority.verify(name, asked.evidence, self._roots[name], collateral, now=now)
        except CloisterError as error:
            raise AttestationError("InvalidParameter", f"the evidence does not verify: {error.message}") from None
        # 3. The first half of the report data is the hash of the runtime data. Nothing is said of the other half.
        digest = hashlib.sha256(asked.runtime).digest() if asked.runtime is not None else None
        if digest is not None and not hmac.compare_digest((claims.user_data or b"")[:32], digest):
            raise AttestationError("InvalidParameter", "the report data does not cover the runtime data")
        # 4. The token.
        told = self._tdx(claims) if tdx else self._snp(claims)
        if asked.runtime_json is not None:
            told["x-ms-runtime"] = asked.runtime_json
        if asked.nonce is not None:
            told["nonce"] = asked.nonce
        told |= authority.times(now, TOKEN_LIFE)
        told |= {"iss": self._url, "jti": secrets.token_hex(32), "x-ms-ver": "1.0", "x-ms-policy-hash": _policy_hash()}
        return {"token": self._key.sign(told, Alg.RS256, jku=f"{self._url}/certs")}

    def _compliance(self, measurement: str) -> dict[str, object]:
        return {"x-ms-compliance-status": COMPLIANT} if measurement in self._compliant else {}

    def _tdx(self, claims: Claims) -> dict[str, object]:
        profile = {"eat_profile": "https://aka.ms/maa-eat-profile-tdxvm", "intuse": "generic"}
        return (
            {"x-ms-attestation-type": "tdxvm"}
            | profile
            | of_td(claims)
            | self._compliance(claims.measurements["mrtd"])
        )  # fmt: skip

    def _snp(self, claims: Claims) -> dict[str, object]:
        assert isinstance(claims.details, Verified)
        report, tcb = claims.details.report, claims.details.reported
        policy = report.policy
        return {
            "x-ms-attestation-type": "sevsnpvm",
            "x-ms-sevsnpvm-authorkeydigest": report.author_key_digest.hex(),
            "x-ms-sevsnpvm-bootloader-svn": tcb.bootloader,
            "x-ms-sevsnpvm-tee-svn": tcb.tee,
            "x-ms-sevsnpvm-snpfw-svn": tcb.snp,
            "x-ms-sevsnpvm-microcode-svn": tcb.microcode,
            "x-ms-sevsnpvm-familyId": report.family_id.hex(),
            "x-ms-sevsnpvm-imageId": report.image_id.hex(),
            "x-ms-sevsnpvm-guestsvn": report.guest_svn,
            "x-ms-sevsnpvm-hostdata": report.host_data.hex(),
            "x-ms-sevsnpvm-idkeydigest": report.id_key_digest.hex(),
            "x-ms-sevsnpvm-launchmeasurement": report.measurement.hex(),
            "x-ms-sevsnpvm-reportdata": report.report_data.hex(),
            "x-ms-sevsnpvm-reportid": report.report_id.hex(),
            "x-ms-sevsnpvm-vmpl": report.vmpl,
            "x-ms-sevsnpvm-is-debuggable": policy.debug,
            "x-ms-sevsnpvm-migration-allowed": policy.migrate_ma,
            "x-ms-sevsnpvm-smt-allowed": policy.smt,
        } | self._compliance(report.measurement.hex())


def _policy_hash() -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(POLICY).digest()).rstrip(b"=").decode("ascii")
