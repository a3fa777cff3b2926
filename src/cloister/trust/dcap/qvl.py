"""The one place that knows dcap-qvl: TCB levels, QE and TDX module identities, as Intel's collateral defines them.

dcap-qvl returns success for platforms that are out of date, so its answer is data here and a policy decides. It
refuses by itself debug TEEs, TDs with reserved attributes, migration or profiling, service TDs, and TDs without
SEPT_VE_DISABLE; no policy can allow those, and each surfaces as RefusedError with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.errors import CloisterError, MalformedError, NotGenuineError, RefusedError, UndecidedError
from cloister.trust.dcap.collateral import Endorsements
from cloister.trust.dcap.quote import Quote, Tee
from cloister.wire import strict_json
from cloister.wire.strict_json import Fields

STATUSES = (
    "UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate",
    "OutOfDateConfigurationNeeded", "TDRelaunchAdvised", "TDRelaunchAdvisedConfigurationNeeded",
)  # fmt: skip
ADVISORY = re.compile(r"[A-Z][A-Z0-9-]{1,39}\Z", re.ASCII)
#: Genuine, but dcap-qvl lets nobody accept it.
_REFUSALS = {
    "Debug mode is enabled": "the TEE runs in debug mode: its memory is open to the host",
    "SEPT_VE_DISABLE is not enabled": "the TD runs without SEPT_VE_DISABLE: its host can make pages vanish under it",
    "TD migration is enabled": "the TD may be migrated",
    "TD profiling is enabled": "the TD may be profiled by its host",
    "SERVTD_EXT is enabled": "the TD is bound to service TDs in a way that is not understood here",
    "Reserved bits in TD attributes are set": "the TD has attributes that are not understood here",
    "Invalid MR service TD": "the TD is bound to a service TD",
}
#: Not vouched for.
_NOT_GENUINE = {
    "No matching TCB level found": "Intel's TCB info has no level for this platform's firmware",
    "Fmspc mismatch": "the collateral is for another platform",
    "TCB status is invalid": "Intel has revoked this platform's TCB",
}
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class Platform:
    """What the PCK certificate says of its platform (SGX extensions, 1.2.840.113741.1.13.1); lower-case hex."""

    fmspc: str
    pce_id: str
    ppid: str
    cpu_svn: str
    pce_svn: int


@dataclass(frozen=True, kw_only=True)
class Tcb:
    """The merged TCB status (the worst of platform, QE and TDX module), advisories, and whence they come."""

    status: str
    advisories: tuple[str, ...]
    evaluation_number: int
    date: datetime


def platform(leaf: x509.Certificate) -> Platform:
    """The SGX extensions of a PCK certificate; raises NotGenuineError where it has none that can be read."""
    import dcap_qvl

    pem = leaf.public_bytes(Encoding.PEM)
    found = _call(lambda: dcap_qvl.parse_pck_extension_from_pem(pem), "the PCK certificate's SGX extensions")
    values = (found.fmspc, found.pce_id, found.ppid, found.cpu_svn)
    if [len(value) for value in values] != [6, 2, 16, 16]:
        raise NotGenuineError("the PCK certificate's SGX extensions have fields of other sizes")
    fmspc, pce_id, ppid, cpu_svn = (bytes(value).hex() for value in values)
    return Platform(fmspc=fmspc, pce_id=pce_id, ppid=ppid, cpu_svn=cpu_svn, pce_svn=found.pce_svn)


def evaluate(quote: Quote, item: Endorsements, known: Platform, root: bytes, *, now: datetime) -> Tcb:
    """The TCB status of a quote under `root` (DER) at `now` (aware).

    The quote goes in without its padding, and without a PCK chain from elsewhere. Raises NotGenuineError, or
    RefusedError for what dcap-qvl does not let anybody accept.
    """
    import dcap_qvl

    seconds = int(now.timestamp())

    def run() -> str:
        collateral = dcap_qvl.QuoteCollateralV3(
            pck_crl_issuer_chain=item.pck_crl_issuer_chain,
            root_ca_crl=item.root_crl,
            pck_crl=item.pck_crl,
            tcb_info_issuer_chain=item.tcb_info.issuer_chain,
            tcb_info=item.tcb_info.text,
            tcb_info_signature=item.tcb_info.signature,
            qe_identity_issuer_chain=item.qe_identity.issuer_chain,
            qe_identity=item.qe_identity.text,
            qe_identity_signature=item.qe_identity.signature,
        )
        verifier = dcap_qvl.QuoteVerifier(root)
        policy = dcap_qvl.QuotePolicy.claims_only(seconds)
        claims: str = verifier.verify_with_policy(quote.raw, collateral, seconds, policy).to_json()
        return claims

    text = _call(run, "the quote and Intel's collateral")
    try:
        tcb = _claims(text, quote, known)
    except MalformedError:
        raise NotGenuineError("the TCB evaluation says something that is not understood here") from None
    if tcb.evaluation_number != item.evaluation_number:
        raise NotGenuineError("the TCB evaluation is of other collateral")
    return tcb


def _claims(text: str, quote: Quote, known: Platform) -> Tcb:
    """Read dcap-qvl's claims and hold them against what was parsed here."""
    claims = Fields(strict_json.loads(text.encode(), "TCB claims", limit=1024 * 1024), "TCB claims")
    tcb, place = claims.member("tcb"), claims.member("platform")
    status = tcb.text("status")
    advisories = tuple(str(each) for each in tcb.array("advisory_ids", limit=1000))
    if status not in STATUSES or not all(ADVISORY.match(each) for each in advisories):
        raise MalformedError("TCB claims: status or advisory")
    fmspc = place.member("pck").array("fmspc", limit=6)
    same = list(bytes.fromhex(known.fmspc)) == fmspc and claims.integer("tee_type") == quote.tee
    report = claims.member("report")
    if quote.tee is Tee.SGX:
        inner = report.member("SgxEnclave")
        same = same and inner.text("mr_enclave") == quote.body[64:96].hex()
        same = same and inner.text("report_data") == quote.body[320:384].hex()
    else:
        inner = report.member("TD10") if report.has("TD10") else report.member("TD15").member("base")
        same = same and inner.text("mr_td") == quote.body[136:184].hex()
        same = same and inner.text("report_data") == quote.body[520:584].hex()
    if not same:
        raise MalformedError("TCB claims: of another quote")
    return Tcb(
        status=status,
        advisories=tuple(sorted(set(advisories))),
        evaluation_number=min(tcb.integer("eval_data_number"), claims.member("qe").integer("tcb_eval_data_number")),
        date=datetime.fromtimestamp(place.integer("tcb_date_tag", maximum=253_402_300_799), UTC),
    )


def _call(function: Callable[[], _Result], what: str) -> _Result:
    """Run library code; whatever it raises, a panic included, becomes one of our errors."""
    try:
        return function()
    except CloisterError:
        raise
    except Exception as error:  # noqa: BLE001 - the library's errors have no common type
        raise _translated(str(error), what) from None
    except BaseException as error:
        # A Rust panic derives from BaseException on purpose; it must not end the client.
        if type(error).__name__ != "PanicException":
            raise
        raise NotGenuineError(f"{what}: not readable") from None


def _translated(message: str, what: str) -> CloisterError:
    for phrase, meaning in _REFUSALS.items():
        if phrase in message:
            return RefusedError(meaning, hint="No policy can allow it: the quote verification library refuses it.")
    for phrase, meaning in _NOT_GENUINE.items():
        if phrase in message:
            return NotGenuineError(meaning)
    if "SGX TEE quote must have version" in message:
        return UndecidedError("an SGX quote of this version cannot be checked", hint="Ask the enclave for version 3.")
    # Another message may quote the input: only its harmless beginning is shown.
    shown = re.match(r"(?:Verification failed: )?([A-Za-z ]{0,80})", message)
    return NotGenuineError(f"{what} do not verify: {shown.group(1).strip() if shown else ''}".rstrip(": "))
