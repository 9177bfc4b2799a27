"""From grid to grid: images, label maps and masks.

All of it is linear interpolation at voxel centres in millimetres: the index of an output voxel is
carried through both affines to a fractional index of the source, and clamped to the outermost
centres. Where the axes of both grids are parallel (working grids are, by construction) it runs
axis by axis; otherwise from the eight corners of every voxel. Grids that are equal cost nothing and
change nothing. NumPy alone: importing torch would take longer than most small cases do, and for
tables of whole planes it is no faster.

- Images are low-passed before they are thinned out: a Gaussian of sigma = (ratio - 1) / 2 source
  voxels along every axis whose voxels grow by `ratio` > 1. It is folded into the interpolation
  weights, so only output voxels are computed.
- Labels: the linear weight of every class at the output voxel, then arg-max, background being a
  class like others. Only classes at the eight corners around a point have weight there, so the
  cost does not depend on the number of classes, and no one-hot array exists.
- Scores to labels: `volume.scores`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from iris_cli.errors import UsageError
from iris_cli.volume.grid import Grid, GridMatch

PARALLEL_VOXELS = 1e-3
"""Axes are parallel where leaving the others out moves no point by more than this (voxels)."""

KERNEL_SIGMAS = 4.0
"""The Gaussian ends here; what is left out weighs less than 1e-4."""

SMALLEST_SIGMA = 1e-3
"""Source voxels; a narrower Gaussian is none."""

TIE = 1e-6
"""Weights this close are equal: the difference comes from rounding of coordinates."""

CORNER_VOXELS = 1 << 18
"""Output voxels worked at a time from their eight corners: some 250 bytes each at most."""

SLAB_VOXELS = 1 << 22
"""Voxels of an image worked at a time (source or output, whichever are more)."""

Planes = Callable[[int, int], npt.NDArray[Any]]
"""Planes start..stop (z) of a volume, made when they are asked for."""


def resample_image(array: npt.NDArray[Any], source: Grid, target: Grid) -> npt.NDArray[np.float32]:
    """An image on another grid: Gaussian prefilter where it is thinned out, then linear.

    array: (Z, Y, X) numbers on `source`. returns: float32 (Z', Y', X') on `target`.
    """
    _check_shape(array.shape, source)
    out = np.empty(target.shape_zyx, dtype=np.float32)
    for part, values in iter_image_slabs(lambda a, b: array[a:b], source, target):
        out[part] = values
    return out


def iter_image_slabs(
    planes: Planes, source: Grid, target: Grid
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """`resample_image` slab by slab, from source planes that need not be there before.

    planes: (start, stop) -> (stop - start, Y, X) numbers. yields z slices of `target`, in order,
    with their float32 values: bit for bit those of the whole, whatever the slabs. Between grids
    that are turned or sheared against each other all planes are asked for at once.
    """
    return _resampled(planes, source, target, smooth=True)


def resample_mask(
    mask: npt.NDArray[np.bool_], source: Grid, target: Grid
) -> npt.NDArray[np.float32]:
    """A mask on another grid as soft mask: linear weights in 0..1, no prefilter.

    mask: (Z, Y, X) bool on `source`. returns: float32 (Z', Y', X') on `target`.
    """
    _check_shape(mask.shape, source)
    out = np.empty(target.shape_zyx, dtype=np.float32)
    for part, values in _resampled(lambda a, b: mask[a:b], source, target, smooth=False):
        out[part] = values
    return out


def resample_labels(array: npt.NDArray[Any], source: Grid, target: Grid) -> npt.NDArray[Any]:
    """A label map on another grid: the value with the largest linear weight at each voxel centre.

    array: (Z, Y, X) integers on `source`; 0 is a value like others. Ties go to the lower value.
    returns: (Z', Y', X') of the same type on `target`.
    """
    _check_shape(array.shape, source)
    if is_same(source, target):
        return array.copy()
    out = np.empty(target.shape_zyx, dtype=array.dtype)
    for start, stop in _slabs(target.shape_zyx, CORNER_VOXELS):
        _heaviest(array, _Corners.of_slab(source, target, start, stop), out[start:stop])
    return out


@dataclass(frozen=True)
class Axis:
    """Where the output voxels of one axis lie in the source.

    index: fractional source index of each, in voxels, clamped to the outermost centres. size:
    voxels of the source along the axis. Interpolation takes `low` and `high` with `weight`.
    """

    index: npt.NDArray[np.float64]
    size: int

    @classmethod
    def build(cls, scale: float, shift: float, count: int, size: int, start: int = 0) -> Axis:
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

    def of_box(self, box: tuple[int, int]) -> tuple[slice, Axis]:
        """Outputs that touch source indices box[0]..box[1] (inclusive), and their axis."""
        touched = np.flatnonzero((self.high >= box[0]) & (self.low <= box[1]))
        part = slice(int(touched[0]), int(touched[-1]) + 1) if len(touched) else slice(0, 0)
        return part, Axis(self.index[part], self.size)


def _check_shape(shape: tuple[int, ...], source: Grid) -> None:
    if tuple(shape) != source.shape_zyx:
        raise UsageError(
            "array and grid do not fit",
            found=f"shape (z, y, x) {tuple(shape)}",
            expected=str(source.shape_zyx),
        )


def is_same(source: Grid, target: Grid) -> bool:
    """Whether nothing need be resampled between two grids (CONTRACT, Grid: equal)."""
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


def parallel_axes(source: Grid, target: Grid) -> tuple[Axis, Axis, Axis] | None:
    """The three axes (z, y, x) where both grids have the same ones, else None."""
    matrix = _target_to_source(source, target)
    scale, shift = np.diag(matrix)[:3], matrix[:3, 3]
    others = np.abs(matrix[:3, :3] - np.diag(scale)) @ np.array(target.shape_xyz)
    if others.max() > PARALLEL_VOXELS:
        return None
    x, y, z = (
        Axis.build(scale[axis], shift[axis], target.shape_xyz[axis], source.shape_xyz[axis])
        for axis in range(3)
    )
    return z, y, x


def _sigmas_zyx(source: Grid, target: Grid) -> tuple[float, float, float]:
    """Gaussian per source axis, in source voxels; 0 where voxels do not grow."""
    steps = np.linalg.norm(_target_to_source(source, target)[:3, :3], axis=1)
    x, y, z = (max(0.0, 0.5 * (float(ratio) - 1.0)) for ratio in steps)
    return z, y, x


def _resampled(
    planes: Planes, source: Grid, target: Grid, *, smooth: bool
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """(z slices of `target`, float32 values) from source planes, in order."""
    sigmas = _sigmas_zyx(source, target) if smooth else (0.0, 0.0, 0.0)
    axes = parallel_axes(source, target)
    if is_same(source, target):
        for start, stop in _slabs(target.shape_zyx, SLAB_VOXELS):
            yield slice(start, stop), np.array(planes(start, stop), dtype=np.float32)
    elif axes is not None:
        taps = [_Taps.build(axis, sigma) for axis, sigma in zip(axes, sigmas, strict=True)]
        yield from _separable_slabs(planes, taps, source, target)
    else:
        yield from _turned_slabs(planes, source, target, sigmas)


def _separable_slabs(
    planes: Planes, taps: Sequence[_Taps], source: Grid, target: Grid
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """Slabs between grids of the same axes.

    Every value is a sum of products in one fixed order, so slabs of any size are equal bit for bit
    to the whole. Axes that shrink come first: the order is that of the least work.
    """
    growth = [n / m for n, m in zip(target.shape_zyx, source.shape_zyx, strict=True)]
    order = sorted((0, 1, 2), key=lambda dim: growth[dim])
    larger = max(target.shape_zyx[1:], [n / growth[0] for n in source.shape_zyx[1:]], key=math.prod)
    for start, stop in _slabs((target.shape_zyx[0], *map(math.ceil, larger)), SLAB_VOXELS):
        along_z, first, last = taps[0].part(start, stop)
        values = np.asarray(planes(first, last), dtype=np.float32)
        for dim in order:
            values = (along_z if dim == 0 else taps[dim]).apply(values, dim)
        yield slice(start, stop), values


def _turned_slabs(
    planes: Planes, source: Grid, target: Grid, sigmas: Sequence[float]
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """Slabs between grids that are turned or sheared against each other, from the whole source."""
    values = np.asarray(planes(0, source.shape_zyx[0]), dtype=np.float32)
    for dim, sigma in enumerate(sigmas):
        size = values.shape[dim]
        values = _Taps.build(Axis.build(1.0, 0.0, size, size), sigma).apply(values, dim)
    for start, stop in _slabs(target.shape_zyx, CORNER_VOXELS):
        corners = _Corners.of_slab(source, target, start, stop)
        pairs = zip(corners.values(values), corners.weights(), strict=True)
        total = np.zeros((stop - start, *target.shape_zyx[1:]))
        for value, weight in pairs:
            total += value * weight
        yield slice(start, stop), total.astype(np.float32)


@dataclass(frozen=True)
class _Taps:
    """Gaussian and linear interpolation along one axis, as weighted sums of source planes.

    index, weight: (n, taps), the source planes of every output plane and their float32 weights; one
    tap where the output planes are the source planes.
    """

    index: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]

    @classmethod
    def build(cls, axis: Axis, sigma: float) -> _Taps:
        reach = 0 if sigma < SMALLEST_SIGMA else math.ceil(KERNEL_SIGMAS * sigma)
        if reach == 0 and axis.is_identity:
            return cls(np.arange(axis.size)[:, None], np.ones((axis.size, 1), np.float32))
        kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (sigma or 1.0)) ** 2)
        kernel /= kernel.sum()
        upper = axis.weight[:, None]
        # Filtered value at low, weighted 1 - w, plus filtered value at low + 1, weighted w.
        low, high = ((0, 0), (0, 1)), ((0, 0), (1, 0))
        weight = np.pad((1 - upper) * kernel, low) + np.pad(upper * kernel, high)
        index = np.clip(axis.low[:, None] + np.arange(-reach, reach + 2), 0, axis.size - 1)
        return cls(index, weight.astype(np.float32))

    def part(self, start: int, stop: int) -> tuple[_Taps, int, int]:
        """Output planes start..stop, from the source planes first..last (exclusive)."""
        index = self.index[start:stop]
        first, last = int(index.min()), int(index.max()) + 1
        return _Taps(index - first, self.weight[start:stop]), first, last

    def apply(self, values: npt.NDArray[np.float32], dim: int) -> npt.NDArray[np.float32]:
        """(Z, Y, X) with axis `dim` resampled."""
        if self.index.shape[1] == 1:
            return values
        shape = [-1 if axis == dim else 1 for axis in range(3)]
        out: npt.NDArray[np.float32] | None = None
        for index, weight in zip(self.index.T, self.weight.T, strict=True):
            plane = values.take(index, axis=dim)
            plane *= weight.reshape(shape)
            out = plane if out is None else np.add(out, plane, out=out)
        assert out is not None
        return out


def source_index(source: Grid, target: Grid, start: int, stop: int) -> npt.NDArray[np.float64]:
    """(stop - start, Y, X, 3) fractional source index (x, y, z) of target voxels, clamped.

    start, stop: z range of `target`.
    """
    matrix = _target_to_source(source, target)
    _, size_y, size_x = target.shape_zyx
    z = np.arange(start, stop)[:, None, None, None]
    y = np.arange(size_y)[None, :, None, None]
    x = np.arange(size_x)[None, None, :, None]
    index = matrix[:3, 0] * x + matrix[:3, 1] * y + matrix[:3, 2] * z + matrix[:3, 3]
    return np.clip(index, 0, np.array(source.shape_xyz) - 1.0)


@dataclass(frozen=True)
class _Corners:
    """The eight source voxels around every output voxel of a slab.

    axes: source indices along z, y and x; one-dimensional where the axes are parallel, else
    (z, Y, X) each.
    """

    axes: tuple[Axis, Axis, Axis]
    parallel: bool

    @classmethod
    def of_slab(cls, source: Grid, target: Grid, start: int, stop: int) -> _Corners:
        axes = parallel_axes(source, target)
        if axes is not None:
            return cls((Axis(axes[0].index[start:stop], axes[0].size), *axes[1:]), True)
        index = source_index(source, target, start, stop)
        z, y, x = (Axis(index[..., 2 - dim], source.shape_zyx[dim]) for dim in range(3))
        return cls((z, y, x), False)

    def values(self, source: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
        """(z, Y, X) values of the source, corner by corner: z, y, x low, then x high, ..."""
        ends = [(axis.low, axis.high) for axis in self.axes]
        if not self.parallel:
            yield from (source[corner] for corner in itertools.product(*ends))
            return
        for z in ends[0]:
            planes = source.take(z, axis=0)
            for y in ends[1]:
                rows = planes.take(y, axis=1)
                yield from (rows.take(x, axis=2) for x in ends[2])

    def weights(
        self, where: tuple[npt.NDArray[np.intp], ...] | None = None
    ) -> Iterator[npt.NDArray[np.float64]]:
        """float64 weights in the order of `values`: of the output voxels `where`, or of all.

        All at once only where the axes are not parallel.
        """
        upper = []
        for dim, axis in enumerate(self.axes):
            chosen = where if where is None or not self.parallel else where[dim]
            upper.append(axis.weight if chosen is None else axis.weight[chosen])
        for z, y, x in itertools.product(*((1 - weight, weight) for weight in upper)):
            yield z * y * x


def _heaviest(source: npt.NDArray[Any], corners: _Corners, out: npt.NDArray[Any]) -> None:
    """Into `out`: the label with the largest summed weight over the corners.

    Ties go to the lower value. Only voxels between two labels need weights at all.
    """
    around = list(corners.values(source))
    mixed = np.zeros(out.shape, dtype=bool)
    for other in around[1:]:
        mixed |= other != around[0]
    out[...] = around[0]
    where = np.nonzero(mixed)
    near = np.stack([label[where] for label in around])
    weights = np.stack(list(corners.weights(where)))
    best, chosen = np.full(near.shape[1], -1.0), near[0].copy()
    for candidate in near:
        total = np.where(near == candidate, weights, 0.0).sum(axis=0)
        better = (total > best + TIE) | ((total >= best - TIE) & (candidate < chosen))
        best = np.where(better, total, best)
        chosen = np.where(better, candidate, chosen)
    out[where] = chosen
