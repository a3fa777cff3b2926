"""Reports, manifests, OCSP responses and tokens that NVIDIA's hardware and services signed, with their known verdicts."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from tests.tee.nvidia import real, signer

from cloister.errors import CloisterError, MalformedError, NotGenuineError, RefusedError, UndecidedError
from cloister.tee.nvidia import roots
from cloister.tee.nvidia.device import Mode
from cloister.tee.nvidia.evidence import Arch, Kind
from cloister.tee.nvidia.rim import Rim
from cloister.trust.anchors import Anchor
from cloister.trust.collateral import Collateral, Item

# The manifests of the H100 report, and a time at which its OCSP responses and those of the manifests' CAs hold.
OCSP_DEVICE = ("certificate_l2", "certificate_l3", "certificate_l4")
OCSP_RIM = ("rim_l2", "driver_rim_l3", "driver_rim_l4", "vbios_l4")
POLICY = {
    "arch": ["hopper"],
    "driver": ["550.90.07"],
    "vbios": ["96.00.9F.00.01"],
    "measurements": "rim",
    "rim_grace_days": 0,
    "ocsp_max_age_seconds": 86400,
    "certificate_hold": "refuse",
    "gpus": 1,
    "switches": 0,
    "mode": ["spt"],
    "fwid": "required",
    "ueid": ["478176379286082186618948445787393647364802107249"],
}


def test_every_report_of_the_vectors(vectors: Path) -> None:
    entries = real.entries(vectors, "nvidia-gpu", "nvidia-switch")
    assert len(entries) == 27
    outcomes = {}
    for entry in entries:
        kind, arch, report, certificates = real.device(vectors, entry)
        try:
            claims = real.gpu([(kind, arch, report, certificates)])
        except CloisterError as error:
            outcomes[entry["file"]] = type(error)
            assert entry["expected"].startswith("reject"), entry["file"]
            continue
        assert entry["expected"] == "accept (report signature + chain)", entry["file"]
        assert claims.genuine
        assert not claims.debug
        assert claims.user_data == bytes.fromhex(entry["nonce"])
        (device,) = claims.details.devices
        assert device.facts.ueid == str(int(entry["leaf_serial"], 16))
        assert (device.facts.driver or "") == entry["driver"]
        if kind is Kind.GPU:
            assert device.facts.vbios == entry["vbios"]
            assert device.facts.fwid == (entry["fwid_in_leaf"] == "True")
        flag = {"0000": Mode.SPT, "0200": Mode.PPCIE}.get(entry["feature_flag"])
        assert flag is None or device.facts.mode is flag
    # One report was changed after it was signed, one has a byte after its signature.
    assert outcomes == {
        "nvidia/sdk/gpu_hopperAttestationReportInvalidSignature.txt": NotGenuineError,
        "nvidia/trustee_hopper_coco_report1.txt": MalformedError,
    }


def test_only_the_byte_after_its_signature_is_wrong_with_one_report(vectors: Path) -> None:
    entry = next(e for e in real.entries(vectors, "nvidia-gpu") if "coco" in e["file"])
    kind, arch, report, certificates = real.device(vectors, entry)
    real.gpu([(kind, arch, report[:-1], certificates)])
    with pytest.raises(MalformedError, match="1 trailing bytes"):
        real.gpu([(kind, arch, report, certificates)])


def test_a_full_policy_accepts_the_h100_whose_manifests_and_responses_are_recorded(vectors: Path) -> None:
    device = real.hopper(vectors)
    rims = real.rims(vectors, *real.RIMS_H100)
    claims = real.gpu([device], collateral=rims + real.ocsp(vectors, *OCSP_DEVICE))
    assert claims.details.devices[0].golden.compared == 32
    # The responses about devices and about manifests were recorded two months apart.
    asked = set(POLICY) - {"ocsp_max_age_seconds"}
    seen = real.apply("nvidia-gpu", claims, POLICY, *asked)
    assert seen["measurements"] == "32 measurements are golden values"
    with pytest.raises(UndecidedError, match="no OCSP response about .*Reference Value"):
        real.apply("nvidia-gpu", claims, POLICY, "ocsp_max_age_seconds")
    later = datetime(2025, 10, 24, 20, tzinfo=UTC)
    claims = real.gpu([device], collateral=rims + real.ocsp(vectors, *OCSP_RIM), now=later)
    answers = [each.answer for m in claims.details.devices[0].golden.manifests for each in m.certificates]
    assert [answer.status for answer in answers] == ["good"] * 6
    with pytest.raises(UndecidedError, match="no OCSP response about .*GH100 Identity"):
        real.apply("nvidia-gpu", claims, POLICY, "ocsp_max_age_seconds")


def test_an_ended_ocsp_responder_is_noticed(vectors: Path) -> None:
    """The recorded responders' certificates have ended since."""
    collateral = real.ocsp(vectors, *OCSP_DEVICE)
    with pytest.raises(NotGenuineError, match="responder"):
        real.gpu([real.hopper(vectors)], collateral=collateral, now=datetime(2026, 2, 1, tzinfo=UTC))


def test_responses_age(vectors: Path) -> None:
    device, collateral = real.hopper(vectors), real.ocsp(vectors, *OCSP_DEVICE)
    claims = real.gpu([device], collateral=collateral)
    real.apply("nvidia-gpu", claims, {"ocsp_max_age_seconds": 86400}, "ocsp_max_age_seconds")
    with pytest.raises(UndecidedError, match="too old"):
        real.apply("nvidia-gpu", claims, {"ocsp_max_age_seconds": 3600}, "ocsp_max_age_seconds")
    claims = real.gpu([device], collateral=collateral, now=datetime(2025, 8, 22, 7, tzinfo=UTC))
    with pytest.raises(UndecidedError, match="too old"):
        real.apply("nvidia-gpu", claims, {"ocsp_max_age_seconds": 864000}, "ocsp_max_age_seconds")
    with pytest.raises(NotGenuineError, match="future"):
        real.gpu([device], collateral=collateral, now=datetime(2025, 8, 21, 6, tzinfo=UTC))


def test_without_manifests_a_genuine_report_is_undecided(vectors: Path) -> None:
    for entry in real.entries(vectors, "nvidia-gpu", "nvidia-switch"):
        if entry["expected"].startswith("accept"):
            claims = real.gpu([real.device(vectors, entry)], collateral=real.rims(vectors, *real.RIMS_H100))
            if entry["driver"] == "550.90.07":
                real.apply("nvidia-gpu", claims, POLICY, "measurements")
                continue
            with pytest.raises(UndecidedError, match="manifest"):
                real.apply("nvidia-gpu", claims, POLICY, "measurements")


def test_a_manifests_signer_that_has_ended_is_the_policys_decision(vectors: Path) -> None:
    device, rims = real.hopper(vectors), real.rims(vectors, *real.RIMS_H100)
    claims = real.gpu([device], collateral=rims, now=datetime(2026, 3, 1, tzinfo=UTC))
    real.apply("nvidia-gpu", claims, POLICY, "measurements")
    with pytest.raises(RefusedError, match="ended 6 days ago, 0 allowed"):
        real.apply("nvidia-gpu", claims, POLICY, "rim_grace_days")
    seen = real.apply("nvidia-gpu", claims, {"rim_grace_days": 30}, "rim_grace_days")
    assert seen == {"rim_grace_days": "1 of 2 manifests by a signer that has ended"}


def test_the_switch_and_its_manifest(vectors: Path) -> None:
    entry = real.entries(vectors, "nvidia-switch")[0]
    now = datetime(2026, 6, 1, tzinfo=UTC)
    claims = real.gpu([real.device(vectors, entry)], collateral=real.rims(vectors, real.RIM_SWITCH), now=now)
    assert real.apply("nvidia-gpu", claims, POLICY, "measurements") == {
        "measurements": "31 measurements are golden values"
    }
    with pytest.raises(NotGenuineError, match="not valid yet"):
        real.gpu([real.device(vectors, entry)], collateral=real.rims(vectors, real.RIM_SWITCH))


def test_eight_gpus_and_four_switches(vectors: Path) -> None:
    devices = real.ppcie(vectors)
    claims = real.gpu(devices)
    policy = {"gpus": 8, "switches": 4, "mode": ["ppcie"], "arch": ["hopper"], "fwid": "required"}
    seen = real.apply("nvidia-gpu", claims, policy, *policy)
    assert seen["mode"] == "ppcie"
    for missing in (0, 8):
        fewer = real.gpu([device for at, device in enumerate(devices) if at != missing])
        with pytest.raises(RefusedError, match="linked to"):
            real.apply("nvidia-gpu", fewer, policy, "mode")
    with pytest.raises(RefusedError, match="linked to switches"):
        real.apply("nvidia-gpu", real.gpu(devices[:8]), policy, "mode")
    with pytest.raises(NotGenuineError, match="counted twice"):
        real.gpu([*devices, devices[0]])


def test_eight_blackwell_gpus(vectors: Path) -> None:
    claims = real.gpu(real.blackwell(vectors))
    policy = {"gpus": 8, "switches": 0, "mode": ["mpt"], "arch": ["blackwell"], "driver": ["590.48.01"],
              "vbios": ["97.00.D9.00.35"], "fwid": "required"}  # fmt: skip
    real.apply("nvidia-gpu", claims, policy, *policy)
    with pytest.raises(RefusedError, match="architecture"):
        real.apply("nvidia-gpu", claims, {"arch": ["hopper"]}, "arch")


def test_devices_of_one_machine_share_a_nonce(vectors: Path) -> None:
    gpus = [real.device(vectors, e) for e in real.entries(vectors, "nvidia-gpu") if "ppcie_gpu" in e["file"]]
    assert len(real.gpu(gpus).details.gpus()) == 8
    with pytest.raises(NotGenuineError, match="different nonces"):
        real.gpu([gpus[0], real.hopper(vectors)])


def test_one_switch_four_times_is_not_four_switches(vectors: Path) -> None:
    switches = [real.device(vectors, e) for e in real.entries(vectors, "nvidia-switch") if "multi" in e["file"]]
    assert len(switches) == 4
    with pytest.raises(NotGenuineError, match="counted twice"):
        real.gpu(switches)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sdk/incorrect_cert_chain_driver_rim.xml", "root that is not trusted"),
        ("sdk/incorrect_signature_driver_rim.xml", "does not verify"),
        ("rims/NV_GPU_DRIVER_GH100_535.86.09_measurement_mismatch.xml", "not the one that was signed"),
        ("rims/NV_GPU_DRIVER_GH100_570.124.03_expired.xml", "not the one that was signed"),
        ("rims/NV_SWITCH_BIOS_5612_0002_890_9610550001_invalid_signature.xml", "not the one that was signed"),
        ("rims/NV_SWITCH_BIOS_5612_0002_890_9610550001_measurement_mismatch.xml", "not the one that was signed"),
    ],
)
def test_broken_manifests(vectors: Path, name: str, message: str) -> None:
    rim = Rim.parse((vectors / "nvidia" / name).read_bytes())
    with pytest.raises(NotGenuineError, match=message):
        rim.verify(roots.RIM_ANCHORS, now=real.NOW)


def test_manifests_of_other_shapes_are_malformed(vectors: Path) -> None:
    shapes = [*(vectors / "nvidia/google").glob("rim_failure_*"), vectors / "nvidia/google/rim_valid_signed_xml.xml"]
    assert len(shapes) > 15
    for file in shapes:
        with pytest.raises(MalformedError):
            Rim.parse(file.read_bytes())


def test_genuine_manifests(vectors: Path) -> None:
    names = ("rims/nvtrust_1010_0200_882_96005E0001_PROD.swidtag", "rims/nvtrust_g520_0200_885_9600740001_PROD.swidtag",
             "sdk/NV_GPU_DRIVER_GH100_550.144.03.xml", "google/rim_success_valid_rim.xml", *real.RIMS_H100)  # fmt: skip
    for name in names:
        data = (vectors / "nvidia" / name).read_bytes()
        rim = Rim.parse(data)
        rim.verify(roots.RIM_ANCHORS, now=real.NOW)
        # Every value that decides is under the signature.
        changed = data.replace(b'active="True"', b'active="False"', 1)
        with pytest.raises(NotGenuineError, match="not the one that was signed"):
            Rim.parse(changed).verify(roots.RIM_ANCHORS, now=real.NOW)


def test_a_manifest_of_another_version_is_none(vectors: Path) -> None:
    collateral = real.rims(vectors, "sdk/NV_GPU_DRIVER_GH100_550.144.03.xml", real.RIMS_H100[1])
    golden = real.gpu([real.hopper(vectors)], collateral=collateral).details.devices[0].golden
    assert golden.missing == ("550.90.07",)


def test_flipped_bits_of_a_real_report(vectors: Path) -> None:
    kind, arch, report, certificates = real.hopper(vectors)
    for at in range(0, len(report), 37):
        changed = bytearray(report)
        changed[at] ^= 0x01
        with pytest.raises((MalformedError, NotGenuineError)):
            real.gpu([(kind, arch, bytes(changed), certificates)])


def test_chains_of_other_lengths_and_orders(vectors: Path) -> None:
    kind, arch, report, good = real.hopper(vectors)
    switch = real.device(vectors, real.entries(vectors, "nvidia-switch")[0])[3]
    for bad in (good[:4], (*good, good[-1]), ()):
        with pytest.raises(MalformedError, match="certificates|items"):
            real.gpu([(kind, arch, report, bad)])
    for bad in (good[::-1], (good[1], good[0], *good[2:]), (switch[0], *good[1:]), (*good[:4], good[3])):
        with pytest.raises(NotGenuineError):
            real.gpu([(kind, arch, report, bad)])
    with pytest.raises(NotGenuineError, match="does not verify"):
        real.gpu([(Kind.SWITCH, Arch.LS10, report, switch)])
    for name in (
        "trustee_hopper_cert_chain_case2",
        "trustee_hopper_cert_chain_case3",
        "trustee_hopper_cert_chain_case4",
    ):
        with pytest.raises((MalformedError, NotGenuineError)):
            real.gpu([(kind, arch, report, real.chain((vectors / f"nvidia/{name}.txt").read_bytes()))])


def test_the_anchors_are_the_published_certificates(vectors: Path) -> None:
    for anchor, name in (
        (roots.DEVICE_IDENTITY_CA, "nvidia_device_identity_root"), (roots.CORIM_ROOT_CA, "nvidia_rim_root"),
    ):  # fmt: skip
        certificate = x509.load_pem_x509_certificate((vectors / f"nvidia/{name}.pem").read_bytes())
        certificate.verify_directly_issued_by(certificate)
        published = signer.anchor(signer.Signer(key=signer.DEVICE_ROOT.key, certificate=certificate))
        assert {f: getattr(anchor, f) for f in Anchor.__dataclass_fields__ if f != "origin"} == {
            f: getattr(published, f) for f in Anchor.__dataclass_fields__ if f != "origin"
        }


# --- NRAS -----------------------------------------------------------------------------------------------------------


def _keys(vectors: Path) -> Collateral:
    keys = json.loads((vectors / "nvidia/nras_recovered_jwks.json").read_bytes())["keys"]
    return Collateral((Item("jwks", json.dumps({"issuer": roots.NRAS_ISSUER, "keys": keys}).encode()),))


def _nras(vectors: Path, entry: dict, change: Callable[[list], object] | None = None, **options: object) -> object:
    bundle = json.loads((vectors / entry["file"]).read_bytes())
    if change:
        change(bundle)
    options = {"collateral": _keys(vectors), "now": datetime.fromisoformat(entry["verify_at"]), **options}
    return real.verify("nvidia-nras", json.dumps(bundle).encode(), **options)


NRAS_POLICY = {"result": "success", "arch": ["hopper"], "switches": 0}


def test_every_token_of_the_vectors(vectors: Path) -> None:
    accepted = 0
    for entry in real.entries(vectors, "nvidia-nras"):
        if entry["expected"].startswith("reject"):
            with pytest.raises(NotGenuineError, match="issuer"):
                _nras(vectors, entry)
            continue
        claims = _nras(vectors, entry)
        assert claims.user_data == bytes.fromhex(entry["eat_nonce"])
        assert len(claims.details.results) == entry["submods"]
        assert claims.signed_at.timestamp() == entry["iat"]
        policy = {
            **NRAS_POLICY, "gpus": entry["submods"],
            "driver": ["550.90.07", "570.133.20"], "vbios": ["96.00.9F.00.01", "96.00.CF.00.02"],
            "ueid": [result.ueid for result in claims.details.results],
        }  # fmt: skip
        real.apply("nvidia-nras", claims, policy)
        assert claims.genuine
        assert not claims.debug
        accepted += 1
    assert accepted == 2


def test_tokens_expire_and_answer_for_their_age(vectors: Path) -> None:
    entry = real.entries(vectors, "nvidia-nras")[0]
    end = datetime.fromtimestamp(entry["exp"], UTC)
    for now, options in (
        (end + timedelta(minutes=2), {"max_age": timedelta(days=1)}),
        (end - timedelta(minutes=2), {"max_age": timedelta(minutes=5)}),
        (datetime.fromtimestamp(entry["nbf"], UTC) - timedelta(minutes=2), {}),
    ):
        with pytest.raises(NotGenuineError):
            _nras(vectors, entry, now=now, **options)


def test_tokens_without_their_keys_are_undecided(vectors: Path) -> None:
    with pytest.raises(UndecidedError, match="keys"):
        _nras(vectors, real.entries(vectors, "nvidia-nras")[0], collateral=Collateral())


def test_both_levels_are_checked(vectors: Path) -> None:
    entry = next(e for e in real.entries(vectors, "nvidia-nras") if e["submods"] == 8)

    def without(bundle: list) -> None:
        del bundle[1]["GPU-3"]

    def swapped(bundle: list) -> None:
        bundle[1]["GPU-0"], bundle[1]["GPU-1"] = bundle[1]["GPU-1"], bundle[1]["GPU-0"]

    def renamed(bundle: list) -> None:
        bundle[1]["GPU-8"] = bundle[1].pop("GPU-7")

    def changed(level: int) -> Callable[[list], None]:
        def change(bundle: list) -> None:
            text = bundle[0][1] if level == 0 else bundle[1]["GPU-0"]
            head, body, signature = text.split(".")
            claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
            encoded = base64.urlsafe_b64encode(json.dumps({**claims, "secboot": False}).encode()).rstrip(b"=").decode()
            text = f"{head}.{encoded}.{signature}"
            if level == 0:
                bundle[0][1] = text
            else:
                bundle[1]["GPU-0"] = text

        return change

    for change in (without, swapped, renamed, changed(0), changed(1)):
        with pytest.raises(NotGenuineError):
            _nras(vectors, entry, change)


def test_local_tokens_without_a_signature_are_no_evidence(vectors: Path) -> None:
    (entry,) = real.entries(vectors, "nvidia-nvat-local")
    data = (vectors / entry["file"]).read_bytes()
    with pytest.raises(MalformedError):
        real.verify("nvidia-nras", data, collateral=_keys(vectors))
    bundle = json.loads(data)["detached_eat"]
    with pytest.raises(NotGenuineError, match="not signed with ES384"):
        real.verify("nvidia-nras", json.dumps(bundle).encode(), collateral=_keys(vectors))
