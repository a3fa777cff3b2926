"""The one format of this folder: the quote of an SGX enclave."""

from __future__ import annotations

from cloister.tee import binding, dcap
from cloister.tee.evidence import Role
from cloister.tee.format import Format
from cloister.tee.sgx import MEDIA_TYPE, rules, verify
from cloister.tee.sgx.evidence import SgxQuote
from cloister.tee.sgx.roots import ANCHORS
from cloister.trust.need import Need


def _needs(evidence: bytes) -> tuple[Need, ...]:
    return dcap.needs(SgxQuote.parse(evidence).quote)


FORMATS = (
    Format(
        name="sgx",
        title="Intel SGX quote",
        media_type=MEDIA_TYPE,
        role=Role.CPU,
        checks=verify.CHECKS,
        verify=verify.verify,
        rules=rules.RULES,
        bind=binding.report_data,
        parse=SgxQuote.parse,
        needs=_needs,
        anchors=ANCHORS,
        collateral=("intel-collateral",),
    ),
)
