"""Real evidence of Azure VMs from the vectors, in the foreign shapes that it has there, put into this project's envelope."""

from __future__ import annotations

import base64
import json
import re
from datetime import datetime, timedelta
from pathlib import Path

from cloister.tee.azure.evidence import TpmQuote, pack
from cloister.trust.collateral import Item

#: Which collateral the TD quotes of each host need, and when it is current.
TDX = {
    "00806f050000": ("tdx/built_00806f050000_2025-07.json", "2025-07-20T00:00:00+00:00"),
    "90c06f000000": ("tdx/built_90c06f000000_2026-02.json", "2026-03-01T00:00:00+00:00"),
}
#: The one entry that has its TD quote in a file beside it, and no TPM quote.
PARTS = "azure/openpcc_azure_tdx_hcl.bin"
TD_QUOTE = "azure/openpcc_azure_tdx_quote.bin"


def entries(vectors: Path, platform: str) -> list[dict]:
    """The entries of a platform."""
    listed = json.loads((vectors / "vectors.json").read_bytes())["vectors"]
    return [entry for entry in listed if entry["platform"] == platform]


def octets(value: object) -> bytes:
    """A list of numbers, hex, or base64 of either alphabet."""
    if isinstance(value, list):
        return bytes(value)
    assert isinstance(value, str)
    if re.fullmatch(r"[0-9a-f]+", value):
        return bytes.fromhex(value)
    return base64.b64decode(value.replace("-", "+").replace("_", "/") + "=" * (-len(value) % 4))


def quote(content: dict) -> TpmQuote:
    """A quote in the shape of trustee and of lunal: 24 values in order."""
    values = {index: octets(value) for index, value in enumerate(content["pcrs"])}
    return TpmQuote(message=octets(content["message"]), signature=octets(content["signature"]), pcrs=values)


def envelope(vectors: Path, name: str) -> tuple[bytes, list[Item]]:
    """The envelope, and the certificate that came with it."""
    data = (vectors / name).read_bytes()
    if name == PARTS:
        return pack(hcl_report=data, tpm_quote=None, td_quote=(vectors / TD_QUOTE).read_bytes()), []
    content = json.loads(data)
    content = content.get("evidence", content)
    td = octets(content["td_quote"]) if "td_quote" in content else None
    hcl = octets(content.get("report") or content["hcl_report"])
    made = pack(hcl_report=hcl, tpm_quote=quote(content.get("quote") or content["tpm_quote"]), td_quote=td)
    return made, [Item("amd-vcek", certificate(content["vcek"]))] if "vcek" in content else []


def certificate(value: str) -> bytes:
    """PEM, or DER in base64."""
    if value.startswith("-----"):
        return base64.b64decode(value.split("-----")[2])
    return octets(value)


def sample(vectors: Path, entry: dict) -> tuple[bytes, list[Item], datetime]:
    """Envelope, collateral and a time at which they are valid."""
    data, items = envelope(vectors, entry["file"])
    if entry["hw"] == "snp":
        return data, items, datetime.fromisoformat(entry["ek_not_before"]) + timedelta(days=1)
    file, when = TDX[entry["fmspc"]]
    return data, [Item("intel-collateral", (vectors / file).read_bytes())], datetime.fromisoformat(when)
