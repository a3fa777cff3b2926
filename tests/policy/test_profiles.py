"""Shipped profiles: complete once filled in, and refusing what they say they refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from tests.policy.filled import GPU, PLACE, VALUES, document, members
from tests.policy.samples import BINDING, BOUND, CHALLENGE
from tests.tee import documents as nitro
from tests.tee.dcap import signer as intel
from tests.tee.ita import signer as ita
from tests.tee.nvidia import signer as nvidia
from tests.tee.snp import signer as amd

from cloister.errors import (
    CloisterError,
    NotGenuineError,
    PolicyDocumentError,
    RefusedError,
    UndecidedError,
    UsageError,
)
from cloister.policy import profiles
from cloister.policy.appraise import appraise
from cloister.policy.checks import rule_name
from cloister.policy.document import FILL_IN, RULES, Policy
from cloister.policy.explain import formats
from cloister.tee import registry
from cloister.tee.evidence import Offer, Offers
from cloister.tee.nvidia.evidence import nonce, pack
from cloister.trust.collateral import Collateral, Item

NAMES = profiles.names()
REPORT_DATA = BINDING.ljust(64, b"\x00")


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_is_refused_until_it_is_filled_in(name: str) -> None:
    text = profiles.text(name)
    assert profiles.title(name)
    assert text.startswith(f"# {profiles.title(name)}\n\n# Position.")
    with pytest.raises(PolicyDocumentError, match="places to fill in") as caught:
        Policy.from_toml(text.encode())
    _, places = members(name)
    assert len(PLACE.findall(text)) >= len(places) > 2
    for place in places:
        # With all of its places but one, it is still refused, and that one is named.
        table, key = place.rpartition(".")[::2]
        assert key in caught.value.message
        assert table in caught.value.message

        def leave(found: dict, place: str = place) -> None:
            *parents, last = place.split(".")
            at = found
            for each in parents:
                at = at[each][0] if isinstance(at[each], list) else at[each]
            at[last] = [FILL_IN] if isinstance(at[last], list) else f"{FILL_IN}: later"

        with pytest.raises(PolicyDocumentError, match=f"to fill in: {place.split('.')[0]}"):
            Policy.from_toml(document(name, leave))


@pytest.mark.parametrize("name", NAMES)
def test_a_filled_profile_states_or_waives_every_rule_of_its_formats(name: str) -> None:
    policy = Policy.from_toml(document(name))
    assert not policy.allow_simulated
    for form in map(registry.get, formats(policy)):
        for rule in form.rules:
            stated, waived = rule.name in policy.demands[form.name], rule_name(form, rule.name) in policy.waivers
            assert stated is not waived, rule.name
    # What the sealed channel rests on is never waived by a profile.
    assert not set(policy.waivers) & set(RULES)


def test_every_value_is_a_place_of_some_profile() -> None:
    assert set().union(*(members(name)[1] for name in NAMES)) == set(VALUES)


def test_no_such_profile() -> None:
    for name in ("nothing", "../document", ""):
        with pytest.raises(UsageError, match="no such profile"):
            profiles.text(name)


def test_the_gpu_profiles_keep_the_cpus_position() -> None:
    strict, gpu = (members(name)[0] for name in ("tdx-strict", "tdx-nvidia"))
    assert strict["tdx"] == gpu["tdx"]
    strict, gpu = (members(name)[0]["snp"] for name in ("snp-strict", "snp-nvidia"))
    loose = {
        "guest_policy": {"smt", "ciphertext_hiding", "page_swap_disabled"},
        "platform_info": {"smt", "ciphertext_hiding"},
    }
    for key, value in strict.items():
        different = {bit for bit in value if gpu[key][bit] != value[bit]} if key in loose else set()
        assert different == loose.get(key, set())
        assert key in loose or gpu[key] == value


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a replica offers, and the roots that a test puts in the vendors' place."""

    offers: Offers
    anchors: dict
    now: object

    def appraise(self, policy: Policy, *, fresh: bool = True) -> None:
        bound = replace(BOUND, fresh=fresh, not_before=self.now - nvidia.DAY, not_after=self.now + nvidia.DAY)
        verdict = appraise(self.offers, bound, replace(policy, anchors=self.anchors), now=self.now)
        assert verdict.accepted


GOOD_POLICY = 0x3001F & ~(1 << 16) | 1 << 24 | 1 << 25  # no SMT, ciphertext hidden, no page swap
GOOD_PLATFORM = 1 << 2 | 1 << 4 | 1 << 5  # ECC, ciphertext hidden, aliases checked


def snp(product: str = "Genoa", *, crl: bool = True, gpu: Offer | None = None, more: tuple[Item, ...] = (),
        now: object = amd.NOW, **changes: object) -> Case:  # fmt: skip
    fields = {"report_data": REPORT_DATA, "policy": GOOD_POLICY, "platform_info": GOOD_PLATFORM, **changes}
    setting = amd.setting(product, vlek=bool(changes.get("vlek")), crl=amd.revocations(product) if crl else None)
    offer = Offer(
        role=registry.get("snp").role, media_type=registry.get("snp").media_type, data=amd.report(product, **fields)
    )
    offers = Offers(offers=(offer, *([gpu] if gpu else [])), collateral=Collateral((*setting.items, *more)))
    return Case(offers=offers, anchors={"snp": setting.anchors, **nvidia.ANCHORS}, now=now)


def quote(
    world: intel.World, *, gpu: Offer | None = None, more: tuple[Item, ...] = (), now: object = intel.NOW
) -> Case:
    form = registry.get("tdx" if world.tdx else "sgx")
    offer = Offer(role=form.role, media_type=form.media_type, data=world.quote)
    items = (Item("intel-collateral", world.collateral()), *more)
    offers = Offers(offers=(offer, *([gpu] if gpu else [])), collateral=Collateral(items))
    return Case(offers=offers, anchors={form.name: (world.anchor,), **nvidia.ANCHORS}, now=now)


def td(*, gpu: Offer | None = None, more: tuple[Item, ...] = (), now: object = intel.NOW, world: dict | None = None,
       **changes: object) -> Case:  # fmt: skip
    body = intel.td_report(**{"report_data": REPORT_DATA, "newer": True, **changes})
    return quote(intel.World(tdx=True, version=5, body=body, **(world or {})), gpu=gpu, more=more, now=now)


def enclave(*, world: dict | None = None, **changes: object) -> Case:
    body = intel.enclave_report(**{"report_data": REPORT_DATA, **changes})
    return quote(intel.World(tdx=False, version=3, body=body, **(world or {})))


def token(*, lists: bool = True, alg: str = "PS384", **changes: object) -> Case:
    form = registry.get("ita")
    data = ita.token(ita.tdx(BINDING, **changes), alg=alg)
    crls = (("ita-crl", ita.crl(ita.ROOT)), ("ita-crl", ita.crl(ita.CA))) if lists else ()
    offers = Offers(
        offers=(Offer(role=form.role, media_type=form.media_type, data=data),),
        collateral=ita.collateral(("ita-certs", ita.key_set()), *crls),
    )
    return Case(offers=offers, anchors={"ita": (ita.anchor(ita.ROOT),)}, now=ita.NOW)


def enclave_document(pcrs: dict[int, bytes] | None = None) -> Case:
    offers = Offers.one(registry.get("nitro").media_type, nitro.attester(pcrs).attest(BINDING, CHALLENGE))
    return Case(offers=offers, anchors={"nitro": (replace(nitro.ANCHOR, genuine=True),)}, now=nitro.NOW)


def gpu_offer(*entries: object, **options: object) -> Offer:
    form = registry.get("nvidia-gpu")
    devices = list(entries) or [GPU.report(nonce=nonce(BINDING), **options)]
    return Offer(role=form.role, media_type=form.media_type, data=pack(devices))


PCRS = {**nitro.PCRS, 3: b"\x04" * 48}
ACCEPTED: dict[str, Callable[[], Case]] = {
    "nitro": lambda: enclave_document(PCRS),
    "snp-strict": snp,
    "tdx-strict": td,
    "gcp-tdx": td,
    "sgx": enclave,
    "ita-tdx": token,
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_conforming_evidence_is_accepted(name: str) -> None:
    ACCEPTED[name]().appraise(Policy.from_toml(document(name)))


OLD = {"reported_tcb": amd.tcb_bytes("Genoa", (0, 10, 1, 23, 83))}
TDX: dict[str, tuple[Callable[[], Case], str, type[CloisterError]]] = {
    "out of date": (lambda: td(world={"status": "OutOfDate"}), "TCB status", RefusedError),
    "software hardening needed": (lambda: td(world={"status": "SWHardeningNeeded"}), "TCB status", RefusedError),
    "debug": (lambda: td(attributes=1 << 28 | 1), "debug mode", CloisterError),
    "migratable": (lambda: td(attributes=1 << 28 | 1 << 29), "may be migrated", RefusedError),
    "perfmon": (lambda: td(attributes=1 << 28 | 1 << 63), "PERFMON is set", RefusedError),
    "protection keys": (lambda: td(attributes=1 << 28 | 1 << 30), "PKS is set", RefusedError),
    "pages can vanish": (lambda: td(attributes=0), "SEPT_VE_DISABLE", RefusedError),
    "a service TD": (lambda: td(service=b"\x01" * 48), "bound to a service TD", RefusedError),
    "an owner's configuration": (lambda: td(ownerconfig=b"\x01" * 48), "MROWNERCONFIG", RefusedError),
    "an older evaluation": (lambda: td(world={"evaluation": 16, "qe_evaluation": 16}), "TCB evaluation 16", RefusedError),
    "another kernel": (lambda: td(rtmrs=(b"\xa0" * 48, b"\xa1" * 48, b"\xa3" * 48, bytes(48))), "rtmr2", RefusedError),
    "more processor state": (lambda: td(xfam=0x6FFE7), "XFAM", RefusedError),
}  # fmt: skip
SNP: dict[str, tuple[Callable[[], Case], str, type[CloisterError]]] = {
    "Milan": (lambda: snp("Milan"), "the processor is Milan", RefusedError),
    "no alias check": (lambda: snp(platform_info=GOOD_PLATFORM & ~(1 << 5)), "alias_check is required", RefusedError),
    "old microcode": (lambda: snp(committed_tcb=OLD["reported_tcb"]), "committed TCB", RefusedError),
    "provisional firmware": (lambda: snp(committed=b"\x27\x37\x01"), "provisional firmware", RefusedError),
    "a guest that may migrate": (lambda: snp(policy=GOOD_POLICY | 1 << 18), "migrate_ma is forbidden", RefusedError),
    "debug": (lambda: snp(policy=GOOD_POLICY | 1 << 19), "debug mode", RefusedError),
    "a cloud's key": (lambda: snp(vlek=True), "kind of signing key", RefusedError),
    "another machine": (lambda: snp("Turin", chip_id=amd.CHIP["Turin"].ljust(64, b"\x00")), "the chip", RefusedError),
    "no revocation list": (lambda: snp(crl=False), "revocation list", UndecidedError),
    "another image": (lambda: snp(measurement=b"\x23" * 48), "launch measurement", RefusedError),
    "asked by a lower level": (lambda: snp(vmpl=1), "VMPL 1", RefusedError),
}  # fmt: skip
STRICT = {
    "SMT on the machine": (lambda: snp(platform_info=GOOD_PLATFORM | 1), "smt is forbidden", RefusedError),
    "SMT allowed by the guest": (lambda: snp(policy=GOOD_POLICY | 1 << 16), "smt is forbidden", RefusedError),
    "ciphertext visible": (
        lambda: snp(platform_info=GOOD_PLATFORM & ~(1 << 4)),
        "ciphertext_hiding is required",
        RefusedError,
    ),
    "page swaps": (lambda: snp(policy=GOOD_POLICY & ~(1 << 25)), "page_swap_disabled is required", RefusedError),
}
SGX = {
    "out of date": (lambda: enclave(world={"status": "OutOfDate"}), "TCB status", RefusedError),
    "software hardening needed": (lambda: enclave(world={"status": "SWHardeningNeeded"}), "TCB status", RefusedError),
    "debug": (lambda: enclave(attributes=0x07), "debug mode", CloisterError),
    "provisioning key": (lambda: enclave(attributes=0x15), "PROVISIONKEY", RefusedError),
    "an older evaluation": (lambda: enclave(world={"evaluation": 16, "qe_evaluation": 16}), "evaluation", RefusedError),
    "another enclave": (lambda: enclave(mrenclave=b"\x0f" * 32), "mrenclave", RefusedError),
}
ITA = {
    "out of date": (lambda: token(attester_tcb_status="OutOfDate"), "OutOfDate", RefusedError),
    "the weaker algorithm": (lambda: token(alg="RS256"), "RS256", RefusedError),
    "an older issuer": (lambda: token(iss="Intel Trust Authority"), "issuer", RefusedError),
    "no revocation lists": (lambda: token(lists=False), "revocation lists", UndecidedError),
    "another policy": (lambda: token(policy_ids_matched=[{"id": "AA-2", "version": "v1", "hash": "x"}]), "was not matched", RefusedError),
    "debug": (lambda: token(dbgstat="enabled", tdx_is_debuggable=True, tdx_td_attributes_debug=True), "debug", RefusedError),
    "another kernel": (lambda: token(tdx_rtmr2="00" * 48), "other code", RefusedError),
}  # fmt: skip
NITRO = {
    "another role": (lambda: enclave_document({**PCRS, 3: b"\x05" * 48}), "pcr3", RefusedError),
    "debug": (lambda: enclave_document({3: b"\x04" * 48}), "debug mode", RefusedError),
}
REFUSED = {
    "nitro": NITRO,
    "snp-strict": SNP | STRICT,
    "tdx-strict": TDX,
    "gcp-tdx": TDX,
    "sgx": SGX,
    "ita-tdx": ITA,
}


@pytest.mark.parametrize(("name", "why"), [(name, why) for name, cases in REFUSED.items() for why in cases])
def test_what_breaks_a_position_is_refused(name: str, why: str) -> None:
    make, match, error = REFUSED[name][why]
    with pytest.raises(error, match=match):
        make().appraise(Policy.from_toml(document(name)))


@pytest.mark.parametrize("name", ACCEPTED)
def test_evidence_without_a_fresh_nonce_is_refused(name: str) -> None:
    with pytest.raises(CloisterError, match="nonce"):
        ACCEPTED[name]().appraise(Policy.from_toml(document(name)), fresh=False)


def other_platform(name: str) -> Policy:
    def change(found: dict) -> None:
        found[name.split("-")[0]]["ppid"] = ["00" * 16]

    return Policy.from_toml(document(name, change))


@pytest.mark.parametrize("name", ["tdx-strict", "sgx"])
def test_another_platform_is_refused(name: str) -> None:
    with pytest.raises(RefusedError, match="PPID"):
        ACCEPTED[name]().appraise(other_platform(name))


# GPUs: the CPU's clock is the signers' own, so the GPU's certificates and answers are made for it.

GPU_RIMS = (nvidia.driver_rim(), nvidia.vbios_rim())


def gpu_items(
    now: object, *, rims: tuple[bytes, ...] = GPU_RIMS, age: object = None, **status: str
) -> tuple[Item, ...]:
    """Manifests, and OCSP responses as of `now`."""
    chain = {
        "identity": (nvidia.IDENTITY, nvidia.DEVICE_ROOT), "provisioner": (nvidia.PROVISIONER, nvidia.IDENTITY),
        "brom": (nvidia.BROM, nvidia.PROVISIONER), "rim_ca": (nvidia.RIM_CA, nvidia.RIM_ROOT),
        "rim_signer": (nvidia.RIM_SIGNER, nvidia.RIM_CA),
    }  # fmt: skip
    issued = now - (age or nvidia.DAY / 24)
    answers = [
        nvidia.response(*pair, status=status.get(each, "good"), this_update=issued, next_update=now + nvidia.DAY)
        for each, pair in chain.items()
    ]
    return (*(Item("nvidia-rim", rim) for rim in rims), *(Item("nvidia-ocsp", answer) for answer in answers))


def beside_gpu(name: str, offer: Offer | None = None, **items: object) -> Case:
    """A conforming CPU with a GPU's report, or what stands in its place."""
    make, now = (td, intel.NOW) if name == "tdx-nvidia" else (snp, amd.NOW)
    return make(gpu=offer or gpu_offer(), more=gpu_items(now, **items))


@pytest.mark.parametrize("name", ["tdx-nvidia", "snp-nvidia"])
def test_conforming_evidence_with_a_gpu_is_accepted(name: str) -> None:
    beside_gpu(name).appraise(Policy.from_toml(document(name)))


GPU_REFUSED: dict[str, tuple[Callable[[str], Case], str, type[CloisterError]]] = {
    "no GPU": (lambda name: td() if name == "tdx-nvidia" else snp(), "evidence of the GPUs is missing", RefusedError),
    "firmware that NVIDIA did not sign": (
        lambda name: beside_gpu(name, gpu_offer(changed={25: bytes(48)})), "golden values", RefusedError,
    ),
    "no manifest": (lambda name: beside_gpu(name, rims=()), "no signed manifest", UndecidedError),
    "old answers about revocation": (lambda name: beside_gpu(name, age=2 * nvidia.DAY), "too old", UndecidedError),
    "a certificate on hold": (lambda name: beside_gpu(name, provisioner="hold"), "on hold", RefusedError),
    "a revoked certificate": (lambda name: beside_gpu(name, provisioner="compromise"), "provisioner was revoked", CloisterError),
    "another driver": (
        lambda name: beside_gpu(name, gpu_offer(opaque={3: b"535.86.09\x00"})), "driver version", RefusedError,
    ),
    "another device": (
        lambda name: beside_gpu(name, gpu_offer(nvidia.Chip.make().report(nonce=nonce(BINDING)))), "device", RefusedError,
    ),
    "two GPUs": (
        lambda name: beside_gpu(
            name, gpu_offer(*(chip.report(nonce=nonce(BINDING)) for chip in (GPU, nvidia.Chip.make())))
        ),
        "2 GPUs", RefusedError,
    ),
    "several with NVLink in clear": (
        lambda name: beside_gpu(name, gpu_offer(opaque={36: b"\x01\x00"})), "mode", RefusedError,
    ),
    "another replica's report": (
        lambda name: beside_gpu(name, gpu_offer(GPU.report(nonce=nonce(b"C" * 32)))), "does not bind", NotGenuineError,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ["tdx-nvidia", "snp-nvidia"])
@pytest.mark.parametrize("why", GPU_REFUSED)
def test_a_gpu_that_breaks_the_position_is_refused(name: str, why: str) -> None:
    make, match, error = GPU_REFUSED[why]

    # Driver and manifests fail one after the other: the first is asked for by name.
    def open_to_manifests(found: dict) -> None:
        if why == "another driver":
            found["nvidia-gpu"]["driver"] = ["1.2.3"]

    with pytest.raises(error, match=match):
        make(name).appraise(Policy.from_toml(document(name, open_to_manifests)))


CPU_OF = {"tdx-nvidia": TDX, "snp-nvidia": SNP}


@pytest.mark.parametrize(("name", "why"), [(name, why) for name, cases in CPU_OF.items() for why in cases])
def test_a_gpu_does_not_stand_in_for_the_cpu(name: str, why: str) -> None:
    """The CPU's cases again, with a good GPU beside them."""
    make, match, error = CPU_OF[name][why]
    case = make()
    beside = Collateral(gpu_items(intel.NOW if name == "tdx-nvidia" else amd.NOW))
    both = Offers(offers=(*case.offers, gpu_offer()), collateral=case.offers.collateral + beside)
    with pytest.raises(error, match=match):
        replace(case, offers=both).appraise(Policy.from_toml(document(name)))
