"""Is this SGX quote genuine? The steps are numbered as in README.md beside this file."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.tee import dcap
from cloister.tee.claims import Claims
from cloister.tee.context import Context
from cloister.tee.sgx.evidence import SgxQuote
from cloister.trust.dcap.quote import EnclaveReport

CHECKS: tuple[tuple[str, str], ...] = dcap.checks("sgx")


@dataclass(frozen=True, kw_only=True)
class Details:
    """A verified quote and its enclave's report."""

    verified: dcap.Verified
    report: EnclaveReport


def verify(evidence: bytes, context: Context) -> Claims:
    """Claims of a genuine quote; raises MalformedError, NotGenuineError, UndecidedError, and RefusedError for debug."""
    with context.checklist.step("sgx.quote") as step:
        parsed = SgxQuote.parse(evidence)
        step.detail = f"version {parsed.quote.version}"
    verified = dcap.verify("sgx", parsed.quote, context)
    report = parsed.report
    return Claims(
        tee="sgx",
        genuine=verified.genuine,
        debug=parsed.debug,
        measurements={"mrenclave": report.mr_enclave.hex(), "mrsigner": report.mr_signer.hex()},
        user_data=report.report_data,
        nonce=None,
        signed_at=None,
        chain=verified.chain,
        facts=verified.facts() | {"isvprodid": str(report.isv_prod_id), "isvsvn": str(report.isv_svn)},
        details=Details(verified=verified, report=report),
    )
