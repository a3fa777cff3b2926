"""Targets for NVIDIA: reports, the envelope, manifests, OCSP responses, tokens and key sets; and XML."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

from tests.tee.nvidia import nras_signer, real, signer
from tests.trust import tokens

from cloister.tee.nvidia.evidence import pack
from cloister.tee.nvidia.rim import Rim
from cloister.tee.nvidia.spdm import Report
from cloister.trust import ocsp
from cloister.trust.chain import P384
from cloister.trust.jwt import KeySet, Token
from cloister.wire import xml


@cache
def _chip() -> signer.Chip:
    return signer.Chip.make()


@cache
def _rims() -> list[bytes]:
    return [signer.driver_rim(), signer.vbios_rim()]


def _devices(data: bytes) -> object:
    return real.verify("nvidia-gpu", data, now=signer.NOW, anchors=signer.ANCHORS)


def _manifest(data: bytes) -> object:
    return Rim.parse(data).verify(signer.ANCHORS["nvidia-rim"], now=signer.NOW)


def _response(data: bytes) -> object:
    response = ocsp.parse(data)
    ocsp.about(response, signer.PROVISIONER.certificate, signer.IDENTITY.certificate)
    return ocsp.check(response, signer.IDENTITY.certificate, P384, now=signer.NOW, skew=signer.DAY)


def _key_sets() -> list[bytes]:
    return [json.dumps({"issuer": tokens.ISSUER, "keys": list(tokens.ENTRIES.values())}).encode()]


#: Name, corpus, decoder.
TARGETS: tuple[tuple[str, Callable[[], list[bytes]], Callable[[bytes], object]], ...] = (
    ("nvidia-report", lambda: [signer.report(_chip().signer)], Report.parse),
    ("nvidia-envelope", lambda: [pack([_chip().report()])], _devices),
    ("nvidia-rim", _rims, _manifest),
    ("nvidia-nras", lambda: [nras_signer.bundle({"GPU-0": nras_signer.device()})], nras_signer.verify),
    ("ocsp", lambda: [signer.response(signer.PROVISIONER, signer.IDENTITY)], _response),
    ("jwt", lambda: [tokens.sign()], lambda data: Token.parse(data, "token")),
    ("jwks", _key_sets, KeySet.parse),
    ("xml", _rims, lambda data: xml.canonical(xml.parse(data, "XML", limit=1 << 20))),
)
