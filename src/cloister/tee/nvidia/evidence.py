"""The envelope that carries the reports of all GPUs and NVSwitches of one replica.

{"v": "cloister-nvgpu/1", "reports": [{"kind": "gpu", "arch": "hopper", "report": b64url, "chain": [b64url, …]}, …]}

Strict JSON: no other members, base64url without padding; a chain is DER certificates, the device's own first, NVIDIA's
root last.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum

from cloister.errors import MalformedError
from cloister.tee.nvidia.spdm import MAX_REPORT, Report
from cloister.wire import strict_json
from cloister.wire.strict_json import decode_base64url, encode_base64url

VERSION = "cloister-nvgpu/1"
MAX_EVIDENCE = 768 * 1024
MAX_DEVICES = 32
MAX_CERTIFICATE = 4096
CHAIN_LENGTH = 5
BINDING_LABEL = b"cloister-gpu-v1\x00"


class Kind(StrEnum):
    """What a report is of."""

    GPU = "gpu"
    SWITCH = "switch"


class Arch(StrEnum):
    """The architectures whose reports are understood."""

    HOPPER = "hopper"
    BLACKWELL = "blackwell"
    LS10 = "ls10"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One device: what its sender calls it, its report, and its certificates (DER, the device's own first)."""

    kind: Kind
    arch: Arch
    report: Report
    chain: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Every device, in the sender's order; nothing in it is trusted yet."""

    entries: tuple[Entry, ...]

    @classmethod
    def parse(cls, data: bytes) -> Evidence:
        """Parse the envelope and every report in it; raises MalformedError."""
        fields = strict_json.Fields(strict_json.loads(data, "GPU evidence", limit=MAX_EVIDENCE), "GPU evidence")
        if fields.text("v", limit=32) != VERSION:
            raise MalformedError("GPU evidence: another version")
        entries = tuple(_entry(item) for item in fields.array("reports", limit=MAX_DEVICES))
        fields.done()
        if not entries:
            raise MalformedError("GPU evidence: no report")
        return cls(entries=entries)


def nonce(binding: bytes) -> bytes:
    """The nonce that a replica asks its GPUs with: SHA-256(label ‖ B), B 32 bytes (PROTOCOL.md section 4.4)."""
    return hashlib.sha256(BINDING_LABEL + binding).digest()


def pack(reports: list[tuple[Kind, Arch, bytes, tuple[bytes, ...]]]) -> bytes:
    """The envelope of reports: for each device its kind, architecture, SPDM exchange and certificates (DER)."""
    entries = [
        {
            "kind": kind, "arch": arch, "report": encode_base64url(report),
            "chain": [encode_base64url(certificate) for certificate in chain],
        }
        for kind, arch, report, chain in reports
    ]  # fmt: skip
    return json.dumps({"v": VERSION, "reports": entries}, separators=(",", ":")).encode()


def _entry(item: object) -> Entry:
    if not isinstance(item, dict):
        raise MalformedError("GPU evidence: a report is not an object")
    fields = strict_json.Fields(item, "GPU report")
    kind, arch = fields.text("kind", limit=16), fields.text("arch", limit=16)
    if kind not in set(Kind) or arch not in set(Arch) or (arch == Arch.LS10) != (kind == Kind.SWITCH):
        raise MalformedError("GPU report: kind and arch are not those of a known device")
    report = Report.parse(fields.octets("report", limit=MAX_REPORT))
    chain = tuple(_certificate(text) for text in fields.array("chain", limit=CHAIN_LENGTH))
    fields.done()
    if len(chain) != CHAIN_LENGTH:
        raise MalformedError(f"GPU report: the chain is not {CHAIN_LENGTH} certificates")
    return Entry(kind=Kind(kind), arch=Arch(arch), report=report, chain=chain)


def _certificate(text: object) -> bytes:
    if not isinstance(text, str):
        raise MalformedError("GPU report: a certificate is not a string")
    return decode_base64url(text, "GPU report: certificate", limit=MAX_CERTIFICATE)
