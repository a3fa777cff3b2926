"""Targets for Azure: the paravisor's report, the envelope, certificates of attestation keys, tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from tests.tee.azure import signer

from cloister.tee.azure.hcl import HclReport


@cache
def _vms() -> tuple[signer.Vm, ...]:
    return signer.Vm(), signer.Vm(tdx=True)


def _verify(data: bytes) -> object:
    vm = _vms()[b'"td_quote"' in data]
    return vm.verify(*signer.ak_items(), evidence=data)


def _certificate(data: bytes) -> object:
    return _vms()[0].verify(*signer.ak_items(data, signer.intermediate()))


def _tokens() -> list[bytes]:
    claims = (
        signer.guest(nonce="x"),
        signer.guest(signer.TDX_CLAIMS),
        signer.platform(),
        signer.platform(signer.TDX_CLAIMS),
    )
    return [signer.token(each) for each in claims]


#: Name, corpus, decoder.
TARGETS: tuple[tuple[str, Callable[[], list[bytes]], Callable[[bytes], object]], ...] = (
    ("azure-hcl", lambda: [vm.blob for vm in _vms()], HclReport.parse),
    ("azure-vtpm", lambda: [vm.evidence() for vm in _vms()], _verify),
    ("azure-ak", lambda: [signer.ak_certificate().ljust(4096, b"\x00")], _certificate),
    ("azure-maa", _tokens, signer.verify_token),
)
