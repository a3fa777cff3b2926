"""Quotes of versions 3, 4 and 5, parsed strictly; every integer is little-endian."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from cloister.errors import MalformedError
from cloister.wire.reader import Reader

#: Real ones take 4.6 to 5.3 kB; configfs-tsm gives up to 8000 with its padding.
MAX_QUOTE = 16 * 1024
ECDSA_P256 = 2
#: Intel's QE vendor id.
INTEL = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
PCK_CHAIN, QE_REPORT = 5, 6
REPORT_BYTES = 384


class Tee(IntEnum):
    """The header's TEE type."""

    SGX = 0x00
    TDX = 0x81


#: Version 5 names its body: SGX report, TD report 1.0 and 1.5.
BODIES = {1: (Tee.SGX, REPORT_BYTES), 2: (Tee.TDX, 584), 3: (Tee.TDX, 648)}
#: What version 3 and 4 hold, by TEE type.
_OLDER = {(3, Tee.SGX): 1, (4, Tee.SGX): 1, (4, Tee.TDX): 2}


@dataclass(frozen=True, kw_only=True)
class EnclaveReport:
    """The 384 bytes of an SGX report body. `attributes` and `xfrm` are 8 bytes each, digests 32, config_id 64."""

    raw: bytes
    cpu_svn: bytes
    misc_select: bytes
    isv_ext_prod_id: bytes
    attributes: bytes
    xfrm: bytes
    mr_enclave: bytes
    mr_signer: bytes
    config_id: bytes
    isv_prod_id: int
    isv_svn: int
    config_svn: int
    isv_family_id: bytes
    report_data: bytes

    @classmethod
    def parse(cls, data: bytes, what: str) -> EnclaveReport:
        """Raises MalformedError for another length or a reserved byte that is not zero."""
        reader = Reader(data, what)
        values: dict[str, bytes] = {}
        for name, size in (
            ("cpu_svn", 16), ("misc_select", 4), ("-1", 12), ("isv_ext_prod_id", 16), ("attributes", 8), ("xfrm", 8),
            ("mr_enclave", 32), ("-2", 32), ("mr_signer", 32), ("-3", 32), ("config_id", 64), ("isv_prod_id", 2),
            ("isv_svn", 2), ("config_svn", 2), ("-4", 42), ("isv_family_id", 16), ("report_data", 64),
        ):  # fmt: skip
            value = reader.take(size, name)
            if name[0] != "-":
                values[name] = value
            elif any(value):
                raise MalformedError(f"{what}: a reserved byte is not zero")
        reader.end()
        prod_id, svn, config_svn = (_number(values.pop(name)) for name in ("isv_prod_id", "isv_svn", "config_svn"))
        return cls(raw=data, isv_prod_id=prod_id, isv_svn=svn, config_svn=config_svn, **values)


@dataclass(frozen=True, kw_only=True)
class Quote:
    """A quote as parsed; nothing in it is trusted before its signatures are checked.

    `raw` is the quote without padding, `signed` what `signature` (r ‖ s, 64 bytes) covers, `attestation_key` x ‖ y of a
    P-256 key, `pck_chain` the PEM text of the PCK certificate and its issuers.
    """

    raw: bytes
    version: int
    tee: Tee
    qe_svn: int
    pce_svn: int
    user_data: bytes
    body: bytes
    signed: bytes
    signature: bytes
    attestation_key: bytes
    qe_report: EnclaveReport
    qe_report_signature: bytes
    qe_auth_data: bytes
    pck_chain: bytes

    @classmethod
    def parse(cls, data: bytes) -> Quote:
        """Parse and check every length; after the quote only zero bytes may follow. Raises MalformedError."""
        if len(data) > MAX_QUOTE:
            raise _malformed(f"{len(data)} bytes, the limit is {MAX_QUOTE}")
        reader = Reader(data, "quote")
        version, key_type = _take(reader, 2, "version"), _take(reader, 2, "attestation key type")
        tee_type = _take(reader, 4, "TEE type")
        if version not in (3, 4, 5) or tee_type not in tuple(Tee):
            raise _malformed("version or TEE type")
        tee = Tee(tee_type)
        if key_type != ECDSA_P256:
            raise _malformed("the attestation key is not ECDSA P-256")
        qe_svn, pce_svn = _take(reader, 2, "QE SVN"), _take(reader, 2, "PCE SVN")
        if reader.take(16, "QE vendor") != INTEL:
            raise _malformed("the quoting enclave is not Intel's")
        user_data = reader.take(20, "user data")
        body = _body(reader, version, tee)
        signed = data[: reader.position]
        section = Reader(reader.take(_take(reader, 4, "signature length"), "signature data"), "quote signature data")
        raw = data[: reader.position]
        if any(reader.rest()):
            raise _malformed("trailing bytes")
        signature, attestation_key = section.take(64, "signature"), section.take(64, "attestation key")
        if version >= 4:
            section = _certification(section, QE_REPORT)
        qe_report = EnclaveReport.parse(section.take(REPORT_BYTES, "QE report"), "QE report")
        qe_report_signature = section.take(64, "QE report signature")
        qe_auth_data = section.take(_take(section, 2, "QE authentication data length"), "QE authentication data")
        return cls(
            raw=raw,
            version=version,
            tee=tee,
            qe_svn=qe_svn,
            pce_svn=pce_svn,
            user_data=user_data,
            body=body,
            signed=signed,
            signature=signature,
            attestation_key=attestation_key,
            qe_report=qe_report,
            qe_report_signature=qe_report_signature,
            qe_auth_data=qe_auth_data,
            pck_chain=_certification(section, PCK_CHAIN).rest(),
        )


def _body(reader: Reader, version: int, tee: Tee) -> bytes:
    if version < 5:
        kind = _OLDER.get((version, tee))
        size = None
    else:
        kind, size = _take(reader, 2, "body type"), _take(reader, 4, "body size")
    expected = BODIES.get(kind or 0)
    if expected is None or expected[0] is not tee or size not in (None, expected[1]):
        raise _malformed("version, TEE type and body do not fit together")
    return reader.take(expected[1], "body")


def _certification(section: Reader, kind: int) -> Reader:
    """The content of the certification data of that type, which must be the section's last part."""
    found = _take(section, 2, "certification data type")
    if found != kind:
        raise _malformed(f"certification data of type {found}, not {kind}")
    content = section.take(_take(section, 4, "certification data length"), "certification data")
    section.end()
    return Reader(content, "quote certification data")


def _take(reader: Reader, size: int, field: str) -> int:
    return _number(reader.take(size, field))


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _malformed(what: str) -> MalformedError:
    return MalformedError(f"quote: {what}")
