"""`python -m tests.e2e.verdict_table` (`make verdicts`): writes docs/verdicts.md from a run over the collected vectors."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import VECTORS
from tests.e2e.vector_runs import Case, Seen, arguments, cases, invoke, read

PAGE = Path(__file__).parents[2] / "docs" / "verdicts.md"
OUTCOMES = {0: "accepted", 2: "format not known", 3: "malformed", 4: "not genuine", 5: "refused", 6: "undecided"}
HEAD = """\
# Verdicts on collected evidence

`make verdicts` writes this page; `tests/e2e/test_vectors.py` compares it with a fresh run. {entries} pieces of evidence from
public sources, all but a few signed by real hardware or by a vendor's service, are no part of the project (their licences
differ): set `CLOISTER_VECTORS` to a folder of them. Each goes through `cloister verify FILE --tee FORMAT --policy … --collateral
… --at …` with a complete policy: what names the code is stated from the entry itself, other rules are waived with a reason.
An entry that leaves a decision to the policy is run both ways, so that there are {runs} runs.

## By format

Exit code 0 is the only success. *Failed check* is the first that did not pass, after which nothing is looked at.

"""
MEANS = """
## What the collection expects, and what came of it

The first column is the collection's own word. *accept (report signature + chain)*: the GPU's or switch's report is genuine,
all seven checks of that pass. That is not yet acceptance. NVIDIA's signed manifests (RIMs) of exactly its driver and VBIOS
decide whether it measured good firmware, no policy can go without them, and of most devices they are not among the files:
those end as undecided. Where they are, the same report is accepted.

"""


def run_all(vectors: Path, folder: Path) -> list[tuple[Case, Seen]]:
    """Every case through the command line in this process, its files below `folder`."""
    return [(case, read(*invoke(arguments(case, folder)))) for case in cases(vectors)]


def page(done: Sequence[tuple[Case, Seen]]) -> str:
    """The whole page."""
    formats, means = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for case, seen in done:
        verdict = (OUTCOMES[seen.exit_code], f"`{seen.check}`" if seen.check else "", str(seen.exit_code))
        formats[(case.run.tee, *verdict)] += 1
        means[(case.expected, case.run.way, case.run.tee, *verdict)] += 1
    head = HEAD.format(entries=len({case.number for case, _ in done}), runs=len(done))
    return (
        head
        + _table(("format", "outcome", "failed check", "exit code", "runs"), formats, by=lambda row: (row[0], row[3]))
        + MEANS
        + _table(
            ("the collection says", "run", "format", "outcome", "failed check", "exit code", "runs"),
            means,
            by=lambda row: row[:3],
        )
    )


def _table(names: Sequence[str], rows: Counter[tuple[str, ...]], *, by: object) -> str:
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    lines += [f"| {' | '.join(row)} | {rows[row]} |" for row in sorted(sorted(rows), key=by)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(page(run_all(VECTORS, Path(folder))))


if __name__ == "__main__":
    main()
