"""From reference images with label maps to a task: one token set per class.

source: CONTRACT.md, References to tokens. What was assumed or is weak about a reference stands in
the warnings of the task's header, where references are numbered in the order given: a task never
holds a file name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from iris_cli.dataset.classes import ClassLabel, Modality
from iris_cli.errors import DataRefused, UsageError
from iris_cli.files.hashing import hash_json
from iris_cli.model.model import Model
from iris_cli.preparation.prepare import PreparedImage, prepare_image
from iris_cli.preparation.profiles import PROFILE, guess_modality, replace_nonfinite
from iris_cli.task.crops import FILL_MAX, Crop, CropPlan, choose_crops_of_points, class_points, cut
from iris_cli.task.spacing import (
    ReferenceSize,
    SpacingChoice,
    measure_labels,
    spacing_of_references,
)
from iris_cli.task.task_file import ModelRecord, Task, TaskClass, TaskHeader, TaskReference
from iris_cli.volume.grid import Grid, GridMatch
from iris_cli.volume.reading import AssumedSpacing, Volume, read_image, read_labels, volume_name
from iris_cli.volume.resampling import resample_labels, resample_mask

# Counts up when iris begins to make other tokens of the same references.
ENCODING_VERSION = 1
# Fewer voxels than this on the working grid are used as a soft mask.
SOFT_BELOW = 8
COVERAGE_WARNING = 0.9
# Classes in one pass of the task encoder: its maps are per class, and large.
CLASSES_AT_ONCE = 16
# References beyond this many voxels in all are read twice instead of being kept in memory.
KEPT_VOXELS = 200_000_000

Labels = np.ndarray[Any, np.dtype[Any]]
Values = Mapping[str, Sequence[int]]
Tokens = list[npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Reference:
    """Files of one reference.

    not_annotated: classes that nobody contoured in it. assume_spacing: mm, where the files do not
    say where their voxels are.
    """

    image: Path
    labels: Path
    not_annotated: frozenset[str] = frozenset()
    assume_spacing: AssumedSpacing = None


def encode_references(
    model: Model,
    references: Sequence[Reference],
    classes: Sequence[ClassLabel],
    *,
    ignore_value: int | None = None,
    other_values: Sequence[int] = (),
    modality: Modality | None = None,
    spacing_mm: float | None = None,
    channel: int = 0,
    licence: str | None = None,
    device: str = "cpu",
    on_reference: Callable[[int, int], None] | None = None,
    find_known: Callable[[str], Task | None] | None = None,
) -> Task:
    """Encode references once into a task.

    classes: what the task segments, in this order. ignore_value, other_values: further values that
    the label maps may hold (ignored voxels; classes that were not picked).
    modality: None guesses it per reference, which must be unanimous. spacing_mm: None applies the
    rule of `task.spacing`. channel: which channel of their data set the images are, noted only.
    on_reference: called with (done, total). find_known: called with a hash of all that the task
    rests on, once the references are checked; a task that it returns is taken as it is.
    raises DataRefused where image and label map do not lie on one grid, a label map holds values
    that nobody declared, a class has no voxel in any reference, or modalities disagree.
    """
    if not references or not classes:
        raise UsageError("a task needs at least one reference and one class")
    require_profile(model)
    known = {0, *other_values, *(value for label in classes for value in label.values)}
    known |= set() if ignore_value is None else {ignore_value}
    checked = _check_all(references, classes, known, ignore_value)
    sizes = [item.size for item in checked]
    _require_voxels(classes, checked)
    used = modality or _unanimous(checked)
    choice = _choose_spacing(model, sizes, spacing_mm)
    if find_known is not None:
        inputs = _inputs(model, classes, checked, used, choice.spacing_mm)
        inputs |= {"ignore": ignore_value, "channel": channel, "licence": licence}
        task = find_known(hash_json(inputs))
        if task is not None:
            return task
    encoder = _Encoder(model, classes, choice.spacing_mm, used, device)
    encoded: list[_EncodedReference] = []
    for item in checked:
        if item.size.volumes_mm3:
            encoded.append(encoder.encode(item))
        if on_reference is not None:
            on_reference(item.number, len(checked))
    entries, tokens = _join(classes, encoded)
    header = TaskHeader(
        model=ModelRecord(
            name=model.card.name, version=model.card.version, fingerprint=model.card.fingerprint
        ),
        profile=model.card.profile,
        spacing_mm=choice.spacing_mm,
        spacing_reason=choice.reason,
        channel=channel,
        modality=used,
        classes=tuple(entries),
        groups=(tuple(range(len(entries))),),
        stages=tuple((array.shape[1], array.shape[2]) for array in tokens),
        references=tuple(item.hashes for item in checked),
        warnings=tuple(_warnings(checked, encoded, entries)),
        licence=licence,
    )
    return Task(header, tuple(tokens))


def _inputs(
    model: Model,
    classes: Sequence[ClassLabel],
    checked: Sequence[_Checked],
    modality: Modality,
    spacing_mm: float,
) -> dict[str, Any]:
    """What the tokens rest on, by content only."""
    return {
        "encoding": ENCODING_VERSION,
        "model": model.card.fingerprint,
        "profile": model.card.profile,
        "classes": [[label.name, list(label.values), label.value] for label in classes],
        "references": [
            [item.hashes.model_dump(mode="json"), sorted(item.files.not_annotated)]
            for item in checked
        ],
        "modality": modality,
        "spacing_mm": spacing_mm,
    }


def require_profile(model: Model) -> None:
    """Refuse a model whose preprocessing recipe is not the one that this room prepares by."""
    if model.card.profile != PROFILE:
        raise UsageError(
            f"profile {model.card.profile} is not available in this version",
            found=f"model {model.card.name!r}, whose images are prepared by it",
            expected=f"a model of profile {PROFILE}",
            fix="use another model; see `iris model list`",
        )


@dataclass(frozen=True)
class _Checked:
    """One reference that passed the checks, with its voxels while there is room for them."""

    number: int
    files: Reference
    size: ReferenceSize
    guess: Modality
    hashes: TaskReference
    values_present: tuple[int, ...]
    shape_zyx: tuple[int, ...]
    notes: tuple[str, ...]
    volumes: tuple[Volume, Volume] | None

    def load(self) -> tuple[Volume, Volume]:
        """Image and label map, both on the image's grid."""
        if self.volumes is not None:
            return self.volumes
        image, labels, _ = _read(self.files)
        return image, labels


@dataclass(frozen=True)
class _ClassOfReference:
    """What one reference says about one class: tokens (m+1, C) per stage, and what they rest on."""

    tokens: Tokens
    crops: int
    voxels: int
    coverage: float
    soft: bool


@dataclass(frozen=True)
class _EncodedReference:
    classes: Mapping[str, _ClassOfReference]
    warnings: tuple[str, ...]


def _check_all(
    references: Sequence[Reference],
    classes: Sequence[ClassLabel],
    known: set[int],
    ignore_value: int | None,
) -> list[_Checked]:
    checked: list[_Checked] = []
    kept_voxels = 0
    for number, files in enumerate(references, 1):
        image, labels, notes = _read(files)
        present = tuple(int(value) for value in np.unique(labels.array))
        _refuse_undeclared(files, present, known)
        annotated = {c.name: c.values for c in classes if c.name not in files.not_annotated}
        if ignore_value in present:
            notes = (*notes, "voxels with the ignored value count as background")
        kept_voxels += image.array.size
        checked.append(
            _Checked(
                number=number,
                files=files,
                size=measure_labels(labels.array, image.grid.spacing_zyx, annotated),
                guess=guess_modality(replace_nonfinite(image.array, file=files.image)[0]),
                hashes=TaskReference(
                    image_sha256=image.content_hash(), labels_sha256=labels.content_hash()
                ),
                values_present=present,
                shape_zyx=labels.array.shape,
                notes=notes,
                volumes=(image, labels) if kept_voxels <= KEPT_VOXELS else None,
            )
        )
    return checked


def _read(files: Reference) -> tuple[Volume, Volume, tuple[str, ...]]:
    image = read_image(files.image, assume_spacing=files.assume_spacing)
    labels = read_labels(files.labels, assume_spacing=files.assume_spacing)
    notes = [*image.notes, *labels.notes]
    match = image.grid.compare(labels.grid)
    if match is GridMatch.DIFFERENT:
        raise DataRefused(
            "the label map of a reference is not on the grid of its image",
            file=files.labels,
            found=_describe(labels.grid),
            expected=f"{_describe(image.grid)}, as {files.image}",
            fix="resample one of them outside iris, or correct its header",
        )
    if match is GridMatch.ROUNDING:
        notes.append("image and label map differ by rounding; the image's grid is used")
    return image, dataclasses.replace(labels, grid=image.grid), tuple(notes)


def _refuse_undeclared(files: Reference, present: Sequence[int], known: set[int]) -> None:
    undeclared = sorted(set(present) - known)
    if undeclared:
        raise DataRefused(
            "the label map of a reference holds values that no class declares",
            file=files.labels,
            found=", ".join(map(str, undeclared[:20])),
            expected=", ".join(map(str, sorted(known)[:40])),
            fix="declare them among the labels, or correct the label map",
        )


def _describe(grid: Grid) -> str:
    spacing = " x ".join(f"{edge:.6g}" for edge in grid.spacing_xyz)
    origin = ", ".join(f"{value:.6g}" for value in grid.affine[:3, 3])
    return f"shape (x, y, z) {grid.shape_xyz}, spacing {spacing} mm, origin ({origin}) mm"


def _require_voxels(classes: Sequence[ClassLabel], checked: Sequence[_Checked]) -> None:
    """Refuse classes that no reference shows, naming them and all label maps that should."""
    missing = [
        label
        for label in classes
        if not any(label.name in item.size.volumes_mm3 for item in checked)
    ]
    if not missing:
        return
    label = missing[0]
    what = f"class {label.name!r} (label {', '.join(map(str, label.values))})"
    more = f"; also missing: {', '.join(other.name for other in missing[1:])}"
    asked = [item for item in checked if label.name not in item.files.not_annotated]
    problem = f"no reference shows {what}"
    found = "; ".join(_found(item) for item in asked)
    if len(asked) == 1:
        problem = f"{volume_name(asked[0].files.labels)}: reference has no voxel of {what}"
    elif not asked:
        problem, found = f"{what} is annotated in no reference", "not_annotated names it everywhere"
    raise DataRefused(
        problem,
        file=", ".join(str(item.files.labels) for item in asked or checked),
        found=found + (more if len(missing) > 1 else ""),
        expected="at least one voxel of every class",
        fix="choose other references for this class, or pick the classes to use with --classes",
    )


def _found(item: _Checked) -> str:
    shape = f"{item.files.labels.name}: shape (z, y, x) {item.shape_zyx}"
    if not any(item.values_present):
        return f"{shape}, nothing but zeros"
    return f"{shape}, labels present {', '.join(map(str, item.values_present[:20]))}"


def _unanimous(checked: Sequence[_Checked]) -> Modality:
    guesses = [item.guess for item in checked]
    if len(set(guesses)) == 1:
        return guesses[0]
    raise DataRefused(
        "the references do not look like one modality",
        file=", ".join(str(item.files.image) for item in checked),
        found=", ".join(f"{item.files.image.name}: {item.guess}" for item in checked),
        expected="ct for all of them, or other for all of them",
        fix="say which it is with --modality, or encode one task for each",
    )


def _choose_spacing(
    model: Model, sizes: Sequence[ReferenceSize], spacing_mm: float | None
) -> SpacingChoice:
    extent = max(item.extent_mm for item in sizes)
    if spacing_mm is not None and spacing_mm > extent:
        raise UsageError(
            "the working spacing is larger than all classes together",
            found=f"{spacing_mm:.4g} mm",
            expected=f"at most {extent:.4g} mm, the extent of the classes",
            fix="give a smaller --spacing, or leave it out for the one by the rule",
        )
    if spacing_mm is not None:
        return SpacingChoice(spacing_mm, f"{spacing_mm:.4g} mm: as asked for")
    return spacing_of_references(model.card.s0, model.card.patch, sizes)


def _warnings(
    checked: Sequence[_Checked],
    encoded: Sequence[_EncodedReference],
    entries: Sequence[TaskClass],
) -> list[str]:
    found = [
        f"reference {item.number}: {note}" for item in checked for note in dict.fromkeys(item.notes)
    ]
    found += [
        f"reference {item.number} shows none of the classes and was left out"
        for item in checked
        if not item.size.volumes_mm3
    ]
    found += [warning for item in encoded for warning in item.warnings]
    found += [
        f"class {entry.name!r}: its crops show {entry.coverage:.0%} of its voxels"
        for entry in entries
        if entry.coverage is not None and entry.coverage < COVERAGE_WARNING
    ]
    return found


class _Encoder:
    """Encodes reference by reference with one model, spacing and modality."""

    def __init__(
        self,
        model: Model,
        classes: Sequence[ClassLabel],
        spacing_mm: float,
        modality: Modality,
        device: str,
    ) -> None:
        self.network = model.network.to(device).eval()
        self.values = {label.name: label.values for label in classes}
        self.patch = (model.card.patch,) * 3
        self.spacing_mm = spacing_mm
        self.modality = modality
        self.device = device

    def encode(self, item: _Checked) -> _EncodedReference:
        """Tokens of the classes that have a voxel in this reference."""
        image, labels = item.load()
        names = tuple(item.size.volumes_mm3)
        prepared = prepare_image(image, self.modality, self.spacing_mm)
        masks = self._masks(labels, names, prepared.grid)
        plan = choose_crops_of_points(masks.points, prepared.grid.shape_zyx, self.patch)
        sums: dict[str, Tokens] = {}
        for crop in plan.crops:
            for name, tokens in self._encode_crop(prepared, masks, crop).items():
                weighted = [stage * crop.voxels[name] for stage in tokens]
                sums[name] = _add(sums[name], weighted) if name in sums else weighted
        found = {name: _class_of(plan, masks, name, sums[name]) for name in names}
        warnings = [
            *self._soft_warnings(item.number, masks),
            *self._fill_warnings(item.number, plan),
        ]
        return _EncodedReference(found, tuple(warnings))

    def _masks(self, native: Volume, names: Sequence[str], working: Grid) -> _Masks:
        values = {name: self.values[name] for name in names}
        labels = resample_labels(native.array, native.grid, working)
        points = class_points(labels, values)
        soft = {}
        for name in names:
            if len(points[name]) < SOFT_BELOW:
                hard = np.isin(native.array, values[name])
                soft[name] = _soft_mask(hard, native.grid, working)
        counts = {name: len(points[name]) for name in names}
        points |= {name: np.argwhere(mask > 0).astype(np.int64) for name, mask in soft.items()}
        return _Masks(labels, values, points, counts, soft)

    def _encode_crop(self, prepared: PreparedImage, masks: _Masks, crop: Crop) -> dict[str, Tokens]:
        image = cut(prepared.array, crop.start_zyx, self.patch, prepared.fill)
        found: dict[str, Tokens] = {}
        with torch.inference_mode():
            tensor = torch.from_numpy(image)[None, None].to(self.device)
            features = self.network.encode_image(tensor)
            for first in range(0, len(crop.classes), CLASSES_AT_ONCE):
                names = crop.classes[first : first + CLASSES_AT_ONCE]
                stacked = torch.from_numpy(masks.cut(names, crop, self.patch))[None]
                tokens = self.network.encode_task(features, stacked.to(self.device))
                for index, name in enumerate(names):
                    found[name] = [stage[0, index].double().cpu().numpy() for stage in tokens]
        return found

    def _soft_warnings(self, number: int, masks: _Masks) -> list[str]:
        return [
            f"class {name!r} has only {masks.counts[name]} voxels at {self.spacing_mm:.4g} mm "
            f"in reference {number} (fewer than {SOFT_BELOW}): used as a soft mask"
            for name in masks.soft
        ]

    def _fill_warnings(self, number: int, plan: CropPlan) -> list[str]:
        size = float(np.prod(self.patch))
        return [
            f"class {name!r} fills {voxels / size:.0%} of a crop of reference {number} "
            f"(more than {FILL_MAX:.0%}): little of its surroundings is seen"
            for crop in plan.crops
            for name, voxels in crop.voxels.items()
            if voxels > FILL_MAX * size
        ]


@dataclass(frozen=True)
class _Masks:
    """The classes of a reference on its working grid.

    labels: (Z, Y, X), the resampled label map. points: voxels (n, 3) of each class, of the soft
    mask where there is one. counts: voxels by arg-max resampling. soft: (Z, Y, X) in [0, 1].
    """

    labels: Labels
    values: Values
    points: Mapping[str, npt.NDArray[np.int64]]
    counts: Mapping[str, int]
    soft: Mapping[str, npt.NDArray[np.float32]]

    def cut(
        self, names: Sequence[str], crop: Crop, patch: Sequence[int]
    ) -> npt.NDArray[np.float32] | npt.NDArray[np.bool_]:
        """(K, Z, Y, X) masks of some classes in a crop: bool, or float32 where one is soft."""
        labels = cut(self.labels, crop.start_zyx, patch, 0)
        masks = [
            cut(self.soft[name], crop.start_zyx, patch, 0.0)
            if name in self.soft
            else np.isin(labels, self.values[name])
            for name in names
        ]
        return np.stack(masks)


def _soft_mask(hard: npt.NDArray[np.bool_], grid: Grid, working: Grid) -> npt.NDArray[np.float32]:
    """The mask resampled linearly; if that misses it, the working voxels nearest to its own."""
    soft = np.asarray(resample_mask(hard, grid, working), dtype=np.float32)
    if not soft.any():
        world = grid.voxel_to_world(np.argwhere(hard)[:, ::-1])
        index = np.rint(working.world_to_voxel(world)).astype(np.int64)[:, ::-1]
        z, y, x = np.clip(index, 0, np.asarray(working.shape_zyx) - 1).T
        soft[z, y, x] = 1.0
    return soft


def _class_of(plan: CropPlan, masks: _Masks, name: str, sums: Tokens) -> _ClassOfReference:
    crops = plan.of(name)
    weight = sum(crop.voxels[name] for crop in crops)
    return _ClassOfReference(
        [stage / weight for stage in sums],
        len(crops),
        masks.counts[name],
        plan.coverage[name],
        name in masks.soft,
    )


def _add(first: Tokens, second: Tokens) -> Tokens:
    return [a + b for a, b in zip(first, second, strict=True)]


def _join(
    classes: Sequence[ClassLabel], encoded: Sequence[_EncodedReference]
) -> tuple[list[TaskClass], list[npt.NDArray[np.float32]]]:
    """Mean over the references that have a class, and its entry in the class table."""
    entries, rows = [], []
    for label in classes:
        found = [item.classes[label.name] for item in encoded if label.name in item.classes]
        total = [
            sum(stages) / len(found) for stages in zip(*(f.tokens for f in found), strict=True)
        ]
        rows.append(total)
        shown = sum(item.coverage * max(item.voxels, 1) for item in found)
        entries.append(
            TaskClass(
                name=label.name,
                value=label.value,
                references=len(found),
                crops=sum(item.crops for item in found),
                voxels=sum(item.voxels for item in found),
                coverage=min(1.0, shown / sum(max(item.voxels, 1) for item in found)),
                soft=any(item.soft for item in found),
            )
        )
    stages = [np.stack(stage).astype(np.float32) for stage in zip(*rows, strict=True)]
    return entries, stages
