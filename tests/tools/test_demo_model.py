"""The demo model's text can be made again, its answers are right, its file is the card's; training is repeatable."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

import cloister

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tools" / "demo_model"
CARD = Path(cloister.__file__).parent / "enclave" / "engine" / "bundled" / "MODEL_CARD.md"


def _load():
    spec = importlib.util.spec_from_file_location("notes", FOLDER / "notes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["notes"] = module
    spec.loader.exec_module(module)
    return module


notes = _load()


def test_the_training_text_is_the_cards() -> None:
    assert notes.digest(200) in CARD.read_text()
    assert notes.digest(20, seed=2) != notes.digest(20)


def test_answers_are_right_by_construction() -> None:
    rng = random.Random(3)
    for _ in range(500):
        note = notes.note(rng)
        assert note.identifiers
        for identifier in note.identifiers:
            assert identifier in note.text
            assert identifier not in note.redacted
        facts = json.loads(note.facts)
        assert str(facts["age"]) in note.text
        assert facts["drug"] in note.text
        assert facts["plan"] in note.summary


def test_conversations_fit_the_context_and_alternate() -> None:
    rng = random.Random(4)
    for _ in range(300):
        roles = [role for role, _ in notes.conversation(rng)]
        turns = [role for role in roles if role != "system"]
        assert turns == ["user", "assistant"] * (len(turns) // 2)
        assert len(turns) in (2, 4)


def test_the_bundled_file_is_small() -> None:
    assert (CARD.parent / "cloister-notes-q8_0.gguf").stat().st_size < 5_000_000


def test_two_short_trainings_give_the_same_file(tmp_path: Path) -> None:
    for module in ("torch", "tokenizers"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed (requirements/train.txt)")
    files = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    for file in files:
        subprocess.run([sys.executable, FOLDER / "train.py", file, "--steps", "2"], check=True, capture_output=True)
    assert files[0].read_bytes() == files[1].read_bytes()
