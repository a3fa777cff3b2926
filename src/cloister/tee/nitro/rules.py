"""What a policy may demand of a genuine Nitro document."""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cloister.errors import PolicyDocumentError, RefusedError
from cloister.tee.claims import Claims
from cloister.tee.format import Rule
from cloister.wire.toml import Table

REGISTERS = ("pcr0", "pcr1", "pcr2", "pcr3", "pcr4", "pcr8")
_PCR = re.compile(r"[0-9a-f]{96}\Z")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Expected register values (lower-case hex of 48 bytes); every one stated must match.

    An image is named by PCR0 (all of it), by PCR1 and PCR2 (system and application), or by PCR8 (who signed it).
    PCR3 and PCR4 add the IAM role and the instance. Raises PolicyDocumentError when it names no image.
    """

    pcr0: str | None = None
    pcr1: str | None = None
    pcr2: str | None = None
    pcr3: str | None = None
    pcr4: str | None = None
    pcr8: str | None = None
    label: str = ""

    def __post_init__(self) -> None:
        for name, value in self.stated().items():
            if not _PCR.match(value):
                raise PolicyDocumentError(f"{name} is not 96 lower-case hex digits", hint="Copy it from the build.")
            if not value.strip("0"):
                raise PolicyDocumentError(f"{name} is all zero", hint="That is a debug enclave or an unset register.")
        if not (self.pcr0 or (self.pcr1 and self.pcr2) or self.pcr8):
            raise PolicyDocumentError(
                "a measurement must name the image", hint="State pcr0, or pcr1 and pcr2, or pcr8 (the image's signer)."
            )

    def table(self) -> dict[str, object]:
        """As a document states it."""
        return {"label": self.label, **self.stated()} if self.label else dict(self.stated())

    def stated(self) -> dict[str, str]:
        """The registers that are stated."""
        pairs = ((name, getattr(self, name)) for name in REGISTERS)
        return {name: value for name, value in pairs if value is not None}


def check_measurements(claims: Claims, allowed: Sequence[Measurement]) -> Measurement:
    """The first allowed measurement that fits; raises RefusedError naming the registers of the nearest one."""
    if not allowed:
        raise PolicyDocumentError("no measurement is allowed")
    nearest: list[str] | None = None
    for measurement in allowed:
        wrong = [
            name
            for name, value in measurement.stated().items()
            if not hmac.compare_digest(value, claims.measurements.get(name, ""))
        ]
        if not wrong:
            return measurement
        if nearest is None or len(wrong) < len(nearest):
            nearest = wrong
    raise RefusedError(f"the replica runs another image than the policy names: {', '.join(nearest or [])} differ")


def _read(table: Table) -> tuple[Measurement, ...] | None:
    return tuple(read_measurement(each) for each in table.tables("measurement")) or None


def read_measurement(table: Table) -> Measurement:
    """One `[[…measurement]]` table; raises PolicyDocumentError."""
    registers = {register: table.text(register) for register in REGISTERS}
    label = table.line("label") or ""
    table.done()
    try:
        return Measurement(**registers, label=label)
    except PolicyDocumentError as error:
        raise PolicyDocumentError(f"{table.path}: {error.message}", hint=error.hint) from None


def _check(claims: Claims, allowed: Sequence[Measurement]) -> str:
    found = check_measurements(claims, allowed)
    return found.label or ", ".join(found.stated())


RULES: tuple[Rule, ...] = (
    Rule(
        name="measurement",
        title="8. The registers are those of an image that the policy names",
        example='[[nitro.measurement]] pcr0 = "…"',
        read=_read,
        check=_check,
        waivable=False,
    ),
)
