"""Paired files, images and label maps of equal names, as a set for the runner.

Label maps may be one mask file per class: a folder of masks for each case, or
`<case>_<class>.nii.gz`. They are joined by the rules of `iris_cli.dataset.class_files`.

What nnU-Net's own integrity check demands of the raw folder, and what is done for it:

- `<case>_0000.nii.gz`: files are linked or copied under that name; a `.nii` is compressed, files
  of another format are written anew with equal voxels and geometry.
- Label values 0, 1, 2, ... without gaps: where they have gaps the label maps are written anew with
  consecutive values in ascending order, and the table old -> new is said and kept in dataset.json.
  `keep_values` leaves them (then iris reads the set and nnU-Net does not).
- Equal grids: a case with different ones fails, and is named. A label map that is equal but for
  rounding, or stored in another axis order, is written anew on its image's grid.

NaN voxels are left in place: nnU-Net refuses them, iris counts them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset_conversion.facts import SetFacts, Verified
from dataset_conversion.relabelling import renumber_labels, renumbered
from dataset_conversion.runner import ConversionReport, run_conversion
from dataset_conversion.scan import Deviation, FoundCase, PublicSet, Recipe, Scan, Source
from dataset_conversion.source_tree import SourceTree
from iris_cli.dataset.building import TransferMode
from iris_cli.dataset.class_files import (
    ClassFiles,
    ClassSet,
    class_files_by_name,
    class_files_in_folders,
    class_sets,
    has_class_files,
    join_masks,
    labels_of,
    value_table,
)
from iris_cli.dataset.classes import (
    IGNORE,
    ClassTable,
    Modality,
    class_table,
    classes_from_values,
)
from iris_cli.dataset.label_files import named_classes, note_on_overlaps, order_of_overlaps
from iris_cli.dataset.layout import ImageFiles, list_volumes
from iris_cli.dataset.pairing import are_label_maps, flat_pairs, group_images, pair_by_name
from iris_cli.errors import DataRefused, UsageError
from iris_cli.execution.progress import Progress
from iris_cli.execution.signals import StopRequest
from iris_cli.volume.grid import GridMatch
from iris_cli.volume.reading import Volume, read_grid, read_labels, volume_ending
from iris_cli.volume.reading import volume_name as name_of

ROUNDED = "label map on its image's grid but for rounding, written anew"
OTHER_FORMAT = "files of another format are written as .nii.gz, voxels unchanged"
NOT_ANNOTATED = "mask files are missing; those classes count as not annotated"


@dataclass(frozen=True)
class PairsOptions:
    """What a user says about pairs.

    names, labels_file: class names (`references`); without them each value is its own name.
    channel_names: one for each channel, by default `image` (or `CT` where `modality` is ct).
    """

    names: Sequence[str] = ()
    labels_file: Path | None = None
    channel_names: Sequence[str] = ()
    modality: Modality | None = None
    keep_values: bool = False


def convert_pairs(
    images: Path,
    labels: Path | None,
    target: Path,
    options: PairsOptions | None = None,
    *,
    mode: TransferMode = TransferMode.COPY,
    workers: int = 0,
    progress: Progress | None = None,
    stop: StopRequest | None = None,
) -> ConversionReport:
    """Convert a folder of images and a folder of label maps into the raw data set `target`.

    labels: None where the label maps lie beside the images (x.nii.gz, x_seg.nii.gz).
    raises UsageError where `target` exists or a folder is missing, DataRefused where files do not
    go together, EnvironmentProblem on a full disk; a case that fails is in the report.
    """
    for folder in (images, labels):
        if folder is not None and not folder.is_dir():
            raise UsageError("no such folder", file=folder, fix="check the path")
    converter = paired_set(images, labels, options or PairsOptions())
    return run_conversion(
        converter, images, target, mode=mode, workers=workers, progress=progress, stop=stop
    )


def paired_set(images: Path, labels: Path | None, options: PairsOptions) -> PublicSet:
    """The converter of these folders; its source is `images`."""
    facts = SetFacts(
        name="pairs",
        title="images and label maps of equal names",
        channels=(),
        labels={},
        licence="",
        page="",
        layout="images/x.nii.gz, labels/x.nii.gz, or x.nii.gz, x_seg.nii.gz side by side, "
        "or labels/x/<class>.nii.gz, or labels/x_<class>.nii.gz",
        sources=(),
        subjects="a case is a subject",
        verified=Verified.ARCHIVE,
    )
    scan = functools.partial(_scan, images=images, labels=labels, options=options, facts=facts)
    return PublicSet(facts, scan)


def _scan(
    tree: SourceTree, *, images: Path, labels: Path | None, options: PairsOptions, facts: SetFacts
) -> Scan:
    tree.match(r"[^/]+")  # all of them are dealt with here, by the rules of `pairing`
    if labels is not None and (masks := _class_files(images, labels)):
        return _scan_masks(masks, images, options, facts)
    pairs = _pairs(images, labels)
    channels = _channel_names(pairs, options.channel_names, options.modality)
    values = sorted(set().union(*(_values(label) for _, label in pairs)) - {0})
    table = _table_beside(images, labels, options.labels_file, options.names)
    table = table or ClassTable(classes_from_values(values))
    plan = _plan_labels(table, values, options.keep_values, labels or images)
    notes = [plan.note] if plan.note else []
    if table.notes and plan.order:
        notes.append(note_on_overlaps(table.classes, plan.order))
    found = dataclasses.replace(
        facts,
        title="; ".join((facts.title, *notes[:1])) if plan.note else facts.title,
        channels=tuple(channels),
        labels=plan.labels,
        regions_class_order=None if plan.order is None else tuple(plan.order),
    )
    modality = options.modality if options.channel_names else None
    cases = (_case(files, label, plan, modality) for files, label in pairs)
    return Scan(found, tuple(cases), tuple(map(Deviation, notes)))


def _class_files(images: Path, labels: Path) -> ClassFiles | None:
    """The masks of every case, or None where the folder holds label maps."""
    if has_class_files(labels):
        return class_files_in_folders(labels)
    files, names = list_volumes(labels), {name_of(path) for path in list_volumes(images)}
    masks = {name_of(path) for path in files}
    if not files or are_label_maps(masks, names):
        return None
    # A full name that masks begin with is a case name, not one that ends in a channel.
    labelled = {name for name in names if any(mask.startswith(f"{name}_") for mask in masks)}
    cases = {group.case for group in group_images(list_volumes(images), labelled)}
    if not all(any(mask.startswith(f"{case}_") for case in cases) for mask in masks):
        return None  # `_pairs` says what has no partner
    return class_files_by_name(files, cases)


def _scan_masks(masks: ClassFiles, images: Path, options: PairsOptions, facts: SetFacts) -> Scan:
    """The set of one mask file per class: overlaps become regions, missing files not annotated."""
    if options.names or options.labels_file is not None:
        raise UsageError(
            "mask files are named by their classes",
            found="class names as well",
            fix="leave out the names; rename the files where a class shall be called otherwise",
        )
    firsts = {case: next(iter(found.values())) for case, found in masks.items()}
    pairs = pair_by_name(group_images(list_volumes(images), firsts), firsts, images)
    of_first = {firsts[case]: found for case, found in masks.items()}
    names = sorted({name for found in masks.values() for name in found})
    sets = value_table(names, _sets_that_occur(masks))
    labels = labels_of(sets)
    order = order_of_overlaps(labels)
    cases = tuple(
        _case_of_masks(files, of_first[first], sets, names, options) for files, first in pairs
    )
    lacking = tuple(case.name for case in cases if case.not_annotated)
    notes = [Deviation(f"{len(names)} classes of one mask file each, joined into label maps")]
    if order is not None:
        table = class_table(labels, regions_class_order=order)
        notes.append(Deviation(note_on_overlaps(table.classes, order)))
    found = dataclasses.replace(
        facts,
        channels=tuple(_channel_names(pairs, options.channel_names, options.modality)),
        labels=labels,
        regions_class_order=None if order is None else tuple(order),
    )
    return Scan(found, cases, (*notes, *([Deviation(NOT_ANNOTATED, lacking)] if lacking else ())))


def _sets_that_occur(masks: ClassFiles) -> set[ClassSet]:
    """Of all cases; one that cannot be read fails where it is converted, and is named there."""
    found: set[ClassSet] = set()
    for files in masks.values():
        with contextlib.suppress(DataRefused):
            found |= class_sets(files)
    return found


def _case_of_masks(
    files: ImageFiles,
    masks: Mapping[str, Path],
    sets: Sequence[ClassSet],
    names: Sequence[str],
    options: PairsOptions,
) -> FoundCase:
    images = tuple(files.by_channel.values())
    make = functools.partial(_joined_on_the_image, names=tuple(masks), sets=tuple(sets))
    return FoundCase(
        files.case,
        images,
        Recipe(make, (*masks.values(), images[0])),
        modality=options.modality if options.channel_names else None,
        not_annotated=tuple(name for name in names if name not in masks),
    )


def _joined_on_the_image(
    files: Sequence[Path], *, names: Sequence[str], sets: Sequence[ClassSet]
) -> Volume:
    """The masks `files[:-1]` of these names, on the grid of the image `files[-1]`."""
    joined = join_masks(dict(zip(names, files[:-1], strict=True)), sets)
    native = read_grid(files[-1])
    if joined.grid.compare(native.canonical_grid) is GridMatch.DIFFERENT:
        return joined  # refused with both grids where it is placed
    return dataclasses.replace(joined, grid=native.canonical_grid, native=native)


def _case(files: ImageFiles, label: Path, plan: _LabelPlan, modality: Modality | None) -> FoundCase:
    """The label map is written anew where its values or its grid have to change."""
    images = tuple(files.by_channel.values())
    notes = []
    source: Source = label if plan.renumber is None else renumbered(label, plan.renumber)
    grid = read_grid(images[0]).canonical_grid
    if read_grid(label).canonical_grid.compare(grid) is GridMatch.ROUNDING:
        notes.append(ROUNDED)
        new = tuple(sorted(plan.renumber.items())) if plan.renumber else None
        source = Recipe(functools.partial(_on_the_images_grid, new=new), (label, images[0]))
    if any(not str(volume_ending(path)).startswith(".nii") for path in (*images, label)):
        notes.append(OTHER_FORMAT)
    return FoundCase(files.case, images, source, modality=modality, notes=tuple(notes))


def _on_the_images_grid(files: Sequence[Path], *, new: Sequence[tuple[int, int]] | None) -> Volume:
    """The label map `files[0]`, renumbered, on the grid of the image `files[1]`."""
    label = renumber_labels(files[:1], new=new) if new else read_labels(files[0])
    native = read_grid(files[1])
    return dataclasses.replace(label, grid=native.canonical_grid, native=native)


def _values(path: Path) -> frozenset[int]:
    values = frozenset(int(value) for value in np.unique(read_labels(path).array))
    if min(values) < 0:
        raise DataRefused(
            "a label map holds negative values", file=path, found=min(values), expected="0 or more"
        )
    return values


@dataclass(frozen=True)
class _LabelPlan:
    """The label table to write; `renumber` from old to new values, None to leave files alone."""

    labels: dict[str, int | list[int]]
    renumber: dict[int, int] | None
    order: list[int] | None
    note: str | None


def _pairs(images: Path, labels: Path | None) -> list[tuple[ImageFiles, Path]]:
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
