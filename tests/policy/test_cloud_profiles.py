"""The profiles of clouds and services: what conforms is accepted, and what breaks a position is refused for that reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from types import EllipsisType

import pytest
from tests.policy.filled import GPU, document, members
from tests.policy.samples import BINDING, BOUND
from tests.policy.test_profiles import GOOD_PLATFORM, gpu_items, gpu_offer, td
from tests.tee.azure import common as azure_common
from tests.tee.azure import real as azure_real
from tests.tee.azure import signer as azure
from tests.tee.dcap import signer as intel
from tests.tee.google import signer as google
from tests.tee.nvidia import nras_signer as nras
from tests.tee.nvidia import signer as nvidia
from tests.tee.snp import signer as amd

from cloister.errors import CloisterError, NotGenuineError, RefusedError, UndecidedError
from cloister.policy.appraise import appraise
from cloister.policy.document import Policy
from cloister.tee import registry
from cloister.tee.evidence import Offer, Offers
from cloister.tee.nvidia.evidence import nonce
from cloister.trust.collateral import Collateral, Item
from cloister.wire.strict_json import encode_base64url

DAY = timedelta(days=1)
REPORT_DATA = BINDING.ljust(64, b"\x00")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a replica offers, what the client brings itself, and the roots that a test puts in the vendors' place."""

    offers: tuple[Offer, ...]
    carried: tuple[Item, ...] = ()
    own: tuple[Item, ...] = ()
    anchors: dict
    now: datetime

    def appraise(self, name: str, change: Callable[[dict], object] | None = None, *, fresh: bool = True) -> None:
        policy = replace(Policy.from_toml(document(name, change)), anchors=self.anchors)
        bound = replace(BOUND, fresh=fresh, not_before=self.now - DAY, not_after=self.now + DAY)
        offers = Offers(offers=self.offers, collateral=Collateral.carried(self.carried))
        assert appraise(offers, bound, policy, now=self.now, collateral=Collateral(self.own)).accepted


def offered(form: str, data: bytes) -> Offer:
    return Offer(role=registry.get(form).role, media_type=registry.get(form).media_type, data=data)


# Azure


def azure_vm(*, gpu: Offer | None = None, more: tuple[Item, ...] = (), crl: bool = True, ak: bool = True,
             tdx: bool = False, **changes: object) -> Case:  # fmt: skip
    """A VM whose paravisor report is good; `changes` are those of `azure.Vm`, its report's under `report`."""
    report = {} if tdx else {"platform_info": GOOD_PLATFORM | 1}
    vm = azure.Vm(tdx=tdx, **{**changes, "report": {**report, **changes.get("report", {})}})
    items = (*vm.items(), *(azure.ak_items() if ak else ()), *more)
    if not tdx and crl:
        items = (*items, Item("amd-crl", amd.revocations("Genoa")))
    offers = (offered("azure-vtpm", vm.evidence()), *([gpu] if gpu else []))
    now = intel.NOW if tdx else azure.NOW
    return Case(offers=offers, carried=items, anchors={**vm.anchors(), **nvidia.ANCHORS}, now=now)


def azure_td(**changes: object) -> Case:
    return azure_vm(tdx=True, **changes)


def other_pcr(index: int) -> azure.TpmQuote:
    return azure.quote(pcrs={**azure.PCRS, index: b"\x99" * 32})


def milan() -> Case:
    """The same VM on a Milan host, all of whose certificates are good."""
    vm = azure.Vm()
    report = amd.report("Milan", report_data=vm.digest, platform_info=GOOD_PLATFORM | 1)
    blob = azure.hcl(report, vm.data, kind=2)
    items = (*amd.setting("Milan", crl=amd.revocations("Milan")).items, *azure.ak_items())
    data = azure.pack(hcl_report=blob, tpm_quote=vm.quote, td_quote=None)
    anchors = {"snp": (amd.root("Milan"),), "azure-vtpm": (azure.anchor("root"),), **nvidia.ANCHORS}
    return Case(offers=(offered("azure-vtpm", data),), carried=items, anchors=anchors, now=azure.NOW)


def maa(
    part: dict | None = None, *, keys: bool = True, binding: bytes = BINDING, by: str = "maa", **changes: object
) -> Case:
    claims = azure.guest(azure.TDX_CLAIMS | (part or {}), encode_base64url(binding), **changes)
    own = (azure.key_set(),) if keys else ()
    return Case(offers=(offered("azure-maa", azure.token(claims, by=by)),), own=own, anchors={}, now=azure.NOW)


# Google

TD_BOOT, SNP_BOOT = google.boot(technology=3), google.boot(technology=4)


def google_vm(events: list[google.Event], inner: dict, anchors: dict, items: tuple[Item, ...], now: datetime,
              extra: bytes = BINDING, **changes: object) -> Case:  # fmt: skip
    data = google.attestation(events, extra, **inner, **changes)
    anchors = {"google-vtpm": (google.AK_ROOT.anchor,), **anchors}
    return Case(offers=(offered("google-vtpm", data),), carried=items, anchors=anchors, now=now)


def google_snp(events: list[google.Event] = SNP_BOOT, product: str = "Genoa", *, inside: bool = True, crl: bool = True,
               fields: dict | None = None, **changes: object) -> Case:  # fmt: skip
    report = amd.report(product, **{"report_data": REPORT_DATA, "platform_info": GOOD_PLATFORM | 1, **(fields or {})})
    parts = {"vcek": amd.endorsement(product), "ask": amd.intermediate(product)}
    items = (Item("amd-crl", amd.revocations(product)),) if crl else ()
    return google_vm(
        events, {"snp": google.snp_message(report, **parts)} if inside else {}, {"snp": (amd.root(product),)}, items,
        google.NOW, **changes,
    )  # fmt: skip


def google_td(events: list[google.Event] = TD_BOOT, *, inside: bool = True, world: dict | None = None,
              fields: dict | None = None, **changes: object) -> Case:  # fmt: skip
    made = intel.World(
        tdx=True, body=intel.td_report(**{"report_data": REPORT_DATA, **(fields or {})}), **(world or {})
    )
    return google_vm(
        events, {"tdx": google.tdx_message(made.quote)} if inside else {}, {"tdx": (made.anchor,)},
        (Item("intel-collateral", made.collateral()),), intel.NOW, **changes,
    )  # fmt: skip


def ak(**of: object) -> dict:
    """An attestation by a key that Google certified for another machine."""
    return {"ak": google.issue("another machine", google.AK_CA, ca=False, extension=google.instance(**of))}


def space(*, keys: bool = True, **changes: object) -> Case:
    claims = google.space(
        **{
            "eat_nonce": encode_base64url(BINDING),
            "submods": google.submods(container=google.container(args=["/app/serve"])),
            **changes,
        }
    )
    own = (Item("jwks", google.jwks()),) if keys else ()
    return Case(offers=(offered("google-space", google.token(claims)),), own=own, anchors={}, now=google.NOW)


def container(**changes: object) -> dict:
    return {"submods": google.submods(container=google.container(**{"args": ["/app/serve"], **changes}))}


# NVIDIA's service


def nras_td(*, gpu: Offer | EllipsisType | None = ..., keys: bool = True, devices: int = 1, of: bytes = BINDING, overall: dict | None = None,
            **claims: object) -> Case:  # fmt: skip
    at = int(intel.NOW.timestamp())
    times = {"iat": at, "nbf": at, "exp": at + 3600, "eat_nonce": nonce(of).hex()}
    tokens = {f"GPU-{index}": nras.device(**{"ueid": str(101 + index), **times, **claims}) for index in range(devices)}
    cpu = td()
    if gpu is ...:
        gpu = offered("nvidia-nras", nras.bundle(tokens, overall={**times, **(overall or {})}))
    offers = (*cpu.offers.offers, *([gpu] if gpu else []))
    own = nras.keys().items if keys else ()
    return Case(offers=offers, carried=cpu.offers.collateral.items, own=own, anchors=cpu.anchors, now=intel.NOW)


def azure_gpu(offer: Offer | None = None, **items: object) -> Case:
    return azure_vm(gpu=offer or gpu_offer(), more=gpu_items(azure.NOW, **items))


ACCEPTED: dict[str, Callable[[], Case]] = {
    "azure-snp": azure_vm,
    "azure-tdx": azure_td,
    "azure-maa": maa,
    "gcp-vtpm-tdx": google_td,
    "gcp-snp": google_snp,
    "gcp-space": space,
    "tdx-nras": nras_td,
    "azure-snp-nvidia": azure_gpu,
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_conforming_evidence_is_accepted(name: str) -> None:
    ACCEPTED[name]().appraise(name)


@pytest.mark.parametrize("name", ACCEPTED)
def test_evidence_without_a_fresh_nonce_is_refused(name: str) -> None:
    with pytest.raises(CloisterError, match="nonce"):
        ACCEPTED[name]().appraise(name, fresh=False)


def test_provisional_firmware_is_accepted_on_azure_above_the_minimum() -> None:
    azure_vm(report={"committed": b"\x27\x37\x01"}).appraise("azure-snp")


Refused = dict[str, tuple[Callable[[], Case], str, type[CloisterError]]]
OLD = amd.tcb_bytes("Genoa", (0, 10, 1, 23, 83))
AZURE: Refused = {
    **{
        f"another PCR {index}": (lambda index=index: azure_vm(quote=other_pcr(index)), f"another system.*PCR {index}", RefusedError)
        for index in (4, 7, 8, 9, 11, 12, 14)
    },
    "no quote": (lambda: azure_vm(quote=None), "does not bind", NotGenuineError),
    "another replica's quote": (lambda: azure_vm(quote=azure.quote(b"C" * 32)), "does not bind", NotGenuineError),
    "a quote by another key": (lambda: azure_vm(quote=azure.quote(ak="other")), "signature does not verify", NotGenuineError),
    "a key that Azure did not certify": (lambda: azure_vm(ak=False), "certificate is not at hand", UndecidedError),
    "no secure boot": (lambda: azure_vm(data=azure.runtime_data(secure_boot=False)), "secure_boot", RefusedError),
    "secure boot not spoken of": (lambda: azure_vm(data=azure.runtime_data(secure_boot=...)), "secure_boot", RefusedError),
    "no vTPM": (lambda: azure_vm(data=azure.runtime_data(tpm_enabled=False)), "tpm_enabled", RefusedError),
}  # fmt: skip
AZURE_SNP: Refused = AZURE | {
    "Milan": (milan, "the processor is Milan", RefusedError),
    "another paravisor": (lambda: azure_vm(report={"measurement": b"\x23" * 48}), "launch measurement", RefusedError),
    "asked by a lower level": (lambda: azure_vm(report={"vmpl": 1}), "VMPL 1", RefusedError),
    "no alias check": (lambda: azure_vm(report={"platform_info": 5}), "alias_check is required", RefusedError),
    "old microcode committed": (lambda: azure_vm(report={"committed_tcb": OLD}), "committed TCB", RefusedError),
    "a guest that may migrate": (lambda: azure_vm(report={"policy": 0x3001F | 1 << 18}), "migrate_ma", RefusedError),
    "debug": (lambda: azure_vm(report={"policy": 0x3001F | 1 << 19}), "debug mode", RefusedError),
    "no revocation list": (lambda: azure_vm(crl=False), "revocation list", UndecidedError),
    "the other hardware": (azure_td, "which the policy does not accept there", RefusedError),
}
AZURE_TDX: Refused = {
    "another PCR 9": (lambda: azure_td(quote=other_pcr(9)), "another system.*PCR 9", RefusedError),
    "a key that Azure did not certify": (lambda: azure_td(ak=False), "certificate is not at hand", UndecidedError),
    "no secure boot": (lambda: azure_td(data=azure.runtime_data(secure_boot=False)), "secure_boot", RefusedError),
    "another paravisor": (lambda: azure_td(report={"mrtd": b"\x0f" * 48}), "mrtd", RefusedError),
    "migratable": (lambda: azure_td(report={"attributes": 1 << 28 | 1 << 29}), "may be migrated", RefusedError),
    "perfmon": (lambda: azure_td(report={"attributes": 1 << 28 | 1 << 63}), "PERFMON is set", RefusedError),
    "pages can vanish": (lambda: azure_td(report={"attributes": 0}), "SEPT_VE_DISABLE", RefusedError),
    "debug": (lambda: azure_td(report={"attributes": 1 << 28 | 1}), "debug", CloisterError),
    "another module": (lambda: azure_td(report={"signer": b"\x01" * 48}), "TDX module", CloisterError),
    "more processor state": (lambda: azure_td(report={"xfam": 0x6FFE7}), "XFAM", RefusedError),
    "the other hardware": (azure_vm, "which the policy does not accept there", RefusedError),
}
OTHER_INSTANCE = "https://other.eus.attest.azure.net"
MAA: Refused = {
    "another instance": (
        lambda: replace(maa(iss=OTHER_INSTANCE), own=(azure.key_set(OTHER_INSTANCE),)), "an instance that", RefusedError,
    ),
    "no keys": (lambda: maa(keys=False), "issuer are not at hand", UndecidedError),
    "a stranger's key": (lambda: maa(by="stranger"), "signature does not verify", NotGenuineError),
    "another policy of the service": (lambda: maa(**{"x-ms-policy-hash": "R" * 43}), "another policy", RefusedError),
    "SEV-SNP": (
        lambda: Case(
            offers=(offered("azure-maa", azure.token(azure.guest(nonce=encode_base64url(BINDING)))),),
            own=(azure.key_set(),), anchors={}, now=azure.NOW,
        ),
        "hardware is sevsnpvm", RefusedError,
    ),
    "another paravisor": (lambda: maa({"tdx_mrtd": "0e" * 48}), "other code", RefusedError),
    "registers that something extended": (lambda: maa({"tdx_rtmr1": "01" * 48}), "other code", RefusedError),
    "out of date": (lambda: maa({"attester_tcb_status": "OutOfDate"}), "TCB has a status", RefusedError),
    "an older module": (lambda: maa({"tdx_tee_tcb_svn": "02010500" + "00" * 12}), "TEE TCB SVN is lower", RefusedError),
    "not compliant": (lambda: maa({"x-ms-compliance-status": "azure-signed-cvm"}), "compliant", RefusedError),
    "no secure boot": (lambda: maa(secureboot=False), "booted securely", RefusedError),
    "debug": (lambda: maa({"dbgstat": "enabled"}), "debug", RefusedError),
    "another replica's": (lambda: maa(binding=b"C" * 32), "does not bind", NotGenuineError),
}  # fmt: skip
GOOGLE: Refused = {
    "another loader": (lambda: google_td(google.boot(technology=3, apps=(b"other",))), "another image", RefusedError),
    "no secure boot": (
        lambda: google_td(google.boot(technology=3, secure_boot=b"\x00")), "another image", RefusedError,
    ),
    "older firmware": (lambda: google_td(google.boot(technology=3, version="1")), "older than", RefusedError),
    "nothing inside": (lambda: google_td(inside=False), "no evidence of the processor", RefusedError),
    "plain SEV": (lambda: google_td(google.boot(technology=1), inside=False), "AMD_SEV", RefusedError),
    "another project": (lambda: google_td(**ak(project="theirs")), "project id", RefusedError),
    "another zone": (lambda: google_td(**ak(zone="eu-west1-b")), "zone", RefusedError),
    "another replica's": (
        lambda: google_td(extra=b"C" * 32, fields={"report_data": (b"C" * 32).ljust(64, b"\0")}),
        "does not bind", NotGenuineError,
    ),
    "another replica's processor": (lambda: google_td(fields={"report_data": (b"C" * 32).ljust(64, b"\0")}), "inside carries other data", NotGenuineError),
    "other firmware": (lambda: google_td(fields={"mrtd": b"\x0f" * 48}), "mrtd", RefusedError),
    "another kernel by the TD's word": (
        lambda: google_td(fields={"rtmrs": (b"\xa0" * 48, b"\xa1" * 48, b"\xa3" * 48, bytes(48))}), "rtmr2", RefusedError,
    ),
    "out of date": (lambda: google_td(world={"status": "OutOfDate"}), "TCB status", RefusedError),
    "migratable": (lambda: google_td(fields={"attributes": 1 << 28 | 1 << 29}), "may be migrated", RefusedError),
    "the other hardware": (google_snp, "does not accept there", RefusedError),
}  # fmt: skip
GOOGLE_SNP: Refused = {
    "another loader": (lambda: google_snp(google.boot(technology=4, apps=(b"other",))), "another image", RefusedError),
    "nothing inside": (lambda: google_snp(inside=False), "no evidence of the processor", RefusedError),
    "another project": (lambda: google_snp(**ak(project="theirs")), "project id", RefusedError),
    "Milan": (lambda: google_snp(product="Milan"), "the processor is Milan", RefusedError),
    "other firmware": (lambda: google_snp(fields={"measurement": b"\x23" * 48}), "launch measurement", RefusedError),
    "provisional firmware": (lambda: google_snp(fields={"committed": b"\x27\x37\x01"}), "provisional", RefusedError),
    "no alias check": (lambda: google_snp(fields={"platform_info": 5}), "alias_check is required", RefusedError),
    "debug": (lambda: google_snp(fields={"policy": 0x3001F | 1 << 19}), "debug mode", RefusedError),
    "no revocation list": (lambda: google_snp(crl=False), "revocation list", UndecidedError),
    "the other hardware": (google_td, "does not accept there", RefusedError),
}
SPACE: Refused = {
    "no keys": (lambda: space(keys=False), "issuer are not at hand", UndecidedError),
    "another audience": (lambda: space(aud="https://other.example"), "audience", RefusedError),
    "another image": (lambda: space(**container(image_digest=f"sha256:{'ac' * 32}")), "another container", RefusedError),
    "SEV": (lambda: space(hwmodel="GCP_AMD_SEV"), "technology", RefusedError),
    "a plain VM": (lambda: space(swname="GCE"), "operating system", RefusedError),
    "an older image": (lambda: space(swversion=["240900"]), "older than", RefusedError),
    "no secure boot": (lambda: space(secboot=False), "secure boot", RefusedError),
    "out of date": (lambda: space(tdx=[{"gcp_attester_tcb_status": "OutOfDate"}]), "TCB status", RefusedError),
    "other arguments": (lambda: space(**container(args=["/app/serve", "--verbose"])), "other arguments", RefusedError),
    "another command": (lambda: space(**container(cmd_override=["/bin/sh"])), "replaced", RefusedError),
    "a variable more": (lambda: space(**container(env={"PATH": "/bin", "DEBUG": "1"})), "environment", RefusedError),
    "debug": (lambda: space(dbgstat="enabled"), "debug", RefusedError),
    "another account": (lambda: space(google_service_accounts=["x@theirs.iam.gserviceaccount.com"]), "service accounts", RefusedError),
    "another replica's": (lambda: space(eat_nonce=encode_base64url(b"C" * 32)), "does not carry this replica's", NotGenuineError),
}  # fmt: skip
NRAS: Refused = {
    "no GPU": (lambda: nras_td(gpu=None), "GPUs is missing", RefusedError),
    "a GPU's own report": (
        lambda: nras_td(gpu=gpu_offer()), "not of a format", RefusedError,
    ),
    "no keys": (lambda: nras_td(keys=False), "issuer are not at hand", UndecidedError),
    "another replica's": (lambda: nras_td(of=b"C" * 32), "does not bind", NotGenuineError),
    "a device that failed": (lambda: nras_td(measres="fail"), "did not pass", RefusedError),
    "overall not passed": (lambda: nras_td(overall={"x-nvidia-overall-att-result": False}), "overall", RefusedError),
    "another driver": (lambda: nras_td(**{"x-nvidia-gpu-driver-version": "1.2.3"}), "driver version", RefusedError),
    "another device": (lambda: nras_td(ueid="102"), "device", RefusedError),
    "two GPUs": (lambda: nras_td(devices=2), "2 GPUs", RefusedError),
    "debug": (lambda: nras_td(dbgstat="enabled"), "debug", RefusedError),
}  # fmt: skip
REFUSED: dict[str, Refused] = {
    "azure-snp": AZURE_SNP,
    "azure-tdx": AZURE_TDX,
    "azure-maa": MAA,
    "gcp-vtpm-tdx": GOOGLE,
    "gcp-snp": GOOGLE_SNP,
    "gcp-space": SPACE,
    "tdx-nras": NRAS,
}


@pytest.mark.parametrize(("name", "why"), [(name, why) for name, cases in REFUSED.items() for why in cases])
def test_what_breaks_a_position_is_refused(name: str, why: str) -> None:
    make, match, error = REFUSED[name][why]
    with pytest.raises(error, match=match):
        make().appraise(name)


@pytest.mark.parametrize("why", AZURE_SNP)
def test_a_gpu_does_not_stand_in_for_the_vm(why: str) -> None:
    make, match, error = AZURE_SNP[why]
    case = make()
    both = replace(case, offers=(*case.offers, gpu_offer()), carried=(*case.carried, *gpu_items(case.now)))
    with pytest.raises(error, match=match):
        both.appraise("azure-snp-nvidia")


def test_a_vm_does_not_stand_in_for_the_gpu() -> None:
    with pytest.raises(RefusedError, match="evidence of the GPUs is missing"):
        azure_vm().appraise("azure-snp-nvidia")
    for offer, match, error in (
        (gpu_offer(nvidia.Chip.make().report(nonce=nonce(BINDING))), "device", RefusedError),
        (gpu_offer(GPU.report(nonce=nonce(b"C" * 32))), "does not bind", NotGenuineError),
        (gpu_offer(changed={25: bytes(48)}), "golden values", RefusedError),
    ):
        with pytest.raises(error, match=match):
            azure_gpu(offer).appraise("azure-snp-nvidia")


@pytest.mark.parametrize(
    ("name", "file"),
    [("azure-snp", "azure/trustee_snp_evidence-genoa.json"), ("azure-tdx", azure_real.PARTS)],
)
def test_a_real_vm_breaks_no_position_but_what_is_filled_in(vectors: Path, name: str, file: str) -> None:
    """A position that no host of the cloud meets would be a refusal in disguise."""
    entry = next(each for each in azure_real.entries(vectors, "azure-cvm") if each["file"] == file)
    data, items, now = azure_real.sample(vectors, entry)
    policy = Policy.from_toml(document(name))
    broken = set()
    for claims in azure_common.verify("azure-vtpm", data, *items, now=now).flat():
        for rule in registry.get(claims.tee).rules:
            try:
                if rule.name in policy.demands[claims.tee]:
                    rule.check(claims, policy.demands[claims.tee][rule.name])
            except (RefusedError, UndecidedError):
                broken.add(f"{claims.tee}.{rule.name}")
    ours = {".".join(place.split(".")[:2]) for place in members(name)[1]}
    # Neither AMD's list nor the key's certificate came along.
    assert broken <= {*ours, "azure-vtpm.ak_certificate", "snp.revocation"}
    assert "azure-vtpm.measurement" in broken
