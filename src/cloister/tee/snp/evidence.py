"""The attestation report, versions 2 to 5 (AMD SEV-SNP Firmware ABI Specification, 56860, "ATTESTATION_REPORT")."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cloister.errors import MalformedError

REPORT_SIZE = 0x4A0
#: The signature covers what lies before it.
SIGNED_SIZE = 0x2A0
VERSIONS = (2, 3, 4, 5)
ECDSA_P384_SHA384 = 1
MAX_VMPL = 3

_POLICY_BITS = (1 << 26) - 1
_POLICY_ALWAYS_ONE = 17
#: Bit 6 has no meaning yet.
_PLATFORM_BITS = 0b1011_1111
#: Offset and size of what must be zero in every version, and what versions before 3 and before 5 have not.
_RESERVED = (
    (0x4C, 4),
    (0x18B, 21),
    (0x1EB, 1),
    (0x1EF, 1),
    (0x208, 152),
    (0x2A0 + 48, 24),
    (0x2E8 + 48, 24),
    (0x330, 368),
)
_SINCE_3 = (0x188, 3)
_SINCE_5 = (0x1F8, 16)
_WHAT = "SNP report"


class Product(StrEnum):
    """A product line: it has its own root and its own layout of the TCB. The values are AMD's, as in its URLs."""

    MILAN = "Milan"
    GENOA = "Genoa"
    TURIN = "Turin"


class SigningKey(StrEnum):
    """Whose key signed: the chip's (VCEK) or the one that AMD made for a cloud (VLEK)."""

    VCEK = "VCEK"
    VLEK = "VLEK"


@dataclass(frozen=True, kw_only=True)
class Tcb:
    """Security version numbers (0..255) of the parts of the firmware; only Turin has `fmc`, elsewhere it is 0.

    They are compared part by part: as one number, the order would depend on the layout.
    """

    fmc: int = 0
    bootloader: int
    tee: int
    snp: int
    microcode: int

    @classmethod
    def parse(cls, raw: bytes, product: Product) -> Tcb:
        """The 8 bytes of TCB_VERSION in that product's layout; raises MalformedError for a reserved byte."""
        if product is Product.TURIN:
            tcb = cls(fmc=raw[0], bootloader=raw[1], tee=raw[2], snp=raw[3], microcode=raw[7])
            reserved = raw[4:7]
        else:
            tcb = cls(bootloader=raw[0], tee=raw[1], snp=raw[6], microcode=raw[7])
            reserved = raw[2:6]
        if any(reserved):
            raise MalformedError(f"{_WHAT}: a reserved byte of a TCB version is set")
        return tcb

    def parts(self) -> tuple[int, int, int, int, int]:
        """fmc, bootloader, tee, snp, microcode."""
        return self.fmc, self.bootloader, self.tee, self.snp, self.microcode

    def __le__(self, other: Tcb) -> bool:
        """Is no part newer than in `other`?"""
        return all(mine <= theirs for mine, theirs in zip(self.parts(), other.parts(), strict=True))

    def __str__(self) -> str:
        return "fmc {} bootloader {} tee {} snp {} microcode {}".format(*self.parts())


@dataclass(frozen=True, kw_only=True)
class GuestPolicy:
    """What the owner demanded at launch; the firmware starts no guest in breach of it.

    `abi` is the least (major, minor) of the firmware's interface.
    """

    abi: tuple[int, int]
    smt: bool
    migrate_ma: bool
    debug: bool
    single_socket: bool
    cxl: bool
    aes_256_xts: bool
    rapl_disabled: bool
    ciphertext_hiding: bool
    page_swap_disabled: bool

    @classmethod
    def parse(cls, value: int) -> GuestPolicy:
        """Raises MalformedError for bits without a meaning and for the bit that is always set."""
        if value & ~_POLICY_BITS or not value >> _POLICY_ALWAYS_ONE & 1:
            raise MalformedError(f"{_WHAT}: the guest policy's reserved bits are not as they must be")
        return cls(
            abi=(value >> 8 & 0xFF, value & 0xFF),
            smt=bool(value >> 16 & 1),
            migrate_ma=bool(value >> 18 & 1),
            debug=bool(value >> 19 & 1),
            single_socket=bool(value >> 20 & 1),
            cxl=bool(value >> 21 & 1),
            aes_256_xts=bool(value >> 22 & 1),
            rapl_disabled=bool(value >> 23 & 1),
            ciphertext_hiding=bool(value >> 24 & 1),
            page_swap_disabled=bool(value >> 25 & 1),
        )


@dataclass(frozen=True, kw_only=True)
class PlatformInfo:
    """How the machine was set up when it signed."""

    smt: bool
    tsme: bool
    ecc: bool
    rapl_disabled: bool
    ciphertext_hiding: bool
    alias_check: bool
    tio: bool

    @classmethod
    def parse(cls, value: int) -> PlatformInfo:
        """Raises MalformedError for bits without a meaning: an unknown one may be a weakness."""
        if value & ~_PLATFORM_BITS:
            raise MalformedError(f"{_WHAT}: an unknown bit of the platform information is set")
        return cls(
            smt=bool(value & 1),
            tsme=bool(value >> 1 & 1),
            ecc=bool(value >> 2 & 1),
            rapl_disabled=bool(value >> 3 & 1),
            ciphertext_hiding=bool(value >> 4 & 1),
            alias_check=bool(value >> 5 & 1),
            tio=bool(value >> 7 & 1),
        )


@dataclass(frozen=True, kw_only=True, order=True)
class Firmware:
    """The version of the SNP firmware; the later one is greater."""

    major: int
    minor: int
    build: int

    @classmethod
    def parse(cls, raw: bytes) -> Firmware:
        """Three bytes: build, minor, major."""
        return cls(major=raw[2], minor=raw[1], build=raw[0])

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.build}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """A report as parsed; nothing in it is trusted before the signature is checked.

    TCB versions are the raw 8 bytes, for their layout depends on the product. `product` is None in version 2, which
    does not name it. `r` and `s` are the signature's integers. The mitigation vectors are None before version 5.
    """

    version: int
    guest_svn: int
    policy: GuestPolicy
    family_id: bytes
    image_id: bytes
    vmpl: int
    current_tcb: bytes
    platform: PlatformInfo
    author_key_enabled: bool
    chip_key_masked: bool
    signing_key: SigningKey
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    product: Product | None
    family: int
    model: int
    stepping: int
    chip_id: bytes
    committed_tcb: bytes
    current: Firmware
    committed: Firmware
    launch_tcb: bytes
    launch_mitigations: int | None
    current_mitigations: int | None
    signed: bytes
    r: int
    s: int

    @classmethod
    def parse(cls, data: bytes) -> Report:
        """Parse exactly 1184 bytes; every reserved byte must be zero. Raises MalformedError."""
        if len(data) != REPORT_SIZE:
            raise _malformed(f"{len(data)} bytes instead of {REPORT_SIZE}")

        def take(offset: int, size: int) -> bytes:
            return data[offset : offset + size]

        def uint(offset: int, size: int) -> int:
            return int.from_bytes(take(offset, size), "little")

        version = uint(0x00, 4)
        if version not in VERSIONS:
            raise _malformed("a version other than 2 to 5")
        absent = ((_SINCE_3,) if version < 3 else ()) + ((_SINCE_5,) if version < 5 else ())
        for offset, size in (*_RESERVED, *absent):
            if any(take(offset, size)):
                raise _malformed(f"a reserved byte of 0x{offset:X} to 0x{offset + size - 1:X} is set")
        if uint(0x34, 4) != ECDSA_P384_SHA384:
            raise _malformed("the signature algorithm is not ECDSA P-384 with SHA-384")
        vmpl, flags = uint(0x30, 4), uint(0x48, 4)
        if vmpl > MAX_VMPL:
            # What the host asks for carries 2^32 - 1 and speaks for no guest.
            raise _malformed("not requested by a guest at VMPL 0 to 3")
        if flags >> 5 or flags >> 2 not in _SIGNING_KEYS:
            raise _malformed("not signed by a VCEK or VLEK, or reserved flags are set")
        family, model, stepping = take(0x188, 3)
        return cls(
            version=version,
            guest_svn=uint(0x04, 4),
            policy=GuestPolicy.parse(uint(0x08, 8)),
            family_id=take(0x10, 16),
            image_id=take(0x20, 16),
            vmpl=vmpl,
            current_tcb=take(0x38, 8),
            platform=PlatformInfo.parse(uint(0x40, 8)),
            author_key_enabled=bool(flags & 1),
            chip_key_masked=bool(flags >> 1 & 1),
            signing_key=_SIGNING_KEYS[flags >> 2],
            report_data=take(0x50, 64),
            measurement=take(0x90, 48),
            host_data=take(0xC0, 32),
            id_key_digest=take(0xE0, 48),
            author_key_digest=take(0x110, 48),
            report_id=take(0x140, 32),
            report_id_ma=take(0x160, 32),
            reported_tcb=take(0x180, 8),
            product=_product(family, model) if version >= 3 else None,
            family=family,
            model=model,
            stepping=stepping,
            chip_id=take(0x1A0, 64),
            committed_tcb=take(0x1E0, 8),
            current=Firmware.parse(take(0x1E8, 3)),
            committed=Firmware.parse(take(0x1EC, 3)),
            launch_tcb=take(0x1F0, 8),
            launch_mitigations=uint(0x1F8, 8) if version >= 5 else None,
            current_mitigations=uint(0x200, 8) if version >= 5 else None,
            signed=data[:SIGNED_SIZE],
            r=uint(0x2A0, 48),
            s=uint(0x2E8, 48),
        )


_SIGNING_KEYS = {0: SigningKey.VCEK, 1: SigningKey.VLEK}


def _product(family: int, model: int) -> Product:
    match family, model >> 4:
        case 0x19, 0x0:
            return Product.MILAN
        case 0x19, 0x1 | 0xA:  # Bergamo and Siena, 0xA0 to 0xAF, are under Genoa's root
            return Product.GENOA
        case 0x1A, 0x0 | 0x1:
            return Product.TURIN
    raise _malformed("a processor that is not Milan, Genoa or Turin")


def _malformed(what: str) -> MalformedError:
    return MalformedError(f"{_WHAT}: {what}")
