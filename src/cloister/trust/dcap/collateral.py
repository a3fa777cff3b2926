"""Intel's signed word about a platform: TCB info, QE identity and revocation lists, chosen and checked for one quote.

The JSON has the members of dcap-qvl's QuoteCollateralV3: PEM chains, CRLs and signatures in hex, and the two signed
texts as strings, byte for byte as Intel's PCS gave them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509

from cloister.errors import MalformedError, NotGenuineError, UndecidedError
from cloister.trust import chain, crl
from cloister.trust.anchors import Anchor
from cloister.trust.certificates import MAX_CRL, load_certificate, load_crl
from cloister.trust.dcap.pck import P256, PckChain, certificates, raw_check
from cloister.trust.dcap.quote import Tee
from cloister.wire import strict_json
from cloister.wire.strict_json import Fields

MAX_COLLATERAL = 512 * 1024
MAX_TEXT = 128 * 1024
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z", re.ASCII)
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})*\Z")
#: What the two signed texts call themselves, and their versions.
_TCB_INFO = {Tee.SGX: ("SGX", 3), Tee.TDX: ("TDX", 3)}
_QE_IDENTITY = {Tee.SGX: ("QE", 2), Tee.TDX: ("TD_QE", 2)}
_HINT = "Fetch collateral for this platform from Intel's PCS or a PCCS and pass it on."


@dataclass(frozen=True, kw_only=True)
class Signed:
    """One text that Intel's TCB signing key signed: as it stands, and what every such text says of itself."""

    text: str
    signature: bytes
    issuer_chain: str
    id: str
    version: int
    issued: datetime
    next_update: datetime
    evaluation_number: int


@dataclass(frozen=True, kw_only=True)
class Endorsements:
    """One item of collateral as parsed. `fmspc` (6 bytes) and `pce_id` (2) are lower-case hex, CRLs are DER."""

    tcb_info: Signed
    fmspc: str
    pce_id: str
    qe_identity: Signed
    root_crl: bytes
    pck_crl: bytes
    pck_crl_issuer_chain: str

    @classmethod
    def parse(cls, data: bytes) -> Endorsements:
        """Strict: no unknown member, every size bounded. A PCK chain in it is left out: the quote's own counts.

        Raises MalformedError.
        """
        fields = Fields(strict_json.loads(data, "Intel collateral", limit=MAX_COLLATERAL), "Intel collateral")
        tcb_info, tcb_fields = _signed(fields, "tcb_info")
        qe_identity, _ = _signed(fields, "qe_identity")
        fields.has("pck_certificate_chain")
        item = cls(
            tcb_info=tcb_info,
            fmspc=_octets(tcb_fields, "fmspc", 6).hex(),
            pce_id=_octets(tcb_fields, "pceId", 2).hex(),
            qe_identity=qe_identity,
            root_crl=_octets(fields, "root_ca_crl"),
            pck_crl=_octets(fields, "pck_crl"),
            pck_crl_issuer_chain=_chain(fields, "pck_crl_issuer_chain"),
        )
        fields.done()
        return item

    @property
    def evaluation_number(self) -> int:
        """The older of the two texts' tcbEvaluationDataNumber."""
        return min(self.tcb_info.evaluation_number, self.qe_identity.evaluation_number)


def choose(
    items: Sequence[bytes], tee: Tee, *, fmspc: str, pce_id: str, issuer: x509.Name, now: datetime
) -> Endorsements:
    """Of collateral for this platform that is current at `now`, the one with the highest evaluation number.

    Raises MalformedError, or UndecidedError that says what is missing.
    """
    fitting: list[Endorsements] = []
    reasons: list[str] = []
    for item in map(Endorsements.parse, items):
        reason = _misfit(item, tee, fmspc=fmspc, pce_id=pce_id, issuer=issuer, now=now)
        if reason:
            reasons.append(reason)
        else:
            fitting.append(item)
    if fitting:
        return max(fitting, key=lambda each: (each.evaluation_number, each.tcb_info.issued))
    wanted = f"{tee.name} collateral for FMSPC {fmspc}"
    if not items:
        raise UndecidedError(f"no {wanted} is at hand", hint=_HINT)
    raise UndecidedError(f"no current {wanted} is at hand: {'; '.join(sorted(set(reasons))[:4])}", hint=_HINT)


def check(item: Endorsements, pck: PckChain, anchors: Sequence[Anchor], *, now: datetime) -> None:
    """Intel signed both texts and both lists, and the lists revoke nothing used here. Raises as chain and crl do."""
    root = load_certificate(pck.root, "root")
    root_crl = crl.load(item.root_crl, root.subject, root.public_key(), P256, now=now)
    signers: dict[str, x509.Certificate] = {}
    for signed, what in ((item.tcb_info, "TCB info"), (item.qe_identity, "QE identity")):
        # Intel signs both with one key: the same chain need not be walked twice.
        if signed.issuer_chain not in signers:
            signers[signed.issuer_chain] = _signer(signed, what, pck, anchors, root_crl, now=now)
        raw_check(signers[signed.issuer_chain].public_key(), signed.signature, signed.text.encode(), what)
    crl.check_not_revoked(root_crl, pck.issuer, "the CA of the PCK certificate")
    pck_crl = crl.load(item.pck_crl, pck.issuer.subject, pck.issuer.public_key(), P256, now=now)
    crl.check_not_revoked(pck_crl, pck.leaf, "the PCK certificate")


def _signer(
    signed: Signed,
    what: str,
    pck: PckChain,
    anchors: Sequence[Anchor],
    root_crl: x509.CertificateRevocationList,
    *,
    now: datetime,
) -> x509.Certificate:
    """The certificate that signs such texts: issued by the quote's own root, and not revoked."""
    leaf, top = certificates(signed.issuer_chain.encode(), 2, f"{what} issuer chain")
    anchor, (_, signer) = chain.validate((top,), leaf, anchors, now=now, profile=P256)
    if anchor != pck.anchor:
        raise NotGenuineError(f"{what} chains to another root than the quote")
    crl.check_not_revoked(root_crl, signer, f"the signer of {what}")
    return signer


def _misfit(item: Endorsements, tee: Tee, *, fmspc: str, pce_id: str, issuer: x509.Name, now: datetime) -> str | None:
    if (item.tcb_info.id, item.tcb_info.version) != _TCB_INFO[tee]:
        return f"an item is not {tee.name} TCB info of version {_TCB_INFO[tee][1]}"
    if (item.qe_identity.id, item.qe_identity.version) != _QE_IDENTITY[tee]:
        return f"an item has no {_QE_IDENTITY[tee][0]} identity of version {_QE_IDENTITY[tee][1]}"
    if (item.fmspc, item.pce_id) != (fmspc, pce_id):
        return "an item is for another platform"
    for signed, what in ((item.tcb_info, "TCB info"), (item.qe_identity, "QE identity")):
        if not signed.issued <= now <= signed.next_update:
            return f"{what} is for {signed.issued:%Y-%m-%d} to {signed.next_update:%Y-%m-%d}"
    for der, what in ((item.root_crl, "root CRL"), (item.pck_crl, "PCK CRL")):
        revocations = load_crl(der, f"Intel collateral: {what}")
        if what == "PCK CRL" and revocations.issuer != issuer:
            return "an item has the PCK CRL of another CA"
        end = revocations.next_update_utc
        if end is None or not revocations.last_update_utc <= now <= end:
            return f"the {what} is not current"
    return None


def _signed(fields: Fields, name: str) -> tuple[Signed, Fields]:
    text = fields.text(name, limit=MAX_TEXT)
    inner = Fields(strict_json.loads(text.encode(), name, limit=MAX_TEXT), name)
    signed = Signed(
        text=text,
        signature=_octets(fields, f"{name}_signature", 64),
        issuer_chain=_chain(fields, f"{name}_issuer_chain"),
        id=inner.text("id", limit=16),
        version=inner.integer("version", maximum=100),
        issued=_time(inner, "issueDate"),
        next_update=_time(inner, "nextUpdate"),
        evaluation_number=inner.integer("tcbEvaluationDataNumber", maximum=1_000_000),
    )
    return signed, inner


def _chain(fields: Fields, name: str) -> str:
    text = fields.text(name, limit=16384)
    certificates(text.encode(), 2, f"Intel collateral: {name}")
    return text


def _octets(fields: Fields, name: str, size: int | None = None) -> bytes:
    text = fields.text(name, limit=2 * MAX_CRL)
    if not _HEX.match(text) or (size is not None and len(text) != 2 * size):
        raise MalformedError(f"Intel collateral: {name} is not hex{f' of {size} bytes' if size else ''}")
    return bytes.fromhex(text)


def _time(fields: Fields, name: str) -> datetime:
    text = fields.text(name, limit=20)
    try:
        if _TIME.match(text):
            return datetime.fromisoformat(text[:-1]).replace(tzinfo=UTC)
    except ValueError:
        pass
    raise MalformedError(f"Intel collateral: {name} is not a time")
