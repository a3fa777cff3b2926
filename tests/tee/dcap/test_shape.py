"""What the two folders promise about themselves."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from cloister.tee import registry
from cloister.trust import collateral
from cloister.wire import toml

ROOT = Path(__file__).parents[3]


def test_loading_the_formats_does_not_load_the_library() -> None:
    code = "import cloister.tee.tdx.formats, cloister.tee.sgx.formats, sys; print('dcap_qvl' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "False"


def test_the_examples_state_or_waive_every_rule() -> None:
    examples = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "intel.md").read_text(), re.DOTALL)
    assert len(examples) == 2
    for text, name in zip(examples, ("tdx", "sgx"), strict=True):
        root = toml.parse(text.encode(), limit=100000)
        table = root.table(name)
        waived = {each.text("rule") for each in root.tables("waive")}
        for rule in registry.get(name).rules:
            stated = rule.read(table) is not None
            assert stated is (f"{name}.{rule.name}" not in waived), rule.name
        table.done()
        root.done()


def test_the_formats_say_what_they_look_at() -> None:
    for name in ("tdx", "sgx"):
        form = registry.get(name)
        assert set(form.collateral) <= set(collateral.KINDS)
        assert form.media_type.endswith(f"{name}-quote")
        numbers = [int(title.partition(".")[0]) for _, title in form.checks]
        numbers += [int(rule.title.partition(".")[0]) for rule in form.rules]
        assert numbers == sorted(set(numbers))
