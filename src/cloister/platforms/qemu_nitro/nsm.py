"""What a Nitro security module answers (AWS nsm-api, QEMU hw/virtio/virtio-nsm.c): CBOR in, CBOR out, no I/O.

SIMULATED: its documents are signed under a root made in software, so no verifier takes them for the hardware's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from typing import TypeAlias

import cbor2

from cloister.errors import MalformedError
from cloister.tee.sim.attest import LIMITS, SimulatedNitro
from cloister.wire import cbor

MAX_REQUEST = 0x1000
MAX_RESPONSE = 0x3000
MAX_PCRS = 32
#: The registers that only the hypervisor writes.
LOCKED_AT_BOOT = 16
#: The registers that state the image: kernel, command line, ramdisks, and who signed it.
IMAGE_PCRS = (0, 1, 2, 8)
ROLE_PCR = 3
INSTANCE_PCR = 4
RANDOM_SIZE = 256

Fields: TypeAlias = Mapping[int | str, cbor.Value]


class Refused(Exception):
    """The request is answered with this error name of the NSM's own."""


def text_register(text: str) -> bytes:
    """PCR3 of a role's ARN, PCR4 of an instance id: SHA-384(0^48 || text)."""
    return hashlib.sha384(bytes(48) + text.encode()).digest()


def boot_registers(
    image: Mapping[int, bytes], *, role_arn: str | None = None, instance_id: str | None = None, debug: bool = False
) -> dict[int, bytes]:
    """Register values at boot; an enclave in debug mode states zeros for its image."""
    pcrs = {index: digest for index, digest in image.items() if not (debug and index in IMAGE_PCRS)}
    if role_arn is not None:
        pcrs[ROLE_PCR] = text_register(role_arn)
    if instance_id is not None:
        pcrs[INSTANCE_PCR] = text_register(instance_id)
    return pcrs


def decode_request(data: bytes) -> tuple[str, Fields]:
    """The operation and its fields: a bare text, or a map of one text to a map; raises MalformedError."""
    item = cbor.loads(data, "NSM request", limit=MAX_REQUEST)
    if isinstance(item, str):
        return item, {}
    if isinstance(item, dict) and len(item) == 1:
        ((name, fields),) = item.items()
        if isinstance(name, str) and isinstance(fields, dict):
            return name, fields
    raise MalformedError("NSM request: neither an operation nor an operation with its fields")


class SecurityModule:
    """32 registers, of which 0 to 15 are locked from the start, and the module's seven operations."""

    def __init__(self, signer: SimulatedNitro, pcrs: Mapping[int, bytes]) -> None:
        self._signer = signer
        self._pcrs = [pcrs.get(index, bytes(48)) for index in range(MAX_PCRS)]
        self._locked = set(range(LOCKED_AT_BOOT))
        self._operations: dict[str, Callable[[Fields], object]] = {
            "GetRandom": self._get_random,
            "DescribeNSM": self._describe_nsm,
            "DescribePCR": self._describe_pcr,
            "ExtendPCR": self._extend_pcr,
            "LockPCR": self._lock_pcr,
            "LockPCRs": self._lock_pcrs,
            "Attestation": self._attestation,
        }

    def handle(self, request: bytes, room: int = MAX_RESPONSE) -> bytes:
        """The answer, in at most `room` bytes; every refusal is an answer too."""
        try:
            answer = cbor2.dumps(self._answer(request))
            if len(answer) > room:
                raise Refused("BufferTooSmall")
        except Refused as refusal:
            answer = cbor2.dumps({"Error": str(refusal)})
        return answer[:room]

    def _answer(self, request: bytes) -> object:
        if len(request) > MAX_REQUEST:
            raise Refused("InputTooLarge")
        try:
            name, fields = decode_request(request)
        except MalformedError:
            raise Refused("InvalidOperation") from None
        operation = self._operations.get(name)
        if operation is None:
            raise Refused("InvalidOperation")
        result = operation(fields)
        return name if result is None else {name: result}

    def _get_random(self, _fields: Fields) -> object:
        return {"random": os.urandom(RANDOM_SIZE)}

    def _describe_nsm(self, _fields: Fields) -> object:
        return {
            "digest": "SHA384",
            "max_pcrs": MAX_PCRS,
            "module_id": self._signer.module_id,
            "locked_pcrs": sorted(self._locked),
            "version_major": 1,
            "version_minor": 0,
            "version_patch": 0,
        }

    def _describe_pcr(self, fields: Fields) -> object:
        index = _number(fields, "index", MAX_PCRS - 1)
        return {"data": self._pcrs[index], "lock": index in self._locked}

    def _extend_pcr(self, fields: Fields) -> object:
        index, data = self._unlocked(fields), fields.get("data")
        if not isinstance(data, bytes):
            raise Refused("InvalidOperation")
        self._pcrs[index] = hashlib.sha384(self._pcrs[index] + data).digest()
        return {"data": self._pcrs[index]}

    def _lock_pcr(self, fields: Fields) -> None:
        self._locked.add(self._unlocked(fields))

    def _lock_pcrs(self, fields: Fields) -> None:
        self._locked.update(range(_number(fields, "range", MAX_PCRS)))

    def _attestation(self, fields: Fields) -> object:
        """The document states the locked registers: an unlocked one could change after it."""
        values = {name: _octets(fields, name, limit) for name, limit in LIMITS.items()}
        return {"document": self._signer.document({i: self._pcrs[i] for i in sorted(self._locked)}, **values)}

    def _unlocked(self, fields: Fields) -> int:
        index = _number(fields, "index", MAX_PCRS - 1)
        if index in self._locked:
            raise Refused("ReadOnlyIndex")
        return index


def _number(fields: Fields, name: str, largest: int) -> int:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refused("InvalidOperation")
    if not 0 <= value <= largest:
        raise Refused("InvalidIndex")
    return value


def _octets(fields: Fields, name: str, limit: int) -> bytes | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, bytes):
        raise Refused("InvalidOperation")
    if value is not None and len(value) > limit:
        raise Refused("InputTooLarge")
    return value
