"""Writes the tables of docs/policy.md and docs/attacks.md that come from code: `python tools/policy_docs.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from cloister.policy import profiles
from cloister.policy.attacks import ATTACKS, Attack
from cloister.policy.checks import rule_name
from cloister.policy.explain import plain
from cloister.tee import FORMATS, registry

DOCS = Path(__file__).parents[1] / "docs"


def _table(*rows: tuple[str, ...]) -> str:
    head, *rest = ["| " + " | ".join(each.replace("|", "\\|") for each in row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *rest])


def rules() -> str:
    """A section for each format of evidence: its rules."""
    sections = []
    for form in map(registry.get, FORMATS):
        rows = [
            (
                f"`{rule_name(form, rule.name)}`",
                plain(rule.title),
                f"`{rule.example}`",
                "yes" if rule.waivable else "no",
            )
            for rule in form.rules
        ]
        holds = f" It may hold: {', '.join(form.inner)}." if form.inner else ""
        where = "`tee.gpu`" if form.role == "gpu" else "`tee.accept`"
        named = "".join(f"\n\nIt may name a root: `{form.name}.{each.key}`, {each.title}." for each in form.roots)
        sections.append(
            f"### {form.name}\n\n{form.title}. Named in {where}.{holds}\n\n"
            + _table(("rule", "what it demands", "stated as", "waivable"), *rows)
            + named
        )
    return "\n\n".join(sections)


def shipped() -> str:
    """The profiles."""
    return _table(("profile", "for"), *((f"`{name}`", profiles.title(name)) for name in profiles.names()))


def attacks() -> str:
    """The index of docs/attacks."""
    return _table(
        ("attack", "year", "formats", "needs", "rules that answer it", "no verifier sees"),
        *(
            (
                f"[{each.title}](attacks/{each.page})" + (f" (not sure: {each.uncertain})" if each.uncertain else ""),
                str(each.year),
                "all" if each.hits == FORMATS else ", ".join(each.hits),
                each.needs,
                _answered(each),
                each.unseen,
            )
            for each in ATTACKS
        ),
    )


def _answered(attack: Attack) -> str:
    names = [*dict.fromkeys(defence.rule for defence in attack.defences), *attack.always]
    return ", ".join(f"`{name}`" for name in names) or "none"


TABLES: Mapping[str, tuple[tuple[str, Callable[[], str]], ...]] = {
    "policy.md": (("rules", rules), ("profiles", shipped)),
    "attacks.md": (("attacks", attacks),),
}


def written(name: str, text: str) -> str:
    """A page with its tables as the code has them now; ValueError where a table's marks are missing."""
    for key, make in TABLES[name]:
        begin, end = f"<!-- {key}: written by tools/policy_docs.py -->\n", f"\n<!-- end of {key} -->"
        if text.count(begin) != 1 or text.partition(begin)[2].count(end) != 1:
            raise ValueError(f"{name} has not exactly one place for {key}")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{make()}\n{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    for page in TABLES:
        (DOCS / page).write_text(written(page, (DOCS / page).read_text()))
