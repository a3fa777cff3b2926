"""What a policy may demand of a genuine result of NVIDIA's Remote Attestation Service."""

from __future__ import annotations

from collections.abc import Sequence

from cloister.errors import RefusedError
from cloister.tee.claims import Claims
from cloister.tee.format import Rule
from cloister.tee.nvidia.evidence import Arch, Kind
from cloister.tee.nvidia.nras import Result, Results
from cloister.tee.nvidia.rules import allowed, counted, read_ueids


def _results(claims: Claims) -> Results:
    assert isinstance(claims.details, Results)
    return claims.details


def _of(claims: Claims, kind: Kind) -> list[Result]:
    return [result for result in _results(claims).results if result.kind is kind]


def _check_result(claims: Claims, _value: str) -> str:
    found = _results(claims)
    for result in found.results:
        if result.failed:
            raise RefusedError(f"NRAS did not pass {result.name}: {', '.join(result.failed)}")
    if not found.overall:
        raise RefusedError("NRAS's overall result is not true")
    return f"{len(found.results)} devices passed, claims of version {found.version}"


def _check_arch(claims: Claims, listed: Sequence[str]) -> str:
    chips = {result.hwmodel.partition(" ")[0] for result in _of(claims, Kind.GPU)}
    if len(chips) > 1:
        raise RefusedError("GPUs of different chips in one replica")
    seen = [Arch.HOPPER if chip.startswith("GH") else Arch.BLACKWELL if chip.startswith("GB") else "" for chip in chips]
    return allowed(seen, listed, "GPU architecture")


def _check_driver(claims: Claims, listed: Sequence[str]) -> str:
    return allowed([result.driver or "" for result in _of(claims, Kind.GPU)], listed, "driver version")


def _check_vbios(claims: Claims, listed: Sequence[str]) -> str:
    return allowed([result.vbios for result in _results(claims).results], listed, "VBIOS version")


def _check_ueid(claims: Claims, listed: Sequence[str]) -> str:
    return allowed([result.ueid for result in _results(claims).results], listed, "device")


RULES: tuple[Rule, ...] = (
    Rule(
        name="result",
        title="6. NRAS passed every device: measurements, manifests, chains, secure boot, without a warning",
        example='result = "success"',
        read=lambda table: table.choice("result", {"success"}),
        check=_check_result,
        waivable=False,
    ),
    Rule(
        name="arch",
        title="7. All GPUs are of one chip, of an architecture that the policy names",
        example='arch = ["hopper"]',
        read=lambda table: table.choices("arch", {Arch.HOPPER, Arch.BLACKWELL}),
        check=_check_arch,
    ),
    Rule(
        name="driver",
        title="8. The driver is of a version that the policy names",
        example='driver = ["550.90.07"]',
        read=lambda table: table.texts("driver"),
        check=_check_driver,
    ),
    Rule(
        name="vbios",
        title="9. Every VBIOS, of GPUs and switches, is of a version that the policy names",
        example='vbios = ["96.00.9F.00.01"]',
        read=lambda table: table.texts("vbios"),
        check=_check_vbios,
    ),
    Rule(
        name="gpus",
        title="10. As many distinct GPUs as the policy expects",
        example="gpus = 1",
        read=lambda table: table.number("gpus", 1, 32),
        check=lambda claims, expected: counted(len(_of(claims, Kind.GPU)), expected, "GPUs"),
    ),
    Rule(
        name="switches",
        title="11. As many distinct NVSwitches as the policy expects",
        example="switches = 0",
        read=lambda table: table.number("switches", 0, 32),
        check=lambda claims, expected: counted(len(_of(claims, Kind.SWITCH)), expected, "NVSwitches"),
    ),
    Rule(
        name="ueid",
        title="12. The devices are those that the policy names",
        example='ueid = ["478176379286082186618948445787393647364802107249"]',
        read=read_ueids,
        check=_check_ueid,
    ),
)
