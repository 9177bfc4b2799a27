"""Paired files into a raw data set that nnU-Net's own integrity check accepts.

What that check demands, and what is done for it:

- `Dataset<ddd>_<name>` is the folder's name for nnU-Net's commands; any name is taken here.
- `<case>_0000` names and one file ending it reads (.nii.gz, .nrrd, .mha): files are linked or
  copied under that name; a `.nii` is compressed, files of another format are written anew with
  equal voxels and geometry.
- Label values 0, 1, 2, ... without gaps: where they have gaps the label maps are written anew with
  consecutive values in ascending order, and the table old -> new is said and kept in dataset.json.
  `keep_values` leaves them (then iris reads the set and nnU-Net does not).
- Equal grids: different ones are refused, all of them named. A label map that is equal but for
  rounding, or stored in another axis order, is written anew on its image's grid.

NaN voxels are left in place: nnU-Net refuses them, iris counts them.
"""

from __future__ import annotations

import gzip
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iris_cli.dataset.building import TransferMode, building_folder, place
from iris_cli.dataset.classes import IGNORE, ClassTable, Modality, classes_from_values
from iris_cli.dataset.dataset_json import write_dataset_json
from iris_cli.dataset.label_files import named_classes, note_on_overlaps, order_of_overlaps
from iris_cli.dataset.layout import ImageFiles, list_volumes
from iris_cli.dataset.pairing import flat_pairs, group_images, pair_by_name
from iris_cli.errors import DataRefused, UsageError
from iris_cli.volume.grid import Grid, GridMatch
from iris_cli.volume.reading import read_grid, read_image, read_labels, volume_ending
from iris_cli.volume.reading import volume_name as name_of
from iris_cli.volume.writing import write_image, write_labels

_NNUNET_ENDINGS = (".nii.gz", ".nrrd", ".mha")


@dataclass(frozen=True)
class PairsConversion:
    """The raw data set that was made, and what had to be decided."""

    folder: Path
    cases: int
    notes: tuple[str, ...]


def convert_pairs(
    images: Path,
    labels: Path | None,
    target: Path,
    *,
    mode: TransferMode = TransferMode.COPY,
    names: Sequence[str] = (),
    labels_file: Path | None = None,
    channel_names: Sequence[str] = (),
    modality: Modality | None = None,
    keep_values: bool = False,
    on_case: Callable[[str], None] | None = None,
) -> PairsConversion:
    """Convert a folder of images and a folder of label maps into the raw data set `target`.

    labels: None where the label maps lie beside the images (x.nii.gz, x_seg.nii.gz).
    names, labels_file: class names (`references`); without them each value is its own name.
    channel_names: one for each channel, by default `image` (or `CT` where `modality` is ct).
    on_case: called with the name of each case when it is placed.
    raises UsageError where `target` exists or a folder is missing, DataRefused where files do not
    go together, EnvironmentProblem on a full disk. Nothing is left under `target` on an error.
    """
    pairs = _pairs(images, labels)
    channels = _channel_names(pairs, channel_names, modality)
    checked = [_check(files, label) for files, label in pairs]
    _refuse_grids(checked)
    values = sorted(set().union(*(case.values for case in checked)) - {0})
    table = _table_beside(images, labels, labels_file, names)
    table = table or ClassTable(classes_from_values(values))
    plan = _plan_labels(table, values, keep_values, labels or images)
    ending = _common_ending(pairs)
    notes = [*_notes_on_grids(checked), *([plan.note] if plan.note else [])]
    if table.notes and plan.order:
        notes.append(note_on_overlaps(table.classes, plan.order))
    with building_folder(target) as folder:
        (folder / "labelsTr").mkdir()
        for case in checked:
            notes += _place_case(folder, case, ending, plan, mode)
            if on_case is not None:
                on_case(case.files.case)
        write_dataset_json(
            folder,
            channel_names={str(index): name for index, name in enumerate(channels)},
            labels=plan.labels,
            num_training=len(checked),
            file_ending=ending,
            regions_class_order=plan.order,
            iris={"modality": modality} if modality else None,
            extra={"description": plan.note} if plan.note else None,
        )
    return PairsConversion(target, len(checked), tuple(dict.fromkeys(notes)))


@dataclass(frozen=True)
class _CheckedPair:
    """A pair whose files were read.

    values: of the label map. anew: why the label map must be written on its image's grid, or
    None. mismatch: the two grids where they differ.
    """

    files: ImageFiles
    label: Path
    values: frozenset[int]
    anew: str | None
    mismatch: str | None


@dataclass(frozen=True)
class _LabelPlan:
    """The label table to write; `renumber` from old to new values, None to leave files alone."""

    labels: dict[str, int | list[int]]
    renumber: dict[int, int] | None
    order: list[int] | None
    note: str | None


def _pairs(images: Path, labels: Path | None) -> list[tuple[ImageFiles, Path]]:
    for folder in (images, labels):
        if folder is not None and not folder.is_dir():
            raise UsageError("no such folder", file=folder, fix="check the path")
    if labels is None:
        pairs = flat_pairs(images)
        if not pairs:
            raise UsageError(
                "no label maps beside the images",
                file=images,
                expected="x_seg.nii.gz, x_label.nii.gz or x_mask.nii.gz beside x.nii.gz",
                fix="give the folder of the label maps",
            )
        return pairs
    by_name = {name_of(path): path for path in list_volumes(labels)}
    return pair_by_name(group_images(list_volumes(images), by_name), by_name, images)


def _table_beside(
    images: Path, labels: Path | None, labels_file: Path | None, names: Sequence[str]
) -> ClassTable | None:
    """The class table: given, or in the folder of the label maps, or in the one around both."""
    folder = labels or images
    table = named_classes(folder, labels_file, names)
    if (
        table is None
        and labels is not None
        and labels.absolute().parent == images.absolute().parent
    ):
        table = named_classes(labels.absolute().parent, None, ())
    return table


def _channel_names(
    pairs: Sequence[tuple[ImageFiles, Path]], given: Sequence[str], modality: Modality | None
) -> list[str]:
    counts = Counter(len(files.by_channel) for files, _ in pairs)
    if len(counts) > 1:
        odd = next(files for files, _ in pairs if len(files.by_channel) != max(counts))
        raise DataRefused(
            f"case {odd.case!r} has fewer channels than the others",
            file=next(iter(odd.by_channel.values())),
            found=f"{len(odd.by_channel)} channels",
            expected=f"{max(counts)} channels",
            fix="add the missing files",
        )
    count = max(counts)
    if given and len(given) != count:
        raise UsageError(
            "the channel names do not fit the files",
            found=", ".join(given),
            expected=f"{count} names",
        )
    default = "CT" if modality == "ct" else "image"
    return list(given) or [default if count == 1 else f"{default} {i}" for i in range(count)]


def _check(files: ImageFiles, label: Path) -> _CheckedPair:
    """Read the label map whole, and the headers of the images."""
    volume = read_labels(label)
    values = frozenset(int(value) for value in np.unique(volume.array))
    if min(values) < 0:
        raise DataRefused(
            "a label map holds negative values", file=label, found=min(values), expected="0 or more"
        )
    anew, mismatch = None, None
    first = None
    for image in files.by_channel.values():
        native = read_grid(image)
        first = first or native
        match = native.canonical_grid.compare(volume.grid)
        if match is GridMatch.DIFFERENT or native.orientation != first.orientation:
            mismatch = mismatch or _mismatch(image, native.grid, label, volume.native.grid)
        elif native.orientation != volume.native.orientation:
            anew = "stored in another axis order than their image"
        elif match is GridMatch.ROUNDING:
            anew = anew or "on their image's grid but for rounding"
    return _CheckedPair(files, label, values, anew, mismatch)


def _mismatch(image: Path, image_grid: Grid, label: Path, label_grid: Grid) -> str:
    if image_grid.shape_xyz != label_grid.shape_xyz:
        what = f"size {image_grid.shape_xyz} and {label_grid.shape_xyz}"
    elif not np.allclose(image_grid.spacing_xyz, label_grid.spacing_xyz, rtol=1e-3):
        what = f"spacing {_rounded(image_grid.spacing_xyz)} and {_rounded(label_grid.spacing_xyz)}"
    else:
        what = "equal size and spacing, another origin or direction"
    return f"{image.name} and {label.name}: {what}"


def _rounded(numbers: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(number, 4) for number in numbers)


def _refuse_grids(checked: Sequence[_CheckedPair]) -> None:
    different = [case for case in checked if case.mismatch is not None]
    if different:
        raise DataRefused(
            f"{len(different)} label maps are not on the grid of their image",
            file=different[0].label,
            found="; ".join(str(case.mismatch) for case in different[:10]),
            expected="equal size, spacing, origin and direction",
            fix="resample the label maps onto their images, or correct the headers",
        )


def _notes_on_grids(checked: Sequence[_CheckedPair]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for case in checked:
        if case.anew is not None:
            by_reason.setdefault(case.anew, []).append(case.files.case)
    return [
        f"{len(names)} label maps are {reason} and are written anew: {_some(names)}"
        for reason, names in by_reason.items()
    ]


def _plan_labels(
    table: ClassTable, values: Sequence[int], keep_values: bool, where: Path
) -> _LabelPlan:
    unknown = sorted(set(values) - table.legal_values)
    if unknown:
        raise DataRefused(
            "the label maps hold values without a name",
            file=where,
            found=", ".join(map(str, unknown[:20])),
            expected="one of " + ", ".join(map(str, sorted(table.legal_values)[:20])),
            fix="name them, or correct the label maps",
        )
    # nnU-Net wants the ignore value to be the last one.
    known = sorted(table.legal_values - {0, table.ignore_value})
    known += [] if table.ignore_value is None else [table.ignore_value]
    new = {old: number for number, old in enumerate(known, start=1)}
    moved = ", ".join(f"{old} -> {number}" for old, number in new.items() if old != number)
    if not moved or keep_values:
        note = "label values have gaps, which nnU-Net refuses" if moved else None
        return _LabelPlan(_labels(table, None), None, _order(table, None), note)
    note = f"label values made consecutive: {moved}"
    return _LabelPlan(_labels(table, new), new, _order(table, new), note)


def _labels(table: ClassTable, renumber: Mapping[int, int] | None) -> dict[str, int | list[int]]:
    """nnU-Net's label table, with the values the written files have."""
    new = renumber or {value: value for value in table.legal_values}
    labels: dict[str, int | list[int]] = {}
    for label in table.classes:
        values = [new[value] for value in label.values]
        labels[label.name] = values if label.is_region else values[0]
    if table.ignore_value is not None:
        labels[IGNORE] = new[table.ignore_value]
    return labels


def _order(table: ClassTable, renumber: Mapping[int, int] | None) -> list[int] | None:
    """nnU-Net's `regions_class_order`: as it was given, else what iris writes for each class."""
    if not any(label.is_region for label in table.classes):
        return None
    values = [label.value for label in table.classes]
    if renumber is None or table.has_given_order:
        return values
    # Chosen anew where classes overlap: an unused number may be a label value by now.
    return order_of_overlaps(_labels(table, renumber)) or [renumber[value] for value in values]


def _common_ending(pairs: Sequence[tuple[ImageFiles, Path]]) -> str:
    """The ending most files have among those nnU-Net reads; .nii.gz where none has one."""
    endings = Counter(
        ending
        for files, label in pairs
        for path in (*files.by_channel.values(), label)
        if (ending := _ending(path)) in _NNUNET_ENDINGS
    )
    return max(_NNUNET_ENDINGS, key=lambda ending: endings[ending])


def _place_case(
    folder: Path, case: _CheckedPair, ending: str, plan: _LabelPlan, mode: TransferMode
) -> list[str]:
    name, notes = case.files.case, []
    for channel, image in case.files.by_channel.items():
        target = folder / "imagesTr" / f"{name}_{channel:04d}{ending}"
        if _place_unchanged(image, target, ending, mode):
            continue
        volume = read_image(image)
        write_image(target, volume.array, volume.native, dtype=volume.array.dtype)
        notes.append(f"images of another format are written as {ending}, voxels unchanged")
    _place_label(folder / "labelsTr" / f"{name}{ending}", case, ending, plan, mode)
    return notes


def _place_label(
    target: Path, case: _CheckedPair, ending: str, plan: _LabelPlan, mode: TransferMode
) -> None:
    is_as_it_is = plan.renumber is None and case.anew is None
    if is_as_it_is and _place_unchanged(case.label, target, ending, mode):
        return
    array = read_labels(case.label).array
    if plan.renumber is not None:
        array = _renumbered(array, plan.renumber)
    write_labels(target, array, read_grid(next(iter(case.files.by_channel.values()))))


def _place_unchanged(source: Path, target: Path, ending: str, mode: TransferMode) -> bool:
    """Link or copy a file whose ending fits, compress a .nii; False where it must be written."""
    own = _ending(source)
    if own == ending:
        place(source, target, mode)
        return True
    if own == ".nii" and ending == ".nii.gz":
        target.parent.mkdir(parents=True, exist_ok=True)
        # Without name and time in the header, so that equal voxels give equal files.
        with (
            source.open("rb") as plain,
            target.open("wb") as raw,
            gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as packed,
        ):
            shutil.copyfileobj(plain, packed)
        return True
    return False


def _renumbered(array: npt.NDArray[Any], renumber: Mapping[int, int]) -> npt.NDArray[np.int64]:
    old = np.array(sorted({0, *renumber}), dtype=np.int64)
    new = np.array([renumber.get(int(value), 0) for value in old], dtype=np.int64)
    return new[np.searchsorted(old, array)]


def _ending(path: Path) -> str:
    return volume_ending(path) or ""


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
