"""Our JWE against an independent one, and everything that must not open."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwe as jose
from joserfc.jwk import ECKey

from cloister.errors import MalformedError
from cloister.weights import jwe
from cloister.wire import strict_json
from cloister.wire.strict_json import encode_base64url

KEY = ec.generate_private_key(ec.SECP256R1())
THEIRS = ECKey.import_key(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
REGISTRY = jose.JWERegistry(algorithms=[jwe.ALGORITHM, jwe.ENCRYPTION])


def sealed(plaintext: bytes = b"secret") -> dict[str, str]:
    return jwe.seal(plaintext, KEY.public_key())


def test_what_is_sealed_opens() -> None:
    for plaintext in (b"", b"k" * 32, b"x" * jwe.MAX_PLAINTEXT):
        assert jwe.open_sealed(json.dumps(sealed(plaintext)).encode(), KEY) == plaintext
    assert sealed() != sealed()
    with pytest.raises(ValueError, match="too long"):
        sealed(b"x" * (jwe.MAX_PLAINTEXT + 1))


def test_an_independent_library_opens_ours() -> None:
    assert jose.decrypt_json(sealed(b"k" * 32), THEIRS, registry=REGISTRY).plaintext == b"k" * 32


def test_ours_opens_what_an_independent_library_sealed() -> None:
    theirs = ECKey.import_key(jwe.public_jwk(KEY.public_key()))
    header = {"alg": jwe.ALGORITHM, "enc": jwe.ENCRYPTION}
    compact = jose.encrypt_compact(header, b"k" * 32, theirs, registry=REGISTRY)
    # The compact serialization has the parts of the flattened one, in this order (RFC 7516 section 7.1).
    names = ("protected", "encrypted_key", "iv", "ciphertext", "tag")
    members = dict(zip(names, compact.split("."), strict=True))
    assert jwe.open_sealed(json.dumps(members).encode(), KEY) == b"k" * 32


def test_the_key_travels_as_a_jwk() -> None:
    members = jwe.public_jwk(KEY.public_key())
    assert jwe.read_jwk(strict_json.Fields(dict(members), "JWK")) == KEY.public_key()
    assert set(members) == {"kty", "crv", "alg", "x", "y"}


def test_another_key_does_not_open_it() -> None:
    with pytest.raises(MalformedError, match="does not open"):
        jwe.open_sealed(json.dumps(sealed()).encode(), ec.generate_private_key(ec.SECP256R1()))


@given(name=st.sampled_from(["encrypted_key", "iv", "ciphertext", "tag"]), at=st.integers(0), bit=st.integers(0, 7))
def test_no_changed_bit_opens(name: str, at: int, bit: int) -> None:
    members = sealed()
    data = bytearray(strict_json.decode_base64url(members[name], name))
    data[at % len(data)] ^= 1 << bit
    with pytest.raises(MalformedError, match="does not open"):
        jwe.open_sealed(json.dumps({**members, name: encode_base64url(bytes(data))}).encode(), KEY)


def header(**changes: object) -> Callable[[dict], None]:
    """Another protected header: its members changed, None drops one."""

    def apply(members: dict) -> None:
        read = json.loads(strict_json.decode_base64url(members["protected"], "x"))
        read = {name: value for name, value in {**read, **changes}.items() if value is not None}
        members["protected"] = encode_base64url(json.dumps(read).encode())

    return apply


@pytest.mark.parametrize(
    "change",
    [
        header(alg="RSA1_5"),
        header(alg="RSA-OAEP"),
        header(alg="dir"),
        header(alg="ECDH-ES"),
        header(alg=None),
        header(enc="A128CBC-HS256"),
        header(enc=None),
        header(zip="DEF"),
        header(crit=["exp"]),
        header(apu="QWxpY2U"),
        header(epk=None),
        header(epk={"kty": "EC", "crv": "P-256", "x": "A" * 43, "y": "A" * 43}),
        header(epk={"kty": "EC", "crv": "P-384", "x": "A" * 64, "y": "A" * 64}),
        header(epk={**jwe.public_jwk(KEY.public_key()), "d": "AAAA"}),
        header(epk="x"),
        lambda members: members.update(protected="e30"),
        lambda members: members.update(protected=members["protected"] + "="),
        lambda members: members.update(protected="[]"),
        lambda members: members.update(aad="AAAA"),
        lambda members: members.update(header={}),
        lambda members: members.update(unprotected={}),
        lambda members: members.update(tag=members["tag"][:10]),
        lambda members: members.update(iv="AAAA"),
        lambda members: members.update(encrypted_key=""),
        lambda members: members.pop("tag"),
        lambda members: members.update(ciphertext="A" * 8000),
    ],
)
def test_other_shapes_are_refused(change: Callable[[dict], None]) -> None:
    members = sealed()
    change(members)
    with pytest.raises(MalformedError) as error:
        jwe.open_sealed(json.dumps(members).encode(), KEY)
    assert "does not open" not in error.value.message


def test_the_header_is_authenticated() -> None:
    """The same words in other bytes."""
    members = sealed()
    header()(members)
    with pytest.raises(MalformedError, match="does not open"):
        jwe.open_sealed(json.dumps(members).encode(), KEY)
    with pytest.raises(MalformedError, match="limit"):
        jwe.open_sealed(b" " * (jwe.MAX_JWE + 1), KEY)
