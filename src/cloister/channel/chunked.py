"""Chunked Oblivious HTTP (draft-ietf-ohai-chunked-ohttp-08): sealed streams whose end is authenticated.

    request   hdr || enc || { varint(len ct) ct }* || 00 || ct_final
    response  nonce      || { varint(len ct) ct }* || 00 || ct_final

Ordinary chunks are sealed with an empty AAD, the last one with "final", so a cut stream can never pass for a whole one.
Both ends keep a running transcript of what was sealed, for receipts; it hashes chunks and not raw bytes, because the
length encodings are not authenticated.
"""

from __future__ import annotations

import hashlib
import os

from cloister.channel import hpke
from cloister.channel.keyconfig import KeyConfig
from cloister.channel.ohttp import (
    HEADER_SIZE,
    KeyMaterial,
    Lookup,
    RequestHeader,
    recipient,
    response_aead,
    response_nonce_size,
)
from cloister.errors import KeyRejectedError, MalformedError, OverLimitError, TruncatedResponse
from cloister.wire.reader import encode_varint, varint_size

REQUEST_TYPE = "message/ohttp-chunked-req"
RESPONSE_TYPE = "message/ohttp-chunked-res"
REQUEST_LABEL = b"message/bhttp chunked request"
RESPONSE_LABEL = b"message/bhttp chunked response"
FINAL = b"final"
#: Plaintext bytes of one chunk, at most.
MAX_CHUNK = 16384
#: Sealed bytes of one request, at most, unless the opener is told otherwise.
MAX_REQUEST = 8 * 1024 * 1024


class _Transcript:
    """SHA-256 over a prefix and {u32be(len ct) || ct} of each chunk."""

    def __init__(self, prefix: bytes) -> None:
        self._hash = hashlib.sha256(prefix)

    def add(self, ciphertext: bytes) -> None:
        self._hash.update(len(ciphertext).to_bytes(4, "big") + ciphertext)

    def digest(self) -> bytes:
        return self._hash.copy().digest()


class _Sealer:
    """Seals chunks of one stream and frames them."""

    def __init__(self, aead: hpke.AeadSequence, prefix: bytes) -> None:
        self._aead = aead
        self._transcript = _Transcript(prefix)

    def chunk(self, data: bytes) -> bytes:
        """An ordinary chunk; `data` is 1 to MAX_CHUNK bytes."""
        if not 0 < len(data) <= MAX_CHUNK:
            raise ValueError("a chunk holds 1 to 16384 bytes")
        ciphertext = self._aead.seal(data)
        self._transcript.add(ciphertext)
        return encode_varint(len(ciphertext)) + ciphertext

    def _final(self, data: bytes) -> bytes:
        if len(data) > MAX_CHUNK:
            raise ValueError("the final chunk holds at most 16384 bytes")
        return self._aead.seal(data, FINAL)


class _Chunks:
    """Cuts a framed stream into ciphertexts; the final one is whatever follows a zero length until the end."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._buffer = b""
        self._final = False

    def push(self, data: bytes) -> list[bytes]:
        """Complete ordinary ciphertexts in the bytes so far."""
        buffer = self._buffer + data
        found: list[bytes] = []
        at = 0
        while not self._final and at < len(buffer):
            width = varint_size(buffer[at])
            if at + width > len(buffer):
                break
            size = int.from_bytes(buffer[at : at + width], "big") & ((1 << (8 * width - 2)) - 1)
            if not size:
                self._final = True
                at += width
                break
            # A chunk of only a tag would be empty, which the draft forbids for all but the final one.
            if not hpke.TAG_SIZE < size <= MAX_CHUNK + hpke.TAG_SIZE:
                raise MalformedError(f"{self._what}: chunk of a forbidden size")
            if at + width + size > len(buffer):
                break
            found.append(buffer[at + width : at + width + size])
            at += width + size
        self._buffer = buffer[at:]
        if self._final and len(self._buffer) > MAX_CHUNK + hpke.TAG_SIZE:
            raise MalformedError(f"{self._what}: final chunk too large")
        return found

    def finish(self) -> bytes | None:
        """The final ciphertext, or None when the stream ended before it."""
        return self._buffer if self._final and len(self._buffer) >= hpke.TAG_SIZE else None


class RequestSealer(_Sealer):
    """The client's side of a request: `start`, any number of `chunk`, one `final`; then `response_opener`."""

    def __init__(self, config: KeyConfig, suite: hpke.Suite | None = None) -> None:
        suite = suite or config.choose()
        header = RequestHeader.of(config, suite)
        self.enc, self._context = hpke.setup_sender(suite, config.public_key, header.info(REQUEST_LABEL))
        self._aead_id = suite.aead_id
        self._start = header.encode() + self.enc
        super().__init__(self._context, self._start)

    def start(self) -> bytes:
        """Header and encapsulated key: the first bytes of the body."""
        return self._start

    def final(self, data: bytes) -> bytes:
        """The last chunk (0 to MAX_CHUNK bytes)."""
        ciphertext = self._final(data)
        self._transcript.add(ciphertext)
        return b"\x00" + ciphertext

    def seal(self, message: bytes) -> bytes:
        """A whole message as one body."""
        cut = max(0, (len(message) - 1) // MAX_CHUNK) * MAX_CHUNK
        chunks = [self.chunk(message[at : at + MAX_CHUNK]) for at in range(0, cut, MAX_CHUNK)]
        return b"".join((self.start(), *chunks, self.final(message[cut:])))

    def transcript(self) -> bytes:
        """32 bytes that name this sealed request, all chunks included."""
        return self._transcript.digest()

    def export(self, label: bytes, length: int) -> bytes:
        """A secret of this exchange."""
        return self._context.export(label, length)

    def response_opener(self) -> ResponseOpener:
        """Opens the answer to this request."""
        return ResponseOpener(self._context, self.enc, self._aead_id)


class RequestOpener:
    """The replica's side of a request: `push` bytes as they come, `finish` at their end.

    Before the first chunk authenticates, every failure is the same KeyRejectedError. `key` and `enc` are set once it
    has: record `enc` in the replay set before acting on anything.
    """

    def __init__(self, lookup: Lookup, *, limit: int = MAX_REQUEST) -> None:
        self._lookup = lookup
        self._limit = limit
        self._size = 0
        self._head = b""
        self._context: hpke.Context | None = None
        self._chunks = _Chunks("sealed request")
        self._authenticated = False
        self._transcript = _Transcript(b"")
        self._aead_id = 0
        self.enc = b""
        self._key: KeyMaterial | None = None

    @property
    def key(self) -> KeyMaterial:
        """The key that opened the request."""
        if not self._authenticated or self._key is None:
            raise ValueError("no chunk has authenticated yet")
        return self._key

    @property
    def authenticated(self) -> bool:
        """Has the first chunk authenticated?"""
        return self._authenticated

    def push(self, data: bytes) -> list[bytes]:
        """Plaintexts of the chunks that `data` completes; raises KeyRejected-, Malformed- or OverLimitError."""
        self._size += len(data)
        if self._size > self._limit:
            raise OverLimitError(f"the sealed request is larger than {self._limit} bytes")
        if self._context is None:
            data = self._begin(data)
            if self._context is None:
                return []
        return [self._open(ciphertext, b"") for ciphertext in self._chunks.push(data)]

    def finish(self) -> bytes:
        """Plaintext of the final chunk; raises when the request ended without one."""
        if self._context is None:
            raise MalformedError("sealed request: ended within its header")
        ciphertext = self._chunks.finish()
        if ciphertext is None:
            raise MalformedError("sealed request: ended without its final chunk")
        return self._open(ciphertext, FINAL)

    def transcript(self) -> bytes:
        """32 bytes that name the sealed request, as the client's sealer computes them."""
        return self._transcript.digest()

    def export(self, label: bytes, length: int) -> bytes:
        """A secret of this exchange."""
        assert self._context is not None
        return self._context.export(label, length)

    def response_sealer(self) -> ResponseSealer:
        """Seals the answer to this request."""
        return self._response_sealer(os.urandom(response_nonce_size(self._aead_id)))

    def _response_sealer(self, response_nonce: bytes) -> ResponseSealer:
        """Seal with a given nonce: for published vectors only."""
        assert self._context is not None
        return ResponseSealer(self._context, self.enc, self._aead_id, response_nonce)

    def _begin(self, data: bytes) -> bytes:
        """Read header and encapsulated key; returns what follows them."""
        self._head += data
        if len(self._head) < HEADER_SIZE:
            return b""
        kem_id = RequestHeader.decode(self._head[:HEADER_SIZE]).kem_id
        if kem_id not in hpke.KEMS:
            raise KeyRejectedError("no key of this replica opens the request")
        end = HEADER_SIZE + hpke.kem(kem_id).enc_size
        if len(self._head) < end:
            return b""
        self.enc = self._head[HEADER_SIZE:end]
        self._context, header, self._key = recipient(self._head[:HEADER_SIZE], self.enc, self._lookup, REQUEST_LABEL)
        self._aead_id = header.aead_id
        self._transcript = _Transcript(self._head[:end])
        return self._head[end:]

    def _open(self, ciphertext: bytes, aad: bytes) -> bytes:
        assert self._context is not None
        try:
            plaintext = self._context.open(ciphertext, aad)
        except hpke.OpenError:
            if self._authenticated:
                raise MalformedError("sealed request: a chunk was changed, moved or cut") from None
            raise KeyRejectedError("no key of this replica opens the request") from None
        self._authenticated = True
        self._transcript.add(ciphertext)
        return plaintext


class ResponseSealer(_Sealer):
    """The replica's side of a response: `start`, any number of `chunk`, one `final`."""

    def __init__(self, context: hpke.Context, enc: bytes, aead_id: int, response_nonce: bytes) -> None:
        self._nonce = response_nonce
        super().__init__(response_aead(context, RESPONSE_LABEL, enc, response_nonce, aead_id), response_nonce)

    def start(self) -> bytes:
        """The response nonce: the first bytes of the body."""
        return self._nonce

    def final(self, data: bytes) -> bytes:
        """The last chunk (0 to MAX_CHUNK bytes); it is not part of the transcript, which it may carry."""
        return b"\x00" + self._final(data)

    def transcript(self) -> bytes:
        """32 bytes that name the nonce and all chunks but the final one."""
        return self._transcript.digest()


class ResponseOpener:
    """The client's side of a response: `push` bytes as they come, `finish` at their end."""

    def __init__(self, context: hpke.Context, enc: bytes, aead_id: int) -> None:
        self._context = context
        self._enc = enc
        self._aead_id = aead_id
        self._head = b""
        self._aead: hpke.AeadSequence | None = None
        self._chunks = _Chunks("sealed response")
        self._transcript = _Transcript(b"")

    def push(self, data: bytes) -> list[bytes]:
        """Plaintexts of the chunks that `data` completes; raises TruncatedResponse when one was tampered with."""
        if self._aead is None:
            self._head += data
            size = response_nonce_size(self._aead_id)
            if len(self._head) < size:
                return []
            nonce, data = self._head[:size], self._head[size:]
            self._aead = response_aead(self._context, RESPONSE_LABEL, self._enc, nonce, self._aead_id)
            self._transcript = _Transcript(nonce)
        plaintexts = []
        for ciphertext in self._chunks.push(data):
            plaintexts.append(self._open(self._aead, ciphertext, b""))
            self._transcript.add(ciphertext)
        return plaintexts

    def finish(self) -> bytes:
        """Plaintext of the final chunk; raises TruncatedResponse when the response ended without one."""
        ciphertext = self._chunks.finish()
        if self._aead is None or ciphertext is None:
            raise TruncatedResponse("the answer ended without its final chunk")
        return self._open(self._aead, ciphertext, FINAL)

    def transcript(self) -> bytes:
        """32 bytes that name the nonce and all chunks but the final one."""
        return self._transcript.digest()

    @staticmethod
    def _open(aead: hpke.AeadSequence, ciphertext: bytes, aad: bytes) -> bytes:
        try:
            return aead.open(ciphertext, aad)
        except hpke.OpenError:
            raise TruncatedResponse("a chunk of the answer was changed, moved or cut") from None
