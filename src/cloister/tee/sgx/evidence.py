"""A quote of an SGX enclave ("SGX ECDSA QuoteLibReference DCAP API", appendix A; quote version 5 as for TDX)."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.errors import MalformedError
from cloister.trust.dcap.quote import EnclaveReport, Quote, Tee

DEBUG = 1 << 1


@dataclass(frozen=True, kw_only=True)
class SgxQuote:
    """The quote and the enclave's report in it; nothing is trusted before the signatures are checked."""

    quote: Quote
    report: EnclaveReport

    @classmethod
    def parse(cls, data: bytes) -> SgxQuote:
        """Raises MalformedError, also for the quote of a TD."""
        quote = Quote.parse(data)
        if quote.tee is not Tee.SGX:
            raise MalformedError("quote: not of an SGX enclave")
        return cls(quote=quote, report=EnclaveReport.parse(quote.body, "SGX report"))

    @property
    def debug(self) -> bool:
        """May the host read the enclave's memory?"""
        return bool(self.report.attributes[0] & DEBUG)
