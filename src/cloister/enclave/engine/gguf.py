"""Reads a GGUF header (ggml docs/gguf.md, versions 2 and 3): enough to say what a file is and why it will not load.

llama.cpp itself only says that it failed, and says why on a stream that is closed here.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import BinaryIO

from cloister.errors import ModelLoadError

MAX_ENTRIES = 100_000
MAX_TENSORS = 100_000
MAX_STRING = 16 * 1024 * 1024
MAX_ARRAY = 8 * 1024 * 1024

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# (elements of a block, bytes of a block) of ggml's tensor types.
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a model file says of itself; `context` is the training context in tokens (0 if it does not say)."""

    architecture: str
    name: str
    context: int
    parameters: int
    chat_template: bool


class _File:
    """Little-endian reads that end in ModelLoadError."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def take(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) != size:
            raise ModelLoadError("the model file is cut short")
        return data

    def scalar(self, code: str) -> int | float | bool:
        value: int | float | bool = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]
        return value

    def count(self, code: str, limit: int, what: str) -> int:
        value = int(self.scalar(code))
        if value > limit:
            raise ModelLoadError(f"the model file has an impossible {what}")
        return value

    def string(self) -> str:
        size = self.count("Q", MAX_STRING, "string length")
        return self.take(size).decode("utf-8", "replace")

    def value(self, kind: int) -> int | float | bool | str | None:
        """One metadata value; arrays are skipped."""
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise ModelLoadError("the model file has metadata of an unknown type")
        inner, length = int(self.scalar("I")), self.count("Q", MAX_ARRAY, "array length")
        if inner in _SCALARS:
            self.skip(length * struct.calcsize("<" + _SCALARS[inner]))
        elif inner == _STRING:
            for _ in range(length):
                self.skip(self.count("Q", MAX_STRING, "string length"))
        else:
            raise ModelLoadError("the model file has metadata of an unknown type")
        return None

    def skip(self, size: int) -> None:
        if self._file.tell() + size > self._size:
            raise ModelLoadError("the model file is cut short")
        self._file.seek(size, 1)

    def position(self) -> int:
        return self._file.tell()


def read_header(file: BinaryIO, size: int) -> Header:
    """Read the header of an open file of `size` bytes; raises ModelLoadError with the reason."""
    reader = _File(file, size)
    magic = file.read(4)
    if magic != b"GGUF":
        raise ModelLoadError("the model file is not GGUF", hint="Convert it with llama.cpp's convert_hf_to_gguf.py.")
    version = int(reader.scalar("I"))
    if version not in (2, 3):
        raise ModelLoadError(f"the model file is GGUF version {version}; 2 and 3 are known")
    tensors = reader.count("Q", MAX_TENSORS, "number of tensors")
    entries = reader.count("Q", MAX_ENTRIES, "number of metadata entries")
    metadata: dict[str, int | float | bool | str | None] = {}
    for _ in range(entries):
        key = reader.string()
        metadata[key] = reader.value(int(reader.scalar("I")))
    parameters, end = 0, 0
    for _ in range(tensors):
        reader.string()
        dimensions = [int(reader.scalar("Q")) for _ in range(reader.count("I", 8, "number of dimensions"))]
        kind, offset = int(reader.scalar("I")), int(reader.scalar("Q"))
        elements = math.prod(dimensions)
        parameters += elements
        if kind in _BLOCKS:
            per_block, block = _BLOCKS[kind]
            end = max(end, offset + elements // per_block * block)
    if not tensors:
        raise ModelLoadError("the model file holds no tensors")
    alignment = metadata.get("general.alignment") or 32
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
        raise ModelLoadError("the model file has an impossible alignment")
    start = -(-reader.position() // alignment) * alignment
    if start + end > size:
        raise ModelLoadError(f"the model file is cut short: {start + end} bytes are described, {size} are there")
    architecture, name = metadata.get("general.architecture"), metadata.get("general.name")
    if not isinstance(architecture, str):
        raise ModelLoadError("the model file does not name its architecture")
    context = metadata.get(f"{architecture}.context_length")
    return Header(
        architecture=architecture,
        name=name if isinstance(name, str) else "",
        context=context if isinstance(context, int) else 0,
        parameters=parameters,
        chat_template="tokenizer.chat_template" in metadata,
    )
