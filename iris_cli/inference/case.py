"""One query: from a native volume and a task to a label map on the native grid.

With `classes` given, only these are written. The recorded group still runs whole, because its
classes see each other; the label is then the arg-max over the *kept* classes and background, so a
voxel that a dropped class would have won goes to the best kept class whose logit is above 0, else
to background.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from iris_cli.errors import DataRefused, UsageError
from iris_cli.execution.stages import stage
from iris_cli.files.schema import nearest
from iris_cli.inference.mass import UNSERVED
from iris_cli.inference.mass import label as mass_label
from iris_cli.inference.own_tokens import Comparison, own_distances
from iris_cli.inference.sliding import Query
from iris_cli.inference.streaming import How, Segmentation, Wanted, WindowCounts, segment
from iris_cli.model.model import Model
from iris_cli.preparation import mass, profiles
from iris_cli.preparation.prepare import PreparedImage, prepare_image
from iris_cli.preparation.profiles import guess_modality
from iris_cli.task.task_file import Task, TaskClass, TaskHeader
from iris_cli.volume.grid import Grid
from iris_cli.volume.reading import Volume

Labels = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Prediction:
    """Labels of one query.

    labels: (Z, Y, X) on the query's canonical native grid. voxels: class name -> voxels.
    confidence: class name -> mean sigmoid of the logit that won there, where the profile tells.
    flags: what the user should look at. statistics: how the query was normalised.
    token_distances: class name -> how far its tokens here are from those of the task
    (`own_tokens`), of the classes that were compared.
    """

    labels: Labels
    voxels: dict[str, int]
    confidence: dict[str, float]
    flags: tuple[str, ...]
    statistics: dict[str, float]
    windows: WindowCounts
    token_distances: dict[str, float] = field(default_factory=dict)


def predict_volume(
    model: Model,
    task: Task,
    volume: Volume,
    *,
    classes: Sequence[str] | None = None,
    how: How | None = None,
    comparison: Comparison = Comparison.NONE,
) -> Prediction:
    """Segment one volume.

    classes: names to keep, default all. comparison: of what was found with the references.
    raises DataRefused where the task belongs to another model or more than 1 % of the query is not
    finite; UsageError for a class that the task does not have.
    """
    check_model(model, task.header)
    kept = kept_classes(task.header, classes)
    recipe, how = RECIPES[model.card.profile], how or How()
    with stage("normalising and resampling the query", volume.path):
        prepared = recipe.prepare(volume, task.header.modality, task.header.spacing_mm)
    with stage("segmenting the query", volume.path):
        found = recipe.label(model, task, prepared, volume.grid, kept, how)
    with stage("comparing classes with the references", volume.path):
        crops = comparison.crops(found.windows.all, len(kept))
        distances = own_distances(
            model, task, prepared, found.labels, volume.grid, kept, how, crops=crops
        )
    entries = [task.header.classes[index] for index in kept]
    return Prediction(
        labels=found.labels,
        voxels={entry.name: found.voxels[entry.value] for entry in entries},
        confidence=_confidence(found, entries),
        flags=tuple(_flags(volume, task.header, prepared)),
        statistics=prepared.statistics,
        windows=found.windows,
        token_distances=distances,
    )


def label(
    model: Model,
    task: Task,
    prepared: PreparedImage,
    native: Grid,
    kept: Sequence[int],
    how: How,
) -> Segmentation:
    """Profile `iris-1` from windows to labels: logits blended, and decided on the native grid.

    kept: indices of the classes to decide between.
    """
    wanted = Wanted(
        [torch.from_numpy(stage) for stage in task.tokens],
        task.header.groups,
        kept,
        [task.header.classes[index].value for index in kept],
    )
    query = Query(prepared.array, prepared.fill)
    patch = (model.card.patch,) * 3
    return segment(model.network, wanted, query, prepared.grid, native, patch, how)


Label = Callable[[Model, Task, PreparedImage, Grid, Sequence[int], How], Segmentation]


@dataclass(frozen=True)
class QueryRecipe:
    """How a query becomes labels by one profile; both work as those of `iris-1` say.

    prepare: volume, modality and spacing (mm) of the task -> network input. label: that, model and
    task -> labels on the native grid. unserved: options it has no use for -> why.
    """

    prepare: Callable[[Volume, str, float], PreparedImage]
    label: Label
    unserved: Mapping[str, str] = field(default_factory=dict)

    def check(self, options: Sequence[str]) -> None:
        """Refuse options that it cannot serve (UsageError)."""
        for option in options:
            if option in self.unserved:
                raise UsageError(self.unserved[option], found=option, fix=f"leave out {option}")


RECIPES: Mapping[str, QueryRecipe] = MappingProxyType(
    {
        profiles.PROFILE: QueryRecipe(prepare_image, label),
        mass.PROFILE: QueryRecipe(mass.prepare_query, mass_label, UNSERVED),
    }
)
"""By the name of the profile on a model's card."""


def kept_classes(header: TaskHeader, classes: Sequence[str] | None) -> list[int]:
    """Indices of the named classes in the order of the task; all where none are named."""
    names = [entry.name for entry in header.classes]
    if classes is None:
        return list(range(len(names)))
    missing = [name for name in classes if name not in names]
    if missing or not classes:
        guess = nearest(missing[0], names) if missing else None
        raise UsageError(
            f"the task has no class {missing[0]!r}" if missing else "no class is picked",
            found=", ".join(missing) or "nothing",
            expected="some of " + ", ".join(names),
            fix=f"did you mean {guess!r}?" if guess else "pick from the classes above",
        )
    return [index for index, name in enumerate(names) if name in classes]


def check_model(model: Model, header: TaskHeader) -> None:
    """Refuse a task of another model: its tokens mean nothing to this one."""
    if model.card.fingerprint == header.model.fingerprint:
        return
    wanted, card = header.model, model.card
    raise DataRefused(
        "the task was encoded with another model",
        found=f"{card.name} {card.version} (fingerprint {card.fingerprint[:12]})",
        expected=f"{wanted.name} {wanted.version} (fingerprint {wanted.fingerprint[:12]})",
        fix=f"use that model (--model {wanted.name}; `iris model download` brings older ones), "
        "or make the task anew for this one: `iris task refresh TASK --refs DIR`",
    )


def _flags(volume: Volume, header: TaskHeader, prepared: PreparedImage) -> list[str]:
    flags = [*volume.notes, *prepared.notes]
    guess = guess_modality(volume.array)
    if header.modality not in (guess, mass.AUTO):
        flags.append(
            f"the intensities look like modality {guess}; "
            f"worked as {header.modality}, as the task says"
        )
    return flags


def _confidence(found: Segmentation, entries: Sequence[TaskClass]) -> dict[str, float]:
    return {e.name: found.confidence[e.value] for e in entries if e.value in found.confidence}
