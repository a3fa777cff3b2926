"""Real NVIDIA evidence from the vectors, put into this project's envelope."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.errors import PolicyDocumentError
from cloister.tee import registry
from cloister.tee.checks import Checklist
from cloister.tee.claims import Claims
from cloister.tee.context import Context
from cloister.tee.nvidia.evidence import Arch, Kind, pack
from cloister.trust.collateral import Collateral, Item
from cloister.wire.toml import Table

#: A time at which every device chain is valid; they end in the year 9999.
NOW = datetime(2025, 8, 21, 12, tzinfo=UTC)
RIMS_H100 = ("google/rim_NV_GPU_DRIVER_GH100_550.90.07.xml", "google/rim_NV_GPU_VBIOS_1010_0200_882_96009F0001.xml")
RIM_SWITCH = "sdk/switchVBIOSRim_NV_SWITCH_BIOS_5612_0002_890_9610550001.xml"
ARCHS = {"HOPPER": Arch.HOPPER, "BLACKWELL": Arch.BLACKWELL, "LS10": Arch.LS10}

Device = tuple[Kind, Arch, bytes, tuple[bytes, ...]]


def entries(vectors: Path, *platforms: str) -> list[dict]:
    """The entries of these platforms."""
    listed = json.loads((vectors / "vectors.json").read_bytes())["vectors"]
    return [entry for entry in listed if entry["platform"] in platforms]


def chain(pem: bytes) -> tuple[bytes, ...]:
    """The certificates of a PEM file as DER."""
    return tuple(certificate.public_bytes(Encoding.DER) for certificate in x509.load_pem_x509_certificates(pem))


def device(vectors: Path, entry: dict) -> Device:
    """The report and chain that one entry names."""
    name, _, at = entry["file"].partition("#")
    data = (vectors / name).read_bytes()
    switch = entry["platform"] == "nvidia-switch"
    if not at:
        arch = Arch.LS10 if switch else Arch.HOPPER
        report, certificates = bytes.fromhex(data.decode()), chain((vectors / entry["certs"]).read_bytes())
    else:
        item = json.loads(data)[int(at[1:-1])]
        arch = ARCHS[item["arch"]]
        report, certificates = base64.b64decode(item["evidence"]), chain(base64.b64decode(item["certificate"]))
    return Kind.SWITCH if switch else Kind.GPU, arch, report, certificates


def hopper(vectors: Path) -> Device:
    """The H100 report whose two manifests are among the vectors."""
    return device(vectors, next(e for e in entries(vectors, "nvidia-gpu") if e["driver"] == "550.90.07"))


def ppcie(vectors: Path) -> list[Device]:
    """Eight GPUs and four switches of one machine in protected PCIe mode."""
    data = json.loads((vectors / "nvidia/google/test_ppcie_data.json").read_bytes())

    def certificates(items: list[dict]) -> tuple[bytes, ...]:
        return tuple(der for item in items for der in chain(base64.b64decode(item["pem"])))

    gpus = [
        (Kind.GPU, Arch.HOPPER, base64.b64decode(gpu["AttestationReport"]["py/b64"]),
         certificates(gpu["CertificateChains"]["GpuAttestationCertificateChain"]))
        for gpu in data["gpus"]
    ]  # fmt: skip
    switches = [
        (Kind.SWITCH, Arch.LS10, base64.b64decode(switch["attestation_report"]["py/b64"]),
         certificates(switch["attestation_cert_chain"]))
        for switch in data["nvswitches"]
    ]  # fmt: skip
    return [*gpus, *switches]


def blackwell(vectors: Path) -> list[Device]:
    """Eight Blackwell GPUs of one machine in multi-GPU passthrough mode."""
    data = json.loads((vectors / "nvidia/google/test_mpt_data.json").read_bytes())
    return [
        (Kind.GPU, Arch.BLACKWELL, base64.b64decode(gpu["AttestationReport"]["py/b64"]),
         chain(base64.b64decode(gpu["CertificateChains"]["GpuAttestationCertificateChain"][0]["pem"])))
        for gpu in data["gpus"]
    ]  # fmt: skip


def rims(vectors: Path, *names: str) -> Collateral:
    """Manifests as collateral."""
    return Collateral(tuple(Item("nvidia-rim", (vectors / "nvidia" / name).read_bytes()) for name in names))


def ocsp(vectors: Path, *names: str) -> Collateral:
    """OCSP responses as collateral."""
    files = (vectors / f"nvidia/google/ocsp_test_gpu_{name}_base64encoded_ocsp_response.dat" for name in names)
    return Collateral(tuple(Item("nvidia-ocsp", base64.b64decode(file.read_bytes())) for file in files))


def verify(
    name: str, evidence: bytes, *, now: datetime = NOW, collateral: Collateral | None = None, anchors: dict | None = None,
    max_age: timedelta = timedelta(hours=1),
) -> Claims:  # fmt: skip
    """Through the registered format, with every check planned and, if it succeeds, passed."""
    found = registry.get(name)
    checklist = Checklist()
    checklist.plan(found.checks)
    claims = found.verify(
        evidence,
        Context(
            now=now, checklist=checklist, max_age=max_age, max_skew=timedelta(seconds=60),
            anchors=anchors or {}, collateral=collateral or Collateral(),
        ),
    )  # fmt: skip
    assert checklist.complete()
    return claims


def gpu(devices: list[Device], **options: object) -> Claims:
    """Claims of devices in this project's envelope."""
    return verify("nvidia-gpu", pack(devices), **options)


def apply(name: str, claims: Claims, policy: dict, *rules: str) -> dict[str, str]:
    """What the rules of a format saw: those named, or all. A rule that the policy does not state is a hole."""
    table, seen = Table(policy, name), {}
    values = [(rule, rule.read(table)) for rule in registry.get(name).rules]
    table.done()
    for rule, value in values:
        if rules and rule.name not in rules:
            continue
        if value is None:
            raise PolicyDocumentError(f"{name}.{rule.name} is neither stated nor waived")
        seen[rule.name] = rule.check(claims, value)
    return seen
