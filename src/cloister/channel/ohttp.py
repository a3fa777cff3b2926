"""Oblivious HTTP (RFC 9458): the request header, response keys, and the single-shot request and response.

The chunked form (`channel.chunked`) shares everything here but its labels.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from cloister.channel import hpke
from cloister.channel.keyconfig import KeyConfig
from cloister.errors import CloisterError, KeyRejectedError, TruncatedResponse
from cloister.wire.reader import Reader

REQUEST_TYPE = "message/ohttp-req"
RESPONSE_TYPE = "message/ohttp-res"
REQUEST_LABEL = b"message/bhttp request"
RESPONSE_LABEL = b"message/bhttp response"
HEADER_SIZE = 7


@dataclass(frozen=True, kw_only=True)
class RequestHeader:
    """key_id(1) kem_id(2) kdf_id(2) aead_id(2): which key and algorithms a request was sealed with."""

    key_id: int
    kem_id: int
    kdf_id: int
    aead_id: int

    def encode(self) -> bytes:
        """Its 7 bytes."""
        return self.key_id.to_bytes(1, "big") + b"".join(
            value.to_bytes(2, "big") for value in (self.kem_id, self.kdf_id, self.aead_id)
        )

    @classmethod
    def decode(cls, data: bytes) -> RequestHeader:
        """Parse 7 bytes."""
        reader = Reader(data, "request header")
        header = cls(
            key_id=reader.uint(1, "key_id"),
            kem_id=reader.uint(2, "kem_id"),
            kdf_id=reader.uint(2, "kdf_id"),
            aead_id=reader.uint(2, "aead_id"),
        )
        reader.end()
        return header

    @classmethod
    def of(cls, config: KeyConfig, suite: hpke.Suite) -> RequestHeader:
        """The header of a request sealed to that configuration."""
        return cls(key_id=config.key_id, kem_id=suite.kem_id, kdf_id=suite.kdf_id, aead_id=suite.aead_id)

    def info(self, label: bytes) -> bytes:
        """The HPKE info string: label 00 header."""
        return label + b"\x00" + self.encode()


@dataclass(frozen=True, kw_only=True)
class KeyMaterial:
    """What a lookup gives for a header: the private key, and whatever the caller wants back with it."""

    private_key: hpke.PrivateKey
    owner: object = None


Lookup = Callable[[RequestHeader], KeyMaterial]
"""Finds the key for a header; raises KeyRejectedError."""


def recipient(
    header: bytes, enc: bytes, lookup: Lookup, label: bytes
) -> tuple[hpke.Context, RequestHeader, KeyMaterial]:
    """The context that opens a request; every way to fail is the same KeyRejectedError, so nothing can be probed."""
    parsed = RequestHeader.decode(header)
    try:
        key = lookup(parsed)
        suite = hpke.Suite(kem_id=parsed.kem_id, kdf_id=parsed.kdf_id, aead_id=parsed.aead_id)
        return hpke.setup_recipient(suite, key.private_key, enc, parsed.info(label)), parsed, key
    except CloisterError:
        raise KeyRejectedError("no key of this replica opens the request") from None


def response_nonce_size(aead_id: int) -> int:
    """max(Nn, Nk), section 4.4."""
    return max(hpke.NONCE_SIZE, hpke.aead_key_size(aead_id))


def response_aead(
    context: hpke.Context, label: bytes, enc: bytes, response_nonce: bytes, aead_id: int
) -> hpke.AeadSequence:
    """The response's AEAD, keyed from the request's context and the response nonce (section 4.4)."""
    secret = context.export(label, response_nonce_size(aead_id))
    prk = hpke.hkdf_extract(enc + response_nonce, secret)
    key = hpke.hkdf_expand(prk, b"key", hpke.aead_key_size(aead_id))
    return hpke.AeadSequence(aead_id, key, hpke.hkdf_expand(prk, b"nonce", hpke.NONCE_SIZE))


@dataclass(eq=False, kw_only=True)
class ClientExchange:
    """A sealed single-shot request (`body`) and the means to open its answer."""

    body: bytes
    _context: hpke.Context
    _enc: bytes
    _aead_id: int

    def open(self, response: bytes) -> bytes:
        """The Binary HTTP response; raises TruncatedResponse when it does not authenticate whole."""
        size = response_nonce_size(self._aead_id)
        if len(response) < size + hpke.TAG_SIZE:
            raise TruncatedResponse("the sealed response is too short")
        aead = response_aead(self._context, RESPONSE_LABEL, self._enc, response[:size], self._aead_id)
        try:
            return aead.open(response[size:])
        except hpke.OpenError:
            raise TruncatedResponse("the sealed response was changed or cut") from None


def seal_request(config: KeyConfig, message: bytes) -> ClientExchange:
    """Seal a Binary HTTP request to a verified key (section 4.3)."""
    suite = config.choose()
    header = RequestHeader.of(config, suite)
    enc, context = hpke.setup_sender(suite, config.public_key, header.info(REQUEST_LABEL))
    body = header.encode() + enc + context.seal(message)
    return ClientExchange(body=body, _context=context, _enc=enc, _aead_id=suite.aead_id)


@dataclass(eq=False, kw_only=True)
class ServerExchange:
    """An opened single-shot request and the means to seal its answer; `enc` names it for the replay set."""

    message: bytes
    enc: bytes
    key: KeyMaterial
    _context: hpke.Context
    _aead_id: int

    def seal(self, response: bytes) -> bytes:
        """Seal a Binary HTTP response (section 4.4)."""
        return self._seal(response, os.urandom(response_nonce_size(self._aead_id)))

    def _seal(self, response: bytes, response_nonce: bytes) -> bytes:
        """Seal with a given nonce: for published vectors only."""
        aead = response_aead(self._context, RESPONSE_LABEL, self.enc, response_nonce, self._aead_id)
        return response_nonce + aead.seal(response)


def open_request(body: bytes, lookup: Lookup) -> ServerExchange:
    """Open a single-shot request; raises KeyRejectedError for every kind of failure but a missing header."""
    reader = Reader(body, "sealed request")
    header = reader.take(HEADER_SIZE, "header")
    kem_id = RequestHeader.decode(header).kem_id
    if kem_id not in hpke.KEMS:
        raise KeyRejectedError("no key of this replica opens the request")
    enc = reader.take(hpke.kem(kem_id).enc_size, "encapsulated key")
    context, parsed, key = recipient(header, enc, lookup, REQUEST_LABEL)
    try:
        message = context.open(reader.rest())
    except hpke.OpenError:
        raise KeyRejectedError("no key of this replica opens the request") from None
    return ServerExchange(message=message, enc=enc, key=key, _context=context, _aead_id=parsed.aead_id)
