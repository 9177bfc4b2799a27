"""From grid to grid: images, label maps, masks and scores, by torch.

All of it is linear interpolation at voxel centres in millimetres: the index of an output voxel is
carried through both affines to a fractional index of the source, and clamped to the outermost
centres. Where the axes of both grids are parallel (working grids are, by construction) it runs
axis by axis; otherwise through `grid_sample`. Grids that are equal cost nothing and change nothing.

- Images are low-passed before they are thinned out: a Gaussian of sigma = (ratio - 1) / 2 source
  voxels along every axis whose voxels grow by `ratio` > 1. It is folded into the interpolation
  weights, so only output voxels are computed.
- Labels: the linear weight of every class at the output voxel, then arg-max, background being a
  class like others. Only classes at the eight corners around a point have weight there, so the
  cost does not depend on the number of classes, and no one-hot array exists.
- Scores: class by class, with a running arg-max over slabs; memory does not grow with classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iris_cli.errors import UsageError
from iris_cli.volume.grid import Grid, GridMatch
from iris_cli.volume.reading import smallest_label_type

PARALLEL_VOXELS = 1e-3
"""Axes are parallel where leaving the others out moves no point by more than this (voxels)."""

KERNEL_SIGMAS = 4.0
"""The Gaussian ends here; what is left out weighs less than 1e-4."""

SMALLEST_SIGMA = 1e-3
"""Source voxels; a narrower Gaussian is none."""

TIE = 1e-6
"""Weights this close are equal: the difference comes from rounding of coordinates."""

BLOCK_VOXELS = 1 << 20
"""Output voxels worked at a time; bounds the temporary arrays to some tens of MB."""


_TORCH_TYPES = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}
"""Types whose comparisons torch lacks, and the ones used for them."""


def resample_image(array: npt.NDArray[Any], source: Grid, target: Grid) -> npt.NDArray[np.float32]:
    """An image on another grid: Gaussian prefilter where it is thinned out, then linear.

    array: (Z, Y, X) numbers on `source`. returns: float32 (Z', Y', X') on `target`.
    """
    _check_shape(array.shape, source)
    return _linear(array, source, target, smooth=True)


def resample_mask(
    mask: npt.NDArray[np.bool_], source: Grid, target: Grid
) -> npt.NDArray[np.float32]:
    """A mask on another grid as soft mask: linear weights in 0..1, no prefilter.

    mask: (Z, Y, X) bool on `source`. returns: float32 (Z', Y', X') on `target`.
    """
    _check_shape(mask.shape, source)
    return _linear(mask, source, target, smooth=False)


def resample_labels(array: npt.NDArray[Any], source: Grid, target: Grid) -> npt.NDArray[Any]:
    """A label map on another grid: the value with the largest linear weight at each voxel centre.

    array: (Z, Y, X) integers on `source`; 0 is a value like others. Ties go to the lower value.
    returns: (Z', Y', X') of the same type on `target`.
    """
    _check_shape(array.shape, source)
    if _is_same(source, target):
        return array.copy()
    labels = torch.from_numpy(array.astype(_TORCH_TYPES.get(array.dtype.name, array.dtype)))
    out = np.empty(target.shape_zyx, dtype=array.dtype)
    for start, stop in _slabs(target.shape_zyx, BLOCK_VOXELS):
        corners = _Corners.of_slab(source, target, start, stop)
        out[start:stop] = _heaviest(labels, corners).numpy()
    return out


def resample_scores_to_labels(
    scores: Tensor | npt.NDArray[Any], source: Grid, target: Grid, values: Sequence[int]
) -> npt.NDArray[Any]:
    """Labels on `target` from one logit per class on `source`, against a background logit of 0.

    scores: (K, Z, Y, X) float, on any device; worked there. values: K distinct positive labels.
    returns: smallest integer type (Z', Y', X'): the label of the largest interpolated logit, 0
    where none is above 0; ties to the lower label. Memory beyond scores and result is a slab.
    """
    tensor = torch.from_numpy(scores) if isinstance(scores, np.ndarray) else scores
    _check_shape(tuple(tensor.shape[1:]), source)
    if len(values) != tensor.shape[0] or len(set(values)) != len(values) or min(values) < 1:
        raise UsageError(
            "every score needs a label value of its own",
            found=f"{tensor.shape[0]} scores, values {list(values)}",
            expected="as many distinct positive values",
        )
    order = sorted(range(len(values)), key=lambda index: values[index])
    dtype = smallest_label_type(0, max(values))
    out = np.zeros(target.shape_zyx, dtype=dtype)
    ranked = np.array([0, *(values[index] for index in order)], dtype=dtype)
    for start, stop in _slabs(target.shape_zyx, BLOCK_VOXELS):
        slab = _score_slab(source, target, start, stop, tensor.device)
        rank = _best_rank(tensor, order, slab, (stop - start, *target.shape_zyx[1:]))
        out[start:stop] = ranked[rank.cpu().numpy()]
    return out


@dataclass(frozen=True)
class _Axis:
    """Where the output voxels of one axis lie in the source: fractional index, clamped."""

    index: npt.NDArray[np.float64]
    size: int

    @classmethod
    def build(cls, scale: float, shift: float, count: int, size: int, start: int = 0) -> _Axis:
        index = scale * np.arange(start, start + count) + shift
        # An index that is whole but for rounding must not take a sliver of its neighbour.
        whole = np.rint(index)
        index = np.where(np.abs(index - whole) < TIE, whole, index)
        return cls(np.clip(index, 0, size - 1), size)

    @property
    def low(self) -> npt.NDArray[np.int64]:
        """Index of the lower neighbour, at most the last but one."""
        return np.clip(np.floor(self.index), 0, max(0, self.size - 2)).astype(np.int64)

    @property
    def high(self) -> npt.NDArray[np.int64]:
        return np.minimum(self.low + 1, self.size - 1)

    @property
    def weight(self) -> npt.NDArray[np.float64]:
        """Weight of the upper neighbour."""
        return self.index - self.low

    @property
    def is_identity(self) -> bool:
        return len(self.index) == self.size and np.array_equal(
            self.index, np.arange(self.size, dtype=np.float64)
        )

    def of_box(self, box: tuple[int, int]) -> tuple[slice, _Axis]:
        """Outputs that touch source indices box[0]..box[1] (inclusive), and their axis."""
        touched = np.flatnonzero((self.high >= box[0]) & (self.low <= box[1]))
        part = slice(int(touched[0]), int(touched[-1]) + 1) if len(touched) else slice(0, 0)
        return part, _Axis(self.index[part], self.size)


def _check_shape(shape: tuple[int, ...], source: Grid) -> None:
    if tuple(shape) != source.shape_zyx:
        raise UsageError(
            "array and grid do not fit",
            found=f"shape (z, y, x) {tuple(shape)}",
            expected=str(source.shape_zyx),
        )


def _is_same(source: Grid, target: Grid) -> bool:
    return source is target or source.compare(target) is GridMatch.EQUAL


def _slabs(shape_zyx: Sequence[int], voxels: int) -> Iterator[tuple[int, int]]:
    """Ranges of z with about this many voxels each."""
    step = max(1, voxels // (shape_zyx[1] * shape_zyx[2]))
    for start in range(0, shape_zyx[0], step):
        yield start, min(start + step, shape_zyx[0])


def _target_to_source(source: Grid, target: Grid) -> npt.NDArray[np.float64]:
    """(4, 4): voxel index (x, y, z) of `target` to fractional index of `source`."""
    matrix: npt.NDArray[np.float64] = np.linalg.inv(source.affine) @ target.affine
    return matrix


def _parallel_axes(source: Grid, target: Grid) -> tuple[_Axis, _Axis, _Axis] | None:
    """The three axes (z, y, x) where both grids have the same ones, else None."""
    matrix = _target_to_source(source, target)
    scale, shift = np.diag(matrix)[:3], matrix[:3, 3]
    others = np.abs(matrix[:3, :3] - np.diag(scale)) @ np.array(target.shape_xyz)
    if others.max() > PARALLEL_VOXELS:
        return None
    x, y, z = (
        _Axis.build(scale[axis], shift[axis], target.shape_xyz[axis], source.shape_xyz[axis])
        for axis in range(3)
    )
    return z, y, x


def _sigmas_zyx(source: Grid, target: Grid) -> tuple[float, float, float]:
    """Gaussian per source axis, in source voxels; 0 where voxels do not grow."""
    steps = np.linalg.norm(_target_to_source(source, target)[:3, :3], axis=1)
    x, y, z = (max(0.0, 0.5 * (float(ratio) - 1.0)) for ratio in steps)
    return z, y, x


def _linear(
    array: npt.NDArray[Any], source: Grid, target: Grid, *, smooth: bool
) -> npt.NDArray[np.float32]:
    if _is_same(source, target):
        return array.astype(np.float32)
    values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    sigmas = _sigmas_zyx(source, target) if smooth else (0.0, 0.0, 0.0)
    axes = _parallel_axes(source, target)
    if axes is not None:
        return _separable(values, axes, sigmas).numpy()
    for dim, sigma in enumerate(sigmas):
        size = values.shape[dim]
        values = _along(values, dim, _Axis.build(1.0, 0.0, size, size), sigma)
    out = np.empty(target.shape_zyx, dtype=np.float32)
    for start, stop in _slabs(target.shape_zyx, BLOCK_VOXELS):
        points = _sample_points(source, target, start, stop)
        out[start:stop] = _sample(values, points).numpy()
    return out


def _separable(
    values: Tensor, axes: Sequence[_Axis], sigmas: Sequence[float] = (0.0, 0.0, 0.0)
) -> Tensor:
    """(Z, Y, X) resampled axis by axis, in the order of least work.

    Axes that shrink come first. Picking along x is slow (its planes are not contiguous), so it
    runs while the array is smallest: last of those that shrink, first of those that grow.
    """
    growth = [len(axis.index) / axis.size for axis in axes]
    shrinking = sorted((d for d in (0, 1, 2) if growth[d] < 1), key=lambda d: (d == 2, growth[d]))
    growing = sorted((d for d in (0, 1, 2) if growth[d] >= 1), key=lambda d: (d != 2, growth[d]))
    for dim in (*shrinking, *growing):
        values = _along(values, dim, axes[dim], sigmas[dim])
    return values


def _along(values: Tensor, dim: int, axis: _Axis, sigma: float) -> Tensor:
    """Gaussian and linear interpolation along one axis, as one weighted sum of source planes."""
    if sigma < SMALLEST_SIGMA:
        return _lerp_along(values, dim, axis)
    reach = math.ceil(KERNEL_SIGMAS * sigma)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps /= taps.sum()
    upper = axis.weight[:, None]
    # Filtered value at low, weighted 1 - w, plus filtered value at low + 1, weighted w.
    weights = np.pad((1 - upper) * taps, ((0, 0), (0, 1))) + np.pad(upper * taps, ((0, 0), (1, 0)))
    shape = [-1 if axis_dim == dim else 1 for axis_dim in range(values.ndim)]
    out: Tensor | None = None
    for tap in range(weights.shape[1]):
        column = torch.from_numpy(weights[:, tap].astype(np.float32)).to(values.device)
        index = np.clip(axis.low + tap - reach, 0, axis.size - 1)
        plane = values.index_select(dim, torch.from_numpy(index).to(values.device))
        plane *= column.view(shape)
        out = plane if out is None else out.add_(plane)
    return values if out is None else out


def _lerp_along(values: Tensor, dim: int, axis: _Axis) -> Tensor:
    if axis.is_identity:
        return values
    low = torch.from_numpy(axis.low).to(values.device)
    high = torch.from_numpy(axis.high).to(values.device)
    shape = [-1 if axis_dim == dim else 1 for axis_dim in range(values.ndim)]
    weight = torch.from_numpy(axis.weight.astype(np.float32)).to(values.device).view(shape)
    return torch.lerp(values.index_select(dim, low), values.index_select(dim, high), weight)


def _source_index(source: Grid, target: Grid, start: int, stop: int) -> npt.NDArray[np.float64]:
    """(stop - start, Y, X, 3) fractional source index (x, y, z) of target voxels, clamped."""
    matrix = _target_to_source(source, target)
    _, size_y, size_x = target.shape_zyx
    z = np.arange(start, stop)[:, None, None, None]
    y = np.arange(size_y)[None, :, None, None]
    x = np.arange(size_x)[None, None, :, None]
    index = matrix[:3, 0] * x + matrix[:3, 1] * y + matrix[:3, 2] * z + matrix[:3, 3]
    return np.clip(index, 0, np.array(source.shape_xyz) - 1.0)


def _sample_points(source: Grid, target: Grid, start: int, stop: int) -> Tensor:
    """(1, z, Y, X, 3) coordinates for grid_sample with align_corners: -1..1 between centres."""
    index = _source_index(source, target, start, stop)
    last = np.maximum(np.array(source.shape_xyz) - 1.0, 1.0)
    return torch.from_numpy((2 * index / last - 1).astype(np.float32))[None]


def _sample(values: Tensor, points: Tensor) -> Tensor:
    """(Z, Y, X) values at the points of `_sample_points`."""
    return torch.nn.functional.grid_sample(
        values[None, None].float(),
        points,
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )[0, 0]


@dataclass(frozen=True)
class _Corners:
    """The eight source voxels around every output voxel of a slab.

    axes: source indices along z, y and x; one-dimensional where the axes are parallel, else
    (z, Y, X) each.
    """

    axes: tuple[_Axis, _Axis, _Axis]
    parallel: bool

    @classmethod
    def of_slab(cls, source: Grid, target: Grid, start: int, stop: int) -> _Corners:
        axes = _parallel_axes(source, target)
        if axes is not None:
            return cls((_Axis(axes[0].index[start:stop], axes[0].size), *axes[1:]), True)
        index = _source_index(source, target, start, stop)
        z, y, x = (_Axis(index[..., 2 - dim], source.shape_zyx[dim]) for dim in range(3))
        return cls((z, y, x), False)

    def labels(self, labels: Tensor) -> Iterator[Tensor]:
        """(z, Y, X) labels, corner by corner."""
        ends = [(torch.from_numpy(a.low), torch.from_numpy(a.high)) for a in self.axes]
        for z, y, x in itertools.product(*ends):
            if self.parallel:
                yield labels.index_select(0, z).index_select(1, y).index_select(2, x)
            else:
                yield labels[z, y, x]

    def weights(self, where: tuple[Tensor, ...]) -> Iterator[Tensor]:
        """(n,) float64 weights at the output voxels `where`, in the order of `labels`."""
        upper = []
        for dim, axis in enumerate(self.axes):
            weight = torch.from_numpy(axis.weight)
            upper.append(weight[where[dim]] if self.parallel else weight[where])
        for z, y, x in itertools.product(*((1 - weight, weight) for weight in upper)):
            yield z * y * x


def _heaviest(labels: Tensor, corners: _Corners) -> Tensor:
    """The label with the largest summed weight over the corners; ties to the lower value."""
    around = list(corners.labels(labels))
    mixed = torch.zeros(around[0].shape, dtype=torch.bool)
    for other in around[1:]:
        mixed |= other != around[0]
    out = around[0].clone()
    where = mixed.nonzero(as_tuple=True)
    near = torch.stack([label[where] for label in around])
    weights = torch.stack(list(corners.weights(where)))
    best, chosen = torch.full_like(weights[0], -1.0), near[0].clone()
    for candidate in near:
        total = (weights * (near == candidate)).sum(0)
        better = (total > best + TIE) | ((total >= best - TIE) & (candidate < chosen))
        best = torch.where(better, total, best)
        chosen = torch.where(better, candidate, chosen)
    out[where] = chosen
    return out


Slab = Callable[[Tensor], tuple[tuple[slice, slice], Tensor] | None]
"""From the scores of one class to the part (y, x) of a slab where they may exceed 0, and them."""


def _score_slab(source: Grid, target: Grid, start: int, stop: int, device: torch.device) -> Slab:
    everything = (slice(None), slice(None))
    if _is_same(source, target):
        return lambda score: (everything, score[start:stop])
    axes = _parallel_axes(source, target)
    if axes is None:
        points = _sample_points(source, target, start, stop).to(device)
        return lambda score: (everything, _sample(score, points))
    z_axis, y_axis, x_axis = _Axis(axes[0].index[start:stop], axes[0].size), axes[1], axes[2]
    first, last = int(z_axis.low.min()), int(z_axis.high.max())
    z_part = _Axis(z_axis.index - first, last - first + 1)

    def slab(score: Tensor) -> tuple[tuple[slice, slice], Tensor] | None:
        # Linear interpolation stays between its corners: no positive corner, no foreground.
        part = score[first : last + 1].float()
        positive = (part > 0).any(dim=0)
        rows, columns = positive.any(dim=1).nonzero(), positive.any(dim=0).nonzero()
        if not len(rows):
            return None
        y_part, y = y_axis.of_box((int(rows[0]), int(rows[-1])))
        x_part, x = x_axis.of_box((int(columns[0]), int(columns[-1])))
        if not (len(y.index) and len(x.index)):
            return None
        return (y_part, x_part), _separable(part, (z_part, y, x))

    return slab


def _best_rank(
    scores: Tensor, order: Sequence[int], slab: Slab, shape_zyx: tuple[int, ...]
) -> Tensor:
    """0 for background, else 1 + position in `order` of the class with the largest logit."""
    best = torch.zeros(shape_zyx, dtype=torch.float32, device=scores.device)
    small = torch.uint8 if len(order) < 256 else torch.int32
    rank = torch.zeros(shape_zyx, dtype=small, device=scores.device)
    for position, index in enumerate(order, start=1):
        found = slab(scores[index])
        if found is None:
            continue
        (rows, columns), logit = found
        best_part, rank_part = best[:, rows, columns], rank[:, rows, columns]
        rank_part.masked_fill_(logit > best_part, position)
        torch.fmax(best_part, logit.float(), out=best_part)
    return rank
