"""Signs quotes and collateral as Intel and its enclaves do, under a root of its own; every part can be changed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.errors import CloisterError
from cloister.tee import registry
from cloister.tee.checks import Checklist
from cloister.tee.claims import Claims
from cloister.tee.context import Context
from cloister.tee.sim import intel
from cloister.tee.sim.intel import FMSPC, PPID, QE_SIGNER, TD_QE_SIGNER, enclave_report, pem, raw, stamp, td_report
from cloister.tee.sim.root import Issued
from cloister.trust.anchors import Anchor
from cloister.trust.collateral import Collateral, Item

__all__ = ["PPID", "enclave_report", "pem", "raw", "stamp", "td_report"]

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)


def issue(name: str, issuer: Issued | None, *, ca: bool, start: datetime | None = None, **options: Any) -> Issued:
    """A certificate of 3650 days."""
    return intel.issue(name, issuer, ca=ca, start=start or NOW - timedelta(days=100), **options)


def crl(issuer: Issued, *revoked: Issued, start: datetime | None = None, days: int = 30) -> bytes:
    """A revocation list, DER."""
    return intel.crl(issuer, *revoked, start=start or NOW - timedelta(days=1), days=days)


@dataclass(frozen=True, kw_only=True)
class World:
    """Intel's hierarchy, one platform, one signed quote with collateral. `replace` one field to make one mistake."""

    tdx: bool
    body: bytes = b""
    version: int = 4
    status: str = "UpToDate"
    advisories: tuple[str, ...] = ()
    evaluation: int = 17
    qe_evaluation: int = 17
    issued: datetime = NOW - timedelta(days=1)
    life: timedelta = timedelta(days=30)
    qe: dict = field(default_factory=dict)
    platform_svn: int = 2
    level_svn: int = 2
    tdx_level: tuple[int, ...] = (5, 0, 2)
    fmspc: bytes = FMSPC
    info_fmspc: bytes | None = None
    bind: bool = True
    pck_start: datetime | None = None
    revoke_pck: bool = False
    revoke_ca: bool = False
    revoke_signer: bool = False
    crl_start: datetime | None = None
    module: dict = field(default_factory=dict)

    @cached_property
    def root(self) -> Issued:
        """Stands for the Intel SGX Root CA."""
        return issue("SIMULATED SGX Root CA", None, ca=True)

    @cached_property
    def ca(self) -> Issued:
        """Stands for the PCK Platform CA."""
        return issue("SIMULATED SGX PCK Platform CA", self.root, ca=True)

    @cached_property
    def signing(self) -> Issued:
        """Signs TCB info and QE identity."""
        return issue("SIMULATED SGX TCB Signing", self.root, ca=False)

    @cached_property
    def pck(self) -> Issued:
        """The platform's certificate."""
        extension = intel.pck_extension(svn=self.platform_svn, fmspc=self.fmspc)
        return issue("SIMULATED SGX PCK Certificate", self.ca, ca=False, extension=extension, start=self.pck_start)

    @property
    def anchor(self) -> Anchor:
        """Its root as a test's anchor."""
        root = self.root.certificate
        return Anchor(
            subject=root.subject.rfc4514_string(),
            spki=root.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            not_before=root.not_valid_before_utc,
            not_after=root.not_valid_after_utc,
            sha256=root.fingerprint(hashes.SHA256()).hex(),
            origin="this test",
        )

    @cached_property
    def attestation_key(self) -> ec.EllipticCurvePrivateKey:
        """Made by the quoting enclave."""
        return ec.generate_private_key(ec.SECP256R1())

    @cached_property
    def quote(self) -> bytes:
        """The signed quote."""
        body = self.body or (td_report(newer=self.version == 5) if self.tdx else enclave_report())
        qe_report = enclave_report(
            **{"attributes": 0x15, "mrsigner": TD_QE_SIGNER if self.tdx else QE_SIGNER, "prodid": 2 if self.tdx else 1}
            | self.qe,
            report_data=intel.bound(self.attestation_key) if self.bind else bytes(64),
        )
        return intel.sign_quote(
            intel.header(tdx=self.tdx, version=self.version, body=len(body)) + body,
            attestation_key=self.attestation_key,
            pck=self.pck,
            chain="".join(map(pem, (self.pck, self.ca, self.root))).encode(),
            qe_report=qe_report,
            version=self.version,
        )

    def tcb_info(self) -> dict:
        """What the TCB signing key signs about the platform."""
        return intel.tcb_info(
            tdx=self.tdx, issued=self.issued, life=self.life, fmspc=self.info_fmspc or self.fmspc, svn=self.level_svn,
            tdx_level=self.tdx_level, status=self.status, advisories=self.advisories, evaluation=self.evaluation,
            module=self.module,
        )  # fmt: skip

    def qe_identity(self) -> dict:
        """What it signs about the quoting enclave."""
        return intel.qe_identity(tdx=self.tdx, issued=self.issued, life=self.life, evaluation=self.qe_evaluation)

    def collateral(self, **changes: object) -> bytes:
        """The JSON; `changes` replace members, or with ... leave them out."""
        root_revoked = [
            one for one, wanted in ((self.ca, self.revoke_ca), (self.signing, self.revoke_signer)) if wanted
        ]
        members = intel.collateral(
            self.tcb_info(),
            self.qe_identity(),
            signing=self.signing,
            ca=self.ca,
            root=self.root,
            root_crl=crl(self.root, *root_revoked, days=400),
            pck_crl=crl(self.ca, *([self.pck] if self.revoke_pck else []), start=self.crl_start),
        )
        changed = {**members, **changes}
        return json.dumps({name: value for name, value in changed.items() if value is not ...}).encode()

    def but(self, **changes: object) -> World:
        """The same with another detail."""
        return replace(self, **changes)


def verify(
    name: str, evidence: bytes, *items: Item, anchors: tuple[Anchor, ...] | None = None, now: datetime = NOW
) -> Claims:
    """Format.verify under anchors, with every planned check done."""
    form, checklist = registry.get(name), Checklist()
    checklist.plan(form.checks)
    context = Context(
        now=now, checklist=checklist, max_age=timedelta(minutes=5), max_skew=timedelta(minutes=1),
        anchors={} if anchors is None else {name: anchors}, collateral=Collateral(items),
    )  # fmt: skip
    claims = form.verify(evidence, context)
    assert checklist.complete()
    return claims


def claims(
    world: World, *more: Item, evidence: bytes | None = None, collateral: bytes | None = None, now: datetime = NOW
) -> Claims:
    """The claims of a world's quote with its collateral."""
    item = Item("intel-collateral", world.collateral() if collateral is None else collateral)
    return verify(
        "tdx" if world.tdx else "sgx", world.quote if evidence is None else evidence, item, *more,
        anchors=(world.anchor,), now=now,
    )  # fmt: skip


def refusal(world: World, *more: Item, **options: object) -> CloisterError | None:
    """The error, None if it is accepted."""
    try:
        claims(world, *more, **options)
    except CloisterError as error:
        return error
    return None
