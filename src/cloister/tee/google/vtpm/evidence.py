"""The attestation that a guest on Compute Engine collects (go-tpm-tools' `attest.Attestation`, Protocol Buffers).

The message holds AMD's report and Intel's quote taken apart; both are put together again, byte for byte as the hardware
signed them (`inner.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloister.errors import MalformedError
from cloister.tee.google.vtpm import inner
from cloister.tee.google.vtpm.inner import Inner
from cloister.trust.tpm import MAX_PCR
from cloister.wire.protobuf import Message
from cloister.wire.tcg_log import MAX_LOG
from cloister.wire.tpm import MAX_ATTEST, MAX_PUBLIC, MAX_SIGNATURE, Bank, PublicArea, Signature

WHAT = "vTPM attestation"
MAX_ATTESTATION = 2 * 1024 * 1024
MAX_QUOTES = 8
MAX_CERTIFICATE = 16 * 1024
MAX_INTERMEDIATES = 8


@dataclass(frozen=True, kw_only=True)
class BankQuote:
    """A quote of one bank as it was signed, and the values that came with it, by index."""

    message: bytes
    signature: Signature
    bank: Bank
    pcrs: Mapping[int, bytes]


@dataclass(frozen=True, kw_only=True)
class Attestation:
    """One attestation. Certificates are DER; `event_log` is raw, empty where there is none.

    What the message says of the instance is left out: nobody signed it, the certificate says it too.
    """

    key: PublicArea
    quotes: tuple[BankQuote, ...]
    event_log: bytes
    certificate: bytes | None
    intermediates: tuple[bytes, ...]
    inner: Inner | None

    @classmethod
    def parse(cls, data: bytes) -> Attestation:
        """Read exactly one attestation of at most 2 MiB; raises MalformedError."""
        if len(data) > MAX_ATTESTATION:
            raise MalformedError(f"{WHAT}: {len(data)} bytes, the limit is {MAX_ATTESTATION}")
        top = Message(data, WHAT)
        quotes = tuple(_quote(each) for each in top.messages(2, f"{WHAT}: quote", count=MAX_QUOTES))
        if len({quote.bank for quote in quotes}) != len(quotes):
            raise MalformedError(f"{WHAT}: two quotes of one bank")
        attestation = cls(
            key=PublicArea.parse(top.octets(1, limit=MAX_PUBLIC)),
            quotes=quotes,
            event_log=top.octets(3, limit=MAX_LOG),
            certificate=top.octets(6, limit=MAX_CERTIFICATE) or None,
            intermediates=top.every(7, count=MAX_INTERMEDIATES, limit=MAX_CERTIFICATE),
            inner=inner.parse(top),
        )
        for unread in (4, 5):  # the instance, and the launcher's log, whose register a policy can name
            top.has(unread)
        top.done()
        return attestation

    def quote_of(self, bank: Bank) -> BankQuote | None:
        """The quote of that bank."""
        return next((quote for quote in self.quotes if quote.bank is bank), None)


def _quote(message: Message) -> BankQuote:
    what = f"{WHAT}: registers"
    values = message.message(3, what) or Message(b"", what)
    bank = Bank.of(values.integer(1, maximum=0xFFFF), what)
    quote = BankQuote(
        message=message.octets(1, limit=MAX_ATTEST),
        signature=Signature.parse(message.octets(2, limit=MAX_SIGNATURE)),
        bank=bank,
        pcrs=values.mapping(2, lambda entry: entry.octets(2, size=bank.size), count=MAX_PCR, maximum=MAX_PCR - 1),
    )
    values.done()
    message.done()
    return quote
