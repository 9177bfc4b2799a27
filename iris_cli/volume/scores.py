"""Scores to labels: from one logit per class on the working grid to a label map on the native one.

Linear interpolation comes first, the decision after it: a voxel gets the class of the largest
interpolated logit above 0, the lower label of equals. `decide_plainly` is that definition.

`decide` gives the same without interpolating what cannot win. An interpolated logit lies between
the smallest and the largest one around it, so in a region (a box of native voxels, and the box of
scores they are made of) a class loses everywhere if its largest logit there is below the smallest
one of another class, or not above 0. Of a hundred classes a few are left in most regions of a few
thousand voxels, and such a region stays in the cache from the scores to the labels.

Regions are cut by cells of the working grid, so that who makes scores on the way can have them
decided cell by cell (`Resampling`). Neither all scores nor all interpolated ones need to exist.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iris_cli.errors import UsageError
from iris_cli.volume.grid import Grid
from iris_cli.volume.reading import smallest_label_type
from iris_cli.volume.resampling import CORNER_VOXELS, Axis, is_same, parallel_axes, source_index

Box = tuple[slice, slice, slice]
Cuts = Sequence[Sequence[int]]
"""First rows of the cells of a volume, per axis (z, y, x), from 0 on."""

Sample = Callable[[Tensor], Tensor]
"""From maps (R, z, y, x) of one box to those of another one, float32."""

EDGE = 20
"""Rows of a region along an axis, of either grid."""

CELL = 64
"""Rows of a cell along an axis where nobody else cuts the volume."""

ROUNDING = 2.0**-19
"""More than interpolation can be off by its rounding, of the largest score around."""


@dataclass(frozen=True)
class Scores:
    """Scores of K classes in a box (z, y, x), each one the sum of maps.

    maps: (R, z, y, x) float32. mix: (K, R), the factors of the sums; None where the maps are the
    scores.
    """

    maps: Tensor
    mix: Tensor | None = None

    @functools.cached_property
    def values(self) -> Tensor:
        """(K, z, y, x)."""
        return self.mixed(self.maps)

    def mixed(self, maps: Tensor) -> Tensor:
        """Of maps in another box."""
        if self.mix is None:
            return maps
        return (self.mix @ maps.flatten(1)).view(len(self.mix), *maps.shape[1:])

    def some(self, classes: Sequence[int]) -> Scores:
        """Of some classes. classes: their indices."""
        if self.mix is None:
            return Scores(self.maps[classes])
        return Scores(self.maps, self.mix[classes])


@dataclass(frozen=True)
class Region:
    """A box of native voxels, and the box of scores that its own voxels are interpolated from.

    sample: linear interpolation from maps (R, z, y, x) of `source` to `target`. foreign: voxels of
    the box that another region has, None where there are none.
    """

    target: Box
    source: Box
    sample: Sample
    foreign: Tensor | None = None

    def interpolate(self, scores: Scores) -> Tensor:
        """(K, z, y, x) of `target`; -infinity where it is foreign.

        Sums and interpolation may change places: what is less is interpolated.
        """
        if scores.mix is None or len(scores.mix) <= len(scores.maps):
            found = self.sample(scores.values)
        else:
            found = scores.mixed(self.sample(scores.maps))
        if self.foreign is None:
            return found
        return found.masked_fill(self.foreign.to(found.device), -torch.inf)


class Resampling(Protocol):
    """The regions of every cell; each native voxel is in exactly one of them.

    A voxel belongs to the cell that holds the last of the scores it is made of. It needs no score
    further than one row before its cell.
    """

    def regions(self, cell: tuple[int, int, int]) -> Iterator[Region]:
        """cell: its number along z, y and x."""


def resampling(source: Grid, target: Grid, cuts: Cuts, edge: int | None = EDGE) -> Resampling:
    """From scores on `source` to voxels of `target`.

    edge: most rows of a region, of either grid, as far as a native row needs no more; None leaves
    cells whole.
    """
    axes = parallel_axes(source, target)
    if axes is None:
        return _Turned(source, target, cuts)
    if is_same(source, target):
        z, y, x = (Axis(np.arange(n, dtype=np.float64), n) for n in source.shape_zyx)
        axes = (z, y, x)
    return _Straight(axes, cuts, edge)


@dataclass(frozen=True)
class Winner:
    """The decision in a region.

    rank: int16, 0 for background, else that of the class with the largest score. score: that
    score, 0 for background. Both have the shape of the region.
    """

    rank: Tensor
    score: Tensor

    def or_better(self, other: Winner) -> Winner:
        """The decision between the classes of both."""
        equal = (other.score == self.score) & (other.rank < self.rank) & (other.rank > 0)
        better = (other.score > self.score) | equal
        return Winner(
            torch.where(better, other.rank, self.rank), torch.where(better, other.score, self.score)
        )


def decide_plainly(scores: Tensor, ranks: Sequence[int]) -> Winner:
    """The class with the largest score above 0 in every voxel.

    scores: (K, z, y, x), interpolated. ranks: of the classes, ascending and from 1 on; the lower of
    equals wins.
    """
    score, place = _largest(scores)
    rank = torch.tensor(ranks, dtype=torch.int16, device=scores.device)[place]
    return Winner(rank.masked_fill_(score <= 0, 0), score.clamp_(min=0))


def decide(scores: Scores, region: Region, ranks: Sequence[int]) -> Winner | None:
    """`decide_plainly` of those classes that may win somewhere, None where there is none."""
    chosen = _contenders(scores.values)
    if not chosen:
        return None
    if len(chosen) < len(ranks):
        scores, ranks = scores.some(chosen), [ranks[index] for index in chosen]
    return decide_plainly(region.interpolate(scores), ranks)


def _contenders(scores: Tensor) -> list[int]:
    """Classes that may have the largest score, above 0, of a point between the corners."""
    flat = scores.flatten(1)
    ends = torch.stack([flat.amax(1), flat.amin(1)]).cpu().numpy()
    highest, lowest = ends
    bar = lowest.max() - ROUNDING * np.abs(ends).max()
    chosen: list[int] = np.flatnonzero((highest > 0) & (highest >= bar)).tolist()
    return chosen


def _largest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Largest score of every voxel and the first class that has it, as index.

    Bytes are compared many at a time; `torch.max` looks at one score after the other.
    """
    best, classes = scores.amax(0), len(scores)
    if classes == 1:
        return best, torch.zeros_like(best, dtype=torch.long)
    kind = torch.uint8 if classes < 256 else torch.int16
    codes = torch.arange(classes, 0, -1, dtype=kind, device=scores.device)
    holds = _equal(scores, best).to(kind).mul_(codes.view(-1, 1, 1, 1))
    return best, classes - holds.amax(0).long()


def _equal(scores: Tensor, best: Tensor) -> Tensor:
    if scores.is_cuda:
        return scores == best
    return torch.from_numpy(scores.numpy() == best.numpy())  # four times as fast


def resample_scores_to_labels(
    scores: Tensor | npt.NDArray[Any],
    source: Grid,
    target: Grid,
    values: Sequence[int],
) -> npt.NDArray[Any]:
    """Labels on `target` from one logit per class on `source`, against a background logit of 0.

    scores: (K, Z, Y, X) float, on any device; worked there. values: K distinct positive labels.
    returns: smallest integer type (Z', Y', X'): the label of the largest interpolated logit, 0
    where none is above 0; ties to the lower label.
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
    ranked, ranks = ranked_values(values), range(1, len(values) + 1)
    out = np.zeros(target.shape_zyx, dtype=ranked.dtype)
    cuts = [range(0, n, CELL) for n in source.shape_zyx]
    parts = resampling(source, target, cuts)
    numbers = [range(len(axis)) for axis in cuts]
    for z, y, x in itertools.product(*numbers):
        for region in parts.regions((z, y, x)):
            here = Scores(tensor[(order, *region.source)].float())
            winner = decide(here, region, ranks)
            if winner is not None:
                put(out, region, ranked[winner.rank.cpu().numpy()])
    return out


def ranked_values(values: Sequence[int]) -> npt.NDArray[Any]:
    """Label of every rank of a `Winner`: 0, then the values in ascending order; smallest type."""
    return np.array([0, *sorted(values)], dtype=smallest_label_type(0, max(values)))


def put(volume: npt.NDArray[Any], region: Region, found: npt.NDArray[Any]) -> None:
    """Bring what is 0 in the voxels of other regions, as labels are, to where it belongs."""
    part = volume[region.target]
    np.maximum(part, found, out=part)


@dataclass(frozen=True)
class _Span:
    """Native rows of a region along an axis and the scores they are made of.

    weights: (target rows, source rows), None where they are the same rows.
    """

    target: slice
    source: slice
    weights: npt.NDArray[np.float32] | None

    @classmethod
    def of(cls, axis: Axis, first: int, last: int) -> _Span:
        """Native rows first..last of an axis."""
        index = axis.index[first : last + 1]
        near, far = np.floor(index).astype(int), np.ceil(index).astype(int)
        low, high = int(near.min()), int(far.max()) + 1
        weights = np.zeros((len(index), high - low))
        rows = np.arange(len(index))
        weights[rows, near - low] = 1 - (index - near)
        weights[rows, far - low] += index - near
        same = np.array_equal(weights, np.eye(len(index), high - low)) and len(index) == high - low
        return cls(
            slice(first, last + 1), slice(low, high), None if same else weights.astype(np.float32)
        )

    @property
    def growth(self) -> float:
        """Rows after resampling for each one before."""
        if self.weights is None:
            return 1.0
        return float(len(self.weights) / self.weights[0].size)

    def apply(self, scores: Tensor, dim: int) -> Tensor:
        """scores: (K, z, y, x), of which `dim` (1 to 3) is resampled; nearly all of it is zeros,
        but multiplying is faster than picking rows."""
        if self.weights is None:
            return scores
        weights = torch.from_numpy(self.weights).to(scores.device)
        shape = [*scores.shape[:dim], len(weights), *scores.shape[dim + 1 :]]
        if dim == 3:
            return (scores.flatten(0, 2) @ weights.T).view(shape)
        rows = scores.flatten(0, dim - 1).flatten(2)
        return torch.bmm(weights.expand(len(rows), -1, -1), rows).view(shape)


class _Straight:
    """Between grids of the same axes, one axis after the other."""

    def __init__(self, axes: Sequence[Axis], cuts: Cuts, edge: int | None) -> None:
        self._spans = [
            list(_spans(axis, some, edge)) for axis, some in zip(axes, cuts, strict=True)
        ]

    def regions(self, cell: tuple[int, int, int]) -> Iterator[Region]:
        spans = (along[i] for along, i in zip(self._spans, cell, strict=True))
        for z, y, x in itertools.product(*spans):
            yield Region(
                (z.target, y.target, x.target),
                (z.source, y.source, x.source),
                functools.partial(_sample, (z, y, x)),
            )


def _spans(axis: Axis, cuts: Sequence[int], edge: int | None) -> Iterator[list[_Span]]:
    """Of every cell the native rows whose last score lies in it, in parts of `edge` rows."""
    far = np.ceil(axis.index)
    for low, high in itertools.pairwise((*cuts, axis.size)):
        rows = np.flatnonzero((far >= low) & (far < high))
        longest = max(len(rows), min(high - low, axis.size))
        parts = 1 if edge is None else max(1, min(len(rows), -(-longest // edge)))
        yield [
            _Span.of(axis, int(some[0]), int(some[-1]))
            for some in np.array_split(rows, parts)
            if len(some)
        ]


def _sample(spans: Sequence[_Span], scores: Tensor) -> Tensor:
    """The axis that grows least first; of equals x, whose rows are multiplied all at once."""
    for axis in sorted((2, 1, 0), key=lambda axis: spans[axis].growth):
        scores = spans[axis].apply(scores, 1 + axis)
    return scores


class _Turned:
    """Between grids whose axes are turned or sheared against each other; cells stay whole."""

    def __init__(self, source: Grid, target: Grid, cuts: Cuts) -> None:
        from scipy import ndimage

        self._source, self._target, self._cuts = source, target, cuts
        self._owner = _owners(source, target, cuts)
        self._boxes: Sequence[Any] = ndimage.find_objects(self._owner)

    def regions(self, cell: tuple[int, int, int]) -> Iterator[Region]:
        number = int(np.ravel_multi_index(cell, [len(axis) for axis in self._cuts]))
        box = self._boxes[number] if number < len(self._boxes) else None
        if box is None:
            return
        ends = ((*axis, n) for axis, n in zip(self._cuts, self._source.shape_zyx, strict=True))
        z, y, x = (
            slice(max(0, axis[i] - 1), axis[i + 1]) for axis, i in zip(ends, cell, strict=True)
        )
        yield Region(
            box,
            (z, y, x),
            functools.partial(self._sample, box, (z, y, x)),
            torch.from_numpy(self._owner[box] != number + 1),
        )

    def _sample(self, box: Box, source: Box, maps: Tensor) -> Tensor:
        z, y, x = (part.start for part in box)
        part = self._target.crop((z, y, x), self._owner[box].shape)
        index = source_index(self._source, part, 0, part.shape_zyx[0])
        index -= np.array([axis.start for axis in reversed(source)])
        size = np.array([axis.stop - axis.start - 1.0 for axis in reversed(source)])
        points = (2 * index / np.maximum(size, 1.0) - 1).astype(np.float32)
        return torch.nn.functional.grid_sample(
            maps[None].float(),
            torch.from_numpy(points)[None].to(maps.device),
            padding_mode="border",
            align_corners=True,
        )[0]


def _owners(source: Grid, target: Grid, cuts: Cuts) -> npt.NDArray[np.int32]:
    """Of every voxel of `target` 1 + the number of the cell that it belongs to."""
    owner = np.empty(target.shape_zyx, np.int32)
    planes = max(1, CORNER_VOXELS // owner[0].size)
    for start in range(0, len(owner), planes):
        stop = min(start + planes, len(owner))
        last = np.ceil(source_index(source, target, start, stop)[..., ::-1])
        cells = [
            np.searchsorted(axis, last[..., dim], side="right") - 1 for dim, axis in enumerate(cuts)
        ]
        owner[start:stop] = 1 + np.ravel_multi_index(cells, [len(axis) for axis in cuts])
    return owner
