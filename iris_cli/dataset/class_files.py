"""One mask file per class, as some collections store them: joined into label maps.

    masks/<case>/<class>.nii.gz      any value but 0 is the class
    masks/<case>_<class>.nii.gz      the same in one folder, where the names of the cases are known

A label map holds one value per voxel, and masks may overlap: every set of classes that occurs
together gets a value of its own, and a class is the region of all values it takes part in. So
nothing is lost, and everything that knows regions (training, tasks, metrics) knows the overlap.

A case without a file of some class was not looked at for it (`not_annotated`); an empty file says
that the class is not there.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from iris_cli.dataset.label_files import LABELS_FILE
from iris_cli.dataset.layout import list_volumes
from iris_cli.errors import DataRefused
from iris_cli.files.publish import publish_text
from iris_cli.volume.grid import GridMatch
from iris_cli.volume.reading import Volume, read_labels, smallest_label_type, volume_name
from iris_cli.volume.writing import write_labels

ClassFiles = dict[str, dict[str, Path]]
"""case -> class -> mask file"""

ClassSet = tuple[str, ...]
"""Names of classes that share a voxel, sorted; () is background."""


@dataclass(frozen=True)
class JoinedMasks:
    """What was joined. labels: class -> its values. not_annotated: case -> classes without file."""

    labels: dict[str, int | list[int]]
    not_annotated: dict[str, list[str]]


def has_class_files(folder: Path) -> bool:
    """Whether a folder holds cases as folders of masks, and no label map."""
    return folder.is_dir() and not list_volumes(folder) and bool(_case_folders(folder))


def class_files_in_folders(folder: Path) -> ClassFiles:
    """The masks of `<folder>/<case>/<class>`."""
    return {
        case.name: {volume_name(path): path for path in list_volumes(case)}
        for case in _case_folders(folder)
    }


def class_files_by_name(files: Iterable[Path], cases: Collection[str]) -> ClassFiles:
    """The masks `<case>_<class>` of these cases, of the longest name that fits.

    raises DataRefused for a file of no case, and for two files of one class.
    """
    found: ClassFiles = {}
    for path in files:
        name = volume_name(path)
        fitting = [case for case in cases if name.startswith(f"{case}_") and name != f"{case}_"]
        if not fitting:
            raise DataRefused("a mask belongs to no image", file=path, expected="<case>_<class>")
        case = max(fitting, key=len)
        other = found.setdefault(case, {}).setdefault(name[len(case) + 1 :], path)
        if other is not path:
            raise DataRefused(
                "two files hold one class of a case", file=path, found=f"{other.name} as well"
            )
    return found


def join_class_files(folder: Path, target: Path) -> JoinedMasks:
    """Write `<target>/<case>.nii.gz` and labels.json from `<folder>/<case>/<class>`.

    raises DataRefused where the masks of a case do not lie on one grid.
    """
    cases = class_files_in_folders(folder)
    names = {name for masks in cases.values() for name in masks}
    sets = value_table(names, (s for masks in cases.values() for s in class_sets(masks)))
    for case, masks in cases.items():
        joined = join_masks(masks, sets)
        write_labels(target / f"{case}.nii.gz", joined.array, joined.native)
    labels = labels_of(sets)
    publish_text(target / LABELS_FILE, json.dumps(labels, indent=1, ensure_ascii=False) + "\n")
    missing = {case: sorted(names - set(masks)) for case, masks in cases.items()}
    return JoinedMasks(labels, {case: classes for case, classes in missing.items() if classes})


def class_sets(masks: Mapping[str, Path]) -> set[ClassSet]:
    """The sets of classes that share a voxel of a case. raises DataRefused as `join_masks`."""
    joined, sets = _overlay(masks)
    return {sets[value] for value in _values(joined.array, len(sets))}


def value_table(names: Iterable[str], found: Iterable[ClassSet]) -> tuple[ClassSet, ...]:
    """The classes of every label value: background, each class alone, then those that overlap."""
    alone = [(name,) for name in sorted(names)]
    overlaps = sorted(set(found) - {(), *alone}, key=lambda classes: (len(classes), classes))
    return ((), *alone, *overlaps)


def labels_of(sets: Sequence[ClassSet]) -> dict[str, int | list[int]]:
    """class -> its value, or all values of the sets it is in: a region."""
    values: dict[str, list[int]] = {}
    for value, classes in enumerate(sets):
        for name in classes:
            values.setdefault(name, []).append(value)
    return {name: found[0] if len(found) == 1 else found for name, found in values.items()}


def join_masks(masks: Mapping[str, Path], sets: Sequence[ClassSet]) -> Volume:
    """The label map of a case, its value v being the classes `sets[v]`.

    raises DataRefused where the masks do not lie on one grid, or overlap as `sets` does not know.
    """
    joined, own = _overlay(masks)
    numbers = {classes: value for value, classes in enumerate(sets)}
    table = np.zeros(len(own), smallest_label_type(0, len(sets) - 1))
    for value in _values(joined.array, len(own)):
        if own[value] not in numbers:
            raise DataRefused(
                "masks overlap that did not when the cases were listed",
                file=joined.path.parent,
                found=", ".join(own[value]),
                fix="run the same line again when nothing else writes these files",
            )
        table[value] = numbers[own[value]]
    return dataclasses.replace(joined, array=table[joined.array])


def _case_folders(folder: Path) -> list[Path]:
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    return [e for e in entries if e.is_dir() and not e.name.startswith(".") and list_volumes(e)]


def _overlay(masks: Mapping[str, Path]) -> tuple[Volume, list[ClassSet]]:
    """The masks on top of each other: a volume whose value v is the classes v of the list.

    The list also has sets that a later mask split up without a remainder.
    """
    (path, *_) = masks.values()
    first = read_labels(path)
    array: npt.NDArray[np.int32] = np.zeros(first.array.shape, np.int32)
    sets: list[ClassSet] = [()]
    for name, path in sorted(masks.items()):
        mask = read_labels(path)
        _require_one_grid(mask, first)
        inside = mask.array != 0
        here = array[inside]
        new = np.zeros(len(sets), np.int32)
        for value in _values(here, len(sets)):
            new[value] = len(sets)
            sets.append((*sets[value], name))
        array[inside] = new[here]
    return dataclasses.replace(first, array=array), sets


def _values(array: npt.NDArray[np.int32], count: int) -> list[int]:
    """Which of the values 0 .. count - 1 occur."""
    values: list[int] = np.flatnonzero(np.bincount(array.ravel(), minlength=count)).tolist()
    return values


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
