"""Findings about raw data sets, and the report that lists all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from iris_cli.errors import DataRefused
from iris_cli.files.schema import Record
from iris_cli.preparation.codes import RULES, Code, Verdict
from iris_cli.preparation.measure import CaseFacts


class Severity(StrEnum):
    """An error refuses the set; a warning is said and recorded."""

    ERROR = "error"
    WARNING = "warning"


class Finding(Record):
    """One finding: what is wrong, where, found against expected, and what to do.

    accepted: whether the user said by `--accept` that it is meant; it refuses nothing then.
    """

    code: Code
    set: str
    case: str | None
    file: str | None
    message: str
    found: str | None = None
    expected: str | None = None
    fix: str | None = None
    accepted: bool = False

    @property
    def severity(self) -> Severity:
        is_warning = RULES[self.code].verdict is Verdict.WARNED
        return Severity.WARNING if is_warning else Severity.ERROR

    @property
    def refuses(self) -> bool:
        return self.severity is Severity.ERROR and not self.accepted

    @property
    def where(self) -> str:
        return f"{self.set}/{self.case}" if self.case else self.set

    def line(self) -> str:
        """The finding in one line."""
        numbers = f" (found {self.found}" if self.found else ""
        if numbers:
            numbers += f", expected {self.expected})" if self.expected else ")"
        fix = f"; {self.fix}" if self.fix else ""
        return f"{self.where}: {self.message}{numbers}{fix} [{self.code}]"

    def to_json(self) -> dict[str, Any]:
        """All of it, JSON values only."""
        return {"severity": self.severity.value, **self.model_dump(mode="json")}


@dataclass(frozen=True)
class Place:
    """Where findings are made: a set, and one of its cases or none."""

    set: str
    case: str | None = None

    def finding(
        self,
        code: Code,
        message: str,
        *,
        file: Path | str | None = None,
        found: object = None,
        expected: object = None,
        fix: str | None = None,
    ) -> Finding:
        """A finding here; what to do is the code's own advice unless `fix` says better."""
        todo = RULES[code].todo
        return Finding(
            code=code,
            set=self.set,
            case=self.case,
            file=None if file is None else str(file),
            message=message,
            found=None if found is None else str(found),
            expected=None if expected is None else str(expected),
            fix=fix or (None if todo == "nothing" else todo),
        )


class IntegrityReport(Record):
    """Every finding about one set, and what was measured of its cases (never of test cases)."""

    set: str
    cases: int
    findings: tuple[Finding, ...]
    facts: tuple[CaseFacts, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What refuses the set."""
        return tuple(f for f in self.findings if f.refuses)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity is Severity.WARNING)

    @property
    def accepted(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.accepted)

    def accepting(self, codes: frozenset[Code]) -> IntegrityReport:
        """The same report with the findings of these codes accepted."""
        marked = (f.model_copy(update={"accepted": f.code in codes}) for f in self.findings)
        return self.model_copy(update={"findings": tuple(marked)})

    def to_json(self) -> dict[str, Any]:
        """Findings and counts, JSON values only."""
        return {
            "set": self.set,
            "cases": self.cases,
            "errors": len(self.errors),
            "warnings": len(self.warnings),
            "accepted": len(self.accepted),
            "findings": [finding.to_json() for finding in self.findings],
        }

    def raise_if_refused(self) -> None:
        """Raise DataDefects with every error in one message, if there is any."""
        raise_if_refused([self])


class DataDefects(DataRefused):
    """Raw data sets are refused; `reports` has everything that was found in them."""

    def __init__(self, problem: str, reports: Sequence[IntegrityReport], **parts: Any) -> None:
        super().__init__(problem, **parts)
        self.reports = tuple(reports)

    def to_json(self) -> dict[str, object]:
        """The parts of the error, and every report."""
        return {**super().to_json(), "integrity": [report.to_json() for report in self.reports]}


def raise_if_refused(reports: Sequence[IntegrityReport]) -> None:
    """Raise one DataDefects that lists the errors of all sets, if there is any."""
    errors = [finding for report in reports for finding in report.errors]
    if not errors:
        return
    sets = sorted({finding.set for finding in errors})
    known = sorted({f.code.value for f in errors if RULES[f.code].verdict is Verdict.REFUSED})
    accept = f", or say what is meant: {' '.join(f'--accept {code}' for code in known)}"
    raise DataDefects(
        f"{len(errors)} finding{'s' if len(errors) > 1 else ''} in {', '.join(sets)}:\n"
        + "\n".join(f"  {finding.line()}" for finding in errors),
        reports,
        file=errors[0].file if len(errors) == 1 else None,
        fix="correct the files named above and run the same line again" + (accept if known else ""),
    )


def summary_rows(reports: Iterable[IntegrityReport]) -> list[tuple[str, str, int, str]]:
    """(code, what it does, findings, meaning) of every code that was found, refused ones first."""
    found = [finding for report in reports for finding in report.findings]
    counts = Counter((not f.refuses, f.code, f.accepted) for f in found)
    return [
        (code.value, "accepted" if accepted else RULES[code].verdict.value, n, RULES[code].meaning)
        for (_, code, accepted), n in sorted(counts.items())
    ]


def sort_findings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first, then by case and code: the same order for any number of workers."""
    return tuple(
        sorted(
            findings,
            key=lambda f: (
                f.severity is not Severity.ERROR, f.case or "", f.code.value, f.message,
                f.file or "",
            ),
        )
    )  # fmt: skip
