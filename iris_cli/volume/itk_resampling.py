"""Resampling as ITK does it with its defaults; used where published numbers are reproduced.

It differs from `resampling`, which is better, in four ways: the grids share the centre of their
first voxel instead of the centre of the field of view, nothing is low-passed before it is thinned
out, labels are read at the nearest voxel, and what lies outside is 0. Outside begins half a voxel
beyond the outermost centres (the far end itself is outside); in between, the outermost value holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from iris_cli.volume.grid import Grid

Index = npt.NDArray[np.float64]

AT_ONCE = 16
"""Slices of a volume that are interpolated together."""

SNAP = 1e-6
"""Indices this close to a whole or half voxel are there: both decide what a voxel gets."""


def first_voxel_grid(grid: Grid, spacing_mm: float) -> Grid:
    """The isotropic grid on the same axes and the same centre of voxel 0.

    Sizes are `max(1, round(size * spacing / spacing_mm))`, halves to the even number.
    """
    z, y, x = (
        max(1, round(size * edge / spacing_mm))
        for size, edge in zip(grid.shape_zyx, grid.spacing_zyx, strict=True)
    )
    affine = grid.affine.copy()
    affine[:3, :3] = grid.direction * spacing_mm
    return Grid((z, y, x), affine)


def resample_linear(array: npt.NDArray[Any], source: Grid, target: Grid) -> npt.NDArray[np.float32]:
    """An image on another grid of the same axes: linear, 0 outside.

    array: (Z, Y, X) numbers on `source`. returns: float32 (Z', Y', X') on `target`.
    raises ValueError where the axes of the grids are not parallel.
    """
    axes = _parallel(source, target)
    if axes is None:
        raise ValueError("linear resampling is between grids of the same axes")
    result = array
    # The axis that shrinks most goes first: the others then have less to do.
    for dim in sorted(range(3), key=lambda dim: len(axes[dim]) / array.shape[dim]):
        result = _along(result, dim, axes[dim])
    return result.astype(np.float32, copy=False)


def resample_nearest(array: npt.NDArray[Any], source: Grid, target: Grid) -> npt.NDArray[Any]:
    """Labels or a mask on any other grid: the nearest voxel, the upper one of two, 0 outside.

    array: (Z, Y, X) on `source`. returns: (Z', Y', X') of its type on `target`.
    """
    axes = _parallel(source, target)
    if axes is not None:
        (z, in_z), (y, in_y), (x, in_x) = (
            _nearest(index, size) for index, size in zip(axes, array.shape, strict=True)
        )
        result = np.zeros(target.shape_zyx, array.dtype)
        plane_inside, within = in_y[:, None] & in_x, np.ix_(y, x)
        for place in np.flatnonzero(in_z):
            result[place][plane_inside] = array[z[place]][within][plane_inside]
        return result
    result = np.zeros(target.shape_zyx, array.dtype)
    for plane in range(target.shape_zyx[0]):
        points = _plane_index(source, target, plane)
        (z, in_z), (y, in_y), (x, in_x) = (
            _nearest(points[..., 2 - dim], array.shape[dim]) for dim in range(3)
        )
        result[plane] = np.where(in_z & in_y & in_x, array[z, y, x], 0)
    return result


def _parallel(source: Grid, target: Grid) -> tuple[Index, Index, Index] | None:
    """Source index of the target's voxels per axis (z, y, x); None where axes are not parallel."""
    matrix = np.linalg.inv(source.affine) @ target.affine
    scale, shift = np.diag(matrix)[:3], matrix[:3, 3]
    others = np.abs(matrix[:3, :3] - np.diag(scale)) @ np.array(target.shape_xyz)
    if others.max() > SNAP:
        return None
    x, y, z = (
        _snapped(scale[axis] * np.arange(target.shape_xyz[axis]) + shift[axis]) for axis in range(3)
    )
    return z, y, x


def _plane_index(source: Grid, target: Grid, plane: int) -> Index:
    """(Y, X, 3) source index (x, y, z) of one plane of the target."""
    _, rows, columns = target.shape_zyx
    y, x = np.mgrid[:rows, :columns]
    world = target.voxel_to_world(np.stack([x, y, np.full_like(x, plane)], axis=-1))
    return _snapped(source.world_to_voxel(world))


def _snapped(index: Index) -> Index:
    near = np.rint(2 * index) / 2
    return np.where(np.abs(index - near) < SNAP, near, index)


def _inside(index: Index, size: int) -> npt.NDArray[np.bool_]:
    return (index >= -0.5) & (index < size - 0.5)


def _nearest(index: Index, size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    nearest = np.floor(index + 0.5).astype(np.int64)
    return np.clip(nearest, 0, size - 1), _inside(index, size)


def _along(values: npt.NDArray[Any], dim: int, index: Index) -> npt.NDArray[Any]:
    """One axis resampled, as float32; `values` themselves where there is nothing to do."""
    size = values.shape[dim]
    if len(index) == size and np.array_equal(index, np.arange(size)):
        return values
    clamped = np.clip(index, 0, size - 1)
    low = np.floor(clamped).astype(np.int64)
    upper = _column((clamped - low).astype(np.float32), dim)
    inside = _column(_inside(index, size).astype(np.float32), dim)
    shape = [len(index) if axis == dim else length for axis, length in enumerate(values.shape)]
    result = np.empty(shape, np.float32)
    # In slices along another axis: what is between stays small.
    other = 1 if dim == 0 else 0
    for start in range(0, shape[other], AT_ONCE):
        part = tuple(
            slice(start, start + AT_ONCE) if axis == other else slice(None) for axis in range(3)
        )
        some, made = values[part], result[part]
        made[...] = some.take(low, axis=dim)
        step = some.take(np.minimum(low + 1, size - 1), axis=dim).astype(np.float32, copy=False)
        step -= made
        step *= upper
        made += step
        made *= inside
    return result


def _column(values: npt.NDArray[np.float32], dim: int) -> npt.NDArray[np.float32]:
    shape: Sequence[int] = [-1 if axis == dim else 1 for axis in range(3)]
    return values.reshape(shape)
