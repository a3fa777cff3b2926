"""Targets for what is read out of evidence that nobody has verified, to ask for collateral; and for X.509 by itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from cryptography.hazmat.primitives.serialization import Encoding
from tests.tee import documents
from tests.tee.azure import signer as azure
from tests.tee.dcap import signer as intel
from tests.tee.google import signer as google
from tests.tee.nvidia import nras_signer
from tests.tee.nvidia import signer as nvidia
from tests.tee.snp import signer as snp

from cloister.tee import registry
from cloister.tee.nvidia.evidence import pack
from cloister.trust.anchors import Anchor
from cloister.trust.certificates import from_pem, load_crl
from cloister.trust.fetch.fetcher import SOURCES


@cache
def _world(tdx: bool) -> intel.World:
    world = intel.World(tdx=tdx, version=4 if tdx else 3)
    # The name by which Intel's service knows the CA.
    world.__dict__["ca"] = intel.issue("Intel SGX PCK Platform CA", world.root, ca=True)
    return world


@cache
def _gpus() -> list[bytes]:
    return [pack([nvidia.Chip.make().report()])]


def _inside() -> bytes:
    return google.attestation(google.boot(technology=4), snp=google.snp_message(snp.report("Genoa", 5)))


def _paravisor() -> bytes:
    return azure.pack(hcl_report=azure.hcl(snp.report("Genoa", 5), azure.runtime_data(), kind=2), tpm_quote=None)


def _asked(tee: str) -> Callable[[bytes], object]:
    """What is needed, and the questions that come of it: none may be to a place that is not listed."""

    def run(data: bytes) -> object:
        return [SOURCES[need.kind][0](need, "").key for need in registry.get(tee).needs(data)]

    return run


#: Name, corpus, decoder.
TARGETS: tuple[tuple[str, Callable[[], list[bytes]], Callable[[bytes], object]], ...] = (
    ("needs-nitro", lambda: [documents.attester().attest(b"B" * 32, b"F" * 32)], _asked("nitro")),
    ("needs-tdx", lambda: [_world(True).quote], _asked("tdx")),
    ("needs-sgx", lambda: [_world(False).quote], _asked("sgx")),
    ("needs-nvidia-gpu", _gpus, _asked("nvidia-gpu")),
    ("needs-nvidia-nras", lambda: [nras_signer.bundle({"GPU-0": nras_signer.device()})], _asked("nvidia-nras")),
    ("needs-azure-vtpm", lambda: [_paravisor()], _asked("azure-vtpm")),
    ("needs-azure-maa", lambda: [azure.token(azure.platform())], _asked("azure-maa")),
    ("needs-google-space", lambda: [google.token(google.space())], _asked("google-space")),
    ("needs-google-vtpm", lambda: [_inside()], _asked("google-vtpm")),
    ("crl", lambda: [intel.crl(_world(True).root, _world(True).pck)], lambda data: load_crl(data, "CRL")),
    ("named-root", lambda: [google.PKI_ROOT.der], lambda data: Anchor.root(data, "a policy")),
    (
        "pem",
        lambda: [google.PKI_ROOT.certificate.public_bytes(Encoding.PEM)],
        lambda data: from_pem(data, "PEM", smallest=1, largest=2),
    ),
)
