"""Views: one augmented crop of a volume, cut, turned, scaled and bent in a single step.

A view maps a voxel p of the patch to a position in the volume's index space (zyx, voxel centres at
whole numbers):

    q = centre + matrix @ (p - (P - 1) / 2) + bend(p)

so only the voxels that the view needs are read, and every voxel is interpolated once. `bend` is a
cubic B-spline of a few control points. Images are linear, with the volume's fill outside; where the
view is coarser than the volume by more than ANTI_ALIAS_FROM the source is smoothed first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional

from iris_cli.training.settings import GeometrySettings

Float3 = npt.NDArray[np.float64]
Region = tuple[slice, slice, slice]
Shape3 = tuple[int, int, int]
Array = np.ndarray[Any, np.dtype[Any]]
Read = Callable[[Region], Array]

# Below this ratio of voxel edges linear interpolation alone aliases little.
ANTI_ALIAS_FROM = 1.3
# From this ratio on the mean of 2x2x2 voxels serves as the filter: 10 times faster than smoothing.
POOL_FROM = 1.75
BEND_SEGMENTS = 4
LATERAL_AXIS = 2


@dataclass(frozen=True)
class View:
    """Where a patch lies in a volume.

    centre: (3,) zyx, voxels of the volume. matrix: (3, 3), voxels of the volume per voxel of the
    patch. bend: (3, n, n, n) control points in voxels of the volume, or None. mirrored: whether
    left and right are exchanged (already part of the matrix).
    """

    centre: Float3
    matrix: Float3
    bend: npt.NDArray[np.float32] | None = None
    mirrored: bool = False

    @property
    def ratio(self) -> float:
        """Voxel edge of the patch in voxels of the volume (geometric mean over the axes)."""
        return float(abs(np.linalg.det(self.matrix)) ** (1 / 3))

    def bounds(self, patch: int) -> tuple[Float3, Float3]:
        """Lowest and highest position (zyx) that the patch reaches."""
        reach = np.abs(self.matrix).sum(axis=1) * (patch - 1) / 2
        if self.bend is None:
            return self.centre - reach, self.centre + reach
        # A B-spline stays within its control points.
        low = self.bend.reshape(3, -1).min(axis=1)
        high = self.bend.reshape(3, -1).max(axis=1)
        return self.centre - reach + low, self.centre + reach + high


def draw_view(
    rng: np.random.Generator,
    centre: Float3,
    scale: float,
    patch: int,
    settings: GeometrySettings,
    *,
    strong: bool = False,
    mirror: bool = False,
) -> View:
    """Draw turn, shear, stretch and bend around a given centre and scale.

    scale: voxel edge of the patch in voxels of the volume, before jitter.
    strong: ranges times `strong_factor`, always turned (two views of one image).
    """
    factor = settings.strong_factor if strong else 1.0
    jitter = 1 + settings.scale_jitter * factor * rng.uniform(-1, 1)
    matrix = np.eye(3) * scale * jitter
    if strong or rng.random() < settings.affine_probability:
        angles = np.deg2rad(settings.rotation_deg * factor) * rng.uniform(-1, 1, 3)
        stretch = np.diag(1 + settings.anisotropy * factor * rng.uniform(-1, 1, 3))
        shear = np.eye(3) + settings.shear * factor * rng.uniform(-1, 1, (3, 3)) * (1 - np.eye(3))
        matrix = matrix @ _rotation(angles) @ shear @ stretch
    bend = None
    if rng.random() < (1.0 if strong else settings.elastic_probability):
        points = BEND_SEGMENTS + 3
        sigma = settings.elastic * patch * scale * rng.random() * factor
        bend = (sigma * rng.standard_normal((3, points, points, points))).astype(np.float32)
    if mirror:
        matrix = matrix @ np.diag([1.0, 1.0, -1.0])
    return View(np.asarray(centre, np.float64), matrix, bend, mirror)


def sample_image(view: View, patch: int, shape: Shape3, read: Read, fill: float) -> torch.Tensor:
    """The image seen by a view: (P, P, P) float32.

    shape: of the volume. read: region (zyx slices inside the volume) -> array.
    fill: value outside the volume.
    """
    region = _region(view, patch, shape)
    if region is None:
        return torch.full((patch, patch, patch), fill, dtype=torch.float32)
    source = torch.from_numpy(np.ascontiguousarray(read(region))).float() - fill
    origin = np.array([s.start for s in region], np.float64)
    step = 1.0
    if view.ratio >= POOL_FROM and min(source.shape) > 1:
        source = functional.avg_pool3d(source[None], 2, ceil_mode=True)[0]
        origin, step = origin + 0.5, 2.0
    elif view.ratio > ANTI_ALIAS_FROM:
        source = _smooth(source, view.ratio)
    grid = _grid(view, patch, origin, step, source.shape)
    seen = functional.grid_sample(source[None, None], grid, align_corners=False)
    return seen[0, 0] + fill


def sample_masks(view: View, patch: int, shape: Shape3, read: Read, count: int) -> torch.Tensor:
    """Masks seen by a view: (count, P, P, P) bool; nothing lies outside the volume.

    read: region -> (count, z, y, x) bool or uint8. Each mask is interpolated linearly and cut at
    one half: for classes that exclude each other this is the arg-max against background, unions
    and regions need no special case, and no staircase is left where the view is finer than the
    volume. Nothing is smoothed first (as in volume.resampling): thin classes would vanish.
    """
    region = _region(view, patch, shape)
    if region is None or count == 0:
        return torch.zeros((count, patch, patch, patch), dtype=torch.bool)
    source = torch.from_numpy(np.ascontiguousarray(read(region))).float()
    origin = np.array([s.start for s in region], np.float64)
    grid = _grid(view, patch, origin, 1.0, source.shape[1:])
    # A tie goes to the mask: a class one voxel thin must survive a shift by half a voxel.
    return functional.grid_sample(source[None], grid, align_corners=False)[0] >= 0.5


def sample_nearest(view: View, patch: int, shape: Shape3, read: Read) -> torch.Tensor:
    """Whole numbers seen by a view, nearest voxel, 0 outside: (P, P, P) int64."""
    region = _region(view, patch, shape)
    if region is None:
        return torch.zeros((patch, patch, patch), dtype=torch.int64)
    source = torch.from_numpy(np.ascontiguousarray(read(region)).astype(np.float32))
    origin = np.array([s.start for s in region], np.float64)
    grid = _grid(view, patch, origin, 1.0, source.shape)
    seen = functional.grid_sample(source[None, None], grid, mode="nearest", align_corners=False)
    return seen[0, 0].long()


def smooth_field(controls: npt.NDArray[np.float32], size: int) -> torch.Tensor:
    """Cubic B-spline of control points (..., n, n, n) on a cube of `size` voxels: (..., size^3)."""
    basis = _basis(size, controls.shape[-1])
    rows = torch.from_numpy(controls) @ basis.T
    planes = (basis @ rows).flatten(-2)
    cube: torch.Tensor = basis @ planes
    return cube.reshape(*controls.shape[:-3], size, size, size)


def clamp_centre(centre: Float3, shape: Sequence[int], extent: Float3) -> Float3:
    """The centre moved so that a crop of `extent` voxels lies inside the volume, where it fits.

    On an axis where the volume is smaller than the crop, the volume is centred.
    """
    size = np.asarray(shape, np.float64)
    low, high = extent / 2 - 0.5, size - extent / 2 - 0.5
    middle = (size - 1) / 2
    return np.where(low > high, middle, np.clip(centre, low, high))


def _region(view: View, patch: int, shape: Shape3) -> Region | None:
    """The part of the volume that the view reads, or None where it reads nothing."""
    low, high = view.bounds(patch)
    margin = 2 if view.ratio > ANTI_ALIAS_FROM else 1
    first = np.maximum(np.floor(low).astype(int) - margin, 0)
    last = np.minimum(np.ceil(high).astype(int) + margin + 1, shape)
    if np.any(first >= last):
        return None
    z, y, x = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    return z, y, x


def _grid(
    view: View, patch: int, origin: Float3, step: float, shape: Sequence[int]
) -> torch.Tensor:
    """Positions for grid_sample: (1, P, P, P, 3) in x, y, z order, -1..1 over the source's edges.

    Index i of the source lies at origin + i * step. Built by broadcasting: torch's affine_grid
    takes twice as long and could not hold the bend.
    """
    size = np.asarray(shape, np.float64)
    to_unit = 2.0 / (step * size)
    offset = (view.centre - origin) * to_unit + 1.0 / size - 1.0
    columns = torch.from_numpy((view.matrix * to_unit[:, None]).astype(np.float32))
    ramp = torch.arange(patch, dtype=torch.float32) - (patch - 1) / 2
    shift = torch.from_numpy(offset.astype(np.float32))
    grid = torch.empty((patch, patch, patch, 3), dtype=torch.float32)
    bend = None if view.bend is None else smooth_field(view.bend, patch)
    for axis in range(3):
        along_z = (ramp * columns[axis, 0] + shift[axis])[:, None, None]
        along_y = (ramp * columns[axis, 1])[:, None]
        position = along_z + along_y + ramp * columns[axis, 2]
        if bend is not None:
            position = position.add_(bend[axis], alpha=float(to_unit[axis]))
        grid[..., 2 - axis] = position
    return grid[None]


def _smooth(source: torch.Tensor, ratio: float) -> torch.Tensor:
    """Three-tap filter with the variance of the working grid's Gaussian, 0.5 * (ratio - 1) voxels.

    Outside the volume lies the fill, which is 0 here.
    """
    side = (0.5 * (ratio - 1)) ** 2 / 2
    for axis in range(3):
        n = source.shape[axis]
        result = source * (1 - 2 * side)
        if n > 1:
            result.narrow(axis, 1, n - 1).add_(source.narrow(axis, 0, n - 1), alpha=side)
            result.narrow(axis, 0, n - 1).add_(source.narrow(axis, 1, n - 1), alpha=side)
        source = result
    return source


def _rotation(angles: Float3) -> Float3:
    """Turn about z, then y, then x; angles (3,) in radians, order zyx."""
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [a for a in range(3) if a != axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        result = turn @ result
    return result


@lru_cache(maxsize=32)
def _basis(size: int, controls: int) -> torch.Tensor:
    """Cubic B-spline weights (size, controls) of a uniform spline over the whole cube."""
    segments = controls - 3
    position = np.arange(size) * segments / max(size - 1, 1)
    first = np.minimum(position.astype(int), segments - 1)
    t = position - first
    weights = np.stack(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1
    )
    basis = np.zeros((size, controls), np.float32)
    for k in range(4):
        basis[np.arange(size), first + k] = weights[:, k] / 6
    return torch.from_numpy(basis)
