"""What integrity found in raw data sets, for people and for machines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from iris_cli.commands._output import Output
from iris_cli.commands._wrapping import entry, wrapped

if TYPE_CHECKING:
    from iris_cli.preparation.findings import Finding, IntegrityReport

SHOWN_OF_A_CODE = 20


@contextmanager
def show_findings(out: Output, repaired: Path | None) -> Iterator[None]:
    """Where sets are refused inside: the table of what was found, and all of it as JSON.

    repaired: the folder of repaired label maps, where they were asked for.
    """
    from iris_cli.preparation.findings import DataDefects, summary_rows

    try:
        yield
    except DataDefects as defects:
        out.result(defects.to_json())
        rows = summary_rows(defects.reports)
        out.table("findings", ("code", "does", "number", "meaning"), rows)
        if repaired is not None and repaired.is_dir():
            out.say(f"repaired label maps are in {repaired}: look at them before you use them")
        raise


def finding_lines(reports: Sequence[IntegrityReport]) -> list[str]:
    """Every finding with its numbers; of one code the first twenty (`--json` has all)."""
    findings = [finding for report in reports for finding in report.findings]
    if not findings:
        return []
    by_code = groupby(sorted(findings, key=lambda f: (not f.refuses, f.code)), lambda f: f.code)
    lines = [f"findings: {len(findings)}"]
    return lines + [line for _, group in by_code for line in _lines_of_code(list(group))]


def _lines_of_code(findings: Sequence[Finding]) -> Iterable[str]:
    for finding in findings[:SHOWN_OF_A_CODE]:
        yield from _lines(finding)
    if len(findings) > SHOWN_OF_A_CODE:
        more = len(findings) - SHOWN_OF_A_CODE
        yield from wrapped(f"and {more} more of {findings[0].code} (--json lists all)", indent=2)


def _lines(finding: Finding) -> Iterator[str]:
    what = "accepted" if finding.accepted else finding.severity.value
    yield from entry(f"{what} {finding.where}", f"{finding.message} [{finding.code}]")
    details = ("file", finding.file), ("found", finding.found), ("expected", finding.expected)
    for key, text in (*details, ("fix", finding.fix)):
        if text:
            yield from entry(key, text, indent=4)
