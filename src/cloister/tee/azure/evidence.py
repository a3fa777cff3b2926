"""The envelope of this project: strict JSON with the HCL report, the vTPM's quote and, on TDX, the TD quote.

`{"version": 1, "hcl_report": b64, "tpm_quote": {"message": b64, "signature": b64, "pcrs": {"0": hex, …}},
"td_quote": b64}` where b64 is base64url without padding. `signature` is the RSA signature alone; `tpm_quote` may be
null, `td_quote` is there exactly on TDX. What is in the parts is theirs: TPM 2.0 Library Part 2, and `hcl.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from cloister.errors import MalformedError
from cloister.tee.azure.hcl import MAX_REPORT, Hardware, HclReport
from cloister.trust.tpm import MAX_PCR
from cloister.wire import strict_json
from cloister.wire.strict_json import Fields, encode_base64url
from cloister.wire.tpm import MAX_ATTEST, Bank, Quote

VERSION = 1
MAX_EVIDENCE = 64 * 1024
MAX_TD_QUOTE = 16 * 1024
MAX_SIGNATURE = 1024
BANK = Bank.SHA256
_WHAT = "Azure vTPM evidence"


@dataclass(frozen=True, kw_only=True)
class TpmQuote:
    """A TPMS_ATTEST, the signature over it (RSASSA-PKCS1-v1_5, SHA-256), and the SHA-256 PCRs that it covers."""

    message: bytes
    signature: bytes
    pcrs: Mapping[int, bytes]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The parts; nothing in them is trusted before they are verified. `tpm_quote` is None where none was sent."""

    hcl: HclReport
    tpm_quote: TpmQuote | None
    td_quote: bytes | None

    @property
    def hardware(self) -> bytes:
        """The evidence that the hardware itself signed."""
        return self.hcl.evidence if self.td_quote is None else self.td_quote

    @classmethod
    def parse(cls, data: bytes) -> Evidence:
        """Read exactly one envelope of at most 64 KiB; raises MalformedError."""
        fields = Fields(strict_json.loads(data, _WHAT, limit=MAX_EVIDENCE), _WHAT)
        fields.integer("version", minimum=VERSION, maximum=VERSION)
        hcl = HclReport.parse(fields.octets("hcl_report", limit=MAX_REPORT))
        quote = None if fields.is_null("tpm_quote") else _tpm_quote(fields.member("tpm_quote"))
        td_quote = fields.octets("td_quote", limit=MAX_TD_QUOTE) if fields.has("td_quote") else None
        fields.done()
        if (td_quote is not None) is not (hcl.hardware is Hardware.TDX):
            raise MalformedError(f"{_WHAT}: a TD quote belongs to TDX, and to nothing else")
        return cls(hcl=hcl, tpm_quote=quote, td_quote=td_quote)


def pack(*, hcl_report: bytes, tpm_quote: TpmQuote | None, td_quote: bytes | None = None) -> bytes:
    """The envelope around its parts, which are not looked at."""
    members: dict[str, object] = {"version": VERSION, "hcl_report": encode_base64url(hcl_report), "tpm_quote": None}
    if tpm_quote is not None:
        members["tpm_quote"] = {
            "message": encode_base64url(tpm_quote.message),
            "signature": encode_base64url(tpm_quote.signature),
            "pcrs": {str(index): value.hex() for index, value in sorted(tpm_quote.pcrs.items())},
        }
    if td_quote is not None:
        members["td_quote"] = encode_base64url(td_quote)
    return json.dumps(members, separators=(",", ":")).encode()


def _tpm_quote(fields: Fields) -> TpmQuote:
    message = fields.octets("message", limit=MAX_ATTEST)
    # Its shape is checked here, so that what is not a quote at all is malformed and not a forgery.
    Quote.parse(message)
    signature = fields.octets("signature", limit=MAX_SIGNATURE)
    values = fields.member("pcrs")
    fields.done()
    if not values.names() <= {str(index) for index in range(MAX_PCR)}:
        raise MalformedError(f"{_WHAT}: a PCR without a number from 0 to {MAX_PCR - 1}")
    indices = sorted(map(int, values.names()))
    return TpmQuote(
        message=message, signature=signature, pcrs={index: values.hex(str(index), BANK.size) for index in indices}
    )
