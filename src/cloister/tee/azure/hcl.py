"""The report of Azure's paravisor (HCL), as a guest reads it from NV index 0x01400001 of its vTPM.

It holds the hardware's own report and JSON ("runtime data") whose hash is the first part of that report's report data.
Layout as in the open source of the paravisor (OpenHCL) and of verifiers; integers are little-endian.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import IntEnum

from cryptography.hazmat.primitives.asymmetric import rsa

from cloister.errors import MalformedError
from cloister.trust.jwt import rsa_key
from cloister.wire import strict_json
from cloister.wire.strict_json import Fields

#: The NV index has 2600 bytes; what follows the runtime data is zero.
MAX_REPORT = 8192
VERSIONS = (1, 2)
AK, USER_DATA_SIZE = "HCLAkPub", 64
_WHAT = "HCL report"
_HEADER, _BLOCK, _VAR_DATA = 0x20, 0x4C0, 0x4D4
_TDREPORT_SIZE, _TDREPORT_TYPE, _REPORT_DATA = 1024, b"\x81\x00", slice(128, 192)
_HASHES = {1: hashlib.sha256, 2: hashlib.sha384, 3: hashlib.sha512}
_HEX = re.compile(r"[0-9A-Fa-f]*\Z")


class Hardware(IntEnum):
    """What the hardware's report is, as the HCL numbers it."""

    SNP = 2
    TDX = 4


@dataclass(frozen=True, kw_only=True)
class VmConfiguration:
    """What the paravisor says of the VM, on the host's word; None where it says nothing."""

    secure_boot: bool | None
    tpm_enabled: bool | None
    console_enabled: bool | None
    unique_id: str | None

    @classmethod
    def parse(cls, fields: Fields) -> VmConfiguration:
        """Members that are not known are passed over: the paravisor adds some. Raises MalformedError."""
        unique = fields.text("vmUniqueId", limit=64).lower() if fields.has("vmUniqueId") else None

        def flag(name: str) -> bool | None:
            return fields.flag(name) if fields.has(name) else None

        return cls(
            secure_boot=flag("secure-boot"),
            tpm_enabled=flag("tpm-enabled"),
            console_enabled=flag("console-enabled"),
            unique_id=unique,
        )


@dataclass(frozen=True, kw_only=True)
class RuntimeData:
    """The JSON. `user_data` (64 bytes) is what the guest wrote into NV index 0x01400002, None where there is none."""

    attestation_key: rsa.RSAPublicKey
    vm: VmConfiguration
    user_data: bytes | None

    @classmethod
    def parse(cls, data: bytes) -> RuntimeData:
        """Raises MalformedError."""
        fields = Fields(strict_json.loads(data, f"{_WHAT} runtime data", limit=MAX_REPORT), f"{_WHAT} runtime data")
        return cls(
            attestation_key=_attestation_key(fields),
            vm=VmConfiguration.parse(fields.member("vm-configuration")),
            user_data=user_data(fields),
        )


@dataclass(frozen=True, kw_only=True)
class HclReport:
    """The report as parsed; `runtime` is to be believed only where genuine hardware has signed `digest`.

    `evidence` is the SNP report (1184 bytes) or the TDREPORT (1024), `digest` the expected 64 bytes of report data.
    """

    version: int
    hardware: Hardware
    evidence: bytes
    hash_name: str
    digest: bytes
    runtime: RuntimeData

    @classmethod
    def parse(cls, data: bytes) -> HclReport:
        """Read exactly one report; after it only zero bytes may follow. Raises MalformedError."""
        if not _VAR_DATA <= len(data) <= MAX_REPORT:
            raise _malformed(f"{len(data)} bytes")

        def uint(offset: int) -> int:
            return int.from_bytes(data[offset : offset + 4], "little")

        if data[:4] != b"HCLA" or uint(4) not in VERSIONS:
            raise _malformed("not one of version 1 or 2")
        # 0x0C says what the paravisor made it for; what it may be used for is said by the key inside.
        if any(data[0x10:_HEADER]):
            raise _malformed("it says that it failed, or a reserved byte is set")
        size, end = uint(_BLOCK + 16), _VAR_DATA + uint(_BLOCK + 16)
        if end > len(data) or uint(8) != end or uint(_BLOCK) != size + _VAR_DATA - _BLOCK or uint(_BLOCK + 4) != 1:
            raise _malformed("its lengths do not agree, or the runtime data is not of version 1")
        if any(data[end:]):
            raise _malformed("bytes after the runtime data")
        try:
            hardware = Hardware(uint(_BLOCK + 8))
        except ValueError:
            raise _malformed("neither of SEV-SNP nor of TDX") from None
        hash_of = _HASHES.get(uint(_BLOCK + 12))
        if hash_of is None:
            raise _malformed("a hash that is not known")
        runtime_data, digest = data[_VAR_DATA:end], hash_of(data[_VAR_DATA:end])
        return cls(
            version=uint(4),
            hardware=hardware,
            evidence=_evidence(data[_HEADER:_BLOCK], hardware),
            hash_name=digest.name,
            digest=digest.digest().ljust(64, b"\x00"),
            runtime=RuntimeData.parse(runtime_data),
        )

    @property
    def td_report_data(self) -> bytes:
        """The 64 bytes of report data in a TDREPORT (TDX module ABI, "REPORTMACSTRUCT")."""
        return self.evidence[_REPORT_DATA]


def user_data(fields: Fields) -> bytes | None:
    """The guest's 64 bytes among runtime data, None without any; raises MalformedError."""
    if not fields.has("user-data"):
        return None
    text = fields.text("user-data", limit=2 * USER_DATA_SIZE)
    if len(text) != 2 * USER_DATA_SIZE or not _HEX.match(text):
        raise MalformedError(f"{_WHAT} runtime data: user-data is not {USER_DATA_SIZE} bytes of hex")
    return bytes.fromhex(text)


def _evidence(room: bytes, hardware: Hardware) -> bytes:
    if hardware is Hardware.SNP:
        return room
    if not room.startswith(_TDREPORT_TYPE) or any(room[_TDREPORT_SIZE:]):
        raise _malformed("no TDREPORT where one must be")
    return room[:_TDREPORT_SIZE]


def _attestation_key(fields: Fields) -> rsa.RSAPublicKey:
    """The one key of that name, RSA (RFC 7518 section 6.3)."""
    entries = [each for each in fields.array("keys", limit=16) if isinstance(each, dict)]
    named = [Fields(each, "HCLAkPub") for each in entries if each.get("kid") == AK]
    if len(named) != 1 or named[0].text("kty", limit=8) != "RSA":
        raise _malformed(f"not one RSA key called {AK}")
    return rsa_key(named[0])


def _malformed(what: str) -> MalformedError:
    return MalformedError(f"{_WHAT}: {what}")
