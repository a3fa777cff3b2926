"""A platform's verbs as commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.errors import UsageError
from cloister.platforms import run
from cloister.platforms.platform import Launch


def test_a_launch_survives_the_file(tmp_path: Path) -> None:
    launch = Launch(name="n", image=tmp_path / "n.eif", memory_mib=512, cpus=1, debug=True)
    start, stop = run.commands("qemu-nitro", launch, tmp_path / "launch.json")
    assert (start[3:5], stop[3:5]) == (["start", "qemu-nitro"], ["stop", "qemu-nitro"])
    assert run.read(Path(start[-1])) == run.read(Path(stop[-1])) == launch


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"image": 1}', '{"image": "x", "more": 1}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "launch.json").write_text(text)
    with pytest.raises(UsageError):
        run.read(tmp_path / "launch.json")
    assert run.main(["start", "qemu-nitro", str(tmp_path / "launch.json")]) == 2
