"""Ask the Nitro security module: /dev/nsm by ioctl, requests and answers in CBOR, in plain Python.

The interface: Linux `include/uapi/linux/nsm.h` (one ioctl that carries a request and room for an answer); the messages:
aws-nitro-enclaves-nsm-api. One request at a time is all the driver does; it blocks, so call it off the event loop.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import threading
from pathlib import Path

import cbor2

from cloister.errors import MalformedError, UndecidedError
from cloister.tee.evidence import Offers
from cloister.wire import cbor

DEVICE = Path("/dev/nsm")
MEDIA_TYPE = "application/vnd.cloister.nitro-doc"
#: _IOWR(0x0A, 0, struct nsm_raw): two addresses with their lengths, 32 bytes.
IOCTL = 0xC0200A00
RAW = struct.Struct("@QQQQ")
REQUEST_BYTES, RESPONSE_BYTES = 0x1000, 0x3000
#: The module's own limits for the three values of an attestation document.
USER_DATA_BYTES = NONCE_BYTES = 512
PUBLIC_KEY_BYTES = 1024


class NitroSecurityModule:
    """Implements tee.attester.Attester; also asks for documents that carry a public key, as AWS KMS wants them."""

    def __init__(self, device: Path = DEVICE) -> None:
        self._device = device
        self._lock = threading.Lock()

    def offer(self, user_data: bytes, nonce: bytes | None) -> Offers:
        """A document, as a replica's bundle carries it; raises UndecidedError."""
        return Offers.one(MEDIA_TYPE, self.attest(user_data, nonce))

    def attest(self, user_data: bytes | None, nonce: bytes | None, public_key: bytes | None = None) -> bytes:
        """A signed attestation document (COSE_Sign1); raises UndecidedError with the module's own word."""
        for name, value, limit in (
            ("user_data", user_data, USER_DATA_BYTES),
            ("nonce", nonce, NONCE_BYTES),
            ("public_key", public_key, PUBLIC_KEY_BYTES),
        ):
            if value is not None and len(value) > limit:
                raise UndecidedError(f"{name} holds {len(value)} bytes, the security module takes {limit}")
        answer = self.request({"Attestation": {"user_data": user_data, "nonce": nonce, "public_key": public_key}})
        match answer:
            case {"Attestation": {"document": bytes(document)}}:
                return document
        raise UndecidedError("the security module answered something else than a document")

    def registers(self) -> dict[int, bytes]:
        """PCR0 to PCR15 (48 bytes each) as the module has them; raises UndecidedError."""
        values = {}
        for index in range(16):
            match self.request({"DescribePCR": {"index": index}}):
                case {"DescribePCR": {"data": bytes(data)}}:
                    values[index] = data
                case _:
                    raise UndecidedError("the security module answered something else than a register")
        return values

    def request(self, message: object) -> cbor.Value:
        """One request; the answer decoded. Raises UndecidedError when the module refuses or cannot be reached."""
        request = cbor2.dumps(message)
        if len(request) > REQUEST_BYTES:
            raise UndecidedError("the request is longer than the security module takes")
        try:
            answer = cbor.loads(self._exchange(request), "security module", limit=RESPONSE_BYTES)
        except OSError as error:
            raise UndecidedError(
                f"the Nitro security module does not answer: {error.strerror}",
                hint="Only a Nitro enclave has /dev/nsm, and only root may open it.",
            ) from None
        except MalformedError:
            raise UndecidedError("the security module's answer is not readable") from None
        match answer:
            case {"Error": str(word)}:
                raise UndecidedError(f"the security module refused: {word}")
        return answer

    def _exchange(self, request: bytes) -> bytes:
        sent = ctypes.create_string_buffer(request, len(request))
        room = ctypes.create_string_buffer(RESPONSE_BYTES)
        raw = bytearray(RAW.pack(ctypes.addressof(sent), len(request), ctypes.addressof(room), RESPONSE_BYTES))
        with self._lock:
            device = os.open(self._device, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, IOCTL, raw)
            finally:
                os.close(device)
        length = RAW.unpack(raw)[3]
        if length > RESPONSE_BYTES:
            raise UndecidedError("the security module answered more than there is room for")
        return room.raw[:length]
