"""AMD's Key Distribution Service (57230, "VCEK Certificate and KDS Interface Specification").

It has been seen to give one VCEK in ten seconds to an address and to be away for hours, hence one request at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from cloister.errors import NotGenuineError, UndecidedError
from cloister.trust.certificates import MAX_CRL, common_name, load_certificate
from cloister.trust.fetch.http import Http
from cloister.trust.fetch.source import MAX_PEM, Source, certificates, crl_life, parameter
from cloister.trust.need import Life, Need

BASE = "https://kdsintf.amd.com"
MAX_VCEK = 8 * 1024
_PRODUCT = "Milan|Genoa|Turin"
_SVN = "[0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5]"
#: Parts of the TCB and what the service calls them.
_PARTS = {"bootloader": "blSPL", "tee": "teeSPL", "snp": "snpSPL", "microcode": "ucodeSPL"}


def vcek(need: Need, base: str) -> Source:
    """`product`, `chip_id` (hex; 64 bytes, for Turin 8) and the parts of the reported TCB in decimal."""
    if need.parameters.get("kind") == "vlek":
        raise UndecidedError(
            "AMD gives a VLEK to its cloud only", hint="It is in the certificate table that the host gave."
        )
    if not need.parameters.get("chip_id", "").strip("0"):
        raise UndecidedError("the report hides which chip it is from", hint="The host must send the VCEK along.")
    product = parameter(need, "product", _PRODUCT)
    turin = product == "Turin"
    chip = parameter(need, "chip_id", "[0-9a-f]{16}" if turin else "[0-9a-f]{128}")
    parts = {"fmc": "fmcSPL", **_PARTS} if turin else _PARTS
    query = "&".join(f"{name}={int(parameter(need, part, _SVN)):02d}" for part, name in parts.items())
    check = need.check
    if check is None:
        raise ValueError("whoever asks for a VCEK must check that it is the one")
    # Immutable: one chip at one TCB. What a new request would give is the same key.
    return _source(
        base, f"/vcek/v1/{product}/{chip}?{query}", lambda data, _: check(data), MAX_VCEK, timedelta(days=3650)
    )


def ask(need: Need, base: str) -> Source:
    """`product`, and `kind`: the intermediate above VCEKs or VLEKs. The ARK that comes with it is built in."""
    product = parameter(need, "product", _PRODUCT)
    kind = parameter(need, "kind", "vcek|vlek")
    name = f"SEV-{product}" if kind == "vcek" else f"SEV-VLEK-{product}"
    url = f"{base}/{kind}/v1/{product}/cert_chain"

    def load(http: Http) -> bytes:
        return certificates(http.get(url, limit=MAX_PEM).body, 2, "ASK and ARK")[0]

    def life(data: bytes, _: datetime) -> Life:
        certificate = load_certificate(data, "ASK")
        if (common_name(certificate.subject), common_name(certificate.issuer)) != (name, f"ARK-{product}"):
            raise NotGenuineError(f"the certificate is not {name}")
        return Life(certificate.not_valid_before_utc, certificate.not_valid_after_utc)

    return Source(key=url, load=load, life=life, fresh=timedelta(days=30), serial=base)


def crl(need: Need, base: str) -> Source:
    """`product`: what its ARK has revoked."""
    product = parameter(need, "product", _PRODUCT)
    return _source(
        base,
        f"/vcek/v1/{product}/crl",
        lambda data, _: crl_life(data, f"ARK-{product}", "AMD's CRL"),
        MAX_CRL,
        timedelta(days=1),
    )


def _source(base: str, path: str, life: Callable[[bytes, datetime], Life], limit: int, fresh: timedelta) -> Source:
    url = base + path
    return Source(key=url, load=lambda http: http.get(url, limit=limit).body, life=life, fresh=fresh, serial=base)
