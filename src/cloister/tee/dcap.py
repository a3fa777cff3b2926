"""What the SGX and TDX formats share: the steps from quote to TCB status, and the rules about that status."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cloister.errors import MalformedError, NotGenuineError, PolicyDocumentError, RefusedError
from cloister.tee.claims import Claims
from cloister.tee.context import Context
from cloister.tee.format import Rule
from cloister.trust.certificates import common_name, load_certificate
from cloister.trust.dcap import collateral, pck, qvl
from cloister.trust.dcap.quote import Quote
from cloister.trust.dcap.qvl import Platform, Tcb
from cloister.trust.dcap.root import ANCHORS
from cloister.trust.need import Need
from cloister.wire.toml import Table


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A quote whose signatures, chains and collateral were checked."""

    quote: Quote
    genuine: bool
    chain: tuple[str, ...]
    root_sha256: str
    platform: Platform
    tcb: Tcb

    def facts(self) -> dict[str, str]:
        """What a verdict shows of the platform."""
        return {
            "tcb_status": self.tcb.status,
            "advisories": ", ".join(self.tcb.advisories),
            "tcb_date": f"{self.tcb.date:%Y-%m-%d}",
            "tcb_evaluation": str(self.tcb.evaluation_number),
            "fmspc": self.platform.fmspc,
            "ppid": self.platform.ppid,
            "root_sha256": self.root_sha256,
        }


def checks(name: str) -> tuple[tuple[str, str], ...]:
    """The checks of a format by that name, in order."""
    return (
        (f"{name}.quote", "1. One quote of version 3, 4 or 5, every length exact, only zero bytes after it"),
        (f"{name}.chain", "2. The PCK certificate chains to Intel's root and is valid at the time of the check"),
        (f"{name}.signature", "3. The quoting enclave, signed by the PCK, vouches for the key that signed the quote"),
        (f"{name}.collateral", "4. Collateral for this platform is current, signed by Intel, and revokes nothing"),
        (f"{name}.tcb", "5. Intel has a TCB level for this platform, quoting enclave and module"),
    )  # fmt: skip


def verify(name: str, quote: Quote, context: Context) -> Verified:
    """Steps 2 to 5 of `checks(name)`, for a quote that step 1 parsed.

    Raises MalformedError, NotGenuineError, UndecidedError without fitting collateral, and RefusedError for a TEE that
    dcap-qvl lets nobody accept (debug first of all).
    """
    anchors, now = context.roots(name, ANCHORS), context.now
    with context.checklist.step(f"{name}.chain") as step:
        chain = pck.validate(quote, anchors, now=now)
        platform = qvl.platform(chain.leaf)
        step.detail = f"{chain.leaf.issuer.rfc4514_string()}; FMSPC {platform.fmspc}"
    with context.checklist.step(f"{name}.signature"):
        pck.check_signatures(quote, chain)
    with context.checklist.step(f"{name}.collateral") as step:
        item = collateral.choose(
            context.collateral.of("intel-collateral"),
            quote.tee,
            fmspc=platform.fmspc,
            pce_id=platform.pce_id,
            issuer=chain.leaf.issuer,
            now=now,
        )
        collateral.check(item, chain, anchors, now=now)
        step.detail = f"evaluation {item.evaluation_number}, to {item.tcb_info.next_update:%Y-%m-%d}"
    with context.checklist.step(f"{name}.tcb") as step:
        tcb = qvl.evaluate(quote, item, platform, chain.root, now=now)
        step.detail = ", ".join((tcb.status, *tcb.advisories))
    return Verified(
        quote=quote,
        genuine=chain.anchor.genuine,
        chain=chain.subjects,
        root_sha256=chain.anchor.sha256,
        platform=platform,
        tcb=tcb,
    )


def needs(quote: Quote) -> tuple[Need, ...]:
    """Intel's word about the platform that the quote's own PCK certificate names; raises MalformedError."""
    chain = pck.certificates(quote.pck_chain, 3, "PCK certificate chain")
    leaf = load_certificate(chain[0], "PCK certificate")
    cas = [ca for ca, name in pck.CAS.items() if name == common_name(leaf.issuer)]
    try:
        fmspc = qvl.platform(leaf).fmspc
    except NotGenuineError as error:
        raise MalformedError(error.message) from None
    if not cas:
        raise MalformedError("PCK certificate: it names no CA of Intel's")
    return (Need(kind="intel-collateral", parameters={"tee": quote.tee.name.lower(), "fmspc": fmspc, "ca": cas[0]}),)


def hexes(key: str, size: int, *, what: str) -> Callable[[Table], tuple[str, ...] | None]:
    """A rule's reader: a list of values of `size` bytes in lower-case hex."""
    return lambda table: table.hexes(key, size, what=what)


def one_of(found: str, allowed: Sequence[str], what: str) -> str:
    """`found`, if it is allowed; raises RefusedError."""
    if found not in allowed:
        raise RefusedError(f"{what} is none that the policy names")
    return found


def within_mask(found: bytes, masks: Sequence[str], what: str) -> str:
    """`found` in hex, if one of the masks (hex, same size) covers every bit set in it; raises RefusedError."""
    for mask in map(bytes.fromhex, masks):
        if not any(value & ~allowed for value, allowed in zip(found, mask, strict=True)):
            return found.hex()
    raise RefusedError(f"{what} has bits that the policy does not allow")


def flags(found: bytes, names: dict[str, int], allowed: Sequence[str], what: str) -> str:
    """The names of the bits set in `found` (little-endian), if all are allowed; raises RefusedError."""
    value = int.from_bytes(found, "little")
    known = {name: bit for name, bit in names.items() if value >> bit & 1}
    rest = value & ~sum(1 << bit for bit in known.values())
    wrong = [name for name in known if name not in allowed] + (["a bit without a name"] if rest else [])
    if wrong:
        raise RefusedError(f"{what}: {', '.join(wrong)} is set, which the policy does not allow")
    return ", ".join(known) or "none"


def tcb_rules(name: str, first: int, verified: Callable[[Claims], Verified]) -> tuple[Rule, ...]:
    """The rules about a platform's TCB, numbered from `first`; `verified` finds the value in a format's claims."""

    def status(claims: Claims, allowed: tuple[str, ...]) -> str:
        tcb = verified(claims).tcb
        if tcb.status not in allowed:
            raise RefusedError(
                f"the platform's TCB status is {tcb.status}",
                hint="Its owner has to update firmware or microcode; or name the status in the policy.",
            )
        return tcb.status

    def advisories(claims: Claims, refused: tuple[str, ...]) -> str:
        open_ones = verified(claims).tcb.advisories
        wrong = sorted(set(open_ones) & set(refused))
        if wrong:
            raise RefusedError(f"the platform is open to {', '.join(wrong)}")
        return ", ".join(open_ones) or "none"

    def evaluation(claims: Claims, least: int) -> str:
        number = verified(claims).tcb.evaluation_number
        if number < least:
            raise RefusedError(
                f"the collateral is of TCB evaluation {number}, the policy wants {least}",
                hint="Fetch newer collateral.",
            )
        return str(number)

    def platform(claims: Claims, allowed: tuple[str, ...]) -> str:
        return one_of(verified(claims).platform.ppid, allowed, "the platform (PPID)")

    return (
        Rule(
            name="tcb_status",
            title=f"{first}. The TCB status is one that the policy names",
            example=f'[{name}] tcb_status = ["UpToDate"]',
            read=lambda table: table.choices("tcb_status", qvl.STATUSES),
            check=status,
        ),
        Rule(
            name="advisories_refused",
            title=f"{first + 1}. No security advisory is open that the policy refuses",
            example=f'[{name}] advisories_refused = ["INTEL-SA-00960"]',
            read=_advisories,
            check=advisories,
        ),
        Rule(
            name="tcb_evaluation_min",
            title=f"{first + 2}. The collateral is of a TCB evaluation that is new enough",
            example=f"[{name}] tcb_evaluation_min = 17",
            read=lambda table: table.number("tcb_evaluation_min", 1, 1_000_000),
            check=evaluation,
        ),
        Rule(
            name="ppid",
            title=f"{first + 3}. The platform is one that the policy names",
            example=f'[{name}] ppid = ["…"]',
            read=hexes("ppid", 16, what="a PPID"),
            check=platform,
        ),
    )


def _advisories(table: Table) -> tuple[str, ...] | None:
    values = table.texts("advisories_refused")
    if values is not None and not all(qvl.ADVISORY.match(value) for value in values):
        raise PolicyDocumentError(
            f"{table.name('advisories_refused')} must hold ids such as INTEL-SA-00960", hint="See docs/policy.md."
        )
    return values
