"""Asks a demo model about held-out invented notes, through llama.cpp, and counts what it gets right.

    python tools/demo_model/evaluate.py MODEL.gguf [--notes N]

Exit code 1 below the thresholds that the model card promises.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import xllamacpp

sys.path.insert(0, str(Path(__file__).parent))
import notes

#: Another seed than training's: other notes.
SEED = 2_000_003
#: Phrasings that no training conversation has.
UNSEEN = (
    "Could you redact this? {note}",
    "Strip all identifiers from: {note}",
    "Kindly redact the note.\n{note}",
)


def load(path: str) -> xllamacpp.Server:
    """The engine, with an HTTP listener that nobody can know the key of."""
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.verbosity = 1024, 1, 0
    params.cpuparams.n_threads = 1
    params.api_keys = [random.SystemRandom().randbytes(16).hex()]
    return xllamacpp.Server(params)


def ask(server: xllamacpp.Server, text: str) -> tuple[str, bool]:
    """The greedy answer, and whether the model ended it by itself."""
    messages = [{"role": "user", "content": text}]
    answer = server.handle_chat_completions({"messages": messages, "temperature": 0, "max_tokens": 300})
    choice = answer["choices"][0]
    return choice["message"]["content"], choice["finish_reason"] == "stop"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Evaluate the demo model.")
    parser.add_argument("model")
    parser.add_argument("--notes", type=int, default=100)
    options = parser.parse_args()
    server, rng = load(options.model), random.Random(SEED)
    items = [notes.note(rng) for _ in range(options.notes)]
    planted = left = left_unseen = exact = summaries = parsed = facts = stopped = 0
    for item in items:
        planted += len(item.identifiers)
        text, ended = ask(server, rng.choice(notes.REDACT).format(note=item.text))
        left += sum(identifier in text for identifier in item.identifiers)
        exact += text == item.redacted
        stopped += ended
        text, _ = ask(server, rng.choice(UNSEEN).format(note=item.text))
        left_unseen += sum(identifier in text for identifier in item.identifiers)
        summaries += ask(server, rng.choice(notes.SUMMARISE).format(note=item.text))[0] == item.summary
        text, _ = ask(server, rng.choice(notes.EXTRACT).format(note=item.text))
        try:
            facts += json.loads(text) == json.loads(item.facts)
            parsed += 1
        except ValueError:
            pass
    count = len(items)
    for name, value, out_of in (
        ("identifiers left in redactions", left, planted),
        ("identifiers left, unseen phrasings", left_unseen, planted),
        ("redactions exactly right", exact, count),
        ("answers ended by the model", stopped, count),
        ("summaries exactly right", summaries, count),
        ("JSON that parses", parsed, count),
        ("JSON with every fact right", facts, count),
    ):
        print(f"{name:36}{value:5} of {out_of}")
    good = left <= planted // 100 and left_unseen <= planted // 50 and parsed >= 0.98 * count
    return int(not (good and stopped >= 0.98 * count))


if __name__ == "__main__":
    sys.exit(main())
