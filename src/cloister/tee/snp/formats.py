"""The one format of this folder: the bare attestation report, its certificates beside it as collateral."""

from __future__ import annotations

from cloister.tee import binding
from cloister.tee.evidence import Role
from cloister.tee.format import Format
from cloister.tee.snp import MEDIA_TYPE, needs, rules, verify
from cloister.tee.snp.evidence import Report
from cloister.tee.snp.roots import ANCHORS

FORMATS = (
    Format(
        name="snp",
        title="AMD SEV-SNP attestation report",
        media_type=MEDIA_TYPE,
        role=Role.CPU,
        checks=verify.CHECKS,
        verify=verify.verify,
        rules=rules.RULES,
        bind=binding.report_data,
        parse=Report.parse,
        needs=needs.needs,
        anchors=ANCHORS,
        collateral=("amd-vcek", "amd-ask", "amd-crl"),
    ),
)
