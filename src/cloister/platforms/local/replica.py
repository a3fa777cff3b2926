"""A replica on this machine: the real engine, gateway and channel, with a simulated attester."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import cloister
from cloister.errors import UsageError
from cloister.platforms.local.trust_authority import files
from cloister.policy.draft import draft, draft_simulated
from cloister.tee.attester import Attester
from cloister.tee.ita.attest import TrustAuthorityAttester
from cloister.tee.ita.client import TrustAuthority
from cloister.tee.sim import tdx as sim_tdx
from cloister.tee.sim.attest import SimulatedNitro
from cloister.tee.sim.intel import TDX_SVN, XFAM
from cloister.tee.sim.measure import extend, measure_strings, measure_tree
from cloister.tee.sim.root import SimulatedRoot
from cloister.tee.sim.tdx import Registers, SimulatedTdx

PACKAGE = Path(cloister.__file__).parent
#: What the simulated TEE gives: a Nitro document, a TDX quote, or a token of the SIMULATED Trust Authority.
FORMATS = ("nitro", "tdx", "ita")


@dataclass(frozen=True, kw_only=True)
class SimulatedTee:
    """An attester, and how to write the policy for it from a model's and a configuration's SHA-256."""

    attester: Attester
    draft: Callable[[str, str], str]


def _digests() -> tuple[bytes, bytes]:
    """Of the runtime, and of this package."""
    return measure_strings((platform.python_version(), f"xllamacpp {version('xllamacpp')}")), measure_tree(PACKAGE)


def measure() -> dict[int, bytes]:
    """PCR0 (all), PCR1 (runtime) and PCR2 (this package) of what runs here: honest digests, vouched for by nobody."""
    runtime, package = _digests()
    return {0: extend(runtime + package), 1: extend(runtime), 2: extend(package)}


def measure_td() -> Registers:
    """The same as a TD's registers: MRTD and RTMR1 (runtime), RTMR2 (this package)."""
    runtime, package = _digests()
    return Registers(mrtd=runtime, rtmrs=(bytes(48), extend(runtime), extend(package), bytes(48)))


def simulated(form: str, *, state: Path | None, trust_authority: Path | None) -> SimulatedTee:
    """A simulated TEE whose evidence is of that format.

    Its root is kept in `state`, or ends with the process; for `ita`, `trust_authority` is the folder of the SIMULATED
    service. Raises UsageError.
    """
    if form not in FORMATS:
        raise UsageError(f"a simulated TEE has no {form} evidence", hint=f"One of: {', '.join(FORMATS)}.")
    if (form == "ita") != (trust_authority is not None):
        raise UsageError(
            "evidence of the format ita, and only that, needs the folder of a Trust Authority",
            hint="Start one: python -m cloister.platforms.local.trust_authority --state FOLDER",
        )
    if trust_authority is not None:
        return _ita(trust_authority)
    return _nitro(state) if form == "nitro" else _tdx(state)


def _nitro(state: Path | None) -> SimulatedTee:
    root = SimulatedRoot.load_or_create(state / "simulated-root.pem") if state is not None else SimulatedRoot.create()
    measurements = {f"pcr{index}": value.hex() for index, value in measure().items()}
    return SimulatedTee(
        attester=SimulatedNitro(root, measure()),
        draft=lambda model, config: draft(
            name="this replica", measurements=measurements, model_sha256=model, config_sha256=config,
            simulated_root_pem=root.pem,
        ),
    )  # fmt: skip


def _tdx(state: Path | None) -> SimulatedTee:
    kept = state / "simulated-intel-root.pem" if state is not None else None
    root = sim_tdx.load_or_create_root(kept) if kept is not None else sim_tdx.create_root()
    registers = measure_td()
    return SimulatedTee(
        attester=SimulatedTdx(root, registers), draft=_draft("tdx", tdx_rules(registers), TDX_WAIVERS, root.pem)
    )


def _ita(folder: Path) -> SimulatedTee:
    try:
        url = str(json.loads((folder / files.READY).read_text("ascii"))["url"])
        api_key, tls, root = (
            (folder / name).read_text("ascii") for name in (files.API_KEY, files.TLS_ROOT, files.ROOT)
        )
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError("the Trust Authority's folder is not complete", hint="Has it started?") from None
    registers = measure_td()
    td = SimulatedTdx(sim_tdx.load_or_create_root(folder / files.INTEL_ROOT), registers)
    td.publish(folder / files.PCS)
    service = TrustAuthority(api_key.strip(), api=url, portal=url, tls_roots=tls)
    return SimulatedTee(
        attester=TrustAuthorityAttester(service, td.quote),
        draft=_draft("ita", ita_rules(registers), ITA_WAIVERS, root),
    )


def _draft(form: str, rules: Mapping[str, object], waivers: Mapping[str, str], root: str) -> Callable[[str, str], str]:
    return lambda model, config: draft_simulated(
        name="this replica", form=form, rules=rules, waivers=waivers, root_pem=root, model_sha256=model,
        config_sha256=config,
    )  # fmt: skip


def tdx_rules(registers: Registers) -> dict[str, object]:
    """Rules of a policy for exactly this TD, but those of TDX_WAIVERS."""
    zero = ["00" * 48]
    return {
        "measurement": [registers.named()],
        "attributes": ["SEPT_VE_DISABLE"],
        "sept_ve_disable": True,
        "xfam": [XFAM.to_bytes(8, "little").hex()],
        "mrsignerseam": zero,
        "seamattributes": ["00" * 8],
        "mrservicetd": zero,
        "mrconfigid": zero,
        "mrowner": zero,
        "mrownerconfig": zero,
        "tee_tcb_svn_min": [bytes(TDX_SVN).ljust(16, b"\x00").hex()],
        "tcb_status": ["UpToDate"],
        "tcb_evaluation_min": 1,
    }


def ita_rules(registers: Registers) -> dict[str, object]:
    """Rules of a policy for tokens about exactly this TD, but those of ITA_WAIVERS."""
    return {
        "measurement": [registers.named()],
        "tcb_status": ["UpToDate"],
        "algorithm": ["PS384"],
        "issuer": ["https://portal.trustauthority.intel.com"],
        "revocation": "required",
        "gpu": "none",
    }


TDX_WAIVERS = {
    "tdx.mrseam": "a simulated TD has no TDX module",
    "tdx.advisories_refused": "a simulated platform has no advisories",
    "tdx.ppid": "a simulated platform is no machine",
}
ITA_WAIVERS = {
    "ita.refused_advisories": "a simulated platform has no advisories",
    "ita.policies": "the simulated service has no policies of its own",
}
