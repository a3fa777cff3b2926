"""The one format of this folder: the quote of a trust domain."""

from __future__ import annotations

from cloister.tee import binding, dcap
from cloister.tee.evidence import Role
from cloister.tee.format import Format
from cloister.tee.tdx import MEDIA_TYPE, rules, verify
from cloister.tee.tdx.evidence import TdQuote
from cloister.tee.tdx.roots import ANCHORS
from cloister.trust.need import Need


def _needs(evidence: bytes) -> tuple[Need, ...]:
    return dcap.needs(TdQuote.parse(evidence).quote)


FORMATS = (
    Format(
        name="tdx",
        title="Intel TDX quote",
        media_type=MEDIA_TYPE,
        role=Role.CPU,
        checks=verify.CHECKS,
        verify=verify.verify,
        rules=rules.RULES,
        bind=binding.report_data,
        parse=TdQuote.parse,
        needs=_needs,
        anchors=ANCHORS,
        collateral=("intel-collateral", "tcg-event-log"),
    ),
)
