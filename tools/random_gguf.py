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
class Shape:
    """Sizes of a model; the defaults are GPT-2's (Radford et al., 2019, table 2)."""

    layers: int
    width: int
    heads: int
    architecture: str = "gpt2"
    pre_tokenizer: str = "gpt-2"
    vocabulary: int = 50257
    context: int = 1024
    feed_forward: int = 0
    kv_heads: int = 0

    @property
    def inner(self) -> int:
        """Width of the feed-forward layer."""
        return self.feed_forward or 4 * self.width


PRESETS = {
    "gpt2-124m": Shape(layers=12, width=768, heads=12),
    "gpt2-355m": Shape(layers=24, width=1024, heads=16),
    "gpt2-tiny": Shape(layers=2, width=64, heads=2, vocabulary=512, context=512),
    # BigScience, 2022: config.json of bigscience/bloom-560m.
    "bloom-560m": Shape(
        architecture="bloom", pre_tokenizer="bloom", layers=24, width=1024, heads=16, vocabulary=250880, context=2048
    ),
    # config.json of deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B: 1.78 billion parameters, the output matrix untied.
    "qwen2-1.5b": Shape(
        architecture="qwen2", pre_tokenizer="qwen2", layers=28, width=1536, heads=12, kv_heads=2, feed_forward=8960,
        vocabulary=151936, context=4096,
    ),
}  # fmt: skip


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in byte order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def write(preset: str, path: Path, seed: int = 1) -> None:
    """Write one preset; matrices as Q4_0, the rest as F32."""
    shape, rng = PRESETS[preset], np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), shape.architecture)
    writer.add_name(preset)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    if shape.architecture == "qwen2":
        writer.add_head_count_kv(shape.kv_heads)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_freq_base(10000.0)
    else:
        writer.add_layer_norm_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    alphabet = byte_alphabet()
    # Fillers are tokens that no text merges into; generation picks them all the same.
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    fillers = [f"{a}{b}{c}{d}" for a in letters for b in letters for c in letters for d in letters]
    tokens = [*[*alphabet, *fillers][: shape.vocabulary - 1], "<|endoftext|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(shape.pre_tokenizer)
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

    def norm(name: str) -> None:
        vector(f"{name}.weight", width, 1.0)
        if shape.architecture != "qwen2":
            vector(f"{name}.bias", width, 0.0)

    width = shape.width
    matrix("token_embd.weight", shape.vocabulary, width)
    if shape.architecture == "gpt2":
        writer.add_tensor("position_embd.weight", rng.standard_normal((shape.context, width), dtype=np.float32) * 0.02)
    if shape.architecture == "bloom":
        norm("token_embd_norm")
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        norm(f"{block}.attn_norm")
        norm(f"{block}.ffn_norm")
        if shape.architecture == "qwen2":
            kv = width // shape.heads * shape.kv_heads
            for name, rows in (("attn_q", width), ("attn_k", kv), ("attn_v", kv)):
                matrix(f"{block}.{name}.weight", rows, width)
                vector(f"{block}.{name}.bias", rows, 0.0)
            matrix(f"{block}.attn_output.weight", width, width)
            matrix(f"{block}.ffn_gate.weight", shape.inner, width)
            matrix(f"{block}.ffn_up.weight", shape.inner, width)
            matrix(f"{block}.ffn_down.weight", width, shape.inner)
            continue
        for name, rows, columns in (
            ("attn_qkv", 3 * width, width),
            ("attn_output", width, width),
            ("ffn_up", shape.inner, width),
            ("ffn_down", width, shape.inner),
        ):
            matrix(f"{block}.{name}.weight", rows, columns)
            vector(f"{block}.{name}.bias", rows, 0.0)
    norm("output_norm")
    if shape.architecture == "qwen2":
        matrix("output.weight", shape.vocabulary, width)
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
