"""Writes GGUF files with random weights in the true shape of known models: for load, memory and speed, not for sense.

python tools/random_gguf.py gpt2-124m OUT.gguf [--seed N]
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

Q4_0, F32 = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.F32


@dataclass(frozen=True, kw_only=True)
class Gpt2Shape:
    """Sizes of a GPT-2 (Radford et al., 2019, table 2)."""

    layers: int
    width: int
    heads: int
    vocabulary: int = 50257
    context: int = 1024


PRESETS = {
    "gpt2-124m": Gpt2Shape(layers=12, width=768, heads=12),
    "gpt2-355m": Gpt2Shape(layers=24, width=1024, heads=16),
    "gpt2-tiny": Gpt2Shape(layers=2, width=64, heads=2, vocabulary=512, context=512),
}


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in byte order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def write(preset: str, path: Path, seed: int = 1) -> None:
    """Write one preset; matrices as Q4_0, the rest as F32."""
    shape, rng = PRESETS[preset], np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), "gpt2")
    writer.add_name(preset)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(4 * shape.width)
    writer.add_head_count(shape.heads)
    writer.add_layer_norm_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    alphabet = byte_alphabet()
    # Fillers are tokens that no text merges into; generation picks them all the same.
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    fillers = [f"{a}{b}{c}{d}" for a in letters for b in letters for c in letters for d in letters[:4]]
    tokens = [*[*alphabet, *fillers][: shape.vocabulary - 1], "<|endoftext|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(tokens) - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)

    def matrix(name: str, rows: int, columns: int) -> None:
        weights = rng.standard_normal((rows, columns), dtype=np.float32) * 0.02
        writer.add_tensor(name, gguf.quants.quantize(weights, Q4_0), raw_dtype=Q4_0)

    def vector(name: str, size: int, value: float) -> None:
        writer.add_tensor(name, np.full(size, value, dtype=np.float32))

    width = shape.width
    matrix("token_embd.weight", shape.vocabulary, width)
    writer.add_tensor("position_embd.weight", rng.standard_normal((shape.context, width), dtype=np.float32) * 0.02)
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        for norm in ("attn_norm", "ffn_norm"):
            vector(f"{block}.{norm}.weight", width, 1.0)
            vector(f"{block}.{norm}.bias", width, 0.0)
        for name, rows, columns in (
            ("attn_qkv", 3 * width, width),
            ("attn_output", width, width),
            ("ffn_up", 4 * width, width),
            ("ffn_down", width, 4 * width),
        ):
            matrix(f"{block}.{name}.weight", rows, columns)
            vector(f"{block}.{name}.bias", rows, 0.0)
    vector("output_norm.weight", width, 1.0)
    vector("output_norm.bias", width, 0.0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> int:
    """Write the file that the command line asks for."""
    parser = argparse.ArgumentParser(description="Write a random-weight GGUF.")
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    write(options.preset, options.out, options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
