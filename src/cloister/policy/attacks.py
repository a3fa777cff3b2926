"""Published attacks as data: what each needs, which rules of a policy answer it, and what no verifier can see.

`year` is that of the publication, or of the CVE number where our source names no other. `uncertain` says what we only
have second hand. The pages are in docs/attacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cloister.tee import FORMATS


@dataclass(frozen=True, kw_only=True)
class Defence:
    """A rule of a policy that answers an attack, if what it states (as the document has it) `holds`."""

    rule: str
    wants: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One published attack, or a class of them.

    `hits` names formats of evidence; hardware inside an envelope (`azure-vtpm`) is hit by its own name. A format in
    `only` is hit where that rule says so, since a service's token can be about several kinds of hardware. `cured` are
    those of which evidence that passes all the defences comes from a machine that is not open to it; for others they
    only narrow it down. `always` are checks that no policy can waive.
    Where a format is hit and has no defence here, no verifier can see it.
    """

    id: str
    title: str
    year: int
    page: str
    hits: tuple[str, ...]
    needs: str
    only: Mapping[str, Defence] = field(default_factory=dict)
    defences: tuple[Defence, ...] = ()
    cured: tuple[str, ...] = ()
    always: tuple[str, ...] = ()
    unseen: str
    uncertain: str = ""


def _stated(rule: str) -> Defence:
    return Defence(rule=rule, wants="is stated", holds=lambda _value: True)


def _bit(table: str, bit: str, word: str) -> Defence:
    return Defence(rule=f"snp.{table}", wants=f'{bit} = "{word}"', holds=lambda value: value[bit] == word)


def _is(rule: str, wanted: str | int) -> Defence:
    shown = f'"{wanted}"' if isinstance(wanted, str) else wanted
    return Defence(rule=rule, wants=f"= {shown}", holds=lambda value: value == wanted)


def _only(rule: str, *allowed: str) -> Defence:
    return Defence(rule=rule, wants=f"names only {', '.join(allowed)}", holds=lambda value: set(value) <= set(allowed))


def _without(rule: str, *refused: str) -> Defence:
    return Defence(
        rule=rule, wants=f"does not name {', '.join(refused)}", holds=lambda value: not set(value) & set(refused)
    )


def _zero(rule: str) -> Defence:
    return Defence(rule=rule, wants="is zero", holds=lambda value: not any(each.strip("0") for each in value))


def _names(rule: str, *some: str) -> Defence:
    return Defence(rule=rule, wants=f"names {' or '.join(some)}", holds=lambda value: bool(set(value) & set(some)))


def _machine(measurements: Any) -> bool:
    return all(any(register in each for register in ("pcr3", "pcr4")) for each in measurements)


_MINIMUM = _stated("snp.minimum_tcb")
_COMMITTED = _is("snp.provisional_firmware", "forbidden")
_CHIP, _TD_PLATFORM, _SGX_PLATFORM = _stated("snp.chip_id"), _stated("tdx.ppid"), _stated("sgx.ppid")
_UP_TO_DATE = tuple(_only(f"{form}.tcb_status", "UpToDate") for form in ("tdx", "ita", "azure-maa", "google-space"))
_TOKEN_MINIMUM = _stated("azure-maa.minimum_svn")
#: The cloud certified the vTPM's key: a processor's key that was stolen elsewhere has no such certificate.
_CLOUD = (_stated("azure-vtpm.ak_certificate"), _stated("google-vtpm.project_id"), _stated("google-space.project_id"))
#: What else can be of AMD's or Intel's, and when; plain SEV has no report that the rules of `snp` would look at.
_AMD = {
    "google-vtpm": _names("google-vtpm.technology", "AMD_SEV", "AMD_SEV_ES"),
    "azure-maa": _names("azure-maa.isolation", "sevsnpvm"),
    "google-space": Defence(
        rule="google-space.hwmodel",
        wants="names more than GCP_INTEL_TDX",
        holds=lambda value: set(value) != {"GCP_INTEL_TDX"},
    ),
}
_INTEL = {
    "azure-maa": _names("azure-maa.isolation", "tdxvm"),
    "google-space": _names("google-space.hwmodel", "GCP_INTEL_TDX"),
}
_CPUS = tuple(form for form in FORMATS if not form.startswith("nvidia"))
_BUS = "that the memory bus is tapped, or that a key was taken from another machine that way: the signature is genuine"

ATTACKS: tuple[Attack, ...] = (
    Attack(
        id="tee-fail",
        title="TEE.fail: an interposer on DDR5 extracts attestation keys",
        year=2025,
        page="physical-bus.md",
        hits=("snp", "tdx", "sgx", "ita", "azure-vtpm", "google-vtpm", "azure-maa", "google-space"),
        needs="the machine in one's hands, root on its host, under $1,000 of parts",
        defences=(_CHIP, _TD_PLATFORM, _SGX_PLATFORM, *_CLOUD),
        unseen=_BUS,
    ),
    Attack(
        id="wiretap",
        title="WireTap: a passive interposer on DDR4 extracts SGX keys",
        year=2025,
        page="physical-bus.md",
        hits=("sgx",),
        needs="the machine in one's hands, under $1,000 of parts",
        defences=(_SGX_PLATFORM,),
        unseen=_BUS,
        uncertain="the year",
    ),
    Attack(
        id="battering-ram",
        title="Battering RAM: an active interposer on DDR4 aliases memory",
        year=2025,
        page="physical-bus.md",
        hits=("snp", "sgx", *_AMD),
        only=_AMD,
        needs="the machine in one's hands",
        defences=(_CHIP, _SGX_PLATFORM, _CLOUD[-1]),
        unseen="an alias that is switched on after the check at boot",
        uncertain="the year, and why the check at boot does not help",
    ),
    Attack(
        id="badram",
        title="BadRAM: a memory module that lies about its size (CVE-2024-21944)",
        year=2024,
        page="badram.md",
        hits=("snp", *_AMD),
        only=_AMD,
        needs="a short time at the machine, or its BIOS",
        defences=(_bit("platform_info", "alias_check", "required"), _MINIMUM, _COMMITTED, _TOKEN_MINIMUM),
        cured=("snp",),
        unseen="an alias that appears after boot (Battering RAM)",
    ),
    Attack(
        id="entrysign",
        title="EntrySign: microcode of one's own (CVE-2024-56161)",
        year=2025,
        page="microcode.md",
        hits=("snp", *_AMD),
        only=_AMD,
        needs="ring 0 on the host",
        defences=(_MINIMUM, _COMMITTED, _TOKEN_MINIMUM),
        cured=("snp",),
        unseen="what a processor loaded before its firmware was updated",
    ),
    Attack(
        id="cachewarp",
        title="CacheWarp: writes of a guest undone in the cache (CVE-2023-20592)",
        year=2023,
        page="snp-host-software.md",
        hits=("snp", *_AMD),
        only=_AMD,
        needs="the hypervisor, Zen 3",
        defences=(_MINIMUM, _COMMITTED, _TOKEN_MINIMUM),
        cured=("snp",),
        unseen="which microcode ran before",
    ),
    Attack(
        id="stackwarp",
        title="StackWarp: a guest's stack pointer moved from the sibling thread (CVE-2025-29943)",
        year=2025,
        page="snp-host-software.md",
        hits=("snp", *_AMD),
        only=_AMD,
        needs="the hypervisor, and SMT",
        defences=(
            _MINIMUM,
            _COMMITTED,
            _TOKEN_MINIMUM,
            _bit("platform_info", "smt", "forbidden"),
            _bit("guest_policy", "smt", "forbidden"),
        ),
        cured=("snp",),
        unseen="what the sibling thread does while SMT is on",
        uncertain="whether AMD's patch alone cures it, or only SMT off does",
    ),
    Attack(
        id="heracles",
        title="Heracles: chosen plaintext by moving a guest's pages",
        year=2025,
        page="snp-host-software.md",
        hits=("snp", *_AMD),
        only=_AMD,
        needs="the hypervisor",
        defences=(
            _bit("guest_policy", "ciphertext_hiding", "required"),
            _bit("guest_policy", "page_swap_disabled", "required"),
            _MINIMUM,
            _TOKEN_MINIMUM,
        ),
        unseen="which pages were moved",
        uncertain="all of it: no source of ours describes it",
    ),
    Attack(
        id="rmpocalypse",
        title="RMPocalypse: the page table of SNP changed while it is set up (CVE-2025-0033)",
        year=2025,
        page="snp-host-software.md",
        hits=("snp", *_AMD),
        only=_AMD,
        needs="the hypervisor",
        defences=(_MINIMUM, _COMMITTED, _TOKEN_MINIMUM),
        unseen="a table that was changed at boot by firmware older than the fix",
        uncertain="the mechanism: our source has only its name and number",
    ),
    Attack(
        id="milan",
        title="BadFuse and MilanLaunchy: the root of a Milan chip's keys read in software",
        year=2026,
        page="milan.md",
        hits=("snp", *_AMD),
        only=_AMD,
        needs="software on the host",
        defences=(_without("snp.products", "Milan"),),
        cured=("snp",),
        unseen="whether a report of a Milan machine was forged; it can state any TCB",
        uncertain="whether a VLEK of a Milan machine is safe",
    ),
    Attack(
        id="tdx-module",
        title="Bugs in the TDX module, in migration and partitioning above all",
        year=2026,
        page="tdx-module.md",
        hits=("tdx", "ita", *_INTEL),
        only=_INTEL,
        needs="the hypervisor",
        defences=(
            *_UP_TO_DATE,
            _stated("tdx.tcb_evaluation_min"),
            _without("tdx.attributes", "MIGRATABLE", "PERFMON"),
            _zero("tdx.mrservicetd"),
            _zero("tdx.mrsignerseam"),
            _stated("ita.policies"),
            _TOKEN_MINIMUM,
        ),
        cured=("tdx",),
        unseen="bugs that nobody has reported yet",
        uncertain="the year",
    ),
    Attack(
        id="tdxray",
        title="TDXRay: prompts recovered from a trust domain's memory accesses",
        year=2026,
        page="side-channels.md",
        hits=("tdx", "ita", *_INTEL),
        only=_INTEL,
        needs="the hypervisor",
        unseen="that the host watches which pages and cache lines are touched",
    ),
    Attack(
        id="snpeek",
        title="SNPeek: traces and covert channels of production SNP guests",
        year=2025,
        page="side-channels.md",
        hits=("snp", *_AMD),
        only=_AMD,
        needs="the hypervisor",
        unseen="that the host watches which pages and cache lines are touched",
    ),
    Attack(
        id="gpu-memory",
        title="What confidential GPUs leave in the clear: HBM, and NVLink on Hopper",
        year=2025,
        page="gpu.md",
        hits=("nvidia-gpu", "nvidia-nras", "ita", "google-space"),
        only={"ita": _is("ita.gpu", "required"), "google-space": _is("google-space.gpu", "ON")},
        needs="the machine in one's hands",
        defences=(
            _without("nvidia-gpu.mode", "ppcie"),
            _stated("nvidia-gpu.ueid"),
            _is("nvidia-nras.gpus", 1),
            _stated("nvidia-nras.ueid"),
        ),
        unseen="a probe on the GPU's board",
    ),
    Attack(
        id="nitro-parent",
        title="The parent of a Nitro enclave: its clock, its vsock, its entropy, its power switch",
        year=2024,
        page="nitro-parent.md",
        hits=("nitro",),
        needs="root on the parent instance",
        defences=(
            _is("freshness.challenge", "required"),
            Defence(rule="nitro.measurement", wants="states pcr3 or pcr4", holds=_machine),
        ),
        always=("policy.debug",),
        unseen="when and how often the enclave was stopped, and what the parent delays or drops",
    ),
    Attack(
        id="cloud-vtpm",
        title="A cloud's vTPM: registers on the word of whoever runs it",
        year=2026,
        page="cloud-vtpm.md",
        hits=("azure-vtpm", "azure-maa", "google-vtpm", "google-space"),
        needs="the cloud's hosts (Google), a hole in its paravisor (Azure), or a kept quote of another boot",
        defences=(
            _is("freshness.challenge", "required"),
            _stated("azure-vtpm.measurement"),
            _stated("azure-maa.measurement"),
            _stated("google-vtpm.measurement"),
            _only("google-vtpm.technology", "INTEL_TDX", "AMD_SEV_SNP"),
            _without("google-space.hwmodel", "GCP_AMD_SEV", "GCP_AMD_SEV_ES"),
        ),
        always=("policy.binding",),
        unseen="what a vTPM that lies has not measured; on Google the processor does not name the vTPM's key",
        uncertain="the year: it is how these clouds are built, and no one publication",
    ),
    Attack(
        id="verification-service",
        title="A verification service that errs, is misconfigured or compelled: a token is its word",
        year=2026,
        page="verification-service.md",
        hits=("ita", "azure-maa", "google-space", "nvidia-nras"),
        needs="the service, its signing key, or the right to set its attestation policy",
        defences=(_stated("ita.policies"), _stated("azure-maa.policy_hash")),
        unseen="the evidence itself, and whether the service looked at it",
        uncertain="the year: it is what a token is, and no one publication",
    ),
    Attack(
        id="diversion",
        title="Relay and diversion (identity crisis): genuine evidence of somebody else's machine",
        year=2026,
        page="diversion.md",
        hits=FORMATS,
        needs="one broken genuine TEE, or a replica that binds no key",
        defences=(
            _is("freshness.challenge", "required"),
            Defence(rule="nitro.measurement", wants="states pcr3 or pcr4", holds=_machine),
            _CHIP,
            _TD_PLATFORM,
            _SGX_PLATFORM,
            *_CLOUD,
            _stated("nvidia-gpu.ueid"),
            _stated("nvidia-nras.ueid"),
        ),
        always=("policy.binding", "policy.gpu-binding"),
        unseen="whose machine it is, unless the evidence names it and the policy does too",
    ),
    Attack(
        id="whisper-leak",
        title="Whisper Leak: the topic read from sizes and times of encrypted streams",
        year=2025,
        page="whisper-leak.md",
        hits=_CPUS,
        needs="a passive place on the network",
        unseen="who listens; frames of fixed size hide token lengths, not how many frames there are and when",
    ),
    Attack(
        id="shared-cache",
        title="Prompts guessed by the timing of a shared KV cache",
        year=2025,
        page="shared-cache.md",
        hits=_CPUS,
        needs="another account at the same replica",
        defences=(_stated("config.sha256"),),
        unseen="how an engine behaves: evidence names the code, and our engine keeps no cache between requests",
    ),
)  # fmt: skip

BY_ID: Mapping[str, Attack] = {attack.id: attack for attack in ATTACKS}
