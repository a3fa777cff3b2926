"""What a policy may demand of a genuine report; verify.py's steps 1 to 7 come before, debug mode is refused for all."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TypeVar

from cloister.errors import PolicyDocumentError, RefusedError, UndecidedError
from cloister.tee.claims import Claims
from cloister.tee.format import Rule
from cloister.tee.snp.certificates import CHIP_ID_SIZE
from cloister.tee.snp.evidence import MAX_VMPL, GuestPolicy, PlatformInfo, Product, SigningKey, Tcb
from cloister.tee.snp.verify import MILAN, Verified
from cloister.wire.toml import Table

T = TypeVar("T")
Bits = Mapping[str, str]
_ABI = re.compile(r"(\d{1,3})\.(\d{1,3})\Z")
#: What a policy may say of each bit; debug mode is not in its hands.
_WANTS = ("required", "forbidden", "any")
GUEST_BITS = tuple(each.name for each in fields(GuestPolicy) if each.name not in ("abi", "debug"))
PLATFORM_BITS = tuple(each.name for each in fields(PlatformInfo))


def _details(claims: Claims) -> Verified:
    assert isinstance(claims.details, Verified)
    return claims.details


def _one_of(name: str, allowed: Sequence[str], seen: str) -> str:
    if not any(hmac.compare_digest(each, seen) for each in allowed):
        raise RefusedError(f"the {name} is not one that the policy names")
    return f"{seen[:16]}…" if len(seen) > 16 else seen


# measurement, host_data, id_key_digest, author_key_digest


def _read_measurement(table: Table) -> tuple[str, ...] | None:
    values = table.hexes("measurement", 48, what="a launch measurement")
    if any(not value.strip("0") for value in values or ()):
        raise PolicyDocumentError(f"{table.name('measurement')} names a value that is all zero")
    return values


def _hexes(name: str, size: int) -> Callable[[Table], tuple[str, ...] | None]:
    return lambda table: table.hexes(name, size)


def _check_measurement(claims: Claims, allowed: Sequence[str]) -> str:
    return _one_of("launch measurement", allowed, _details(claims).report.measurement.hex())


def _check_host_data(claims: Claims, allowed: Sequence[str]) -> str:
    return _one_of("host data", allowed, _details(claims).report.host_data.hex())


def _check_id_key(claims: Claims, allowed: Sequence[str]) -> str:
    return _one_of("ID key's digest", allowed, _details(claims).report.id_key_digest.hex())


def _check_author_key(claims: Claims, allowed: Sequence[str]) -> str:
    report = _details(claims).report
    if not report.author_key_enabled:
        raise RefusedError("no author key vouches for the ID key")
    return _one_of("author key's digest", allowed, report.author_key_digest.hex())


# products, signing_key, csp_id, chip_id, masked_chip_id


def _check_products(claims: Claims, allowed: Sequence[str]) -> str:
    product = _details(claims).product
    if product not in allowed:
        raise RefusedError(f"the processor is {product}, which the policy does not name")
    return f"{product}: degraded, {MILAN}" if product is Product.MILAN else product.value


def _check_signing_key(claims: Claims, allowed: Sequence[str]) -> str:
    return _one_of("kind of signing key", allowed, _details(claims).endorsement.kind.value)


def _check_csp_id(claims: Claims, allowed: Sequence[str]) -> str:
    csp_id = _details(claims).endorsement.csp_id
    if csp_id is None:
        return "signed by the chip's own key"
    if csp_id not in allowed:
        raise RefusedError("the VLEK belongs to a cloud that the policy does not name")
    return csp_id


def _check_chip_id(claims: Claims, allowed: Sequence[str]) -> str:
    details = _details(claims)
    if details.chip_masked:
        raise RefusedError("the report does not name its chip, the policy names some")
    return _one_of("chip", allowed, details.report.chip_id.hex())


def _check_masked(claims: Claims, wanted: str) -> str:
    details = _details(claims)
    masked = details.chip_masked or details.report.chip_key_masked
    if masked and wanted == "forbidden":
        raise RefusedError("the host hides which chip this is")
    return "masked" if masked else "not masked"


# minimum_tcb, provisional_firmware, revocation


def _read_minimum_tcb(table: Table) -> dict[Product, Tcb] | None:
    by_product = table.table("minimum_tcb")
    found = {}
    for product in Product:
        parts = by_product.table(product.value)
        names = [each.name for each in fields(Tcb) if each.name != "fmc" or product is Product.TURIN]
        values = {name: parts.number(name, 0, 255) for name in names}
        parts.done()
        stated = _all_or_nothing(parts, values)
        if stated is not None:
            found[product] = Tcb(**stated)
    by_product.done()
    return found or None


def _check_minimum_tcb(claims: Claims, minima: Mapping[Product, Tcb]) -> str:
    details = _details(claims)
    if details.product not in minima:
        raise RefusedError(f"the policy states no minimum TCB for {details.product}")
    least = minima[details.product]
    for name, tcb in (("reported", details.reported), ("committed", details.committed), ("launch", details.launch)):
        if not least <= tcb:
            raise RefusedError(f"the {name} TCB is {tcb}, the policy demands {least}")
    return str(details.reported)


def _check_provisional(claims: Claims, wanted: str) -> str:
    details = _details(claims)
    report = details.report
    provisional = details.current != details.committed or report.current != report.committed
    if provisional and wanted == "forbidden":
        raise RefusedError("provisional firmware runs: the host can still go back to what was committed")
    return "provisional" if provisional else "committed"


def _check_revocation(claims: Claims, _wanted: str) -> str:
    until = _details(claims).revocation_until
    if until is None:
        raise UndecidedError(
            "no revocation list of this product's root was given", hint="Fetch it from AMD's KDS (amd-crl)."
        )
    return f"list valid until {until:%Y-%m-%d}"


# guest_policy, vmpl, guest_svn, platform_info


def _bits(table: Table, names: Sequence[str]) -> dict[str, str | None]:
    return {name: table.choice(name, _WANTS) for name in names}


def _read_guest_policy(table: Table) -> tuple[tuple[int, int], Bits] | None:
    inner = table.table("guest_policy")
    abi = inner.text("abi")
    bits = _bits(inner, GUEST_BITS)
    inner.done()
    stated = _all_or_nothing(inner, {"abi": abi, **bits})
    if stated is None:
        return None
    version = _ABI.match(stated.pop("abi"))
    if version is None:
        raise PolicyDocumentError(f"{inner.name('abi')} must be a version such as 1.55")
    return (int(version[1]), int(version[2])), stated


def _check_guest_policy(claims: Claims, wanted: tuple[tuple[int, int], Bits]) -> str:
    policy = _details(claims).report.policy
    least, bits = wanted
    if policy.abi < least:
        raise RefusedError(
            f"the guest policy lets firmware of ABI {policy.abi[0]}.{policy.abi[1]} run it, "
            f"the policy demands {least[0]}.{least[1]}"
        )
    return f"ABI {policy.abi[0]}.{policy.abi[1]}; {_compare(policy, bits, 'guest policy')}"


def _read_platform_info(table: Table) -> Bits | None:
    inner = table.table("platform_info")
    bits = _bits(inner, PLATFORM_BITS)
    inner.done()
    return _all_or_nothing(inner, bits)


def _check_platform_info(claims: Claims, wanted: Bits) -> str:
    return _compare(_details(claims).report.platform, wanted, "platform information")


def _compare(seen: GuestPolicy | PlatformInfo, wanted: Bits, what: str) -> str:
    wrong = [
        f"{name} is {want} but {'set' if getattr(seen, name) else 'not set'}"
        for name, want in wanted.items()
        if want != "any" and getattr(seen, name) is not (want == "required")
    ]
    if wrong:
        raise RefusedError(f"{what}: {', '.join(wrong)}")
    return ", ".join(name for name in wanted if getattr(seen, name)) or "nothing set"


def _all_or_nothing(table: Table, values: Mapping[str, T | None]) -> dict[str, T] | None:
    """The values if all are stated, None if none is: what is left out of a table would go unchecked."""
    stated = {name: value for name, value in values.items() if value is not None}
    if stated and len(stated) < len(values):
        missing = ", ".join(name for name in values if name not in stated)
        raise PolicyDocumentError(f"{table.path} lacks {missing}", hint="A table is stated whole; see docs/snp.md.")
    return stated or None


def _check_vmpl(claims: Claims, wanted: int) -> str:
    vmpl = _details(claims).report.vmpl
    if vmpl != wanted:
        raise RefusedError(f"the report was requested at VMPL {vmpl}, the policy demands {wanted}")
    return str(vmpl)


def _check_guest_svn(claims: Claims, least: int) -> str:
    svn = _details(claims).report.guest_svn
    if svn < least:
        raise RefusedError(f"the guest's security version is {svn}, the policy demands {least}")
    return str(svn)


def _choice(name: str, *allowed: str) -> Callable[[Table], str | None]:
    return lambda table: table.choice(name, allowed)


_PERMISSION = ("forbidden", "allowed")

RULES: tuple[Rule, ...] = (
    Rule(
        name="measurement",
        title="8. The launch measurement is one that the policy names",
        example='[snp] measurement = ["…"]',
        read=_read_measurement,
        check=_check_measurement,
        waivable=False,
    ),
    # Not waivable: whoever accepts Milan, whose reports can be forged, has to write its name.
    Rule(
        name="products",
        title="9. The processor is of a product line that the policy names",
        example='[snp] products = ["Genoa", "Turin"]',
        read=lambda table: table.choices("products", set(Product)),
        check=_check_products,
        waivable=False,
    ),
    Rule(
        name="minimum_tcb",
        title="10. The reported, committed and launch TCB are at least the policy's, part by part",
        example="[snp.minimum_tcb.Genoa] bootloader = 10, tee = 0, snp = 23, microcode = 84",
        read=_read_minimum_tcb,
        check=_check_minimum_tcb,
    ),
    Rule(
        name="provisional_firmware",
        title="11. The running firmware is committed, or the policy allows provisional firmware",
        example='[snp] provisional_firmware = "forbidden"',
        read=_choice("provisional_firmware", *_PERMISSION),
        check=_check_provisional,
    ),
    Rule(
        name="revocation",
        title="12. A current revocation list of the ARK was checked",
        example='[snp] revocation = "required"',
        read=_choice("revocation", "required"),
        check=_check_revocation,
    ),
    Rule(
        name="signing_key",
        title="13. The signing key is of a kind that the policy names",
        example='[snp] signing_key = ["VCEK"]',
        read=lambda table: table.choices("signing_key", set(SigningKey)),
        check=_check_signing_key,
    ),
    Rule(
        name="csp_id",
        title="14. A VLEK belongs to a cloud that the policy names",
        example='[snp] csp_id = ["…"]',
        read=lambda table: table.texts("csp_id"),
        check=_check_csp_id,
    ),
    Rule(
        name="chip_id",
        title="15. The chip is one that the policy names",
        example='[snp] chip_id = ["…"]',
        read=_hexes("chip_id", CHIP_ID_SIZE),
        check=_check_chip_id,
    ),
    Rule(
        name="masked_chip_id",
        title="16. The report names its chip, or the policy allows that it does not",
        example='[snp] masked_chip_id = "forbidden"',
        read=_choice("masked_chip_id", *_PERMISSION),
        check=_check_masked,
    ),
    Rule(
        name="guest_policy",
        title="17. The guest policy's ABI version and bits are as the policy demands",
        example='[snp.guest_policy] abi = "1.55", migrate_ma = "forbidden", smt = "any", …',
        read=_read_guest_policy,
        check=_check_guest_policy,
    ),
    Rule(
        name="platform_info",
        title="18. The platform's bits are as the policy demands",
        example='[snp.platform_info] alias_check = "required", smt = "any", …',
        read=_read_platform_info,
        check=_check_platform_info,
    ),
    Rule(
        name="vmpl",
        title="19. The report was requested at the privilege level that the policy names",
        example="[snp] vmpl = 0",
        read=lambda table: table.number("vmpl", 0, MAX_VMPL),
        check=_check_vmpl,
    ),
    Rule(
        name="guest_svn",
        title="20. The guest's security version is at least the policy's",
        example="[snp] guest_svn = 0",
        read=lambda table: table.number("guest_svn", 0, 2**32 - 1),
        check=_check_guest_svn,
    ),
    Rule(
        name="host_data",
        title="21. The host data is one that the policy names",
        example='[snp] host_data = ["…"]',
        read=_hexes("host_data", 32),
        check=_check_host_data,
    ),
    Rule(
        name="id_key_digest",
        title="22. The guest's ID key is one that the policy names",
        example='[snp] id_key_digest = ["…"]',
        read=_hexes("id_key_digest", 48),
        check=_check_id_key,
    ),
    Rule(
        name="author_key_digest",
        title="23. The author key that vouches for the ID key is one that the policy names",
        example='[snp] author_key_digest = ["…"]',
        read=_hexes("author_key_digest", 48),
        check=_check_author_key,
    ),
)
