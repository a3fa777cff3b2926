"""A processor and a GPU in one bundle, by way of `verify_bundle`: both bound to one key, both in the verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache

import pytest
from tests.policy.filled import GPU, document
from tests.policy.test_cloud_profiles import azure_vm, nras_td
from tests.policy.test_profiles import Case as PlainCase
from tests.policy.test_profiles import gpu_items, snp, td
from tests.tee.azure import signer as azure
from tests.tee.dcap import signer as intel
from tests.tee.nvidia import nras_signer as nras
from tests.tee.nvidia import signer as nvidia
from tests.tee.snp import signer as amd

from cloister.channel import challenge
from cloister.channel.bundle import Bundle
from cloister.channel.keyring import KeySchedule, ReplicaFacts, make_key
from cloister.channel.statement import KeyStatement, binding
from cloister.client.appraisal import VerifiedKey, verify_bundle
from cloister.errors import CloisterError, MalformedError, NotGenuineError, RefusedError, UndecidedError
from cloister.policy.document import Policy
from cloister.policy.verdict import Verdict
from cloister.tee import registry
from cloister.tee.evidence import Offer, Offers, Role
from cloister.tee.nvidia.evidence import nonce, pack
from cloister.trust.collateral import KINDS, Collateral, Item
from cloister.wire.strict_json import encode_base64url

NONCE = b"n" * 32
FACTS = ReplicaFacts(
    scope="replica", tls_spki_sha256=(b"\x07" * 32,), boot_id=b"b" * 16, model_id="m", model_sha256="0a" * 32,
    config_sha256="0b" * 32,
)  # fmt: skip
PROFILES = ("snp-nvidia", "tdx-nvidia", "azure-snp-nvidia")


@cache
def statement(now: datetime, epoch: int = 1) -> KeyStatement:
    """Of one replica's key; another epoch has another key."""
    return make_key(FACTS, KeySchedule(), epoch=epoch, now=int(now.timestamp()) - 60, key_id=1).statement


def bound(of: KeyStatement) -> bytes:
    """B of a statement and of this client's nonce, which travels with another client's."""
    root, _ = challenge.gather([NONCE, b"m" * 32])
    return binding(of.to_bytes(), root)


def gpu(b: bytes, *, chip: nvidia.Chip = GPU, **changes: object) -> Offer:
    form = registry.get("nvidia-gpu")
    return Offer(role=form.role, media_type=form.media_type, data=pack([chip.report(nonce=nonce(b), **changes)]))


@dataclass(frozen=True, kw_only=True)
class Replica:
    """A bundle in parts, and what a client has to verify it with."""

    profile: str
    statement: KeyStatement
    offers: tuple[Offer, ...]
    items: tuple[Item, ...]
    anchors: dict
    now: datetime

    def bundle(self) -> bytes:
        _, paths = challenge.gather([NONCE, b"m" * 32])
        return Bundle(
            statement_bytes=self.statement.to_bytes(), statement=self.statement, nonce=NONCE, path=paths[0],
            offers=Offers(offers=self.offers, collateral=Collateral(self.items)),
        ).to_bytes()  # fmt: skip

    def policy(self, change: Callable[[dict], object] | None = None) -> Policy:
        return replace(Policy.from_toml(document(self.profile, change)), anchors=self.anchors)

    def verify(self, data: bytes | None = None, *, change: Callable[[dict], object] | None = None) -> VerifiedKey:
        return verify_bundle(data or self.bundle(), self.policy(change), now=self.now, nonce=NONCE)

    def edited(self, edit: Callable[[dict], object]) -> bytes:
        """The bundle with its records edited on the way."""
        members = json.loads(self.bundle())
        edit(members["cmw"])
        return json.dumps(members).encode()

    def without(self, kind: str) -> Replica:
        return replace(self, items=tuple(item for item in self.items if item.kind != kind))

    def gpu(self, offer: Offer | None) -> Replica:
        return replace(self, offers=(self.offers[0], *([offer] if offer else [])))


def cpu_of(profile: str, b: bytes, **report: object) -> tuple[Offer, tuple[Item, ...], dict]:
    """Good evidence of the profile's processor for B; `report` changes what the processor signs."""
    if profile.startswith("azure"):
        made = azure_vm(quote=azure.quote(b), report=report)
        return made.offers[0], made.carried, made.anchors
    fields = {"report_data": b.ljust(64, b"\0"), **report}
    case: PlainCase = td(**fields) if profile.startswith("tdx") else snp(**fields)
    return case.offers.offers[0], case.offers.collateral.items, case.anchors


def replica(profile: str, *, of: bytes | None = None, **report: object) -> Replica:
    """Everything right; `of` is the B that the processor's evidence binds instead."""
    now = intel.NOW if profile.startswith("tdx") else amd.NOW
    own = statement(now)
    cpu, items, anchors = cpu_of(profile, of or bound(own), **report)
    return Replica(
        profile=profile, statement=own, offers=(cpu, gpu(bound(own))), items=(*items, *gpu_items(now)), anchors=anchors,
        now=now,
    )  # fmt: skip


@pytest.mark.parametrize("profile", PROFILES)
def test_a_verdict_shows_the_checks_of_both(profile: str) -> None:
    found = replica(profile).verify()
    verdict = found.verdict
    assert verdict.accepted
    assert not verdict.simulated
    cpu = {"snp-nvidia": "snp", "tdx-nvidia": "tdx", "azure-snp-nvidia": "azure-vtpm snp"}[profile]
    assert verdict.tee == f"{cpu} nvidia-gpu"
    shown = json.loads(json.dumps(verdict.to_json()))
    status = {check["id"]: check["status"] for check in shown["checks"]}
    for form in map(registry.get, verdict.tee.split()):
        assert {status[check] for check, _ in form.checks} == {"passed"}
        assert {status[f"policy.{form.name}.{rule.name}"] for rule in form.rules} <= {"passed", "waived"}
    assert (status["policy.binding"], status["policy.gpu-binding"]) == ("passed", "passed")
    ids = list(status)
    # In the order in which they were made: the GPU is looked at only for a processor that binds the key.
    assert (
        ids.index("policy.binding")
        < ids.index(registry.get("nvidia-gpu").checks[0][0])
        < ids.index("policy.gpu-binding")
    )
    assert ids.index("policy.gpu-binding") < ids.index("policy.nvidia-gpu.measurements")
    assert GPU.ueid in shown["facts"]["nvidia-gpu.devices"]
    assert any(name.startswith("nvidia-gpu.") for name in shown["measurements"])
    assert shown["statement"]["kid"] == found.kid
    assert Verdict.from_json(json.dumps(shown).encode()) == verdict


Case = tuple[Callable[[str], object], str, type[CloisterError], str]


def other_b(profile: str) -> bytes:
    """B of another replica, for the same nonces."""
    return bound(statement(intel.NOW if profile.startswith("tdx") else amd.NOW, epoch=2))


def smuggled(name: str) -> object:
    keys = json.loads(nras.keys().items[0].data)
    value = encode_base64url(json.dumps(keys).encode())
    return replica(name).verify(
        replica(name).edited(lambda cmw: cmw.__setitem__(f"jwks.{len(cmw)}", [KINDS["jwks"], value, 2]))
    )


def wrong_type(name: str) -> object:
    def edit(cmw: dict) -> None:
        record = next(record for key, record in cmw.items() if key.startswith("nvidia-rim."))
        record[0] = "application/json"

    return replica(name).verify(replica(name).edited(edit))


def as_evidence(name: str) -> object:
    """An endorsement that claims to be evidence."""

    def edit(cmw: dict) -> None:
        next(record for key, record in cmw.items() if key.startswith("nvidia-rim."))[2] = 4

    return replica(name).verify(replica(name).edited(edit))


def with_type(name: str, media_type: str) -> object:
    made = replica(name)
    return made.gpu(replace(made.offers[1], media_type=media_type)).verify()


def nras_offer() -> Offer:
    return next(offer for offer in nras_td().offers if offer.role is Role.GPU)


def gpu_alone(name: str) -> object:
    return replica(name).verify(replica(name).edited(lambda cmw: cmw.pop("cpu")))


def changed_items(name: str, **status: str) -> object:
    made = replica(name).without("nvidia-ocsp").without("nvidia-rim")
    return replace(made, items=(*made.items, *gpu_items(made.now, **status))).verify()


REFUSED: dict[str, Case] = {
    "no record of the GPU": (lambda name: replica(name).gpu(None).verify(), "GPUs is missing", RefusedError, "policy.gpu"),
    "no record of the processor": (gpu_alone, "neither evidence nor", MalformedError, "bundle.format"),
    "the GPU's nonce of another key": (
        lambda name: replica(name).gpu(gpu(other_b(name))).verify(), "does not bind", NotGenuineError, "policy.gpu-binding",
    ),
    "B itself as the GPU's nonce": (
        lambda name: replica(name).gpu(
            replace(gpu(b""), data=pack([GPU.report(nonce=bound(replica(name).statement))]))
        ).verify(),
        "does not bind", NotGenuineError, "policy.gpu-binding",
    ),
    "a format of GPUs that the policy does not name": (
        lambda name: replica(name).gpu(nras_offer()).verify(), "not of a format", RefusedError, "policy.gpu",
    ),
    "an unknown media type": (
        lambda name: with_type(name, "application/octet-stream"), "not of a format", RefusedError, "policy.gpu",
    ),
    "a processor's evidence as the GPU's": (
        lambda name: replica(name).gpu(replace(replica(name).offers[0], role=Role.GPU)).verify(),
        "not of a format", RefusedError, "policy.gpu",
    ),
    "keys of a token's issuer in the bundle": (smuggled, "cannot vouch for unsigned keys", MalformedError, "bundle.format"),
    "an endorsement of another media type": (wrong_type, "media type", MalformedError, "bundle.format"),
    "an endorsement that claims to be evidence": (as_evidence, "a record must be", MalformedError, "bundle.format"),
    "no manifests": (
        lambda name: replica(name).without("nvidia-rim").verify(), "no signed manifest", UndecidedError,
        "policy.nvidia-gpu.measurements",
    ),
    "no answers about revocation": (
        lambda name: replica(name).without("nvidia-ocsp").verify(), "no OCSP response", UndecidedError, "policy.nvidia-gpu.ocsp_max_age_seconds",
    ),
    "a certificate on hold": (
        lambda name: changed_items(name, provisioner="hold"), "on hold", RefusedError, "policy.nvidia-gpu.certificate_hold",
    ),
    "a revoked certificate": (
        lambda name: changed_items(name, provisioner="compromise"), "was revoked", CloisterError, "nvidia-gpu.revocation",
    ),
    "firmware that NVIDIA did not sign": (
        lambda name: replica(name).gpu(gpu(bound(replica(name).statement), changed={25: bytes(48)})).verify(),
        "golden values", RefusedError, "policy.nvidia-gpu.measurements",
    ),
    "a GPU that is not named": (
        lambda name: replica(name).gpu(gpu(bound(replica(name).statement), chip=nvidia.Chip.make())).verify(),
        "device", RefusedError, "policy.nvidia-gpu.ueid",
    ),
    "another replica's processor": (
        lambda name: replica(name, of=other_b(name)).verify(), "does not bind", NotGenuineError, "policy.binding",
    ),
    "another replica's processor and GPU": (
        lambda name: replica(name, of=other_b(name)).gpu(gpu(other_b(name))).verify(),
        "does not bind", NotGenuineError, "policy.binding",
    ),
}  # fmt: skip


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("why", REFUSED)
def test_what_is_wrong_in_one_half_refuses_the_whole(profile: str, why: str) -> None:
    make, match, error, check = REFUSED[why]
    with pytest.raises(error, match=match) as caught:
        make(profile)
    verdict = caught.value.verdict
    assert verdict is not None
    assert not verdict.accepted
    failed = [each.id for each in verdict.checks if each.status == "failed"]
    assert failed == [check]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_processor_in_debug_is_refused_beside_a_good_gpu(profile: str) -> None:
    debug = {"attributes": 1 << 28 | 1} if profile.startswith("tdx") else {"policy": 0x3001F | 1 << 19}
    with pytest.raises(CloisterError, match="debug"):
        replica(profile, **debug).verify()


def test_the_processors_endorsements_are_demanded_beside_the_gpus() -> None:
    for profile, kind in (("snp-nvidia", "amd-vcek"), ("tdx-nvidia", "intel-collateral"), ("snp-nvidia", "amd-crl")):
        with pytest.raises(UndecidedError):
            replica(profile).without(kind).verify()


def test_a_policy_that_speaks_of_no_gpu_looks_at_none() -> None:
    def no_gpu(found: dict) -> None:
        del found["tee"]["gpu"], found["nvidia-gpu"]

    broken = replace(replica("snp-nvidia").offers[1], data=b"not a report")
    verdict = replica("snp-nvidia").gpu(broken).verify(change=no_gpu).verdict
    assert verdict.accepted
    assert verdict.tee == "snp"
    assert "not looked at" in next(check.detail for check in verdict.checks if check.id == "policy.gpu")


def test_keys_for_a_services_result_come_from_the_client() -> None:
    """NRAS beside TDX: the same bundle with the client's own keys is accepted, without them nothing is decided."""
    own = statement(intel.NOW)
    made = nras_td(of=bound(own))
    cpu, items, anchors = cpu_of("tdx-nras", bound(own))
    built = Replica(
        profile="tdx-nras", statement=own, offers=(cpu, made.offers[1]), items=items, anchors=anchors, now=intel.NOW
    )
    data = built.bundle()
    with pytest.raises(UndecidedError, match="not at hand"):
        built.verify(data)
    found = verify_bundle(data, built.policy(), now=built.now, nonce=NONCE, collateral=nras.keys())
    assert found.verdict.tee == "tdx nvidia-nras"
    with pytest.raises(NotGenuineError, match="GPU evidence does not bind"):
        other = replace(built, offers=(cpu, nras_td(of=b"C" * 32).offers[1]))
        verify_bundle(other.bundle(), built.policy(), now=built.now, nonce=NONCE, collateral=nras.keys())


def test_a_verdict_about_eight_gpus_is_read_again() -> None:
    def eight(found: dict) -> None:
        found["nvidia-gpu"].update(gpus=8, mode=["spt"], ueid=[chip.ueid for chip in chips])

    chips = [nvidia.Chip.make() for _ in range(8)]
    made = replica("snp-nvidia")
    reports = pack([chip.report(nonce=nonce(bound(made.statement))) for chip in chips])
    verdict = made.gpu(replace(made.offers[1], data=reports)).verify(change=eight).verdict
    assert Verdict.from_json(json.dumps(verdict.to_json()).encode()) == verdict
