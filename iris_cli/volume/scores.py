"""Scores to labels: from one logit per class on the working grid to a label map on the native one.

Linear interpolation comes first, the decision after it. Both go slab by slab and class by class
with a running arg-max, so that neither all scores nor all interpolated ones need to exist: who
makes scores on the way asks `score_slabs` which of them a slab of labels is made of.

Slabs are cut along any axis. Their size changes no value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iris_cli.errors import UsageError
from iris_cli.volume.grid import Grid
from iris_cli.volume.reading import smallest_label_type
from iris_cli.volume.resampling import (
    BLOCK_VOXELS,
    Axis,
    is_same,
    parallel_axes,
    source_index,
)

Box = tuple[slice, slice, slice]
Sampler = Callable[[Tensor], tuple[Box, Tensor] | None]
"""From the scores of one class to the part of a slab where they may exceed 0, and them there."""

WholeSampler = Callable[[Tensor], Tensor]
"""From the scores of one class to them everywhere in a slab."""

EVERYTHING: Box = (slice(None), slice(None), slice(None))


@dataclass(frozen=True)
class Winner:
    """The decision in a slab.

    rank: 0 for background, else 1 + position of the class with the largest score. score: that
    score, 0 for background. Both have the shape of the slab.
    """

    rank: Tensor
    score: Tensor


@dataclass(frozen=True)
class ScoreSlab:
    """A slab of labels and the slab of scores it is made of.

    axis: 0 (z), 1 (y) or 2 (x). target, source: its voxels along that axis. shape: of the labels.
    """

    axis: int
    target: slice
    source: slice
    shape: tuple[int, int, int]
    sampler: Sampler
    everywhere: WholeSampler

    def winner(self, scores: Iterable[Tensor]) -> Winner:
        """The class with the largest score above 0 in every voxel; ties go to the earlier one.

        scores: of each class in turn, (Z, Y, X) float of the voxels `source`.
        """
        best: Tensor | None = None
        rank = torch.zeros(self.shape, dtype=torch.int16)
        for position, score in enumerate(scores, start=1):
            if best is None:
                best = torch.zeros(self.shape, device=score.device)
                rank = rank.to(score.device)
            found = self.sampler(score)
            if found is not None:
                box, logit = found
                better = logit > best[box]  # not where it is no number
                rank[box].masked_fill_(better, position)
                best[box] = torch.where(better, logit.float(), best[box])
        return Winner(rank, torch.zeros(self.shape) if best is None else best)


def score_slabs(
    source: Grid,
    target: Grid,
    *,
    axis: int = 0,
    voxels: int = BLOCK_VOXELS,
    source_rows: int | None = None,
) -> Iterator[ScoreSlab]:
    """Slabs of `target` in order along `axis`, of about `voxels` voxels each.

    source_rows: a slab is made of no more voxels of `source` along the axis, if one row of labels
    needs no more.
    """
    z, y, x = target.shape_zyx
    length = target.shape_zyx[axis]
    rows = max(1, voxels * length // (z * y * x))
    if source_rows is not None:
        per_row = source.shape_zyx[axis] / length
        rows = max(1, min(rows, int((source_rows - 2) / per_row)))
    for start in range(0, length, rows):
        yield _slab(source, target, axis, start, min(start + rows, length))


def resample_scores_to_labels(
    scores: Tensor | npt.NDArray[Any],
    source: Grid,
    target: Grid,
    values: Sequence[int],
    *,
    voxels: int = BLOCK_VOXELS,
) -> npt.NDArray[Any]:
    """Labels on `target` from one logit per class on `source`, against a background logit of 0.

    scores: (K, Z, Y, X) float, on any device; worked there. values: K distinct positive labels.
    returns: smallest integer type (Z', Y', X'): the label of the largest interpolated logit, 0
    where none is above 0; ties to the lower label. voxels: of a slab, beyond which there is nothing
    but scores and result.
    """
    tensor = torch.from_numpy(scores) if isinstance(scores, np.ndarray) else scores
    if tuple(tensor.shape[1:]) != source.shape_zyx:
        raise UsageError(
            "array and grid do not fit",
            found=f"shape (z, y, x) {tuple(tensor.shape[1:])}",
            expected=str(source.shape_zyx),
        )
    if len(values) != tensor.shape[0] or len(set(values)) != len(values) or min(values) < 1:
        raise UsageError(
            "every score needs a label value of its own",
            found=f"{tensor.shape[0]} scores, values {list(values)}",
            expected="as many distinct positive values",
        )
    order = sorted(range(len(values)), key=lambda index: values[index])
    ranked = ranked_values(values)
    out = np.zeros(target.shape_zyx, dtype=ranked.dtype)
    for slab in score_slabs(source, target, voxels=voxels):
        winner = slab.winner(tensor[index, slab.source] for index in order)
        out[slab.target] = ranked[winner.rank.cpu().numpy()]
    return out


def ranked_values(values: Sequence[int]) -> npt.NDArray[Any]:
    """Label of every rank of a `Winner`: 0, then the values in ascending order; smallest type."""
    return np.array([0, *sorted(values)], dtype=smallest_label_type(0, max(values)))


def _slab(source: Grid, target: Grid, axis: int, start: int, stop: int) -> ScoreSlab:
    shape = _with(target.shape_zyx, axis, stop - start)
    part = slice(start, stop)
    if is_same(source, target):
        return ScoreSlab(
            axis, part, part, shape, lambda score: (EVERYTHING, score), torch.Tensor.float
        )
    axes = parallel_axes(source, target)
    if axes is None:
        return _turned_slab(source, target, axis, part, shape)
    whole = axes[axis]
    first, last = int(whole.low[part].min()), int(whole.high[part].max())
    inside, order = list(axes), _least_work(axes)
    inside[axis] = Axis(whole.index[part] - first, last - first + 1)
    rows = slice(first, last + 1)
    return ScoreSlab(
        axis,
        part,
        rows,
        shape,
        lambda score: _sample_box(score, inside, order),
        lambda score: _lerp(score.float(), inside, order),
    )


def _least_work(axes: Sequence[Axis]) -> tuple[int, ...]:
    """The order of the axes that costs least.

    Axes that shrink come first. Picking along x is slow (its planes are not contiguous), so it
    runs while the array is smallest: last of those that shrink, first of those that grow.
    """
    growth = [len(axis.index) / axis.size for axis in axes]
    shrinking = sorted((d for d in (0, 1, 2) if growth[d] < 1), key=lambda d: (d == 2, growth[d]))
    growing = sorted((d for d in (0, 1, 2) if growth[d] >= 1), key=lambda d: (d != 2, growth[d]))
    return (*shrinking, *growing)


def _sample_box(
    score: Tensor, axes: Sequence[Axis], order: Sequence[int]
) -> tuple[Box, Tensor] | None:
    """Linear interpolation stays between its corners: no positive corner, no foreground."""
    box = _positive_box(score)
    if box is None:
        return None
    (z, in_z), (y, in_y), (x, in_x) = (a.of_box(ends) for a, ends in zip(axes, box, strict=True))
    inside = (in_z, in_y, in_x)
    if not all(len(axis.index) for axis in inside):
        return None
    return (z, y, x), _lerp(score.float(), inside, order)


def _lerp(values: Tensor, axes: Sequence[Axis], order: Sequence[int]) -> Tensor:
    for dim in order:
        values = _lerp_along(values, dim, axes[dim])
    return values


def _lerp_along(values: Tensor, dim: int, axis: Axis) -> Tensor:
    if axis.is_identity:
        return values
    low = torch.from_numpy(axis.low).to(values.device)
    high = torch.from_numpy(axis.high).to(values.device)
    shape = [-1 if axis_dim == dim else 1 for axis_dim in range(values.ndim)]
    weight = torch.from_numpy(axis.weight.astype(np.float32)).to(values.device).view(shape)
    return torch.lerp(values.index_select(dim, low), values.index_select(dim, high), weight)


def _positive_box(score: Tensor) -> list[tuple[int, int]] | None:
    """First and last index along every axis of what is above 0."""
    positive = score > 0
    in_plane = positive.any(dim=0)
    profiles = (positive.flatten(1).any(dim=1), in_plane.any(dim=1), in_plane.any(dim=0))
    found = [profile.nonzero() for profile in profiles]
    if not len(found[0]):
        return None
    return [(int(index[0]), int(index[-1])) for index in found]


def _turned_slab(
    source: Grid, target: Grid, axis: int, part: slice, shape: tuple[int, int, int]
) -> ScoreSlab:
    """A slab between grids whose axes are turned or sheared against each other."""
    start = _with((0, 0, 0), axis, part.start)
    index = source_index(source, target.crop(start, shape), 0, shape[0])[..., ::-1]
    along = index[..., axis]
    first, last = int(np.floor(along.min())), int(np.ceil(along.max()))
    sizes = np.array(_with(source.shape_zyx, axis, last - first + 1))
    index = index - np.array(_with((0, 0, 0), axis, first))
    points = (2 * index / np.maximum(sizes - 1.0, 1.0) - 1)[..., ::-1].astype(np.float32)

    def sample(score: Tensor) -> tuple[Box, Tensor]:
        where = torch.from_numpy(np.ascontiguousarray(points))[None].to(score.device)
        sampled = torch.nn.functional.grid_sample(
            score[None, None].float(), where, padding_mode="border", align_corners=True
        )
        return EVERYTHING, sampled[0, 0]

    rows = slice(first, last + 1)
    return ScoreSlab(axis, part, rows, shape, sample, lambda score: sample(score)[1])


def _with(shape: Sequence[int], axis: int, size: int) -> tuple[int, int, int]:
    z, y, x = (size if dim == axis else n for dim, n in enumerate(shape))
    return z, y, x
