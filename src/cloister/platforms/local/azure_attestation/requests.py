"""Requests to the SIMULATED Azure Attestation ("Azure Attestation REST API", Attest Sev Snp Vm and Attest Tdx Vm)."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.errors import MalformedError
from cloister.trust.dcap.pck import certificates
from cloister.wire import strict_json
from cloister.wire.strict_json import Fields

MAX_BODY = 512 * 1024
MAX_EVIDENCE, MAX_RUNTIME, MAX_NONCE = 64 * 1024, 32 * 1024, 1024
WHAT = "request"


@dataclass(frozen=True, kw_only=True)
class AttestRequest:
    """Evidence (a TDX quote or an SNP report), certificates beside it (DER, VCEK first), and what the caller added.

    `runtime` are the exact bytes that the report data covers, None without; `runtime_json` is their value where the
    caller calls them JSON.
    """

    evidence: bytes
    certificates: tuple[bytes, ...]
    runtime: bytes | None
    runtime_json: dict[str, object] | None
    nonce: str | None

    @classmethod
    def parse(cls, data: bytes, *, tdx: bool) -> AttestRequest:
        """Raises MalformedError, also for what the emulator does not do (initTimeData, draft policies)."""
        top = Fields(strict_json.loads(data, WHAT, limit=MAX_BODY), WHAT)
        chain: tuple[bytes, ...] = ()
        if tdx:
            evidence = top.octets("quote", limit=MAX_EVIDENCE)
        else:
            report = top.octets("report", limit=MAX_EVIDENCE)
            inner = Fields(strict_json.loads(report, f"{WHAT}: report", limit=MAX_EVIDENCE), f"{WHAT}: report")
            evidence = inner.octets("SnpReport", limit=MAX_EVIDENCE)
            chain = certificates(inner.octets("VcekCertChain", limit=MAX_EVIDENCE), 3, f"{WHAT}: VcekCertChain")
            inner.done()
        runtime, value = _runtime(top) if top.has("runtimeData") else (None, None)
        nonce = top.text("nonce", limit=MAX_NONCE) if top.has("nonce") else None
        top.done()
        return cls(evidence=evidence, certificates=chain, runtime=runtime, runtime_json=value, nonce=nonce)


def _runtime(top: Fields) -> tuple[bytes, dict[str, object] | None]:
    fields = top.member("runtimeData")
    data, kind = fields.octets("data", limit=MAX_RUNTIME), fields.text("dataType", limit=16)
    fields.done()
    if kind not in ("Binary", "JSON"):
        raise MalformedError(f"{WHAT}: dataType is neither Binary nor JSON")
    return data, strict_json.loads(data, f"{WHAT}: runtimeData", limit=MAX_RUNTIME) if kind == "JSON" else None
