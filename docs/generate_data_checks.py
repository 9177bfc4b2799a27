"""Writes the table of data-checks.md from the program's own: python docs/generate_data_checks.py"""

from __future__ import annotations

import sys
from pathlib import Path

from iris_cli.preparation.codes import RULES, Code

PAGE = Path(__file__).resolve().parent / "data-checks.md"
BEGIN, END = "<!-- begin: generated -->", "<!-- end: generated -->"

# What nnU-Net's verify_dataset_integrity did with the same seeded defect, alone in an otherwise
# good set (tests/faults/test_nnunet.py does it again).
NNUNET: dict[Code, str] = {
    Code.MISSING_CHANNEL: "refuses",
    Code.EXTRA_CHANNEL: "refuses",
    Code.MISSING_LABEL: "refuses",
    Code.LABEL_WITHOUT_IMAGE: "refuses (by numTraining)",
    Code.IMAGE_TWICE: "silent",
    Code.LABEL_TWICE: "silent",
    Code.SAME_CHANNELS: "silent",
    Code.IMAGE_IS_LABEL: "silent",
    Code.UNREADABLE: "silent for cut and damaged files, an exception for others",
    Code.NOT_3D: "an exception without words",
    Code.NO_POSITION: "warns",
    Code.BAD_GEOMETRY: "warns",
    Code.SFORM_QFORM: "silent",
    Code.SHEARED: "an exception",
    Code.UNIT_AFFINE: "silent",
    Code.SPACING_UNITS: "silent",
    Code.SPACING_OUTLIER: "silent",
    Code.ODD_EXTENT: "silent",
    Code.CHANNEL_GRID: "warns; an exception for another shape",
    Code.GRID_DIFFERENT: "warns for another place, refuses another shape or spacing",
    Code.GRID_FLIPPED: "warns; refuses another shape",
    Code.GRID_ROUNDING: "warns",
    Code.GRID_REORIENTED: "warns",
    Code.MANY_NAN: "silent (read as 0)",
    Code.NAN: "silent (read as 0)",
    Code.CONSTANT_IMAGE: "silent",
    Code.NON_INTEGER_LABELS: "refuses",
    Code.UNDECLARED_VALUE: "refuses",
    Code.EMPTY_LABEL: "silent",
    Code.UNANNOTATED_PRESENT: "no such notion",
    Code.SUBJECT_ACROSS_ROLES: "no such notion",
    Code.SUBJECTS_ALIKE: "no such notion",
    Code.SIDES_SWAPPED: "silent",
}


def table() -> str:
    """Every code, in the order of the program."""
    lines = [
        "| code | iris | meaning | what to do | nnU-Net |",
        "| --- | --- | --- | --- | --- |",
    ]
    for code, rule in RULES.items():
        verdict, other = rule.verdict.value, NNUNET.get(code, "not compared")
        lines.append(f"| `{code}` | {verdict} | {rule.meaning} | {rule.todo} | {other} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The page with its table as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE.name}\n")
