"""The values of a label map against dataset.json."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from iris_cli.preparation.codes import Code
from iris_cli.preparation.findings import Finding
from iris_cli.preparation.integrity.payload import CasePayload
from iris_cli.preparation.measure import count_and_box
from iris_cli.volume.reading import Volume

_VALUES_SHOWN = 10


def check_labels(payload: CasePayload, label: Volume) -> Iterator[Finding]:
    """Values that are not declared, no class at all, classes that are said not to be annotated."""
    counts, _ = count_and_box(label.array)
    declared = {0}.union(*payload.classes.values())
    if payload.ignore_value is not None:
        declared.add(payload.ignore_value)
    undeclared = {value: n for value, n in sorted(counts.items()) if value not in declared}
    if undeclared:
        yield payload.place.finding(
            Code.UNDECLARED_VALUE,
            "the label map holds values that dataset.json does not declare",
            file=label.path,
            found=_counted(undeclared),
            expected=_short(sorted(declared)),
        )
    present = {name for name, values in payload.classes.items() if counts.keys() & set(values)}
    if not present:
        yield payload.place.finding(Code.EMPTY_LABEL, "no voxel of any class", file=label.path)
    if contradicted := sorted(present & payload.case.not_annotated):
        yield payload.place.finding(
            Code.UNANNOTATED_PRESENT,
            "classes that are listed as not annotated here have voxels",
            file=label.path,
            found=", ".join(contradicted),
        )


def _counted(counts: dict[int, int]) -> str:
    shown = [f"{value} ({n} voxels)" for value, n in list(counts.items())[:_VALUES_SHOWN]]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {more} more values" if more else "")


def _short(values: Sequence[int]) -> str:
    text = ", ".join(str(value) for value in values[:20])
    return text if len(values) <= 20 else f"{text}, ... ({len(values)} values)"
