"""Evidence of the processor inside a vTPM's attestation: AMD's report and Intel's quote, put together from fields.

Sources: the messages `sevsnp.Attestation` (go-sev-guest) and `tdx.QuoteV4` (go-tdx-guest); AMD 56860, the attestation
report's table; Intel's TDX DCAP quoting library, appendix A.3. A wrong byte breaks the signature.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloister.errors import MalformedError
from cloister.trust.collateral import Item
from cloister.wire.protobuf import Message

REPORT_SIZE = 0x4A0
MAX_CERTIFICATE = 16 * 1024
MAX_EXTRAS = 16
MAX_EXTRA_BYTES = 64 * 1024
#: Under this name the host hands the firmware's launch endorsement to an SNP guest.
ENDORSEMENT_GUID = "9f4116cd-c503-4f5a-8f6f-fb68882f4ce2"

_U32 = (1 << 32) - 1
#: Numbers of the report's message that are integers: field, offset, bytes.
_NUMBERS = (
    (1, 0x000, 4), (2, 0x004, 4), (3, 0x008, 8), (6, 0x030, 4), (7, 0x034, 4), (8, 0x038, 8), (9, 0x040, 8),
    (10, 0x048, 4), (18, 0x180, 8), (20, 0x1E0, 8), (21, 0x1E8, 1), (22, 0x1E9, 1), (23, 0x1EA, 1), (24, 0x1EC, 1),
    (25, 0x1ED, 1), (26, 0x1EE, 1), (27, 0x1F0, 8), (30, 0x1F8, 8), (31, 0x200, 8),
)  # fmt: skip
_BYTES = (
    (4, 0x010, 16), (5, 0x020, 16), (11, 0x050, 64), (12, 0x090, 48), (13, 0x0C0, 32), (14, 0x0E0, 48),
    (15, 0x110, 48), (16, 0x140, 32), (17, 0x160, 32), (19, 0x1A0, 64), (28, 0x2A0, 512),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Evidence of the format `name`, and the certificates and endorsement that came with it."""

    name: str
    evidence: bytes
    items: tuple[Item, ...] = ()


def parse(top: Message) -> Inner | None:
    """Field 8 or 9 of an attestation, None without either; raises MalformedError, also for both."""
    snp, tdx = top.message(8, "SEV-SNP attestation"), top.message(9, "TDX quote")
    if snp is not None and tdx is not None:
        raise MalformedError("vTPM attestation: of SEV-SNP and of TDX at once")
    if snp is not None:
        return _snp(snp)
    return None if tdx is None else Inner(name="tdx", evidence=_tdx(tdx))


def _snp(message: Message) -> Inner:
    report = _part(message, 1, "SEV-SNP report")
    chain = message.message(2, "SEV-SNP certificates") or Message(b"", "SEV-SNP certificates")
    items = [
        Item(kind, der)
        for number, kind in ((1, "amd-vcek"), (6, "amd-vcek"), (2, "amd-ask"))
        if (der := chain.octets(number, limit=MAX_CERTIFICATE))
    ]
    for entry in chain.messages(7, "SEV-SNP certificates: extra", count=MAX_EXTRAS):
        name, value = entry.octets(1, limit=64), entry.octets(2, limit=MAX_EXTRA_BYTES)
        entry.done()
        if name == ENDORSEMENT_GUID.encode():
            items.append(Item("google-endorsement", value))
    for unread in (3, 4):  # the ARK, which is built in, and a field that is not used any more
        chain.has(unread)
    chain.done()
    message.has(3)  # the product, which the report or its certificate says
    message.done()
    return Inner(name="snp", evidence=_report(report), items=tuple(items))


def _report(message: Message) -> bytes:
    report = bytearray(REPORT_SIZE)
    for number, offset, size in _NUMBERS:
        value = message.integer(number, maximum=(1 << 8 * size) - 1)
        report[offset : offset + size] = value.to_bytes(size, "little")
    for number, offset, size in _BYTES:
        report[offset : offset + size] = message.octets(number, size=size)
    # CPUID leaf 1, EAX: stepping, model, family, and the upper parts of the latter two.
    eax = message.integer(29, maximum=_U32)
    if eax & ~0x0FFF0FFF:
        raise MalformedError("SEV-SNP report: a processor that CPUID cannot name")
    family = (eax >> 8 & 0xF) + (eax >> 20 & 0xFF)
    if family > 0xFF:
        raise MalformedError("SEV-SNP report: a processor that CPUID cannot name")
    report[0x188:0x18B] = bytes((family, (eax >> 16 & 0xF) << 4 | (eax >> 4 & 0xF), eax & 0xF))
    message.done()
    return bytes(report)


def _tdx(message: Message) -> bytes:
    header, body = _part(message, 1, "TDX quote header"), _part(message, 2, "TDX quote body")
    signed = _part(message, 4, "TDX quote signature")
    out = (
        _uint(header, 1, 2) + _uint(header, 2, 2) + _uint(header, 3, 4)
        + header.octets(5, size=2) + header.octets(4, size=2)
        + header.octets(6, size=16) + header.octets(7, size=20)
    )  # fmt: skip
    for number, size in ((1, 16), (2, 48), (3, 48), (4, 8), (5, 8), (6, 8), (7, 48), (8, 48), (9, 48), (10, 48)):
        out += body.octets(number, size=size)
    registers = body.every(11, count=4, size=48)
    if len(registers) != 4:
        raise MalformedError("TDX quote body: not four runtime registers")
    out += b"".join(registers) + body.octets(12, size=64)
    certification = _part(signed, 3, "TDX certification data")
    data = _certification(_part(certification, 3, "TDX QE report"))
    size = certification.integer(2, maximum=_U32)
    signature = (
        signed.octets(1, size=64) + signed.octets(2, size=64)
        + _uint(certification, 1, 2) + size.to_bytes(4, "little") + data
    )  # fmt: skip
    length = message.integer(3, maximum=_U32)
    if size != len(data) or length != len(signature):
        raise MalformedError("TDX quote: a length that is not that of what follows")
    out += length.to_bytes(4, "little") + signature + message.octets(5, limit=16 * 1024)
    for part in (message, header, body, signed, certification):
        part.done()
    return out


def _certification(message: Message) -> bytes:
    """QE report certification data: the report, its signature, the QE's data, the PCK chain."""
    report, auth = _part(message, 1, "TDX QE report"), _part(message, 3, "TDX QE data")
    chain = _part(message, 4, "TDX PCK chain")
    out = report.octets(1, size=16) + _uint(report, 2, 4)
    for number, size in ((3, 28), (4, 16), (5, 32), (6, 32), (7, 32), (8, 96)):
        out += report.octets(number, size=size)
    out += _uint(report, 9, 2) + _uint(report, 10, 2) + report.octets(11, size=60) + report.octets(12, size=64)
    out += message.octets(2, size=64)
    data, certificates = auth.octets(2, limit=0xFFFF), chain.octets(3, limit=64 * 1024)
    if auth.integer(1) != len(data) or chain.integer(2) != len(certificates):
        raise MalformedError("TDX QE report: a length that is not that of what follows")
    out += len(data).to_bytes(2, "little") + data
    out += _uint(chain, 1, 2) + len(certificates).to_bytes(4, "little") + certificates
    for part in (message, report, auth, chain):
        part.done()
    return out


def _uint(message: Message, number: int, size: int) -> bytes:
    return message.integer(number, maximum=(1 << 8 * size) - 1).to_bytes(size, "little")


def _part(message: Message, number: int, what: str) -> Message:
    part = message.message(number, what)
    if part is None:
        raise MalformedError(f"{what} is missing")
    return part
