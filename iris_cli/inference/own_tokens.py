"""How far the classes found in a case are from those of the references, by their tokens.

The labels of the case are shown to the encoder as those of a reference would be, on the working
grid and in crops of the patch that classes share, but in one crop a class. What comes out is
compared with the tokens of the task (`task.likeness`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from iris_cli.inference.statistics import SLAB_VOXELS, ranked_slabs
from iris_cli.inference.streaming import How
from iris_cli.model.model import Model
from iris_cli.network.precision import autocast_type
from iris_cli.preparation.prepare import PreparedImage
from iris_cli.task.crops import Crop, Points, choose_crops_of_points, cut
from iris_cli.task.encoding import encode_view
from iris_cli.task.iris_views import SOFT_BELOW
from iris_cli.task.likeness import is_told, token_distance
from iris_cli.task.task_file import Task
from iris_cli.task.views import View
from iris_cli.volume.grid import Grid
from iris_cli.volume.resampling import resample_labels

Labels = npt.NDArray[Any]

# A crop costs about as much as half a window, so that comparing adds a twentieth to the network.
WINDOWS_PER_CROP = 10
# Voxels of a class by which its crop is chosen.
SAMPLE = 10_000


class Comparison(Enum):
    """Which of the classes that were found are compared with the references."""

    NONE = "none"
    CHEAP = "cheap"
    """Those in the first crops, one for `WINDOWS_PER_CROP` windows of the query."""
    ALL = "all"

    def crops(self, windows: int, classes: int) -> int:
        """The most crops to look at, of a query of so many windows."""
        most = {Comparison.NONE: 0, Comparison.CHEAP: windows // WINDOWS_PER_CROP}
        return most.get(self, classes)


def own_distances(
    model: Model,
    task: Task,
    prepared: PreparedImage,
    labels: Labels,
    native: Grid,
    kept: Sequence[int],
    how: How,
    *,
    crops: int,
) -> dict[str, float]:
    """Class name -> distance of its tokens in this case from those of the task.

    labels: (Z, Y, X) on `native`. kept: indices of the classes to look for. crops: how many to look
    at; those of most classes come first, and classes of the others have no distance. Nor have those
    of fewer than 8 voxels on the working grid, and no class has one in a network whose tokens
    cannot be compared.
    """
    if not crops or not is_told(model.network.config):
        return {}
    index = {task.header.classes[i].name: i for i in kept}
    values = {name: task.header.classes[i].value for name, i in index.items()}
    working = resample_labels(labels, native, prepared.grid)
    patch = (model.card.patch,) * 3
    place = torch.device(how.device)
    network, kind = model.network.to(place).eval(), autocast_type(how.precision, place)
    found: dict[str, float] = {}
    for crop in _crops(working, values, patch)[:crops]:
        view = _view(prepared, working, values, crop, patch)
        for name, tokens in encode_view(network, view, place, kind).items():
            found[name] = token_distance(tokens, [stage[index[name]] for stage in task.tokens])
    return {name: found[name] for name in index if name in found}


def _crops(labels: Labels, values: Mapping[str, int], patch: tuple[int, int, int]) -> list[Crop]:
    """One crop for each class, shared where that is possible; those of most classes first."""
    z, y, x = labels.shape
    points, voxels = _points(labels, values)
    plan = choose_crops_of_points(points, (z, y, x), patch, voxels=voxels, max_crops=1)
    return sorted(plan.crops, key=lambda crop: (-len(crop.classes), crop.start_zyx))


def _points(labels: Labels, values: Mapping[str, int]) -> tuple[dict[str, Points], dict[str, int]]:
    """Positions (n, 3) of about `SAMPLE` voxels of each class at most, and how many it has.

    Slab by slab: positions of all voxels would take more memory than the query.
    """
    order = sorted(values, key=lambda name: values[name])
    wanted = [values[name] for name in order]
    counts = np.zeros(len(order) + 1, np.int64)
    for _, slab in ranked_slabs(labels, wanted, SLAB_VOXELS):
        counts += np.bincount(slab.ravel(), minlength=len(counts))
    share = np.where(counts < SOFT_BELOW, 0.0, SAMPLE / np.maximum(counts, 1))
    share[0] = 0.0
    drawn = np.random.default_rng(0)
    ranks, positions = [], []
    for rows, slab in ranked_slabs(labels, wanted, SLAB_VOXELS):
        where = np.flatnonzero(slab)
        where = where[drawn.random(len(where)) < share[slab.ravel()[where]]]
        z, y, x = np.unravel_index(where, slab.shape)
        ranks.append(slab.ravel()[where])
        positions.append(np.stack([z + rows.start, y, x], axis=1).astype(np.int64))
    rank, position = np.concatenate(ranks), np.concatenate(positions)
    points = {name: position[rank == i] for i, name in enumerate(order, start=1)}
    return points, {name: int(counts[i]) for i, name in enumerate(order, start=1)}


def _view(
    prepared: PreparedImage,
    labels: Labels,
    values: Mapping[str, int],
    crop: Crop,
    patch: tuple[int, int, int],
) -> View:
    def masks(names: Sequence[str]) -> Labels:
        shown = cut(labels, crop.start_zyx, patch, 0)
        return np.stack([shown == values[name] for name in names])

    image = cut(prepared.array, crop.start_zyx, patch, prepared.fill)
    return View(image, crop.voxels, masks)
