"""Encrypted segments, each openable by itself: Tink's streaming AEAD, key type AES256_GCM_HKDF_1MB.

Source: developers.google.com/tink/streaming-aead/aes_gcm_hkdf_streaming. A ciphertext is a header (one byte 40, a salt
of 32 bytes, a nonce prefix of 7), then segments of 1 MiB, the first shorter by the header, each ending in a tag of 16
bytes. A segment's nonce is prefix ‖ u32 index ‖ 1 for the last and 0 for the others: order, place and end are
authenticated.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloister.errors import MalformedError, RefusedError
from cloister.weights.keys import KEY_BYTES

SEGMENT = 1024 * 1024
TAG = 16
SALT, PREFIX = 32, 7
HEADER = 1 + SALT + PREFIX
MAX_SEGMENTS = 2**32


@dataclass(frozen=True)
class Layout:
    """Where the segments of `size` plaintext bytes lie; offsets count from the header's first byte."""

    size: int

    @property
    def segments(self) -> int:
        """How many there are, at least one."""
        first = SEGMENT - HEADER - TAG
        return 1 if self.size <= first else 1 + -(-(self.size - first) // (SEGMENT - TAG))

    @property
    def ciphertext(self) -> int:
        """Bytes of header and all segments."""
        return HEADER + self.size + TAG * self.segments

    def plain(self, index: int) -> tuple[int, int]:
        """Start and end of a segment's plaintext."""
        first = SEGMENT - HEADER - TAG
        start = 0 if index == 0 else first + (index - 1) * (SEGMENT - TAG)
        return start, min(self.size, first + index * (SEGMENT - TAG))

    def sealed(self, index: int) -> tuple[int, int]:
        """Start and end of a segment's ciphertext, tag included."""
        start, end = self.plain(index)
        return HEADER + start + TAG * index, HEADER + end + TAG * (index + 1)


class _Cipher:
    def __init__(self, key: bytes, header: bytes, associated: bytes, size: int) -> None:
        if len(key) != KEY_BYTES:
            raise RefusedError(
                "the data key has another length than 32 bytes", hint="The service released something else."
            )
        if len(header) != HEADER or header[0] != HEADER:
            raise MalformedError("sealed weights: the stream's header is damaged")
        self.layout = Layout(size)
        if self.layout.segments > MAX_SEGMENTS:
            raise MalformedError("sealed weights: more segments than the format has")
        self._prefix = header[1 + SALT :]
        derived = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=header[1 : 1 + SALT], info=associated).derive(key)
        self._aead = AESGCM(derived)

    def _nonce(self, index: int) -> bytes:
        return self._prefix + struct.pack(">IB", index, index == self.layout.segments - 1)


class Sealer(_Cipher):
    """Encrypts the segments of one stream; `header` comes first in it. A key may seal any number of streams."""

    def __init__(self, key: bytes, associated: bytes, size: int) -> None:
        self.header = bytes([HEADER]) + os.urandom(SALT + PREFIX)
        super().__init__(key, self.header, associated, size)

    def seal(self, index: int, plaintext: bytes) -> bytes:
        """One segment's ciphertext and tag."""
        return self._aead.encrypt(self._nonce(index), plaintext, None)


class Opener(_Cipher):
    """Decrypts segments in any order."""

    def open_into(self, index: int, ciphertext: memoryview, target: memoryview) -> None:
        """One segment into `target`, which has exactly the plaintext's length; raises RefusedError."""
        try:
            self._aead.decrypt_into(self._nonce(index), ciphertext, None, target)
        except (InvalidTag, ValueError):
            raise RefusedError(
                f"sealed weights: segment {index} does not open",
                hint="Wrong key, or the file was changed, reordered or cut.",
            ) from None
