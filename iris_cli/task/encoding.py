"""From reference images with label maps to a task: one token set per class.

Where the encoder looks is the matter of the model's profile (`views`); reading and checking the
references, running the network and joining its tokens are here.

source: CONTRACT.md, References to tokens. What was assumed or is weak about a reference stands in
the warnings of the task's header, where references are numbered in the order given: a task never
holds a file name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from iris_cli.dataset.classes import ClassLabel, Modality
from iris_cli.errors import DataRefused, UsageError
from iris_cli.files.hashing import hash_json
from iris_cli.model.model import Model
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.network.precision import Precision, autocast_type, compute_in
from iris_cli.preparation import mass, profiles
from iris_cli.task.iris_views import IrisRecipe
from iris_cli.task.likeness import distances_apart, is_told
from iris_cli.task.mass_views import MassRecipe
from iris_cli.task.spacing import ReferenceSize, SpacingChoice, measure_labels
from iris_cli.task.task_file import (
    MINOR,
    ModelRecord,
    ReferenceVolumes,
    Task,
    TaskClass,
    TaskHeader,
    TaskReference,
)
from iris_cli.task.views import (
    ClassViews,
    LabelledReference,
    ReferenceRecipe,
    TaskModality,
    Values,
    View,
)
from iris_cli.volume.grid import Grid, GridMatch
from iris_cli.volume.reading import AssumedSpacing, Volume, read_image, read_labels, volume_name

# Counts up when iris begins to make other tokens of the same references.
ENCODING_VERSION = 1
COVERAGE_WARNING = 0.9
# Classes in one pass of the task encoder: its maps are per class, and large.
CLASSES_AT_ONCE = 16
# References beyond this many voxels in all are read twice instead of being kept in memory.
KEPT_VOXELS = 200_000_000

RECIPES: Mapping[str, ReferenceRecipe] = MappingProxyType(
    {profiles.PROFILE: IrisRecipe(), mass.PROFILE: MassRecipe()}
)
"""How models of each profile are shown references."""

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
    declared: Modality | None = None,
    spacing_mm: float | None = None,
    channel: int = 0,
    licence: str | None = None,
    device: str = "cpu",
    precision: Precision = "fp32",
    on_reference: Callable[[int, int], None] | None = None,
    find_known: Callable[[str], Task | None] | None = None,
) -> Task:
    """Encode references once into a task.

    classes: what the task segments, in this order. ignore_value, other_values: further values that
    the label maps may hold (ignored voxels; classes that were not picked).
    modality: as the user says. None leaves it to the profile: what the data set declares, else a
    guess per reference, which must be unanimous; or a guess per crop. spacing_mm: None leaves it to
    the profile. channel: which channel of their data set the images are, noted only. precision: of
    the network; tokens are float32 always, and a note says where it was not.
    on_reference: called with (done, total). find_known: called with a hash of all that the task
    rests on, once the references are checked; a task that it returns is taken as it is.
    raises DataRefused where image and label map do not lie on one grid, a label map holds values
    that nobody declared, a class has no voxel in any reference, or modalities disagree; what of it
    profile `mass-1` takes as it is, `ReferenceRecipe.strict` says.
    """
    if not references or not classes:
        raise UsageError("a task needs at least one reference and one class")
    recipe = RECIPES[model.card.profile]
    precision = recipe.precision(precision, device)
    known = {0, *other_values, *(value for label in classes for value in label.values)}
    known |= set() if ignore_value is None else {ignore_value}
    checked = _check_all(recipe, references, classes, known, ignore_value, declared)
    _require_voxels(recipe, classes, checked)
    used = modality or _unanimous(checked)
    choice = _choose_spacing(model, [item.size for item in checked], spacing_mm)
    if find_known is not None:
        inputs = _inputs(model, classes, checked, used, choice.spacing_mm)
        inputs |= {"ignore": ignore_value, "channel": channel, "licence": licence}
        inputs |= {"precision": precision}
        task = find_known(hash_json(inputs))
        if task is not None:
            return task
    encoder = _Encoder(model, classes, choice.spacing_mm, used, device, precision)
    encoded = _encode_all(encoder, checked, on_reference)
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
        warnings=(*_warnings(classes, checked, encoded, entries), *_said(precision)),
        licence=licence,
        reference_volumes={entry.name: _volumes(entry.name, checked) for entry in entries},
        token_distances=_distances(encoded, entries) if is_told(model.network.config) else {},
    )
    return Task(header, tuple(tokens))


def encode_view(
    network: IrisNetwork, view: View, device: torch.device, kind: torch.dtype | None
) -> dict[str, Tokens]:
    """Tokens (m+1, C) per stage of every class of a view. kind: of autocast, None for none."""
    found: dict[str, Tokens] = {}
    classes = tuple(view.weights)
    with torch.inference_mode(), compute_in(kind, device):
        tensor = torch.from_numpy(view.image)[None, None].to(device)
        features = network.encode_image(tensor)
        for first in range(0, len(classes), CLASSES_AT_ONCE):
            names = classes[first : first + CLASSES_AT_ONCE]
            stacked = torch.from_numpy(view.masks(names))[None]
            tokens = network.encode_task(features, stacked.to(device))
            for index, name in enumerate(names):
                found[name] = [stage[0, index].double().cpu().numpy() for stage in tokens]
    return found


def _distances(
    encoded: Sequence[_EncodedReference], entries: Sequence[TaskClass]
) -> dict[str, tuple[float, ...]]:
    """Of each reference from the others, of the classes that several references have."""
    apart = {
        entry.name: distances_apart(
            [item.classes[entry.name].tokens for item in encoded if entry.name in item.classes]
        )
        for entry in entries
    }
    return {
        name: tuple(float(f"{distance:.4g}") for distance in distances)
        for name, distances in apart.items()
        if distances
    }


def _volumes(name: str, checked: Sequence[_Checked]) -> ReferenceVolumes:
    shown = [item.size for item in checked if name in item.size.volumes_mm3]
    return ReferenceVolumes(
        volumes_ml=tuple(float(f"{size.volumes_mm3[name] / 1000:.6g}") for size in shown),
        cut=sum(name in size.cut for size in shown),
    )


def _inputs(
    model: Model,
    classes: Sequence[ClassLabel],
    checked: Sequence[_Checked],
    modality: TaskModality,
    spacing_mm: float,
) -> dict[str, Any]:
    """What the task rests on, by content only; a newer header says more of the references."""
    return {
        "encoding": ENCODING_VERSION,
        "header": MINOR,
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


@dataclass(frozen=True)
class _Checked:
    """One reference that passed the checks, with its voxels while there is room for them."""

    number: int
    files: Reference
    size: ReferenceSize
    modality: TaskModality
    strict: bool
    hashes: TaskReference
    values_present: tuple[int, ...]
    shape_zyx: tuple[int, ...]
    notes: tuple[str, ...]
    volumes: tuple[Volume, Volume] | None

    def load(self) -> tuple[Volume, Volume]:
        """Image and label map, as they were checked."""
        if self.volumes is not None:
            return self.volumes
        image, labels, _ = _read(self.files, strict=self.strict)
        return image, labels


@dataclass(frozen=True)
class _ClassOfReference:
    """What one reference says about one class: tokens (m+1, C) per stage, and what they rest on."""

    tokens: Tokens
    views: ClassViews


@dataclass(frozen=True)
class _EncodedReference:
    classes: Mapping[str, _ClassOfReference]
    warnings: tuple[str, ...]


def _check_all(
    recipe: ReferenceRecipe,
    references: Sequence[Reference],
    classes: Sequence[ClassLabel],
    known: set[int],
    ignore_value: int | None,
    declared: Modality | None,
) -> list[_Checked]:
    checked: list[_Checked] = []
    kept_voxels = 0
    for number, files in enumerate(references, 1):
        image, labels, notes = _read(files, strict=recipe.strict)
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
                size=measure_labels(labels.array, labels.grid.spacing_zyx, annotated),
                modality=recipe.modality(image, declared),
                strict=recipe.strict,
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


def _read(files: Reference, *, strict: bool) -> tuple[Volume, Volume, tuple[str, ...]]:
    """Image, label map and notes; `strict` puts both on the image's grid."""
    image = read_image(files.image, assume_spacing=files.assume_spacing)
    labels = read_labels(files.labels, assume_spacing=files.assume_spacing)
    notes = [*image.notes, *labels.notes]
    match = image.grid.compare(labels.grid)
    if match is GridMatch.DIFFERENT and not strict:
        notes.append("the label map is not on the grid of its image and is read where it lies")
    elif match is GridMatch.DIFFERENT:
        raise DataRefused(
            "the label map of a reference is not on the grid of its image",
            file=files.labels,
            found=_describe(labels.grid),
            expected=f"{_describe(image.grid)}, as {files.image}",
            fix="resample one of them outside iris, or correct its header",
        )
    if match is GridMatch.ROUNDING and strict:
        notes.append("image and label map differ by rounding; the image's grid is used")
    return image, dataclasses.replace(labels, grid=image.grid) if strict else labels, tuple(notes)


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


def _require_voxels(
    recipe: ReferenceRecipe, classes: Sequence[ClassLabel], checked: Sequence[_Checked]
) -> None:
    """Refuse classes that no reference shows, naming them and all label maps that should.

    A recipe that is not strict does without some of them, but not without all.
    """
    missing = [
        label
        for label in classes
        if not any(label.name in item.size.volumes_mm3 for item in checked)
    ]
    if not missing or (len(missing) < len(classes) and not recipe.strict):
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


def _encode_all(
    encoder: _Encoder,
    checked: Sequence[_Checked],
    on_reference: Callable[[int, int], None] | None,
) -> list[_EncodedReference]:
    encoded = []
    for item in checked:
        if item.size.volumes_mm3:
            encoded.append(encoder.encode(item))
        if on_reference is not None:
            on_reference(item.number, len(checked))
    if any(item.classes for item in encoded):
        return encoded
    raise DataRefused(
        "no class of the references is left on the working grid",
        file=", ".join(str(item.files.labels) for item in checked),
        found="; ".join(warning for item in encoded for warning in item.warnings),
        fix="give a finer --spacing, or larger structures",
    )


def _unanimous(checked: Sequence[_Checked]) -> TaskModality:
    guesses = [item.modality for item in checked]
    if len(set(guesses)) == 1:
        return guesses[0]
    raise DataRefused(
        "the references do not look like one modality",
        file=", ".join(str(item.files.image) for item in checked),
        found=", ".join(f"{item.files.image.name}: {item.modality}" for item in checked),
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
    return RECIPES[model.card.profile].spacing(model.card.s0, model.card.patch, sizes)


def _warnings(
    classes: Sequence[ClassLabel],
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
    kept = {entry.name for entry in entries}
    found += [
        f"class {label.name!r} is shown by no reference and was left out"
        for label in classes
        if label.name not in kept
    ]
    found += [
        f"class {entry.name!r}: its crops show {entry.coverage:.0%} of its voxels"
        for entry in entries
        if entry.coverage is not None and entry.coverage < COVERAGE_WARNING
    ]
    return found


def _said(precision: Precision) -> list[str]:
    return [] if precision == "fp32" else [f"encoded in {precision}"]


class _Encoder:
    """Encodes reference by reference with one model, spacing and modality."""

    def __init__(
        self,
        model: Model,
        classes: Sequence[ClassLabel],
        spacing_mm: float,
        modality: TaskModality,
        device: str,
        precision: Precision,
    ) -> None:
        self.network = model.network.to(device).eval()
        self.recipe = RECIPES[model.card.profile]
        self.values: Values = {label.name: label.values for label in classes}
        self.patch = (model.card.patch,) * 3
        self.spacing_mm = spacing_mm
        self.modality = modality
        self.device = torch.device(device)
        self.kind = autocast_type(precision, self.device)

    def encode(self, item: _Checked) -> _EncodedReference:
        """Tokens of the classes that have a voxel in this reference."""
        image, labels = item.load()
        values = {name: self.values[name] for name in item.size.volumes_mm3}
        reference = LabelledReference(item.number, image, labels, values, self.modality)
        looked = self.recipe.views(reference, self.spacing_mm, self.patch)
        sums: dict[str, Tokens] = {}
        weights = dict.fromkeys(looked.classes, 0.0)
        for view in looked.views:
            for name, tokens in encode_view(self.network, view, self.device, self.kind).items():
                weighted = [stage * view.weights[name] for stage in tokens]
                sums[name] = _add(sums[name], weighted) if name in sums else weighted
                weights[name] += view.weights[name]
        found = {
            name: _ClassOfReference([stage / weights[name] for stage in sums[name]], views)
            for name, views in looked.classes.items()
        }
        return _EncodedReference(found, looked.warnings)


def _add(first: Tokens, second: Tokens) -> Tokens:
    return [a + b for a, b in zip(first, second, strict=True)]


def _join(
    classes: Sequence[ClassLabel], encoded: Sequence[_EncodedReference]
) -> tuple[list[TaskClass], list[npt.NDArray[np.float32]]]:
    """Mean over the references that have a class, and its entry in the class table."""
    entries, rows = [], []
    for label in classes:
        found = [item.classes[label.name] for item in encoded if label.name in item.classes]
        if not found:
            continue
        total = [
            sum(stages) / len(found) for stages in zip(*(f.tokens for f in found), strict=True)
        ]
        rows.append(total)
        views = [item.views for item in found]
        shown = sum(item.coverage * max(item.voxels, 1) for item in views)
        entries.append(
            TaskClass(
                name=label.name,
                value=label.value,
                references=len(views),
                crops=sum(item.crops for item in views),
                voxels=sum(item.voxels for item in views),
                coverage=min(1.0, shown / sum(max(item.voxels, 1) for item in views)),
                soft=any(item.soft for item in views),
            )
        )
    stages = [np.stack(stage).astype(np.float32) for stage in zip(*rows, strict=True)]
    return entries, stages
