"""What a policy may demand of genuine evidence of an Azure confidential VM.

The hardware's own rules (`snp`, `tdx`) come beside these: they name the paravisor. These name what it has booted.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cloister.errors import PolicyDocumentError, RefusedError, UndecidedError
from cloister.tee.azure.evidence import BANK
from cloister.tee.azure.verify import Verified
from cloister.tee.claims import Claims
from cloister.tee.format import Rule
from cloister.trust.tpm import MAX_PCR
from cloister.wire.toml import Table

#: Boot loader, command lines, kernel and initrd, unified kernel images, their overrides, and shim's own keys. With one
#: of them open another system boots: a changed command line alone is one.
BOOT_CHAIN = (4, 8, 9, 11, 12, 14)
PCRS = tuple(f"pcr{index}" for index in range(MAX_PCR))
#: What a policy may say of each member of the VM's configuration.
_WANTS = ("required", "forbidden", "any")
_VM = ("secure_boot", "tpm_enabled", "console_enabled")
_GUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One system that a policy names: lower-case hex values by PCR; every one stated must match."""

    pcrs: Mapping[int, str]
    label: str

    def wrong(self, quoted: Mapping[int, bytes]) -> list[str]:
        """The registers that differ, or that the quote does not cover."""
        return [
            f"PCR {index}"
            for index, value in self.pcrs.items()
            if not hmac.compare_digest(quoted.get(index, b"").hex(), value)
        ]


def _details(claims: Claims) -> Verified:
    assert isinstance(claims.details, Verified)
    return claims.details


def _read_measurement(table: Table) -> tuple[Measurement, ...] | None:
    return tuple(_measurement(each) for each in table.tables("measurement")) or None


def _measurement(table: Table) -> Measurement:
    pcrs = {index: value for index, name in enumerate(PCRS) if (value := table.hex(name, BANK.size)) is not None}
    label = table.line("label") or ""
    table.done()
    missing = [PCRS[index] for index in BOOT_CHAIN if index not in pcrs]
    if missing:
        raise PolicyDocumentError(
            f"{table.path} lacks {', '.join(missing)}",
            hint="A register that nothing was measured into is stated as zeros; left open, it lets anything boot.",
        )
    if not pcrs[4].strip("0"):
        raise PolicyDocumentError(
            f"{table.name('pcr4')} is all zero: it names no boot loader", hint="Read it from a VM that booted."
        )
    return Measurement(pcrs=pcrs, label=label)


def _check_measurement(claims: Claims, allowed: Sequence[Measurement]) -> str:
    quoted = _details(claims).quoted
    if quoted is None:
        raise RefusedError("no TPM quote came along: nothing says what the VM has booted")
    nearest: list[str] | None = None
    for each in allowed:
        wrong = each.wrong(quoted.pcrs)
        if not wrong:
            return each.label or ", ".join(f"PCR {index}" for index in each.pcrs)
        if nearest is None or len(wrong) < len(nearest):
            nearest = wrong
    raise RefusedError(f"the VM has booted another system than the policy names: {', '.join(nearest or ())}")


def _check_event_log(claims: Claims, wanted: Sequence[str]) -> str:
    explained = _details(claims).explained
    missing = [name for name in wanted if int(name.removeprefix("pcr")) not in explained]
    if missing:
        raise RefusedError(f"no event log explains {', '.join(missing)}")
    return ", ".join(wanted)


def _read_vm(table: Table) -> Mapping[str, str] | None:
    inner = table.table("vm_configuration")
    stated = {name: value for name in _VM if (value := inner.choice(name, _WANTS)) is not None}
    inner.done()
    if stated and len(stated) < len(_VM):
        missing = ", ".join(name for name in _VM if name not in stated)
        raise PolicyDocumentError(f"{inner.path} lacks {missing}", hint="The table is stated whole; see docs/azure.md.")
    return stated or None


def _check_vm(claims: Claims, wanted: Mapping[str, str]) -> str:
    vm = _details(claims).hcl.runtime.vm
    for name, want in wanted.items():
        # What the paravisor does not speak of is neither yes nor no.
        if want != "any" and getattr(vm, name) is not (want == "required"):
            raise RefusedError(f"the VM's configuration: {name} is {want}, which it is not known to be")
    return ", ".join(name for name in _VM if getattr(vm, name)) or "nothing set"


def _read_vm_id(table: Table) -> tuple[str, ...] | None:
    values = table.texts("vm_unique_id")
    lower = None if values is None else tuple(value.lower() for value in values)
    if not all(map(_GUID.match, lower or ())):
        raise PolicyDocumentError(f"{table.name('vm_unique_id')} must hold GUIDs", hint="As in the Azure portal.")
    return lower


def _check_vm_id(claims: Claims, allowed: Sequence[str]) -> str:
    unique = _details(claims).hcl.runtime.vm.unique_id
    if unique is None or unique not in allowed:
        raise RefusedError("the VM is none that the policy names")
    return unique


def _check_certificate(claims: Claims, _wanted: str) -> str:
    names = _details(claims).ak_chain
    if not names:
        raise UndecidedError(
            "the attestation key's certificate is not at hand (azure-ak)",
            hint="The guest reads it from NV index 0x01C101D0 of its vTPM.",
        )
    return names[-1]


RULES: tuple[Rule, ...] = (
    Rule(
        name="measurement",
        title="7. The PCRs of the boot chain are those of a system that the policy names",
        example='[[azure-vtpm.measurement]] pcr4 = "…" pcr8 = "…" pcr9 = "…" pcr11 = "…" pcr12 = "…" pcr14 = "…"',
        read=_read_measurement,
        check=_check_measurement,
        waivable=False,
    ),
    Rule(
        name="event_log",
        title="8. An event log explains the PCRs that the policy names",
        example='[azure-vtpm] event_log = ["pcr0", "pcr4", "pcr7"]',
        read=lambda table: table.choices("event_log", PCRS),
        check=_check_event_log,
    ),
    Rule(
        name="vm_configuration",
        title="9. Secure boot, vTPM and console are configured as the policy demands",
        example='[azure-vtpm.vm_configuration] secure_boot = "required", tpm_enabled = "required", …',
        read=_read_vm,
        check=_check_vm,
    ),
    Rule(
        name="vm_unique_id",
        title="10. The VM is one that the policy names",
        example='[azure-vtpm] vm_unique_id = ["…"]',
        read=_read_vm_id,
        check=_check_vm_id,
    ),
    Rule(
        name="ak_certificate",
        title="11. Azure's vTPM root vouches for the attestation key too",
        example='[azure-vtpm] ak_certificate = "required"',
        read=lambda table: table.choice("ak_certificate", ("required",)),
        check=_check_certificate,
    ),
)  # fmt: skip
