"""Targets for Google: tokens, vTPM attestations, launch endorsements; for TPMs in general: quotes, keys, event logs."""

from __future__ import annotations

from collections.abc import Callable

from tests.tee.google import signer
from tests.tee.snp import signer as snp

from cloister.tee.google.vtpm.certificates import Instance
from cloister.tee.google.vtpm.endorsement import Endorsement
from cloister.wire.tcg_log import EventLog
from cloister.wire.tpm import PublicArea, Quote, Signature

_ANCHORS = {"snp": (snp.root("Genoa"),), "google-endorsement": (signer.TCB_ROOT.anchor,)}


def _tokens() -> list[bytes]:
    return [signer.token(signer.space()), signer.pki_token(signer.space())]


def _attestations() -> list[bytes]:
    report = snp.report("Genoa", 5, report_data=signer.BINDING.ljust(64, b"\x00"))
    message = signer.snp_message(report, vcek=snp.endorsement("Genoa"), ask=snp.intermediate("Genoa"))
    return [signer.attestation(), signer.attestation(signer.boot(technology=4), snp=message)]


def _message() -> bytes:
    return signer.attest(signer.registers(signer.boot()))


#: Name, corpus, decoder.
TARGETS: tuple[tuple[str, Callable[[], list[bytes]], Callable[[bytes], object]], ...] = (
    ("google-space", _tokens, lambda data: signer.verify_token(data, pki=signer.PKI_ROOT)),
    ("google-vtpm", _attestations, lambda data: signer.verify_vtpm(data, anchors=_ANCHORS)),
    ("google-instance", lambda: [signer.instance()], Instance.parse),
    ("google-endorsement", lambda: [signer.endorse(snp=[(4, b"m" * 48)], tdx=[b"m" * 48])], Endorsement.parse),
    ("tpm-quote", lambda: [_message()], Quote.parse),
    ("tpm-signature", lambda: [signer.signature(_message())], Signature.parse),
    ("tpm-public", lambda: [signer.public_area(signer.AK.key.public_key())], PublicArea.parse),
    ("tcg-event-log", lambda: [signer.log(signer.boot())], EventLog.parse),
)
