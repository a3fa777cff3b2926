"""Quotes under keys of each kind, and logs that do or do not explain them."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from tests.tee.google import signer as s

from cloister.errors import MalformedError, NotGenuineError
from cloister.trust import tpm
from cloister.trust.tpm import Quoted
from cloister.wire.tcg_log import EventLog
from cloister.wire.tpm import Bank, EccKey, PublicArea, RsaKey, Signature

EVENTS = s.boot()
PCRS = s.registers(EVENTS)
MESSAGE = s.attest(PCRS)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def _quoted(pcrs: dict[int, bytes] = PCRS) -> Quoted:
    message = s.attest(pcrs)
    return tpm.verify_quote(message, Signature.parse(s.signature(message)), s.AK.key.public_key(), pcrs, Bank.SHA256)


@pytest.mark.parametrize(
    ("key", "scheme"), [(s.AK.key, 0x14), (s.AK.key, 0x16), (EC_KEY, 0x18)], ids=["RSASSA", "RSAPSS", "ECDSA"]
)
def test_keys_of_each_kind(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, scheme: int) -> None:
    public = tpm.public_key(PublicArea.parse(s.public_area(key.public_key())))
    assert public == key.public_key()
    signature = Signature.parse(s.signature(MESSAGE, key, scheme=scheme))
    assert tpm.verify_quote(MESSAGE, signature, public, PCRS, Bank.SHA256).quote.extra_data == s.BINDING
    for message, wrong in (
        (MESSAGE[:-1] + b"\x00", public),
        (MESSAGE, s.rsa_key("x").public_key()),
        (MESSAGE, ec.generate_private_key(ec.SECP256R1()).public_key()),
    ):
        with pytest.raises(NotGenuineError):
            tpm.check_signature(message, signature, wrong)


def test_a_weak_key_is_refused() -> None:
    weak = rsa.generate_private_key(65537, 1024)
    for scheme in (0x14, 0x16):
        signature = Signature.parse(s.signature(MESSAGE, weak, scheme=scheme))
        with pytest.raises(NotGenuineError):
            tpm.check_signature(MESSAGE, signature, weak.public_key())


@pytest.mark.parametrize(
    "key",
    [
        RsaKey(modulus=(1 << 2047) + 1, exponent=2),
        EccKey(curve=3, x=1, y=1),
        EccKey(curve=0x20, x=1, y=1),
    ],
)
def test_keys_that_are_none(key: RsaKey | EccKey) -> None:
    with pytest.raises(MalformedError):
        tpm.of_numbers(key)


def test_the_digest_is_that_of_the_signing_scheme() -> None:
    # A quote of SHA-1 registers, signed with SHA-256, digests the values with SHA-256.
    pcrs = s.registers(EVENTS, "sha1")
    message = s.attest(pcrs, bank=4)
    signature = Signature.parse(s.signature(message))
    tpm.verify_quote(message, signature, s.AK.key.public_key(), pcrs, Bank.SHA1)
    with pytest.raises(NotGenuineError):
        tpm.verify_quote(message, signature, s.AK.key.public_key(), pcrs, Bank.SHA256)


def test_replay() -> None:
    log = EventLog.parse(s.log(EVENTS))
    assert len(tpm.replay(log, _quoted())) == len(EVENTS)
    # Registers that the quote leaves out: their events are nobody's.
    some = {index: PCRS[index] for index in (0, 7)}
    assert {event.index for event in tpm.replay(log, _quoted(some))} == {0, 7}
    # A register without events may hold anything.
    assert tpm.replay(log, _quoted({**PCRS, 10: b"\x01" * 32}))
    for wrong in (EVENTS[1:], EVENTS[::-1], [*EVENTS, EVENTS[0]]):
        with pytest.raises(NotGenuineError):
            tpm.replay(EventLog.parse(s.log(wrong)), _quoted())
    with pytest.raises(NotGenuineError):
        tpm.replay(EventLog.parse(s.log(EVENTS, {"sha1": 4})), _quoted())


def test_replay_from_another_locality() -> None:
    start = s.Event(0, 3, b"StartupLocality\x00\x03")
    pcrs = s.registers(EVENTS, start={0: b"\x03".rjust(32, b"\x00")})
    assert tpm.replay(EventLog.parse(s.log([start, *EVENTS])), _quoted(pcrs))
    with pytest.raises(NotGenuineError):
        tpm.replay(EventLog.parse(s.log(EVENTS)), _quoted(pcrs))


def test_what_comes_before_the_separator() -> None:
    events = EventLog.parse(s.log([*EVENTS, s.Event(0, s.EV_VERSION, b"late")])).events
    assert [event.event_type for event in tpm.before_separator(events, 0, Bank.SHA256)] == [s.EV_VERSION, s.EV_NONHOST]
    assert tpm.before_separator(events, 8, Bank.SHA256) == ()  # no separator: nothing is believed
    assert len(tpm.before_separator(EventLog.parse(s.log([s.Event(0, 4, b"\xff" * 4)])).events, 0, Bank.SHA256)) == 0
    for hidden in (s.Event(0, s.EV_ACTION, b"x", bytes(4)), s.Event(0, 4, b"x"), s.Event(0, 4, b"x", bytes(4))):
        with pytest.raises(NotGenuineError):
            tpm.before_separator(EventLog.parse(s.log([hidden])).events, 0, Bank.SHA256)
