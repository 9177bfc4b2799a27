"""One mask file per class, as some collections store them: joined into label maps.

    masks/<case>/<class>.nii.gz      any value but 0 is the class

A label map holds one value per voxel, and masks may overlap: every set of classes that occurs
together gets a value of its own, and a class is the region of all values it takes part in. So
nothing is lost, and everything that knows regions (training, tasks, metrics) knows the overlap.

A case without a file of some class was not looked at for it (`not_annotated`); an empty file says
that the class is not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iris_cli.dataset.label_files import LABELS_FILE
from iris_cli.dataset.layout import list_volumes
from iris_cli.errors import DataRefused
from iris_cli.files.publish import publish_text
from iris_cli.volume.grid import GridMatch
from iris_cli.volume.reading import Volume, read_labels, volume_name
from iris_cli.volume.writing import write_labels


@dataclass(frozen=True)
class JoinedMasks:
    """What was joined. labels: class -> its values. not_annotated: case -> classes without file."""

    labels: dict[str, int | list[int]]
    not_annotated: dict[str, list[str]]


@dataclass
class _Values:
    """The value of every set of classes; those of one class come first, in order of names."""

    names: tuple[str, ...]
    of_set: dict[frozenset[str], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.of_set = {frozenset(): 0}
        for name in self.names:
            self.value(frozenset({name}))

    def value(self, classes: frozenset[str]) -> int:
        return self.of_set.setdefault(classes, len(self.of_set))

    def labels(self) -> dict[str, int | list[int]]:
        table: dict[str, int | list[int]] = {}
        for name in self.names:
            values = [value for classes, value in self.of_set.items() if name in classes]
            table[name] = values[0] if len(values) == 1 else values
        return table


def has_class_files(folder: Path) -> bool:
    """Whether a folder holds cases as folders of masks, and no label map."""
    return folder.is_dir() and not list_volumes(folder) and bool(_case_folders(folder))


def join_class_files(folder: Path, target: Path) -> JoinedMasks:
    """Write `<target>/<case>.nii.gz` and labels.json from `<folder>/<case>/<class>`.

    raises DataRefused where the masks of a case do not lie on one grid.
    """
    cases = {case.name: _masks(case) for case in _case_folders(folder)}
    names = tuple(sorted({name for masks in cases.values() for name in masks}))
    values = _Values(names)
    for case, masks in cases.items():
        first, joined = _join(masks, values)
        write_labels(target / f"{case}.nii.gz", joined, first.native)
    missing = {case: [n for n in names if n not in masks] for case, masks in cases.items()}
    labels = values.labels()
    publish_text(target / LABELS_FILE, json.dumps(labels, indent=1, ensure_ascii=False) + "\n")
    return JoinedMasks(labels, {case: classes for case, classes in missing.items() if classes})


def _case_folders(folder: Path) -> list[Path]:
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    return [e for e in entries if e.is_dir() and not e.name.startswith(".") and list_volumes(e)]


def _masks(case: Path) -> dict[str, Path]:
    return {volume_name(path): path for path in list_volumes(case)}


def _join(masks: Mapping[str, Path], values: _Values) -> tuple[Volume, npt.NDArray[np.int32]]:
    """The first mask as it was read, and the label map of all, (z, y, x) canonical."""
    first: Volume | None = None
    joined: npt.NDArray[np.int32] = np.zeros((0, 0, 0), np.int32)
    for name, path in masks.items():
        mask = read_labels(path)
        if first is None:
            first, joined = mask, np.zeros(mask.array.shape, np.int32)
        _require_one_grid(mask, first)
        _add(joined, mask.array != 0, name, values)
    assert first is not None
    return first, joined


def _add(
    joined: npt.NDArray[np.int32], mask: npt.NDArray[np.bool_], name: str, values: _Values
) -> None:
    """The voxels of a mask take the value of what they had and this class."""
    here = joined[mask]
    found = np.unique(here)
    classes = {value: members for members, value in values.of_set.items()}
    new: npt.NDArray[Any] = np.array(
        [values.value(classes[int(value)] | {name}) for value in found], np.int32
    )
    joined[mask] = new[np.searchsorted(found, here)] if here.size else here


def _require_one_grid(mask: Volume, first: Volume) -> None:
    if mask.grid.compare(first.grid) is GridMatch.DIFFERENT:
        raise DataRefused(
            "the masks of a case are not on one grid",
            file=mask.path,
            found=_place(mask),
            expected=f"{_place(first)}, as {first.path.name}",
            fix="resample the masks onto their image, or correct the header",
        )


def _place(volume: Volume) -> str:
    numbers: Iterable[float] = (*volume.grid.spacing_xyz, *volume.grid.affine[:3, 3])
    x, y, z, *origin = (f"{number:.6g}" for number in numbers)
    where = ", ".join(origin)
    return f"shape {volume.grid.shape_xyz}, spacing {x} x {y} x {z} mm, origin ({where}) mm"
