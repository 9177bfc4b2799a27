"""One query: from a native volume and a task to a label map on the native grid.

With `classes` given, only these are written. The recorded group still runs whole, because its
classes see each other; the label is then the arg-max over the *kept* classes and background, so a
voxel that a dropped class would have won goes to the best kept class whose logit is above 0, else
to background.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from iris_cli.errors import DataRefused, UsageError
from iris_cli.files.schema import nearest
from iris_cli.inference.sliding import predict_logits
from iris_cli.inference.windows import window_starts
from iris_cli.model.model import Model
from iris_cli.preparation.prepare import PreparedImage, prepare_image
from iris_cli.preparation.profiles import guess_modality
from iris_cli.task.encoding import require_profile
from iris_cli.task.task_file import Task, TaskClass, TaskHeader
from iris_cli.volume.reading import Volume
from iris_cli.volume.resampling import resample_scores_to_labels

Labels = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Prediction:
    """Labels of one query.

    labels: (Z, Y, X) on the query's canonical native grid. voxels: class name -> voxels.
    flags: what the user should look at. statistics: how the query was normalised.
    """

    labels: Labels
    voxels: dict[str, int]
    flags: tuple[str, ...]
    statistics: dict[str, float]
    windows: int


def predict_volume(
    model: Model,
    task: Task,
    volume: Volume,
    *,
    classes: Sequence[str] | None = None,
    device: str = "cpu",
    window_batch: int = 1,
    on_window: Callable[[int, int], None] | None = None,
) -> Prediction:
    """Segment one volume.

    classes: names to keep, default all. on_window: called with (done, total).
    raises DataRefused where the task belongs to another model or more than 1 % of the query is not
    finite; UsageError for a class that the task does not have.
    """
    require_profile(model)
    check_model(model, task.header)
    kept = kept_classes(task.header, classes)
    prepared = prepare_image(volume, task.header.modality, task.header.spacing_mm)
    patch = model.card.patch
    logits = predict_logits(
        model.network,
        [torch.from_numpy(stage) for stage in task.tokens],
        prepared.array,
        prepared.fill,
        (patch, patch, patch),
        device=device,
        groups=task.header.groups,
        keep=kept,
        window_batch=window_batch,
        on_window=on_window,
    )
    entries = [task.header.classes[index] for index in kept]
    values = [entry.value for entry in entries]
    labels = resample_scores_to_labels(logits, prepared.grid, volume.grid, values)
    return Prediction(
        labels=labels,
        voxels=_count(labels, entries),
        flags=tuple(_flags(volume, task.header, prepared)),
        statistics=prepared.statistics,
        windows=len(window_starts(prepared.array.shape, (patch, patch, patch))),
    )


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
    flags = list(volume.notes)
    guess = guess_modality(volume.array)
    if guess != header.modality:
        flags.append(
            f"the intensities look like modality {guess}; "
            f"worked as {header.modality}, as the task says"
        )
    if prepared.nonfinite:
        flags.append(f"{prepared.nonfinite} voxels were not finite and were set to the smallest")
    return flags


def _count(labels: Labels, entries: Sequence[TaskClass]) -> dict[str, int]:
    values, counts = np.unique(labels, return_counts=True)
    found = dict(zip(values.tolist(), counts.tolist(), strict=True))
    return {entry.name: int(found.get(entry.value, 0)) for entry in entries}
