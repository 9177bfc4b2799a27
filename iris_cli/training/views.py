"""Views: one augmented crop of a volume, cut, turned, scaled and bent in a single step.

A view maps a voxel p of the patch to a position in the volume's index space (zyx, voxel centres at
whole numbers):

    q = centre + matrix @ (p - (P - 1) / 2) + bend(p)

so only the voxels that the view needs are read, and every voxel is interpolated once. `bend` is a
cubic B-spline of a few control points. Reading (`region_of`, `prefilter`) and looking
(`positions`, `sample_image`, `sample_masks`) are apart: the first is done by a worker, the second
on whichever device trains (training.augmentation). Images are linear, with the fill outside; where
the view is coarser than the volume by more than ANTI_ALIAS_FROM the source is smoothed first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
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

# Below this ratio of voxel edges linear interpolation alone aliases little.
ANTI_ALIAS_FROM = 1.3
# From this ratio on the mean of 2x2x2 voxels serves as the filter: 10 times faster than smoothing.
POOL_FROM = 1.75
# Voxels read beyond what a view reaches: one for interpolation, one for the filter.
MARGIN = 2
# A mask reaches where its interpolated value is one half; a tie goes to the mask (a class one voxel
# thin must survive a shift by half a voxel), also where rounding leaves it just below.
HALF = 0.5 - 1e-4
BEND_SEGMENTS = 4
# Positions that a CPU looks at in one go: what belongs to them stays in its cache.
BLOCK = 1 << 16
LATERAL_AXIS = 2


@dataclass(frozen=True)
class Frame:
    """Where an array lies in a volume: its index i is at `origin + i * step` (zyx, voxels)."""

    origin: tuple[float, float, float]
    step: float = 1.0


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


def region_of(view: View, patch: int, shape: Shape3) -> Region | None:
    """The part of the volume that the view reads, or None where it lies beside the volume."""
    low, high = view.bounds(patch)
    first = np.maximum(np.floor(low).astype(int) - MARGIN, 0)
    last = np.minimum(np.ceil(high).astype(int) + MARGIN + 1, shape)
    if np.any(first >= last):
        return None
    z, y, x = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    return z, y, x


def frame_of(region: Region) -> Frame:
    """The frame of an array that was read from a region of a volume."""
    z, y, x = (float(side.start) for side in region)
    return Frame((z, y, x))


def prefilter(
    source: torch.Tensor, frame: Frame, ratio: float, fill: float
) -> tuple[torch.Tensor, Frame]:
    """What a view `ratio` times coarser than the source may sample without aliasing.

    source: (z, y, x) float32, outside of which lies `fill`. From POOL_FROM on its size is halved.
    """
    if ratio >= POOL_FROM and min(source.shape) > 1:
        z, y, x = (o + 0.5 * frame.step for o in frame.origin)
        pooled = functional.avg_pool3d(source[None], 2, ceil_mode=True)[0]
        return pooled, Frame((z, y, x), 2.0 * frame.step)
    if ratio > ANTI_ALIAS_FROM:
        return _smooth(source - fill, ratio) + fill, frame
    return source, frame


def positions(view: View, patch: int, device: torch.device | None = None) -> torch.Tensor:
    """Where the voxels of the patch lie in the volume: (3, P, P, P) float32, zyx, voxels.

    Built by broadcasting: torch's affine_grid takes twice as long and could not hold the bend.
    """
    ramp = torch.arange(patch, dtype=torch.float32, device=device) - (patch - 1) / 2
    where = torch.empty((3, patch, patch, patch), dtype=torch.float32, device=device)
    for axis, (to_z, to_y, to_x) in enumerate(view.matrix.tolist()):
        along_z = (ramp * to_z + float(view.centre[axis]))[:, None, None]
        torch.add(along_z + (ramp * to_y)[:, None], ramp * to_x, out=where[axis])
    if view.bend is not None:
        where += smooth_field(view.bend, (patch,) * 3, device)
    return where


def sample_image(
    source: torch.Tensor, frame: Frame, where: torch.Tensor, fill: float
) -> torch.Tensor:
    """An image at positions of the volume, interpolated linearly: float32 like `where[0]`.

    source: (z, y, x) floating, lies in the volume as `frame` says; `fill` is the value outside.
    where: (3, ...) with three axes, from `positions`.
    """
    source = source.to(where.device, non_blocking=True).float()
    if where.device.type == "cpu":
        # grid_sample goes voxel by voxel on a CPU; elsewhere it is one call.
        padded = functional.pad(source, (1,) * 6, value=fill)
        blocks = torch.split(where.flatten(1), BLOCK, dim=1)
        seen = torch.cat([_interpolated(*_cells(padded, frame, block)) for block in blocks])
        return seen.reshape(where.shape[1:])
    axes = zip(where, frame.origin, source.shape, strict=True)
    # grid_sample wants x, y, z from -1 to 1 over the outer edges of the source.
    units = [w * (2 / (frame.step * n)) + ((1 - 2 * o / frame.step) / n - 1) for w, o, n in axes]
    grid = torch.stack(units[::-1], dim=-1)[None]
    inside = (source - fill)[None, None]
    return functional.grid_sample(inside, grid, align_corners=False)[0, 0] + fill


def sample_masks(
    numbers: torch.Tensor, frame: Frame, where: torch.Tensor, table: torch.Tensor
) -> torch.Tensor:
    """Masks at positions of the volume: (C, P, P, P) bool.

    numbers: (z, y, x) uint8 or int16, rows of `table`; row 0 lies outside. table: (rows, C) bool.
    Each mask is interpolated linearly and cut at one half: for classes that exclude each other this
    is the arg-max against background, unions and regions need no special case, and no staircase is
    left where the view is finer than the map. Nothing is smoothed first (as in volume.resampling):
    thin classes would vanish. The cost depends neither on the size of the map nor much on C.
    """
    padded = functional.pad(numbers.to(where.device, non_blocking=True), (1,) * 6)
    places = where.flatten(1)
    if where.device.type != "cpu":
        return _share(*_cells(padded, frame, places), table).T.reshape(-1, *where.shape[1:])
    seen = torch.empty((table.shape[1], places.shape[1]), dtype=torch.bool)
    blocks = (torch.split(whole, BLOCK, dim=1) for whole in (seen, places))
    for part, block in zip(*blocks, strict=True):
        _look_up_masks(part, *_cells(padded, frame, block), table)
    return seen.reshape(-1, *where.shape[1:])


def count_voxels(masks: torch.Tensor) -> torch.Tensor:
    """Voxels of each mask: (..., Z, Y, X) bool -> (...) int32."""
    # As bytes: booleans become 64-bit numbers one by one, 30 times as slow on a CPU.
    return masks.flatten(-3).view(torch.uint8).sum(dim=-1, dtype=torch.int32)


def sample_nearest(source: torch.Tensor, frame: Frame, where: torch.Tensor) -> torch.Tensor:
    """Whole numbers (z, y, x) at positions of the volume, nearest voxel, 0 outside."""
    padded = functional.pad(source, (1,) * 6)
    z, y, x = (
        ((w - origin) / frame.step).round().clamp(-1, n).long() + 1
        for w, origin, n in zip(where, frame.origin, source.shape, strict=True)
    )
    return padded[z, y, x]


def smooth_field(
    controls: npt.NDArray[np.float32], shape: Sequence[int], device: torch.device | None = None
) -> torch.Tensor:
    """Cubic B-spline of control points (..., n, n, n) on a box of `shape` voxels (..., z, y, x)."""
    z, y, x = (_basis(size, controls.shape[-1]).to(device) for size in shape)
    rows = torch.from_numpy(controls).to(device) @ x.T
    planes = (y @ rows).flatten(-2)
    box: torch.Tensor = z @ planes
    return box.reshape(*controls.shape[:-3], *shape)


def smooth_curve(controls: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    """Cubic B-spline of control points (n,), n >= 4, at `size` equal distances: (size,)."""
    curve: npt.NDArray[np.float32] = _basis(size, len(controls)).numpy() @ controls
    return curve


def clamp_centre(centre: Float3, shape: Sequence[int], extent: Float3) -> Float3:
    """The centre moved so that a crop of `extent` voxels lies inside the volume, where it fits.

    On an axis where the volume is smaller than the crop, the volume is centred.
    """
    size = np.asarray(shape, np.float64)
    low, high = extent / 2 - 0.5, size - extent / 2 - 0.5
    middle = (size - 1) / 2
    return np.where(low > high, middle, np.clip(centre, low, high))


def _cells(
    padded: torch.Tensor, frame: Frame, where: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The eight voxels around each of N positions, and how far it is into their cube.

    padded: (z, y, x), the array that lies in the volume as `frame` says, with one voxel around it.
    where: (3, N). returns: eight values (N,), the last axis changing fastest; three parts (N,),
    zyx, from 0 at the lower voxels to 1.
    """
    first, parts = torch.full_like(where[0], sum(padded.stride()), dtype=torch.int64), []
    for axis, (w, origin) in enumerate(zip(where, frame.origin, strict=True)):
        n = padded.shape[axis] - 2
        index = w - origin
        if frame.step != 1:
            index /= frame.step
        lower = index.clamp_(-1, n).floor().clamp_(max=n - 1)
        first.add_(lower.long(), alpha=padded.stride(axis))
        parts.append(index.sub_(lower))
    flat, (z, y, x) = padded.reshape(-1), padded.stride()
    offsets = [i * z + j * y + k * x for i, j, k in product((0, 1), repeat=3)]
    return [flat[offset:].index_select(0, first) for offset in offsets], parts


def _interpolated(values: Sequence[torch.Tensor], parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Linear interpolation in the cells of `_cells`: (N,)."""
    for part in reversed(parts):
        pairs = zip(values[::2], values[1::2], strict=True)
        values = [torch.lerp(low, high, part) for low, high in pairs]
    return values[0]


def _look_up_masks(
    seen: torch.Tensor,
    rows: Sequence[torch.Tensor],
    parts: Sequence[torch.Tensor],
    table: torch.Tensor,
) -> None:
    """`_share` into `seen` (C, N), but looked up where all eight neighbours are alike.

    That is nine voxels of ten. Other devices would have to be waited for to know how many are left.
    """
    mixed = torch.zeros_like(rows[0], dtype=torch.bool)
    for row in rows[1:]:
        mixed |= row != rows[0]
    first, at = rows[0].int(), torch.nonzero(mixed)[:, 0]
    for mask, column in zip(seen, table.T.contiguous(), strict=True):
        torch.index_select(column, 0, first, out=mask)
    seen[:, at] = _share([row[at] for row in rows], [part[at] for part in parts], table).T


def _share(
    rows: Sequence[torch.Tensor], parts: Sequence[torch.Tensor], table: torch.Tensor
) -> torch.Tensor:
    """Whether the masks interpolated from the cells of `_cells` reach one half: (N, C) bool."""
    sides = [(1 - part, part) for part in parts]
    weights = [sides[0][i] * sides[1][j] * sides[2][k] for i, j, k in product((0, 1), repeat=3)]
    share = functional.embedding_bag(
        torch.stack([row.int() for row in rows], dim=-1),
        table.float(),
        mode="sum",
        per_sample_weights=torch.stack(weights, dim=-1),
    )
    return share >= HALF


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
