"""Tokens: real ones of every issuer verify with their keys; what RFC 8725 warns of is refused."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from tests.trust.tokens import (
    CLAIMS,
    ENTRIES,
    HOUR,
    ISSUER,
    NONE,
    NOW,
    P384_KEY,
    ec_entry,
    ecdsa,
    encoded,
    key_set,
    number,
    rsa_entry,
    sign,
)

from cloister.errors import MalformedError, NotGenuineError, UndecidedError
from cloister.trust.anchors import Anchor
from cloister.trust.chain import P384
from cloister.trust.collateral import Collateral, Item
from cloister.trust.jwt import Alg, KeySet, Token, strings, validate_x5c


@pytest.mark.parametrize("alg", list(Alg))
def test_each_algorithm_verifies_and_only_as_itself(alg: Alg) -> None:
    token = Token.parse(sign(alg=alg), "token")
    assert token.verify(key_set(ENTRIES[alg]), alg).kid == "k"
    for other in set(Alg) - {alg}:
        with pytest.raises(NotGenuineError, match="not signed with"):
            token.verify(key_set(ENTRIES[alg]), other)


def test_real_tokens_verify_with_the_recorded_keys(vectors: Path) -> None:
    entries = json.loads((vectors / "vectors.json").read_bytes())["vectors"]
    tokens = [entry for entry in entries if "alg" in entry and "keys" in entry]
    assert len(tokens) >= 7
    for entry in tokens:
        published = json.loads((vectors / entry["keys"].split()[0]).read_bytes())["keys"]
        # Recorded sets name one algorithm for a key that its issuer lists under two.
        keys = key_set(*published, *({**key, "alg": entry["alg"]} for key in published), issuer=entry["iss"])
        text = (vectors / entry["file"]).read_text().strip()
        token = Token.parse((json.loads(text)[0][1] if text.startswith("[") else text).encode(), "token")
        assert token.verify(keys, Alg(entry["alg"])).kid == entry["kid"]
        token.check_issuer(entry["iss"])
        now = datetime.fromisoformat(entry["verify_at"])
        assert token.check_times(now=now, leeway=NONE, max_age=HOUR).timestamp() == entry["iat"]
        with pytest.raises(NotGenuineError, match="expired"):
            token.check_times(now=datetime.fromtimestamp(entry["exp"], UTC), leeway=NONE, max_age=HOUR * 100)


def test_an_entry_that_names_another_algorithm_is_not_used() -> None:
    both = key_set(rsa_entry(alg="RS256"), rsa_entry(alg="PS384"))
    for alg in (Alg.RS256, Alg.PS384):
        assert Token.parse(sign(alg=alg), "token").verify(both, alg).alg == alg
    with pytest.raises(NotGenuineError, match="not one for PS384"):
        Token.parse(sign(alg="PS384"), "token").verify(key_set(rsa_entry(alg="RS256")), Alg.PS384)


def test_two_keys_of_one_name_are_both_tried() -> None:
    other = ec.generate_private_key(ec.SECP384R1())
    token = Token.parse(sign(), "token")
    for keys in (key_set(ec_entry(other), ec_entry()), key_set(ec_entry(), ec_entry(other))):
        token.verify(keys, Alg.ES384)
    with pytest.raises(NotGenuineError, match="does not verify"):
        token.verify(key_set(ec_entry(other), ec_entry(other)), Alg.ES384)


def test_an_unknown_key_is_undecided() -> None:
    for token in (sign(kid="other"), sign(header={"kid": ""})):
        with pytest.raises(UndecidedError):
            Token.parse(token, "token").verify(key_set(ec_entry()), Alg.ES384)
    with pytest.raises(UndecidedError):
        KeySet.of(Collateral(), ISSUER)
    foreign = Item("jwks", json.dumps({"issuer": ISSUER + "/", "keys": [ec_entry()]}).encode())
    with pytest.raises(UndecidedError):
        KeySet.of(Collateral([foreign]), ISSUER)


def test_keys_of_one_issuer_are_gathered() -> None:
    items = [Item("jwks", json.dumps({"issuer": ISSUER, "keys": [entry]}).encode()) for entry in ENTRIES.values()]
    assert len(KeySet.of(Collateral(items), ISSUER).keys) == 4


@pytest.mark.parametrize("alg", ["none", "None", "HS256", ""])
def test_no_signature_and_macs_are_refused(alg: str) -> None:
    _head, body, signature = sign().split(b".")
    unsigned = encoded({"alg": alg, "kid": "k"}).encode()
    for last in (b"", signature):
        with pytest.raises(NotGenuineError, match="not signed with ES384"):
            Token.parse(b".".join((unsigned, body, last)), "token").verify(key_set(ec_entry()), Alg.ES384)


def test_keys_that_a_token_brings_are_not_used() -> None:
    mine = ec.generate_private_key(ec.SECP384R1())
    header = {"jwk": ec_entry(mine), "jku": "https://attacker.example", "x5u": "https://attacker.example"}
    signed = f"{encoded({'alg': 'ES384', 'kid': 'k', **header})}.{encoded(CLAIMS)}"
    token = f"{signed}.{encoded(ecdsa(mine, SHA384(), 48)(signed.encode()))}".encode()
    with pytest.raises(NotGenuineError, match="does not verify"):
        Token.parse(token, "token").verify(key_set(ec_entry()), Alg.ES384)


def test_every_flipped_bit_is_noticed() -> None:
    good, keys = sign(), key_set(ec_entry())
    for at in range(0, len(good), 3):
        changed = bytearray(good)
        changed[at] ^= 1
        with pytest.raises((MalformedError, NotGenuineError, UndecidedError)):
            Token.parse(bytes(changed), "token").verify(keys, Alg.ES384)


def _malformed() -> dict[str, bytes]:
    head, body, signature = sign().split(b".")
    bad = {
        "two parts": head + b"." + body,
        "four parts": sign() + b".",
        "line feed": sign() + b"\n",
        "padding": sign() + b"=",
        "not ASCII": sign() + b"\xff",
        "not an object": b".".join((head, encoded([1]).encode(), signature)),
        "header is a list": b".".join((encoded([1]).encode(), body, signature)),
        "duplicate claim": b".".join((head, encoded(b'{"iss":"a","iss":"b"}').encode(), signature)),
        "duplicate alg": b".".join((encoded(b'{"alg":"ES384","alg":"none"}').encode(), body, signature)),
        "no alg": b".".join((encoded({}).encode(), body, signature)),
        "alg is a list": b".".join((encoded({"alg": ["ES384"]}).encode(), body, signature)),
        "certificates": sign(header={"x5c": ["!"]}),
        "no certificates": sign(header={"x5c": []}),
        "another type": sign(header={"typ": "JOSE"}),
        "too large": sign({**CLAIMS, "x": "y" * 70_000}),
    }
    for name in ("crit", "b64", "zip", "enc", "cty"):
        bad[name] = sign(header={name: True})
    return bad


@pytest.mark.parametrize("name", list(_malformed()))
def test_malformed_tokens(name: str) -> None:
    with pytest.raises(MalformedError):
        Token.parse(_malformed()[name], "token")


@pytest.mark.parametrize(
    "entry",
    [
        {"kty": "RSA", "kid": "k", "n": "AQAB", "e": "AQAB"},
        {"kty": "RSA", "kid": "k"},
        rsa_entry(n="%"),
        ec_entry(x=number(1, 48)),
        ec_entry(x=number(1, 47)),
        ec_entry(kid=7),
        ec_entry(alg=7),
        ec_entry(x5c="x"),
        ec_entry(x5c=[base64.b64encode(b"x").decode()]),
        "x",
    ],
)  # fmt: skip
def test_malformed_keys(entry: object) -> None:
    with pytest.raises(MalformedError):
        KeySet.parse(json.dumps({"issuer": ISSUER, "keys": [entry]}).encode())


def test_entries_that_are_not_signing_keys_are_passed_over() -> None:
    others = ({"kty": "oct", "k": "AA", "kid": "k"}, ec_entry(use="enc"), ec_entry(crv="secp256k1"), {"kty": "OKP"})
    assert key_set(*others).keys == ()
    with pytest.raises(UndecidedError):
        Token.parse(sign(), "token").verify(key_set(*others), Alg.ES384)


def _certificate(
    subject: str, key: ec.EllipticCurvePrivateKey, issuer: str, signer: ec.EllipticCurvePrivateKey, *, ca: bool
) -> x509.Certificate:
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign", "encipher_only",
         "decipher_only"), False,
    )  # fmt: skip
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW - HOUR)
        .not_valid_after(NOW + HOUR)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, **usage), critical=True)
        .sign(signer, SHA384())
    )


def test_certificates_chain_to_an_anchor_and_hold_the_key() -> None:
    root_key = ec.generate_private_key(ec.SECP384R1())
    root = _certificate("SIMULATED root", root_key, "SIMULATED root", root_key, ca=True)
    leaf = _certificate("leaf", P384_KEY, "SIMULATED root", root_key, ca=False)
    x5c = [leaf.public_bytes(Encoding.DER), root.public_bytes(Encoding.DER)]
    texts = [base64.b64encode(der).decode() for der in x5c]
    anchor = Anchor.simulated(root.public_bytes(Encoding.PEM).decode())

    for entry in (ec_entry(x5c=texts), {"kty": "EC", "kid": "k", "x5c": texts}):
        key = Token.parse(sign(), "token").verify(key_set(entry), Alg.ES384)
        assert validate_x5c(key.x5c, [anchor], now=NOW, profile=P384)[1][-1].subject == leaf.subject
        with pytest.raises(NotGenuineError, match="expired"):
            validate_x5c(key.x5c, [anchor], now=NOW + 2 * HOUR, profile=P384)
        with pytest.raises(NotGenuineError, match="not trusted"):
            validate_x5c(key.x5c, [], now=NOW, profile=P384)
    with pytest.raises(MalformedError, match="another key"):
        key_set(ec_entry(ec.generate_private_key(ec.SECP384R1()), x5c=texts))
    with pytest.raises(NotGenuineError, match="no certificate"):
        validate_x5c((), [anchor], now=NOW, profile=P384)
    assert Token.parse(sign(header={"x5c": texts}), "token").x5c == tuple(x5c)


def test_the_issuer_is_exact() -> None:
    token = Token.parse(sign(CLAIMS), "token")
    token.check_issuer(ISSUER)
    for issuer in (ISSUER + "/", ISSUER[:-1], ""):
        with pytest.raises(NotGenuineError):
            token.check_issuer(issuer)
    with pytest.raises(NotGenuineError):
        Token.parse(sign({**CLAIMS, "iss": [ISSUER]}), "token").check_issuer(ISSUER)


@pytest.mark.parametrize("aud", [7, None, [], ["a", 7], {"a": "a"}, ["a"] * 40])
def test_string_or_list_claims_are_nothing_else(aud: object) -> None:
    with pytest.raises(MalformedError):
        strings({"aud": aud}, "aud", "token")


@pytest.mark.parametrize(
    ("change", "seconds", "leeway", "passes"),
    [
        ({}, 0, 0, True),
        ({}, 3599, 0, True),
        ({}, 3600, 0, False),
        ({}, 3630, 60, True),
        ({}, 3661, 600, False),  # a leeway is cut to 60 s
        ({}, -1, 0, False),
        ({}, -60, 60, True),
        ({}, -61, 600, False),
        ({"nbf": CLAIMS["iat"] + 10}, 5, 0, False),
        ({"nbf": CLAIMS["iat"] + 10}, 10, 0, True),
        ({"exp": CLAIMS["iat"]}, 0, 60, False),
        ({"iat": CLAIMS["iat"] + 0.5}, 1, 0, True),
    ],
)
def test_times(change: dict, seconds: int, leeway: int, passes: bool) -> None:
    token = Token.parse(sign({**CLAIMS, **change}), "token")

    def check() -> None:
        token.check_times(now=NOW + timedelta(seconds=seconds), leeway=timedelta(seconds=leeway), max_age=2 * HOUR)

    if passes:
        check()
    else:
        with pytest.raises(NotGenuineError):
            check()


def test_age_is_bounded() -> None:
    token = Token.parse(sign(), "token")
    with pytest.raises(NotGenuineError, match="old"):
        token.check_times(now=NOW + timedelta(seconds=301), leeway=NONE, max_age=timedelta(seconds=300))


@pytest.mark.parametrize("name", ["iat", "exp", "nbf"])
@pytest.mark.parametrize("value", ["1", True, None, -1, 253_402_300_799, 1e300, [1]])
def test_times_that_are_none(name: str, value: object) -> None:
    with pytest.raises(MalformedError):
        Token.parse(sign({**CLAIMS, name: value}), "token").check_times(now=NOW, leeway=NONE, max_age=HOUR)


@pytest.mark.parametrize("name", ["iat", "exp"])
def test_times_must_be_there(name: str) -> None:
    claims = {key: value for key, value in CLAIMS.items() if key != name}
    with pytest.raises(MalformedError):
        Token.parse(sign(claims), "token").check_times(now=NOW, leeway=NONE, max_age=HOUR)


@given(st.binary(max_size=300) | st.from_regex(rb"[A-Za-z0-9_-]{0,40}(\.[A-Za-z0-9_-]{0,40}){0,4}", fullmatch=True))
def test_bytes_from_strangers(data: bytes) -> None:
    for decode in (lambda: Token.parse(data, "token"), lambda: KeySet.parse(data)):
        with pytest.raises(MalformedError):
            decode()
