"""A model and its tasks for Python: loaded once, images in memory in, labels of the same kind out.

from iris_cli.workflows import load_predictor

predictor = load_predictor("liver.task.pt", device="cuda")
found = predictor.predict(nibabel.load("scan.nii.gz"))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iris_cli.inference.memory import NO_LIMITS, Limits
from iris_cli.inference.predictor import InMemoryPrediction, Predictor
from iris_cli.model.model import load_model
from iris_cli.network.precision import choose_precision
from iris_cli.task.combining import Grouping, combine
from iris_cli.task.encoding import RECIPES
from iris_cli.workflows.combined import own_model, read_tasks
from iris_cli.workflows.devices import choose_device

__all__ = ["InMemoryPrediction", "Predictor", "load_predictor"]


def load_predictor(
    tasks: str | Path | Sequence[str | Path],
    *,
    model: str | Path | None = None,
    grouping: Grouping = Grouping.APART,
    renumber: bool = False,
    classes: Sequence[str] | None = None,
    device: str = "auto",
    precision: str = "auto",
    skip_empty: bool = False,
    limits: Limits = NO_LIMITS,
) -> Predictor:
    """Load a model with one or more tasks; options mean what those of `iris predict` do.

    model: name or folder, None for the tasks' own.
    raises UsageError for files, models and classes that do not exist, DataRefused for a damaged
    task, one of another model, and tasks that do not go together, EnvironmentProblem for a missing
    device.
    """
    paths = [Path(tasks)] if isinstance(tasks, str | Path) else [Path(one) for one in tasks]
    named = read_tasks(paths)
    task = combine(named, grouping=grouping, renumber=renumber)
    if len(named) == 1 and grouping is Grouping.APART and not renumber:
        task = named[0].task
    place = choose_device(device)
    loaded = load_model(model or own_model(task.header, paths[0]), device=place)
    recipe = RECIPES[loaded.card.profile]
    return Predictor(
        loaded,
        task,
        classes=None if classes is None else tuple(classes),
        device=place,
        precision=recipe.precision(choose_precision(precision, place), place),
        skip_empty=skip_empty,
        limits=limits,
    )
