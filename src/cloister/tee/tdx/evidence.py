"""A quote of a trust domain ("TDX DCAP Quoting Library API", appendix A.3; TDX module ABI, "TDREPORT_STRUCT")."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.errors import MalformedError
from cloister.trust.dcap.quote import Quote, Tee
from cloister.wire.reader import Reader

REGISTER_BYTES = 48
#: Bits 0 to 7 of the attributes ("TD under debug"): with any of them the TD is not to be trusted.
TUD = 0xFF


@dataclass(frozen=True, kw_only=True)
class TdReport:
    """A TD report body, 1.0 (584 bytes) or 1.5 (648). Measurements are 48 bytes, SVNs 16, attributes and XFAM 8.

    A 1.0 body has neither `tee_tcb_svn2` (None) nor `mr_service_td` (zero).
    """

    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    tee_tcb_svn2: bytes | None
    mr_service_td: bytes

    @classmethod
    def parse(cls, data: bytes) -> TdReport:
        """Raises MalformedError for another length."""
        reader = Reader(data, "TD report")
        values = {
            name: reader.take(size, name)
            for name, size in (
                ("tee_tcb_svn", 16), ("mr_seam", 48), ("mr_signer_seam", 48), ("seam_attributes", 8),
                ("td_attributes", 8), ("xfam", 8), ("mr_td", 48), ("mr_config_id", 48), ("mr_owner", 48),
                ("mr_owner_config", 48),
            )
        }  # fmt: skip
        rtmr0, rtmr1, rtmr2, rtmr3 = (reader.take(REGISTER_BYTES, f"RTMR{index}") for index in range(4))
        report_data = reader.take(64, "report data")
        newer = reader.remaining > 0
        svn2 = reader.take(16, "TEE TCB SVN 2") if newer else None
        service = reader.take(48, "service TD") if newer else bytes(48)
        reader.end()
        return cls(
            **values,
            rtmrs=(rtmr0, rtmr1, rtmr2, rtmr3),
            report_data=report_data,
            tee_tcb_svn2=svn2,
            mr_service_td=service,
        )

    @property
    def debug(self) -> bool:
        """May the host read the TD's memory?"""
        return bool(self.td_attributes[0] & TUD)


@dataclass(frozen=True, kw_only=True)
class TdQuote:
    """The quote and the TD report in it; nothing is trusted before the signatures are checked."""

    quote: Quote
    report: TdReport

    @classmethod
    def parse(cls, data: bytes) -> TdQuote:
        """Raises MalformedError, also for the quote of an enclave."""
        quote = Quote.parse(data)
        if quote.tee is not Tee.TDX:
            raise MalformedError("quote: not of a trust domain")
        return cls(quote=quote, report=TdReport.parse(quote.body))
