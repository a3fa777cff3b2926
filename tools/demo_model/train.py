"""Trains the bundled demo model from scratch and writes it as GGUF.

    python tools/demo_model/train.py OUT.gguf [--steps N]

Llama architecture, byte-level BPE, one CPU thread, fixed seeds. About three quarters of an hour on one core.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - the name PyTorch's own documentation uses
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import export
import notes

SEED = 1
VOCABULARY = 1024
SPECIALS = ("<|im_start|>", "<|im_end|>")
#: The pattern llama.cpp applies for the pre-tokenizer it calls "qwen2"; digits stand alone.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of the network; rows are multiples of 32, the block of Q8_0."""

    width: int = 160
    layers: int = 4
    heads: int = 5
    hidden: int = 448
    context: int = 1024
    vocabulary: int = VOCABULARY
    rope_base: float = 10_000.0
    epsilon: float = 1e-5


def train_tokenizer(count: int = 4000) -> Tokenizer:
    """A byte-level BPE from the first conversations of the seed."""
    rng = random.Random(SEED)
    texts = [content for _ in range(count) for _, content in notes.conversation(rng)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, messages: list[notes.Message]) -> tuple[list[int], list[float]]:
    """Token ids and loss weights of a conversation, cut into exactly the spans that the chat template renders."""
    start, end = (tokenizer.token_to_id(special) for special in SPECIALS)
    ids: list[int] = []
    weights: list[float] = []

    def add(tokens: list[int], weight: float) -> None:
        ids.extend(tokens)
        weights.extend([weight] * len(tokens))

    for role, content in messages:
        answer = role == "assistant"
        add([start], 0.0)
        if answer:
            # Generation begins after "assistant\n": the answer is tokenised apart from it.
            add(tokenizer.encode("assistant\n").ids, 0.0)
            add(tokenizer.encode(content).ids, 1.0)
        else:
            add(tokenizer.encode(f"{role}\n{content}").ids, 0.05)
        add([end], 1.0 if answer else 0.0)
        add(tokenizer.encode("\n").ids, 0.0)
    return ids, weights


class Norm(nn.Module):
    """RMS norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape.width))
        self.epsilon = shape.epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., width)."""
        x = x.float()
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon) * self.weight


def rotary(shape: Shape) -> torch.Tensor:
    """Complex rotations, (context, head/2); pairs are neighbours, as llama.cpp's Llama has them."""
    half = shape.width // shape.heads // 2
    speeds = shape.rope_base ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = torch.outer(torch.arange(shape.context, dtype=torch.float32), speeds)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Apply rotations to x: (batch, heads, time, head)."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns[: x.shape[2]]).flatten(-2).type_as(x)


class Block(nn.Module):
    """Attention and gated feed-forward, each behind a norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        width, hidden = shape.width, shape.hidden
        self.attn_norm, self.ffn_norm = Norm(shape), Norm(shape)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """x: (batch, time, width)."""
        batch, time_, width = x.shape
        y = self.attn_norm(x)
        q, k, v = (p(y).view(batch, time_, self.heads, -1).transpose(1, 2) for p in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(rotate(q, turns), rotate(k, turns), v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(batch, time_, width))
        y = self.ffn_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Model(nn.Module):
    """A small Llama with tied embeddings."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = Norm(shape)
        self.register_buffer("turns", rotary(shape), persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                deep = name.endswith((".o.weight", ".down.weight"))
                nn.init.normal_(weight, std=0.02 / (math.sqrt(2 * shape.layers) if deep else 1.0))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: (batch, time); logits: (batch, time, vocabulary)."""
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.turns)
        return F.linear(self.norm(x), self.embedding.weight)


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made near-orthogonal by five Newton-Schulz iterations; for the hidden matrices."""

    def __init__(self, weights: list[nn.Parameter], rate: float) -> None:
        super().__init__(weights, {"lr": rate})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update of every matrix."""
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                momentum = state.setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 0.05)
                x = weight.grad.lerp(momentum, 0.95)
                x = x / (x.norm() + 1e-7)
                tall = x.shape[0] > x.shape[1]
                x = x.T if tall else x
                for _ in range(5):
                    square = x @ x.T
                    x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
                x = x.T if tall else x
                weight.add_(x, alpha=-group["lr"] * max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5)


def batches(tokenizer: Tokenizer, shape: Shape, tokens: int):
    """Endless batches of about `tokens` tokens: ids, targets, weights; neighbours in length share a batch."""
    rng = random.Random(SEED)
    while True:
        pool = []
        while len(pool) < 512:
            item = encode(tokenizer, notes.conversation(rng))
            if len(item[0]) <= shape.context:
                pool.append(item)
        pool.sort(key=lambda item: len(item[0]))
        ready, batch = [], []
        for item in pool:
            if batch and len(item[0]) * (len(batch) + 1) > tokens:
                ready.append(batch)
                batch = []
            batch.append(item)
        ready.append(batch)
        rng.shuffle(ready)
        for items in ready:
            longest = max(len(ids) for ids, _ in items)
            ids = torch.zeros(len(items), longest, dtype=torch.long)
            weights = torch.zeros(len(items), longest)
            for row, (tokens_, weights_) in enumerate(items):
                ids[row, : len(tokens_)] = torch.tensor(tokens_)
                weights[row, : len(weights_)] = torch.tensor(weights_)
            yield ids[:, :-1], ids[:, 1:], weights[:, 1:]


def train(shape: Shape, tokenizer: Tokenizer, steps: int, tokens: int = 4096) -> Model:
    """Train for `steps` batches of about `tokens` tokens."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = Model(shape)
    matrices = [w for name, w in model.named_parameters() if w.dim() == 2 and "embedding" not in name]
    rest = [w for name, w in model.named_parameters() if w.dim() == 1 or "embedding" in name]
    muon, adam = Muon(matrices, 0.02), torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    rates = [(group, group["lr"]) for optimizer in (muon, adam) for group in optimizer.param_groups]
    source, began, smooth = batches(tokenizer, shape, tokens), time.monotonic(), 0.0
    for step in range(steps):
        warm, left = min(1.0, (step + 1) / 50), (steps - step) / steps
        for group, rate in rates:
            group["lr"] = rate * warm * min(1.0, left / 0.5 + 0.02)
        ids, targets, weights = next(source)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(ids)
        losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        loss = (losses * weights.flatten()).sum() / weights.sum()
        loss.backward()
        muon.step()
        adam.step()
        model.zero_grad(set_to_none=True)
        smooth = loss.item() if not step else 0.95 * smooth + 0.05 * loss.item()
        if step % 50 == 49:
            print(f"step {step + 1}/{steps} loss {smooth:.3f} {time.monotonic() - began:.0f} s", flush=True)
    return model


def main() -> int:
    """Train, export, print the digest."""
    parser = argparse.ArgumentParser(description="Train the bundled demo model.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=4200)
    options = parser.parse_args()
    shape = Shape()
    tokenizer = train_tokenizer()
    model = train(shape, tokenizer, options.steps)
    print("parameters", sum(weight.numel() for weight in model.parameters()))
    export.write(options.out, model, tokenizer)
    print("sha256", hashlib.sha256(options.out.read_bytes()).hexdigest())
    return 0


if __name__ == "__main__":
    sys.exit(main())
