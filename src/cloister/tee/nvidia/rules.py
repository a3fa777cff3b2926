"""What a policy may demand of genuine reports of NVIDIA GPUs and NVSwitches."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta

from cloister.errors import PolicyDocumentError, RefusedError, UndecidedError
from cloister.tee.claims import Claims
from cloister.tee.format import Rule
from cloister.tee.nvidia.device import Certified, Device, Devices, Mode
from cloister.tee.nvidia.evidence import Arch
from cloister.trust.ocsp import Status
from cloister.wire.toml import Table

MAX_GRACE_DAYS = 3650
_UEID = re.compile(r"[1-9][0-9]{0,48}\Z")


def devices(claims: Claims) -> Devices:
    """The verified devices of a claim; anything else is a mistake of the caller."""
    assert isinstance(claims.details, Devices)
    return claims.details


def read_ueids(table: Table) -> tuple[str, ...] | None:
    """A list of device identities in decimal; raises PolicyDocumentError."""
    values = table.texts("ueid")
    if not all(_UEID.match(value) for value in values or ()):
        raise PolicyDocumentError(
            f"{table.name('ueid')} must be decimal numbers", hint="Copy the ueid that NVIDIA's tools or a verdict show."
        )
    return values


def allowed(seen: Collection[str], listed: Collection[str], what: str) -> str:
    """Names what was seen, or raises RefusedError unless all of it is listed."""
    if not seen or not set(seen) <= set(listed):
        raise RefusedError(f"a {what} that the policy does not list")
    return ", ".join(sorted(set(seen)))


def counted(number: int, expected: int, what: str) -> str:
    """Names the number, or raises RefusedError unless it is the expected one."""
    if number != expected:
        raise RefusedError(f"{number} {what}, the policy expects {expected}")
    return f"{number} {what}"


def _check_arch(claims: Claims, listed: Sequence[str]) -> str:
    seen = {device.facts.chip: device.facts.arch for device in devices(claims).gpus()}
    if len(seen) > 1:
        raise RefusedError("GPUs of different chips in one replica")
    return allowed(seen.values(), listed, "GPU architecture")


def _check_driver(claims: Claims, listed: Sequence[str]) -> str:
    return allowed([device.facts.driver or "" for device in devices(claims).gpus()], listed, "driver version")


def _check_vbios(claims: Claims, listed: Sequence[str]) -> str:
    return allowed([device.facts.vbios for device in devices(claims).devices], listed, "VBIOS version")


def _check_measurements(claims: Claims, _value: str) -> str:
    compared = 0
    for device in devices(claims).devices:
        golden = device.golden
        if golden.missing:
            raise UndecidedError(
                f"no signed manifest (RIM) of {' and '.join(golden.missing)} is at hand",
                hint="Fetch the RIMs of exactly this driver and VBIOS from NVIDIA, and hand them in as collateral.",
            )
        if golden.wrong or not golden.compared:
            raise RefusedError(
                f"{len(golden.wrong)} of {golden.compared} measurements are not NVIDIA's golden values: index "
                f"{', '.join(map(str, golden.wrong))}"
            )
        compared += golden.compared
    return f"{compared} measurements are golden values"


def _check_grace(claims: Claims, days: int) -> str:
    found = devices(claims)
    ends = [manifest.ends for device in found.devices for manifest in device.golden.manifests]
    late = [found.now - end for end in ends if found.now > end + timedelta(days=days)]
    if late:
        raise RefusedError(f"a manifest's signer ended {max(late).days} days ago, {days} allowed")
    expired = sum(found.now > end for end in ends)
    return f"{expired} of {len(ends)} manifests by a signer that has ended"


def _check_count(claims: Claims, expected: int) -> str:
    return counted(len(devices(claims).gpus()), expected, "GPUs")


def _check_switches(claims: Claims, expected: int) -> str:
    return counted(len(devices(claims).switches()), expected, "NVSwitches")


def _check_mode(claims: Claims, listed: Sequence[str]) -> str:
    found = devices(claims)
    modes = [device.facts.mode for device in found.gpus()]
    if len(set(modes)) > 1:
        raise RefusedError("GPUs in different modes in one replica")
    seen = allowed([mode or "" for mode in modes], listed, "confidential-computing mode")
    if Mode.PPCIE in modes:
        check_topology(found)
    return seen


def check_topology(found: Devices) -> None:
    """Protected PCIe: every switch of every GPU attested, and they link these GPUs; raises RefusedError.

    NVLink is not encrypted in this mode, so that a switch without evidence could read it. A switch writes its own
    identity in the other byte order than a GPU writes it.
    """
    own = {(device.facts.pdi or b"")[::-1] for device in found.switches()}
    gpus = found.gpus()
    if not own or any(device.facts.pdis != own for device in gpus):
        raise RefusedError("the GPUs are linked to switches that are not the attested ones")
    linked = {device.facts.pdis for device in found.switches()}
    if len(linked) != 1 or len(linked.pop()) != len(gpus):
        raise RefusedError("the switches are linked to other GPUs than the attested ones")


def _check_fwid(claims: Claims, _value: str) -> str:
    without = sum(not device.facts.fwid for device in devices(claims).gpus())
    if without:
        raise RefusedError(f"{without} GPUs report no firmware identity")
    return "each report's firmware identity is its certificate's"


def _check_ueid(claims: Claims, listed: Sequence[str]) -> str:
    return allowed([device.facts.ueid for device in devices(claims).devices], listed, "device")


def _certified(device: Device) -> list[Certified]:
    return [*device.certificates, *(each for manifest in device.golden.manifests for each in manifest.certificates)]


def _check_ocsp(claims: Claims, max_age: timedelta) -> str:
    found = devices(claims)
    # Two signers of manifests may have one name: each is asked for.
    asked = [(each.subject, each.answer) for device in found.devices for each in _certified(device)]
    hint = "Ask NVIDIA's OCSP responder again, and hand its answers in as collateral."
    for subject, answer in asked:
        if answer is None:
            raise UndecidedError(f"no OCSP response about {subject} is at hand", hint=hint)
        ended = answer.next_update is not None and answer.next_update < found.now
        if ended or found.now - answer.this_update > max_age:
            raise UndecidedError(f"the OCSP response about {subject} is too old", hint=hint)
        if answer.status is Status.UNKNOWN:
            raise RefusedError(f"the OCSP responder does not know {subject}")
    return f"{len(asked)} certificates are answered for"


def _check_hold(claims: Claims, word: str) -> str:
    held = {
        each.subject
        for device in devices(claims).devices
        for each in _certified(device)
        if each.answer is not None and each.answer.status is Status.HOLD
    }
    if held and word != "allow":
        raise RefusedError(f"{len(held)} certificates are on hold")
    return f"{len(held)} certificates are on hold"


def _choice(key: str, words: Collection[str]) -> Callable[[Table], str | None]:
    return lambda table: table.choice(key, words)


RULES: tuple[Rule, ...] = (
    Rule(
        name="arch",
        title="8. All GPUs are of one chip, of an architecture that the policy names",
        example='arch = ["hopper"]',
        read=lambda table: table.choices("arch", {Arch.HOPPER, Arch.BLACKWELL}),
        check=_check_arch,
    ),
    Rule(
        name="driver",
        title="9. The driver is of a version that the policy names",
        example='driver = ["550.90.07"]',
        read=lambda table: table.texts("driver"),
        check=_check_driver,
    ),
    Rule(
        name="vbios",
        title="10. Every VBIOS, of GPUs and switches, is of a version that the policy names",
        example='vbios = ["96.00.9F.00.01"]',
        read=lambda table: table.texts("vbios"),
        check=_check_vbios,
    ),
    Rule(
        name="measurements",
        title="11. Every device measured what NVIDIA's signed manifests of its driver and VBIOS say",
        example='measurements = "rim"',
        read=_choice("measurements", {"rim"}),
        check=_check_measurements,
        waivable=False,
    ),
    Rule(
        name="rim_grace_days",
        title="12. The manifests' signers have not ended longer ago than the policy allows",
        example="rim_grace_days = 0",
        read=lambda table: table.number("rim_grace_days", 0, MAX_GRACE_DAYS),
        check=_check_grace,
    ),
    Rule(
        name="ocsp_max_age_seconds",
        title="13. A recent OCSP response answers for every certificate of devices and manifests",
        example="ocsp_max_age_seconds = 86400",
        read=lambda table: table.seconds("ocsp_max_age_seconds", 60, 30 * 86400),
        check=_check_ocsp,
    ),
    Rule(
        name="certificate_hold",
        title="14. No certificate is on hold, or the policy allows it",
        example='certificate_hold = "refuse"',
        read=_choice("certificate_hold", {"refuse", "allow"}),
        check=_check_hold,
        waivable=False,
    ),
    Rule(
        name="gpus",
        title="15. As many distinct GPUs as the policy expects",
        example="gpus = 1",
        read=lambda table: table.number("gpus", 1, 32),
        check=_check_count,
    ),
    Rule(
        name="switches",
        title="16. As many distinct NVSwitches as the policy expects",
        example="switches = 0",
        read=lambda table: table.number("switches", 0, 32),
        check=_check_switches,
    ),
    Rule(
        name="mode",
        title="17. All GPUs are in one mode that the policy names; protected PCIe with exactly its switches",
        example='mode = ["spt"]',
        read=lambda table: table.choices("mode", set(Mode)),
        check=_check_mode,
    ),
    Rule(
        name="fwid",
        title="18. Every GPU reports the firmware identity that its certificate was made for",
        example='fwid = "required"',
        read=_choice("fwid", {"required"}),
        check=_check_fwid,
    ),
    Rule(
        name="ueid",
        title="19. The devices are those that the policy names",
        example='ueid = ["478176379286082186618948445787393647364802107249"]',
        read=read_ueids,
        check=_check_ueid,
    ),
)
