"""`cloister collateral fetch` for every format, from services on loopback, and the verifiers with what it fetched.

Evidence and collateral are real where the vectors hold them; the clock then stands where that collateral is in force.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.x509 import ocsp
from tests.tee.azure import real as azure
from tests.tee.azure import signer as azures
from tests.tee.dcap import signer as intel
from tests.tee.google import signer as google
from tests.tee.nvidia import nras_signer as nras
from tests.tee.nvidia import real as gpus
from tests.tee.nvidia import signer as nvidia
from tests.tee.snp import signer as snp
from tests.trust import pcs
from tests.trust.services import Call, Reply, Service, Time, serving
from typer.testing import CliRunner, Result

from cloister.cli.main import app
from cloister.errors import MalformedError
from cloister.tee import FORMATS, registry
from cloister.tee.nvidia.evidence import pack
from cloister.trust.collateral import Collateral
from cloister.trust.fetch import fetcher
from cloister.trust.fetch.fetcher import SOURCES

REST = """
[freshness]
max_age_seconds = 300
max_clock_skew_seconds = 60
reverify_after_seconds = 3600
challenge = "required"
[model]
sha256 = ["{0}"]
[config]
sha256 = ["{0}"]
[key]
scope = ["replica"]
""".replace("{0}", "0a" * 32)
#: What no policy may leave open. Nothing of it need be true: whether the evidence is genuine is decided before.
STATED = {
    "nitro": f'[[nitro.measurement]]\npcr0 = "{"01" * 48}"\n',
    "tdx": f'[[tdx.measurement]]\nmrtd = "{"0d" * 48}"\nrtmr1 = "{"a1" * 48}"\nrtmr2 = "{"a2" * 48}"\n',
    "sgx": f'[[sgx.measurement]]\nmrenclave = "{"0e" * 32}"\n',
    "nvidia-gpu": '[nvidia-gpu]\nmeasurements = "rim"\ncertificate_hold = "refuse"\n',
    "nvidia-nras": '[nvidia-nras]\nresult = "success"\n',
    "azure-vtpm": "[[azure-vtpm.measurement]]\n"
    + "".join(f'pcr{index} = "{index:02}{"00" * 31}"\n' for index in (4, 8, 9, 11, 12, 14)),
    "azure-maa": "[azure-maa]\n"
    'issuer = ["https://sharedeus2.eus2.attest.azure.net"]\nattestation_type = ["sevsnpvm"]\nisolation = ["sevsnpvm"]\n'
    f'[[azure-maa.measurement]]\nlaunch_measurement = "{"01" * 48}"\n',
    "google-space": '[google-space]\naudience = ["https://client.example"]\nhwmodel = ["GCP_INTEL_TDX"]\n'
    f'swname = ["CONFIDENTIAL_SPACE"]\nimage_digest = ["sha256:{"ab" * 32}"]\n',
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Evidence, the service for its collateral, and a time at which both are in force; `inside` as in policies."""

    tee: str
    evidence: bytes
    answer: Callable[[Call], Reply]
    at: datetime
    kinds: tuple[str, ...]
    inside: tuple[str, ...] = ()

    def policy(self) -> str:
        gpu = registry.get(self.tee).role == "gpu"
        used = ["nitro", self.tee] if gpu else [self.tee, *self.inside]
        head = f'schema = "cloister-policy/1"\nname = "fetched"\n[tee]\naccept = ["{used[0]}"]\n'
        if used[1:]:
            head += f'{"gpu" if gpu else "inside"} = ["{used[1]}"]\n'
        waived = [f"{name}.{rule.name}" for name in used for rule in registry.get(name).rules if rule.waivable]
        entries = "".join(f'[[waive]]\nrule = "{name}"\nreason = "not what this is about"\n' for name in waived)
        return head + "".join(STATED[name] for name in used) + REST + entries


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _keys(keys: object) -> Callable[[Call], Reply]:
    """An issuer, with Google's discovery."""

    def answer(call: Call) -> Reply:
        if call.path == "/.well-known/openid-configuration":
            uri = f"http://{call.headers['host']}/keys"
            return Reply(body=json.dumps({"issuer": google.ISSUER, "jwks_uri": uri}).encode())
        if call.path in ("/keys", "/certs", "/.well-known/jwks.json"):
            return Reply(body=json.dumps({"keys": keys}).encode())
        return Reply(404)

    return answer


def _kept(vectors: Path, name: str) -> pcs.Pcs:
    return pcs.stored(json.loads((vectors / name).read_bytes()))


def _sgx(vectors: Path) -> Sample:
    return Sample(
        tee="sgx", evidence=(vectors / "sgx/phala_sgx_quote.bin").read_bytes(), kinds=("intel-collateral",),
        answer=_kept(vectors, "sgx/phala_sgx_quote_collateral.json"), at=_time("2025-06-25T00:00:00Z"),
    )  # fmt: skip


def _tdx(vectors: Path) -> Sample:
    return Sample(
        tee="tdx", evidence=(vectors / "tdx/go-tdx-guest_cos-113-tdx-quote.dat").read_bytes(),
        kinds=("intel-collateral",), answer=_kept(vectors, "tdx/built_00806f050000_2025-07.json"),
        at=_time("2025-07-20T00:00:00Z"),
    )  # fmt: skip


def _azure(vectors: Path) -> Sample:
    entry = next(each for each in azure.entries(vectors, "azure-cvm") if each["file"] == azure.PARTS)
    data, _, now = azure.sample(vectors, entry)
    return Sample(
        tee="azure-vtpm", inside=("tdx",), evidence=data, kinds=("intel-collateral",), at=now,
        answer=_kept(vectors, "tdx/built_90c06f000000_2026-02.json"),
    )  # fmt: skip


def _maa(vectors: Path) -> Sample:
    (entry,) = azure.entries(vectors, "azure-maa")
    return Sample(
        tee="azure-maa", evidence=(vectors / entry["file"]).read_bytes().strip(), kinds=("jwks",),
        answer=_keys(json.loads((vectors / entry["keys"]).read_bytes())["keys"]), at=_time(entry["verify_at"]),
    )  # fmt: skip


def _nras(vectors: Path) -> Sample:
    entry = gpus.entries(vectors, "nvidia-nras")[0]
    return Sample(
        tee="nvidia-nras", evidence=(vectors / entry["file"]).read_bytes(), kinds=("jwks",),
        answer=_keys(json.loads((vectors / "nvidia/nras_recovered_jwks.json").read_bytes())["keys"]),
        at=_time(entry["verify_at"]),
    )  # fmt: skip


def _space(vectors: Path) -> Sample:
    (entry,) = [each for each in azure.entries(vectors, "gcp-confidential-space") if "keys" in each]
    return Sample(
        tee="google-space", evidence=(vectors / entry["file"]).read_bytes().strip(), kinds=("jwks",),
        answer=_keys(json.loads((vectors / entry["keys"]).read_bytes())["keys"]), at=_time(entry["verify_at"]),
    )  # fmt: skip


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serving(lambda call: Reply(404)) as running:
        yield running


@pytest.fixture
def fetch(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command, at a time, with every service on loopback."""

    def run(tee: str, evidence: bytes, at: datetime, answer: Callable[[Call], Reply] | None = None) -> Result:
        monkeypatch.setattr(fetcher, "Clock", lambda: Time(at).clock)
        if answer is not None:
            service.answer = answer
        path = tmp_path / "evidence"
        path.write_bytes(evidence)
        bases = [word for kind in SOURCES for word in ("--base-url", f"{kind}={service.url}")]
        return _run("collateral", "fetch", path, "--tee", tee, "--out", tmp_path / "out", *bases)

    return run


def _run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("make", [_sgx, _tdx, _azure, _maa, _nras, _space])
def test_real_evidence_verifies_with_what_was_fetched(
    make: Callable[[Path], Sample], vectors: Path, fetch: Callable[..., Result], tmp_path: Path
) -> None:
    sample = make(vectors)
    done = fetch(sample.tee, sample.evidence, sample.at, sample.answer)
    assert done.exit_code == 0, done.output
    out = tmp_path / "out"
    assert sorted({path.name.partition(".")[0] for path in out.iterdir()}) == sorted(sample.kinds)
    (tmp_path / "policy.toml").write_text(sample.policy())
    words = (
        *("verify", tmp_path / "evidence", "-p", tmp_path / "policy.toml", "--tee", sample.tee, "--json"),
        *("--at", sample.at.isoformat(), "--unbound", "only its collateral is of interest"),
    )
    without = _run(*words)
    assert without.exit_code == 6, without.output
    verdict = json.loads(_run(*words, "--collateral", out).stdout)
    of_formats = [check for name in (sample.tee, *sample.inside) for check, _ in registry.get(name).checks]
    status = {check["id"]: check["status"] for check in verdict["checks"]}
    assert {status[check] for check in of_formats} == {"passed"}, verdict
    assert status["policy.genuine"] == "passed"


@pytest.mark.parametrize("tdx", [False, True])
def test_intel_is_asked_for_the_platform_that_the_quote_names(tdx: bool) -> None:
    world = intel.World(tdx=tdx, version=4 if tdx else 3)
    form = registry.get("tdx" if tdx else "sgx")
    # The signer's CA calls itself SIMULATED: none of Intel's services knows it.
    with pytest.raises(MalformedError, match="no CA of Intel"):
        form.needs(world.quote)
    for quote in (b"", world.quote[:-1], world.quote.replace(b"BEGIN CERTIFICATE", b"BEGIN CERTIFICATF")):
        with pytest.raises(MalformedError):
            form.needs(quote)


def test_intels_answer_for_another_platform_is_none(
    vectors: Path, fetch: Callable[..., Result], tmp_path: Path
) -> None:
    sample = _tdx(vectors)
    done = fetch("tdx", sample.evidence, sample.at, _kept(vectors, "tdx/built_90c06f000000_2025-06.json"))
    assert done.exit_code == 6, done.output
    assert "another platform" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


# GPUs


def _nvidia(rims: dict[str, bytes], responses: list[bytes]) -> Callable[[Call], Reply]:
    """NVIDIA's two services; of a request only the certificate's serial number is compared."""
    known = {ocsp.load_der_ocsp_response(each).serial_number: each for each in responses}

    def answer(call: Call) -> Reply:
        if call.method == "POST":
            found = known.get(ocsp.load_der_ocsp_request(call.body).serial_number)
            return Reply(404) if found is None else Reply(body=found)
        name = call.route.removeprefix("/v1/rim/")
        if name not in rims:
            return Reply(404)
        members = {
            "id": name, "rim": base64.b64encode(rims[name]).decode(), "sha256": hashlib.sha256(rims[name]).hexdigest(),
        }  # fmt: skip
        return Reply(body=json.dumps(members).encode())

    return answer


GPU_RIMS = {
    "NV_GPU_DRIVER_GH100_590.12": nvidia.driver_rim(),
    "NV_GPU_VBIOS_G520_0200_885_9600A50001": nvidia.vbios_rim(),
}


def test_the_manifests_of_gpus_and_what_ocsp_says_of_all_signers(
    service: Service, fetch: Callable[..., Result], tmp_path: Path
) -> None:
    evidence = pack([nvidia.Chip.make().report(), nvidia.Chip.make().report()])
    done = fetch("nvidia-gpu", evidence, nvidia.NOW, _nvidia(GPU_RIMS, nvidia.responses()))
    assert done.exit_code == 0, done.output
    # Two manifests for both, three intermediates of the devices, two certificates of the manifests' signer: once each.
    assert sorted(call.method for call in service.calls) == ["GET"] * 2 + ["POST"] * 5
    fetched = Collateral.from_folder(tmp_path / "out")
    claims = gpus.verify("nvidia-gpu", evidence, now=nvidia.NOW, collateral=fetched, anchors=nvidia.ANCHORS)
    rules = {rule.name: rule for rule in registry.get("nvidia-gpu").rules}
    assert "golden" in rules["measurements"].check(claims, "rim")
    for device in claims.details.devices:
        certified = [*device.certificates, *(each for one in device.golden.manifests for each in one.certificates)]
        assert len(certified) == 3 + 2 * 2
        assert all(each.answer is not None for each in certified)


def test_what_ocsp_does_not_know_leaves_the_rest(fetch: Callable[..., Result], tmp_path: Path) -> None:
    evidence = pack([nvidia.Chip.make().report()])
    done = fetch("nvidia-gpu", evidence, nvidia.NOW, _nvidia(GPU_RIMS, nvidia.responses()[:-1]))
    assert done.exit_code == 6
    kept = Collateral.from_folder(tmp_path / "out")
    assert (len(kept.of("nvidia-rim")), len(kept.of("nvidia-ocsp"))) == (2, 4)


def test_a_manifest_that_is_none_has_no_signers(fetch: Callable[..., Result], tmp_path: Path) -> None:
    wrong = {name: rim.replace(b"Payload", b"Paylaod") for name, rim in GPU_RIMS.items()}
    broken = nvidia.driver_rim(edit=lambda text: text.replace("<ds:X509Certificate>M", "<ds:X509Certificate>N"))
    for rims in (wrong, {**GPU_RIMS, "NV_GPU_DRIVER_GH100_590.12": broken}):
        done = fetch("nvidia-gpu", pack([nvidia.Chip.make().report()]), nvidia.NOW, _nvidia(rims, nvidia.responses()))
        assert done.exit_code == 6, done.output
        assert "gave no nvidia-rim" in done.stderr


def test_a_real_gpu_names_its_manifests(vectors: Path, fetch: Callable[..., Result], tmp_path: Path) -> None:
    names = [Path(name).stem.removeprefix("rim_") for name in gpus.RIMS_H100]
    rims = {name: (vectors / "nvidia" / file).read_bytes() for name, file in zip(names, gpus.RIMS_H100, strict=True)}
    evidence = pack([gpus.hopper(vectors)])
    # No response of that day was kept: it is undecided, with the manifests at hand.
    assert fetch("nvidia-gpu", evidence, gpus.NOW, _nvidia(rims, [])).exit_code == 6
    kept = Collateral.from_folder(tmp_path / "out")
    assert kept.of("nvidia-rim") == tuple(rims.values())
    claims = gpus.verify("nvidia-gpu", evidence, collateral=kept)
    assert claims.details.devices[0].golden.compared > 0
    wanted = [need.parameters.get("id", "") for need in registry.get("nvidia-gpu").needs(pack(gpus.ppcie(vectors)))]
    assert [name[:29] for name in wanted if "SWITCH" in name] == ["NV_SWITCH_BIOS_5612_0002_890_"]
    blackwell = [
        need.parameters.get("id", "") for need in registry.get("nvidia-gpu").needs(pack(gpus.blackwell(vectors)))
    ]
    assert any(name.startswith("NV_GPU_CC_DRIVER_GB") for name in blackwell)


# Evidence that holds other evidence


def test_inside_a_google_vtpm(vectors: Path, fetch: Callable[..., Result], tmp_path: Path) -> None:
    sample = _tdx(vectors)
    start = datetime(2025, 1, 1, tzinfo=UTC)
    root = google.issue("TDX day root", None, ca=True, start=start)
    ak = google.issue("TDX day key", root, ca=False, start=start, extension=google.instance())
    nonce = (vectors / "tdx/go-tdx-guest_cos-113_nonce.dat").read_bytes()
    evidence = google.attestation(
        google.boot(technology=3), nonce, ak=ak, chain=(), tdx=google.tdx_message(sample.evidence)
    )
    done = fetch("google-vtpm", evidence, sample.at, sample.answer)
    assert done.exit_code == 0, done.output
    kept = Collateral.from_folder(tmp_path / "out")
    own = [(item.kind, item.data) for item in kept.items]
    claims = google.verify_vtpm(evidence, *own, now=sample.at, anchors={"google-vtpm": (root.anchor,)})
    assert [each.tee for each in claims.flat()] == ["google-vtpm", "tdx"]


def test_what_came_along_is_not_asked_for(service: Service, fetch: Callable[..., Result], tmp_path: Path) -> None:
    kds_crl = functools.partial(
        snp.revocations, start=google.NOW - timedelta(days=1), end=google.NOW + timedelta(days=9)
    )
    report = snp.report("Genoa", 5, report_data=google.BINDING.ljust(64, b"\0"))
    parts = {"vcek": snp.endorsement("Genoa"), "ask": snp.intermediate("Genoa")}
    whole, bare = (
        google.attestation(google.boot(technology=4), snp=google.snp_message(report, **more)) for more in (parts, {})
    )
    needs = registry.get("google-vtpm").needs
    assert [need.kind for need in needs(bare)] == ["amd-vcek", "amd-ask", "amd-crl"]
    assert needs(google.attestation(google.boot())) == ()
    done = fetch("google-vtpm", whole, google.NOW, lambda call: Reply(body=kds_crl("Genoa")))
    assert done.exit_code == 0, done.output
    assert [call.route for call in service.calls] == ["/vcek/v1/Genoa/crl"]


def test_inside_a_paravisors_report() -> None:
    report = snp.report("Genoa", 5)
    data = azures.runtime_data()
    evidence = azures.pack(hcl_report=azures.hcl(report, data, kind=2), tpm_quote=None)
    form = registry.get("azure-vtpm")
    assert [need.question for need in form.needs(evidence)] == [
        need.question for need in registry.get("snp").needs(report)
    ]


# Tokens


def test_a_token_does_not_say_whose_keys_are_fetched() -> None:
    """Of services with one issuer that one is asked, whatever a token says; of Azure's only an instance of it."""
    stranger = "https://evil.example.org"
    token = google.token(google.space(iss=stranger))
    (need,) = registry.get("google-space").needs(token)
    assert need.parameters == {"issuer": google.ISSUER}
    (need,) = registry.get("nvidia-nras").needs(nras.bundle({"GPU-0": nras.device()}, overall={"iss": stranger}))
    assert need.parameters == {"issuer": nras.NRAS_ISSUER}
    for issuer in (stranger, "https://x.attest.azure.net.evil.example", 1):
        with pytest.raises(MalformedError):
            registry.get("azure-maa").needs(azures.token(azures.platform(iss=issuer)))
    (need,) = registry.get("azure-maa").needs(azures.token(azures.platform()))
    assert need.parameters == {"issuer": azures.ISSUER}


def test_azure_instances_that_are_not_listed_are_not_asked(service: Service, fetch: Callable[..., Result]) -> None:
    """Those of other clouds verify with keys that the caller brings, and are not asked for them."""
    token = azures.token(azures.platform(iss="https://ours.eus.attest.azure.us"))
    done = fetch("azure-maa", token, azures.NOW)
    assert done.exit_code == 6
    assert "not one whose keys are fetched" in done.stderr
    assert service.calls == []


def test_what_needs_nothing_says_so(service: Service, fetch: Callable[..., Result], tmp_path: Path) -> None:
    done = fetch("google-space", google.pki_token(google.space()), google.NOW)
    assert done.exit_code == 0
    assert "Nothing" in done.stderr
    assert service.calls == []
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("tee", FORMATS)
def test_junk_asks_nobody(tee: str, service: Service, fetch: Callable[..., Result], tmp_path: Path) -> None:
    for junk in (b"", b"junk", bytes(5000)):
        done = fetch(tee, junk, google.NOW)
        assert done.exit_code == 3, done.output
    assert service.calls == []
    assert not (tmp_path / "out").exists()
