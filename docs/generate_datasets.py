"""Writes the sets of datasets.md from the converters: python docs/generate_datasets.py"""

from __future__ import annotations

from pathlib import Path

from dataset_conversion.facts import PaperRole, SetFacts
from dataset_conversion.registry import CONVERTERS
from dataset_conversion.scan import PublicSet

PAGE = Path(__file__).resolve().parent / "datasets.md"
BEGIN, END = "<!-- begin: generated -->", "<!-- end: generated -->"


def sets() -> str:
    """A table of all sets, then a section for each, the paper's first."""
    facts = [c.facts for c in CONVERTERS.values() if isinstance(c, PublicSet)]
    facts.sort(key=lambda one: (one.paper is PaperRole.NONE, one.name))
    rows = ["| name | set | cases | paper | licence |", "|---|---|---|---|---|"]
    rows += [
        f"| [`{one.name}`](#{one.name}) | {one.title} | {_count(one)} | {one.paper} "
        f"| {one.licence} |"
        for one in facts
    ]
    forms = [c for c in CONVERTERS.values() if not isinstance(c, PublicSet)]
    rows += ["", "Forms that hold one set or several:", ""]
    rows += [f"- `{form.name}`: {form.summary}" for form in forms]
    return "\n".join([*rows, "", *(_section(one) for one in facts)])


def page(text: str) -> str:
    """The page with its generated part as the converters have it now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{sets()}{END}{after}"


def _section(facts: SetFacts) -> str:
    classes = ", ".join(f"{name} {value}" for name, value in facts.labels.items())
    pairs = ", ".join(f"{left} / {right}" for left, right in facts.mirror_pairs)
    lines = [
        f"### {facts.name}",
        "",
        f"{facts.title}. {facts.page}",
        "",
        f"- Channels: {', '.join(facts.channels)}",
        f"- Classes: {classes or 'as the source names them'}",
        f"- Layout: `{facts.layout}`; compared with: {facts.verified}",
        f"- Subjects: {facts.subjects}",
        *([f"- Left and right: {pairs}"] if pairs else []),
        *([f"- Author's split: {facts.author_split.source}"] if facts.author_split else []),
        *(f"- Known: {defect}" for defect in facts.defects),
        *(f"- Also in other sets: {text}" for text in facts.duplicates),
        f"- Layout and labels from: {'; '.join(facts.sources)}",
        "",
    ]
    return "\n".join([*lines, ""])


def _count(facts: SetFacts) -> str:
    expected = facts.expected or {}
    return ", ".join(f"{number} {kind}" for kind, number in expected.items()) or "-"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
