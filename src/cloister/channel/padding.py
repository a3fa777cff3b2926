"""How long a sealed request looks: zero padding after the Binary HTTP message (RFC 9292 section 3.8)."""

from __future__ import annotations

STEP = 2048
STEP_LIMIT = 16384


def padded_size(size: int) -> int:
    """The bucket for `size` bytes: multiples of 2 KiB up to 16 KiB, then Padmé (less than 12 % more)."""
    if size <= STEP_LIMIT:
        return max(STEP, -(-size // STEP) * STEP)
    # Padmé (Nikitin et al., 2019): keep only the first floor(log2(E)) + 1 significant bits after the leading one.
    exponent = size.bit_length() - 1
    spare = exponent - (exponent.bit_length())
    mask = (1 << spare) - 1
    return (size + mask) & ~mask


def pad(message: bytes) -> bytes:
    """The message with zeros up to its bucket."""
    return message.ljust(padded_size(len(message)), b"\x00")
