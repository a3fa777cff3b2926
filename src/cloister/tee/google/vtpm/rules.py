"""What a policy may demand of a genuine vTPM attestation; the evidence inside has the rules of its own format."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cloister.errors import PolicyDocumentError, RefusedError, UndecidedError
from cloister.tee.claims import Claims
from cloister.tee.format import Rule
from cloister.tee.google.vtpm.firmware import EVIDENCE, Firmware, Technology
from cloister.tee.google.vtpm.verify import BANK, Verified, launch_measurement
from cloister.trust.tpm import MAX_PCR
from cloister.wire.toml import Table

#: What loads the kernel, and where a kernel and its command line are measured (GRUB, a unified kernel image).
LOADER, KERNEL = 4, (8, 9, 11)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Registers (lower-case hex SHA-256 values) of one image; every one stated must match."""

    registers: tuple[tuple[str, str], ...]
    label: str


def _details(claims: Claims) -> Verified:
    assert isinstance(claims.details, Verified)
    return claims.details


def _firmware(claims: Claims) -> Firmware:
    firmware = _details(claims).firmware
    if firmware is None:
        raise UndecidedError("there is no event log (tcg-event-log)", hint="The guest has it under securityfs.")
    return firmware


def _read_measurement(table: Table) -> tuple[Measurement, ...] | None:
    return tuple(_measurement(each) for each in table.tables("measurement")) or None


def _measurement(table: Table) -> Measurement:
    names = [f"pcr{index}" for index in range(MAX_PCR)]
    stated = {name: value for name in names if (value := table.hex(name, BANK.size)) is not None}
    label = table.line("label") or ""
    table.done()
    if f"pcr{LOADER}" not in stated or not any(f"pcr{index}" in stated for index in KERNEL):
        raise PolicyDocumentError(
            f"{table.path} must name the code",
            hint="pcr4 (what firmware loads) and pcr8 or pcr9 (GRUB's commands and files) or pcr11 (unified kernel).",
        )
    if any(not value.strip("0") or not value.strip("f") for value in stated.values()):
        raise PolicyDocumentError(f"{table.path} names a register that nothing was measured into")
    return Measurement(registers=tuple(stated.items()), label=label)


def _check_measurement(claims: Claims, allowed: Sequence[Measurement]) -> str:
    for measurement in allowed:
        if all(hmac.compare_digest(value, claims.measurements.get(name, "")) for name, value in measurement.registers):
            return measurement.label or ", ".join(name for name, _ in measurement.registers)
    raise RefusedError("the registers are of another image than the policy names")


def _check_technology(claims: Claims, allowed: Sequence[str]) -> str:
    details = _details(claims)
    technology = _firmware(claims).technology
    if technology is None:
        raise RefusedError("the firmware does not say what isolates the machine")
    if technology not in allowed:
        raise RefusedError(f"the machine is isolated by {technology}, which the policy does not name")
    if technology in EVIDENCE and details.inner is None:
        raise RefusedError(f"there is no evidence of the processor's for {technology}")
    return f"{technology}, proved by the processor" if details.inner is not None else f"{technology}, Google's word"


def _check_secure_boot(claims: Claims, _wanted: str) -> str:
    if not _firmware(claims).secure_boot:
        raise RefusedError("secure boot is off, or the firmware does not say")
    return "on"


def _check_minimum_firmware(claims: Claims, least: int) -> str:
    version = _firmware(claims).version
    if version is None or version < least:
        raise RefusedError("the firmware is not Google's, or older than the policy demands")
    return f"v{version}"


def _check_boot_code(claims: Claims, allowed: Sequence[str]) -> str:
    found = [digest.hex() for digest in _firmware(claims).boot_code]
    if not found or not set(found) <= set(allowed):
        raise RefusedError("the firmware has loaded code that the policy does not name, or none")
    return f"{len(found)} digests"


def _check_endorsement(claims: Claims, least: int) -> str:
    details = _details(claims)
    if details.inner is None:
        raise RefusedError("without evidence of the processor there is no measurement that could be endorsed")
    if details.endorsement is None:
        raise UndecidedError(
            "no endorsement of the firmware could be checked",
            hint="It takes Google's endorsement (google-endorsement) and its root (google-vtpm.endorsement_root_pem).",
        )
    svn = details.endorsement.svn_of(details.inner.tee, launch_measurement(details.inner))
    if svn is None:
        raise RefusedError("Google's endorsement does not list this launch measurement")
    if svn < least:
        raise RefusedError(f"the firmware's security version is {svn}, the policy demands {least}")
    return f"security version {svn}"


def _read_endorsement(table: Table) -> int | None:
    inner = table.table("launch_endorsement")
    least = inner.number("minimum_svn", 0, 0xFFFFFFFF)
    inner.done()
    return least


def _place(number: int, name: str, example: str) -> Rule:
    def check(claims: Claims, allowed: Sequence[str]) -> str:
        seen = str(getattr(_details(claims).instance, name))
        if seen not in allowed:
            raise RefusedError(f"the machine's {name.replace('_', ' ')} is not one that the policy names")
        return seen

    read: Callable[[Table], tuple[str, ...] | None] = lambda table: table.texts(name)  # noqa: E731
    return Rule(
        name=name,
        title=f"{number}. The machine's {name.replace('_', ' ')} is one that the policy names",
        example=f'[google-vtpm] {name} = ["{example}"]',
        read=read,
        check=check,
    )


RULES: tuple[Rule, ...] = (
    Rule(
        name="measurement",
        title="8. The registers are those of an image that the policy names",
        example='[[google-vtpm.measurement]] pcr4 = "<64 hex digits>", pcr8 or pcr9 or pcr11 = …',
        read=_read_measurement,
        check=_check_measurement,
        waivable=False,
    ),
    Rule(
        name="technology",
        title="9. What isolates the machine is what the policy names, with the processor's evidence where it has some",
        example='[google-vtpm] technology = ["INTEL_TDX"]',
        read=lambda table: table.choices("technology", [each.value for each in Technology if each != Technology.NONE]),
        check=_check_technology,
        waivable=False,
    ),
    Rule(
        name="secure_boot",
        title="10. Secure boot is on",
        example='[google-vtpm] secure_boot = "required"',
        read=lambda table: table.choice("secure_boot", ("required",)),
        check=_check_secure_boot,
    ),
    Rule(
        name="minimum_firmware",
        title="11. The firmware is Google's, of at least that version",
        example="[google-vtpm] minimum_firmware = 2",
        read=lambda table: table.number("minimum_firmware", 0, 999_999_999),
        check=_check_minimum_firmware,
    ),
    Rule(
        name="boot_code",
        title="12. The firmware has loaded nothing but code that the policy names",
        example='[google-vtpm] boot_code = ["<64 hex digits>"]',
        read=lambda table: table.hexes("boot_code", BANK.size, what="a digest of boot code"),
        check=_check_boot_code,
    ),
    _place(13, "project_id", "my-project"),
    _place(14, "project_number", "123456789012"),
    _place(15, "zone", "us-central1-a"),
    _place(16, "instance_id", "1234567890123456789"),
    _place(17, "instance_name", "my-vm"),
    Rule(
        name="launch_endorsement",
        title="18. Google endorses the firmware that the processor measured, of at least that security version",
        example="[google-vtpm.launch_endorsement] minimum_svn = 1",
        read=_read_endorsement,
        check=_check_endorsement,
    ),
)
