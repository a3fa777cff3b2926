"""Profiles with every place filled in: by values that fit what the signers of the tests make."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.tee.azure import signer as azure
from tests.tee.dcap import signer as intel
from tests.tee.google import signer as google
from tests.tee.nvidia import nras_signer as nras
from tests.tee.nvidia import signer as nvidia
from tests.tee.snp import signer as amd

from cloister.policy import profiles
from cloister.policy.document import FILL_IN
from cloister.wire import toml

PLACE = re.compile(rf'"{FILL_IN}[^"]*"')
GPU = nvidia.Chip.make()
_FMC, *_PARTS = amd.TCB
MINIMUM = dict(zip(("bootloader", "tee", "snp", "microcode"), _PARTS, strict=True))
BOOT = google.registers(google.boot(technology=4))
assert all(BOOT[index] == google.registers(google.boot(technology=3))[index] for index in (4, 7, 8, 9))
#: By path without indices: what a user would write.
VALUES: dict[str, object] = {
    "name": "a test",
    "model.sha256": "0a" * 32,
    "config.sha256": "0b" * 32,
    "nitro.measurement.pcr0": "01" * 48,
    "nitro.measurement.pcr3": "04" * 48,
    "snp.measurement": "22" * 48,
    "snp.chip_id": amd.CHIP["Genoa"].hex(),
    **{f"snp.minimum_tcb.Genoa.{part}": value for part, value in MINIMUM.items()},
    **{f"snp.minimum_tcb.Turin.{part}": value for part, value in {"fmc": _FMC, **MINIMUM}.items()},
    "tdx.measurement.mrtd": "0d" * 48,
    "tdx.measurement.rtmr1": "a1" * 48,
    "tdx.measurement.rtmr2": "a2" * 48,
    "tdx.tcb_evaluation_min": 17,
    "tdx.ppid": intel.PPID.hex(),
    "sgx.measurement.mrenclave": "0e" * 32,
    "sgx.tcb_evaluation_min": 17,
    "sgx.ppid": intel.PPID.hex(),
    "ita.measurement.mrtd": "01" * 48,
    "ita.measurement.rtmr1": "11" * 48,
    "ita.measurement.rtmr2": "12" * 48,
    "ita.issuer": "https://portal.trustauthority.intel.com",
    "ita.policies": "AA-1",
    **{f"azure-vtpm.measurement.pcr{index}": azure.PCRS[index].hex() for index in (4, 7, 8, 9, 11, 12, 14)},
    "azure-maa.issuer": azure.ISSUER,
    "azure-maa.policy_hash": "Q" * 43,
    "azure-maa.minimum_svn.tee_tcb_svn": azure.TDX_CLAIMS["tdx_tee_tcb_svn"],
    "azure-maa.measurement.mrtd": azure.TDX_CLAIMS["tdx_mrtd"],
    **{f"google-vtpm.measurement.pcr{index}": BOOT[index].hex() for index in (4, 7, 8, 9)},
    **{f"{form}.project_id": "project" for form in ("google-vtpm", "google-space")},
    **{f"{form}.project_number": "123" for form in ("google-vtpm", "google-space")},
    **{f"{form}.zone": "us-west1-b" for form in ("google-vtpm", "google-space")},
    "google-space.audience": "https://client.example",
    "google-space.image_digest": f"sha256:{google.DIGEST}",
    "google-space.minimum_swversion": 251000,
    "google-space.args": "/app/serve",
    "google-space.service_accounts": "serve@project.iam.gserviceaccount.com",
    "google-space.env.PATH": "/bin",
    "nvidia-nras.driver": nras.device()["x-nvidia-gpu-driver-version"],
    "nvidia-nras.vbios": nras.device()["x-nvidia-gpu-vbios-version"],
    "nvidia-nras.ueid": "101",
    "nvidia-gpu.driver": nvidia.DRIVER,
    "nvidia-gpu.vbios": nvidia.VBIOS,
    "nvidia-gpu.ueid": GPU.ueid,
}


def _fill(value: object, path: str, used: set[str]) -> object:
    match value:
        case dict():
            return {key: _fill(each, f"{path}.{key}".lstrip("."), used) for key, each in value.items()}
        case list():
            return [_fill(each, path, used) for each in value]
        case str() if value.startswith(FILL_IN):
            used.add(path)
            return VALUES[path]
    return value


def members(name: str) -> tuple[dict, set[str]]:
    """A profile's members, filled in, and the paths of its places."""
    used: set[str] = set()
    found = _fill(dict(toml.parse(profiles.text(name).encode(), limit=64 * 1024).members), "", used)
    assert isinstance(found, dict)
    return found, used


def document(name: str, change: Callable[[dict], object] | None = None) -> bytes:
    """The filled document; `change` edits its members first."""
    found, _ = members(name)
    if change is not None:
        change(found)
    return "\n".join(toml.write(found)).encode()
