"""Label maps that lie off their image's grid by a turn of axes, written anew on it.

Nothing of a raw data set is changed: the repaired files go to another folder, where people look at
them before they put them in place. Which of voxels and header was turned no file tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iris_cli.dataset.raw import RawDataset
from iris_cli.errors import UsageError
from iris_cli.preparation.codes import Code
from iris_cli.preparation.findings import IntegrityReport
from iris_cli.preparation.integrity.grids import repaired_labels
from iris_cli.volume.reading import read_grid, read_labels
from iris_cli.volume.writing import write_labels


def write_repaired(
    sets: Sequence[RawDataset], reports: Sequence[IntegrityReport], folder: Path
) -> tuple[Path, ...]:
    """Write `<folder>/<set>/<label map>` for every `grid-flipped` finding; returns the files.

    raises UsageError where the folder is, or lies in, one of the raw sets.
    """
    written = []
    for raw, report in zip(sets, reports, strict=True):
        if folder.resolve().is_relative_to(raw.folder.resolve()):
            raise UsageError(
                "repaired label maps do not go into the raw set itself",
                file=folder,
                fix="name another folder; put the files in place when you have looked at them",
            )
        for finding in report.findings:
            if finding.code is Code.GRID_FLIPPED and finding.case is not None:
                case = raw.case(finding.case)
                assert case.label is not None
                image = read_grid(case.images[0])
                array = repaired_labels(read_labels(case.label), image)
                if array is not None:
                    target = folder / raw.name / case.label.name
                    written.append(write_labels(target, array, image))
    return tuple(written)
