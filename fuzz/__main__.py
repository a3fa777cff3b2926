"""`python -m fuzz [--seconds N] [--target NAME] [--seed S]`: mutates each target's corpus; exit 1 on a surprise."""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections.abc import Callable

from cloister.errors import CloisterError
from fuzz.targets import TARGETS, Target

_INTERESTING = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\xbf\xff", b"\xff" * 8, b"\x00" * 8, b"\xc0", b'"', b"{", b"[")


def mutate(data: bytes, corpus: list[bytes], rng: random.Random) -> bytes:
    """One to four random edits: flips, cuts, repeats, splices, lengths."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(7)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1 and out:
            out[at % len(out)] = rng.randrange(256)
        elif kind == 2:
            del out[at : at + rng.randint(1, 16)]
        elif kind == 3:
            out[at:at] = rng.choice(_INTERESTING)
        elif kind == 4:
            del out[at:]
        elif kind == 5:
            other = rng.choice(corpus)
            cut = rng.randrange(len(other) + 1)
            out[at:] = other[cut:]
        else:
            out[at:at] = out[max(0, at - rng.randint(1, 32)) : at]
    return bytes(out)


def attack(target: Target, seconds: float, seed: int) -> tuple[int, bytes | None]:
    """Runs tried, and the input that raised something foreign, if any."""
    rng, corpus = random.Random(seed), target.corpus()
    end, runs = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        data = mutate(rng.choice(corpus), corpus, rng)
        runs += 1
        if not survives(target.run, data):
            return runs, data
    return runs, None


def survives(run: Callable[[bytes], None], data: bytes) -> bool:
    """Does the target end normally or with one of our errors?"""
    try:
        run(data)
    except CloisterError:
        return True
    except Exception:  # noqa: BLE001 - that is what is looked for
        traceback.print_exc()
        return False
    return True


def main() -> int:
    """Fuzz every target for a while."""
    parser = argparse.ArgumentParser(prog="python -m fuzz")
    parser.add_argument("--seconds", type=float, default=20, help="for each target")
    parser.add_argument("--target", choices=[target.name for target in TARGETS])
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    failed = False
    for target in TARGETS:
        if options.target in (None, target.name):
            runs, bad = attack(target, options.seconds, options.seed)
            print(f"{target.name}: {runs} runs" + (f", FAILED on {bad.hex()}" if bad is not None else ""), flush=True)
            failed = failed or bad is not None
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
