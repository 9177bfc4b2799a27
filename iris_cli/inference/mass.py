"""Profile `mass-1` from windows to labels, as the published code goes.

Probabilities are blended, not logits; the window's weight has no floor, so that the corners of the
volume, which lie in the corner of one window only, come out too small; a voxel gets the class of
the largest probability from 0.5 up, ties the lower label; of every label only the largest part
stays; and the labels go to the native grid by the nearest voxel. On CUDA the sigmoid is taken in
the half precision of the network, so that probabilities there are steps of up to 0.004.
source: NETWORK.md section 7. `case` and `streaming` hold what is better, profile `iris-1`.

A row of windows that begin at one z is done with all planes before the next one begins: what is in
memory at once is one row, never (classes x volume).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iris_cli.errors import UsageError
from iris_cli.inference.sliding import Decoding, Maps
from iris_cli.inference.streaming import (
    How,
    Segmentation,
    Wanted,
    WindowCounts,
    refuse_no_numbers,
)
from iris_cli.inference.windows import gaussian_weight
from iris_cli.model.model import Model
from iris_cli.network.precision import autocast_type
from iris_cli.preparation.prepare import PreparedImage
from iris_cli.task.crops import Shape3, cut
from iris_cli.task.mass_views import MassRecipe
from iris_cli.task.task_file import Task
from iris_cli.volume.grid import Grid
from iris_cli.volume.itk_resampling import resample_nearest

Labels = npt.NDArray[Any]

OVERLAP = 0.5
THRESHOLD = 0.5
SMALLEST_WEIGHT = 1e-8

_NO_LOGITS = "profile mass-1 decides on the working grid and gives no logits on another"
UNSERVED: Mapping[str, str] = MappingProxyType(
    {
        "--skip-empty": "profile mass-1 works every window",
        "--probabilities": _NO_LOGITS,
        "--multilabel": _NO_LOGITS,
        "--check-tokens": "profile mass-1 has tokens that are nearly the same for all classes",
    }
)
"""Options that the profile cannot serve, and why."""


def label(
    model: Model,
    task: Task,
    prepared: PreparedImage,
    native: Grid,
    kept: Sequence[int],
    how: How,
) -> Segmentation:
    """Labels of a prepared query on its native grid.

    kept: indices of the classes to decide between; the groups of the task run whole. returns:
    labels of uint16 (Z, Y, X), a wider type where a value does not fit.
    raises IrisError where a finite image gives scores that are not.
    """
    if how.skip_empty:
        raise UsageError(UNSERVED["--skip-empty"], fix="leave out --skip-empty")
    if how.on_scores is not None:
        raise UsageError(
            UNSERVED["--probabilities"], fix="leave out --probabilities and --multilabel"
        )
    values = [task.header.classes[index].value for index in kept]
    tokens = [torch.from_numpy(stage) for stage in task.tokens]
    wanted = Wanted(tokens, task.header.groups, kept, values)
    rows = _Rows(model, wanted, prepared, how)
    labels = _decided(rows, prepared, sorted(values))
    found = resample_nearest(keep_largest_parts(labels), prepared.grid, native)
    counts = _counts(found, max(values) + 1)
    voxels = {value: int(counts[value]) for value in values}
    return Segmentation(found, voxels, {}, WindowCounts(rows.windows))


def axis_starts(length: int, size: int) -> tuple[int, ...]:
    """First voxels of the windows on one axis: from 0 on; a short axis is padded at its far end."""
    last = max(0, length - size)
    return (*range(0, last, max(1, round(size * OVERLAP))), last)


def decide(total: Tensor, weights: Tensor, values: Sequence[int]) -> Labels:
    """The label of the largest probability from 0.5 up, the lower one of equals; 0 where none is.

    total: (K, Z, Y, X), sums of weighted probabilities. weights: (Z, Y, X). values: K ascending
    labels. returns: uint16 (Z, Y, X), or wider.
    """
    best = torch.zeros_like(weights)
    chosen = torch.zeros(weights.shape, dtype=torch.int64, device=weights.device)
    divisor = weights.clamp(min=SMALLEST_WEIGHT)
    for one, value in zip(total, values, strict=True):
        probability = one / divisor
        better = (probability >= THRESHOLD) & (probability > best)
        best = torch.where(better, probability, best)
        chosen.masked_fill_(better, value)
    dtype = np.result_type(np.uint16, np.min_scalar_type(max(values)))
    return chosen.cpu().numpy().astype(dtype)


def keep_largest_parts(labels: Labels) -> Labels:
    """Of every label its largest part of face neighbours, the first one of equals."""
    from scipy import ndimage

    result = labels.copy()
    boxes: Sequence[tuple[slice, ...] | None] = ndimage.find_objects(labels)
    for value, box in enumerate(boxes, start=1):
        if box is None:
            continue
        mask = labels[box] == value
        parts, count = ndimage.label(mask)
        if count > 1:
            largest = 1 + int(_counts(parts, count + 1)[1:].argmax())
            result[box][mask & (parts != largest)] = 0
    return result


def _counts(numbers: Labels, count: int) -> npt.NDArray[np.int64]:
    """How often 0 .. count - 1 occur; plane by plane, as numpy counts in a copy of 64 bits."""
    counts = np.zeros(count, np.int64)
    for plane in numbers:
        counts += np.bincount(plane.ravel(), minlength=count)
    return counts


def _decided(rows: _Rows, prepared: PreparedImage, values: Sequence[int]) -> Labels:
    """Labels on the working grid, before parts are taken away."""
    dtype = np.result_type(np.uint16, np.min_scalar_type(max(values)))
    labels, done = np.empty(prepared.array.shape, dtype), 0
    for total, weights in rows.finished():
        if not prepared.nonfinite:  # else its notes say that nothing can be found
            refuse_no_numbers(total, rows.precision)
        labels[done : done + len(weights)] = decide(total, weights, values)
        done += len(weights)
    return labels


class _Rows:
    """Sums of weighted probabilities over the windows of a query, one row of windows after another.

    windows: how many there are. precision: that the network computes in.
    """

    def __init__(self, model: Model, wanted: Wanted, prepared: PreparedImage, how: How) -> None:
        self._image, self._fill = prepared.array, prepared.fill
        self._patch = (model.card.patch,) * 3
        self._axes = [axis_starts(n, model.card.patch) for n in self._image.shape]
        self._how, self._places = how, wanted.by_value()
        device = torch.device(how.device)
        self.precision = MassRecipe().precision(how.precision, how.device)
        # Of the sigmoid, too, as in the published code.
        self._kind = autocast_type(self.precision, device)
        self._decode = Decoding(model.network, wanted.tokens, wanted.run, device, self.precision)
        self._store = torch.device("cpu") if how.means.on_host else device
        self._weight = torch.from_numpy(gaussian_weight(self._patch, floor=0.0)).to(self._store)
        self.windows = math.prod(map(len, self._axes))

    def finished(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Planes that no later window reaches, in order, until all of the image are done.

        returns: (K, z, Y, X) sums by ascending label, and (z, Y, X) sums of the weights.
        """
        depth, height, width = self._image.shape
        padded = [max(n, size) for n, size in zip(self._image.shape, self._patch, strict=True)]
        # The weights stand in the last row.
        shape = (len(self._places) + 1, self._patch[0], *padded[1:])
        sums = torch.zeros(shape, device=self._store)
        for z, following in itertools.pairwise((*self._axes[0], padded[0])):
            self._add_row(sums, z)
            done = following - z
            planes = sums[:, : min(done, depth - z), :height, :width]
            yield planes[:-1], planes[-1]
            # In place and in order, as both parts may overlap: a copy would be all there is.
            for plane in range(self._patch[0] - done):
                sums[:, plane] = sums[:, plane + done]
            sums[:, -done:] = 0.0

    def _add_row(self, sums: Tensor, z: int) -> None:
        """Add all windows that begin at plane z, which is the first of `sums`."""
        batch = self._how.means.window_batch
        starts = [(z, y, x) for y, x in itertools.product(*self._axes[1:])]
        before = self._axes[0].index(z) * len(starts)
        for first in range(0, len(starts), batch):
            some = starts[first : first + batch]
            crops = np.stack([cut(self._image, start, self._patch, self._fill) for start in some])
            for start, maps in zip(some, self._decode(crops), strict=True):
                self._add_window(sums, start, maps)
            if self._how.on_window is not None:
                self._how.on_window(before + first + len(some), self.windows)

    def _add_window(self, sums: Tensor, start: Shape3, maps: Maps) -> None:
        _, height, width = self._patch
        part = (slice(start[1], start[1] + height), slice(start[2], start[2] + width))
        with torch.inference_mode():
            for row, (group, position) in enumerate(self._places):
                logits = maps[group].of_classes([position]).logits()[0, 0]
                probabilities = logits.to(self._kind).sigmoid().to(self._store, torch.float32)
                sums[row][:, *part].addcmul_(probabilities, self._weight)
            sums[-1][:, *part] += self._weight
