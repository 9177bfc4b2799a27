"""Findings about raw data sets, and the report that lists all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

from iris_cli.errors import DataRefused, IrisError
from iris_cli.files.schema import Record
from iris_cli.preparation.measure import CaseFacts


class Severity(StrEnum):
    """An error refuses the set; a warning is said and recorded."""

    ERROR = "error"
    WARNING = "warning"


class Code(StrEnum):
    """What can be found. The value is what reports and JSON show."""

    NO_CASES = "no cases"
    DUPLICATE_CASE = "duplicate case name"
    RESERVED_NAME = "reserved case name"
    DUPLICATE_IMAGE = "duplicate image"
    SUBJECT_ACROSS_ROLES = "subject in several roles"
    MISSING_IMAGE = "missing image"
    MISSING_CHANNEL = "missing channel"
    MISSING_LABEL = "missing label map"
    LABEL_WITHOUT_IMAGE = "label map without image"
    OTHER_ENDING = "other file ending"
    UNREADABLE = "unreadable file"
    NOT_3D = "not 3-D"
    BAD_GEOMETRY = "bad geometry"
    NON_INTEGER_LABELS = "non-integer labels"
    GRID_DIFFERENT = "grid differs"
    GRID_ROUNDING = "grid differs by rounding"
    CHANNEL_GRID = "channel grid differs"
    UNDECLARED_VALUE = "undeclared label value"
    NONFINITE = "NaN or infinite voxels"
    CONSTANT_IMAGE = "constant image"
    EMPTY_LABEL = "empty label map"
    CLASS_NEVER_SEEN = "class in no label map"
    MODALITY = "modality disagrees"
    NOTE = "note of the reader"


class Finding(Record):
    """One finding: what is wrong, where, found against expected, and what to do."""

    code: Code
    severity: Severity
    set: str
    case: str | None
    file: str | None
    message: str
    found: str | None = None
    expected: str | None = None
    fix: str | None = None

    def line(self) -> str:
        """The finding in one line."""
        where = f"{self.set}/{self.case}" if self.case else self.set
        numbers = f" (found {self.found}" if self.found else ""
        if numbers:
            numbers += f", expected {self.expected})" if self.expected else ")"
        return f"{where}: {self.message}{numbers}" + (f"; {self.fix}" if self.fix else "")


class IntegrityReport(Record):
    """Every finding about one set, and what was measured of its cases (never of test cases)."""

    set: str
    cases: int
    findings: tuple[Finding, ...]
    facts: tuple[CaseFacts, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity is Severity.ERROR)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity is Severity.WARNING)

    def to_rows(self) -> list[dict[str, str]]:
        """One row of a table per finding."""
        return [
            {
                "severity": f.severity.value,
                "set": f.set,
                "case": f.case or "",
                "finding": f.code.value,
                "message": f.message,
                "found": f.found or "",
                "expected": f.expected or "",
                "fix": f.fix or "",
                "file": f.file or "",
            }
            for f in self.findings
        ]

    def to_json(self) -> dict[str, Any]:
        """Findings and counts, JSON values only."""
        return {
            "set": self.set,
            "cases": self.cases,
            "errors": len(self.errors),
            "warnings": len(self.warnings),
            "findings": [f.model_dump(mode="json") for f in self.findings],
        }

    def raise_if_refused(self) -> None:
        """Raise DataRefused with every error in one message, if there is any."""
        raise_if_refused([self])


def raise_if_refused(reports: Sequence[IntegrityReport]) -> None:
    """Raise one DataRefused that lists the errors of all sets, if there is any."""
    errors = [finding for report in reports for finding in report.errors]
    if not errors:
        return
    sets = sorted({finding.set for finding in errors})
    raise DataRefused(
        f"{len(errors)} finding{'s' if len(errors) > 1 else ''} in {', '.join(sets)}:\n"
        + "\n".join(f"  {finding.line()}" for finding in errors),
        file=errors[0].file if len(errors) == 1 else None,
        fix="correct the files named above and run the same line again",
    )


def finding_of_error(
    error: IrisError, code: Code, *, set_name: str, case: str | None, file: object = None
) -> Finding:
    """An exception of a reader as a finding."""
    named = error.file or (None if file is None else str(file))
    return Finding(
        code=code,
        severity=Severity.ERROR,
        set=set_name,
        case=case,
        file=named,
        message=error.problem,
        found=error.found,
        expected=error.expected,
        fix=error.fix,
    )


def sort_findings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first, then by case and code: the same order for any number of workers."""
    return tuple(
        sorted(
            findings,
            key=lambda f: (f.severity is not Severity.ERROR, f.case or "", f.code.value, f.message),
        )
    )
