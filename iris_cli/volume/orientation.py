"""`Orientation`: from the axes of a file to canonical RAS+ axes and back, bit for bit.

Only axes are permuted and flipped; no voxel is interpolated and oblique volumes stay oblique.
Which axis goes where is nibabel's `io_orientation`, its rule for ties included, so that iris
agrees with every tool built on nibabel. At exact ties (45 degrees) that choice is not idempotent:
the canonical grid of a canonical grid may be another one. Nothing here relies on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from iris_cli.volume.grid import Affine, Grid

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Orientation:
    """Permutation and flips that turn a stored volume into canonical orientation.

    axes_xyz: for every stored axis (x, y, z) the canonical axis it becomes.
    flips_xyz: whether that stored axis runs against its canonical one.
    """

    axes_xyz: tuple[int, int, int]
    flips_xyz: tuple[bool, bool, bool]

    @property
    def is_identity(self) -> bool:
        return self.axes_xyz == (0, 1, 2) and not any(self.flips_xyz)

    def apply(
        self, array: np.ndarray[Any, np.dtype[Scalar]], grid: Grid
    ) -> tuple[np.ndarray[Any, np.dtype[Scalar]], Grid]:
        """Stored array (..., z, y, x) and its grid to canonical ones; the array C-contiguous."""
        return self.apply_array(array), self.apply_grid(grid)

    def apply_array(
        self, array: np.ndarray[Any, np.dtype[Scalar]]
    ) -> np.ndarray[Any, np.dtype[Scalar]]:
        """Stored (..., z, y, x) to canonical (..., z, y, x), C-contiguous."""
        flipped = array[self._flip_index()]
        order = [2 - self._stored_axis(2 - position) for position in range(3)]
        return np.ascontiguousarray(_transpose_last(flipped, order))

    def apply_grid(self, grid: Grid) -> Grid:
        """The canonical grid of a stored one: the same voxels in the same places."""
        affine: Affine = np.eye(4)
        affine[:3, 3] = grid.affine[:3, 3]
        shape_xyz = [0, 0, 0]
        for stored, (canonical, flip) in enumerate(zip(self.axes_xyz, self.flips_xyz, strict=True)):
            size, column = grid.shape_xyz[stored], grid.affine[:3, stored]
            shape_xyz[canonical] = size
            affine[:3, canonical] = -column if flip else column
            if flip:
                affine[:3, 3] += column * (size - 1)
        x, y, z = shape_xyz
        return Grid((z, y, x), affine)

    def restore(
        self, array: np.ndarray[Any, np.dtype[Scalar]]
    ) -> np.ndarray[Any, np.dtype[Scalar]]:
        """Canonical (..., z, y, x) to stored (..., z, y, x), C-contiguous; inverse of apply."""
        order = [2 - self.axes_xyz[2 - position] for position in range(3)]
        return np.ascontiguousarray(_transpose_last(array, order)[self._flip_index()])

    def _stored_axis(self, canonical: int) -> int:
        return self.axes_xyz.index(canonical)

    def _flip_index(self) -> tuple[Any, ...]:
        """Index that reverses the flipped axes of an array in stored axis order."""
        return (..., *(slice(None, None, -1 if flip else 1) for flip in self.flips_xyz[::-1]))


AS_IT_IS = Orientation((0, 1, 2), (False, False, False))
"""The orientation of arrays that are stored as they are in memory."""


def canonical_orientation(grid: Grid) -> Orientation:
    """The permutation and flips that bring a grid nearest to RAS+ (nibabel's choice)."""
    return _nearest_to_ras(grid.affine[:3, :3].tobytes())


@lru_cache(maxsize=256)  # the cases of a set lie alike, and every header is read several times
def _nearest_to_ras(axes: bytes) -> Orientation:
    """axes: (3, 3) float64, a stored axis per column; of a grid, so they span space.

    The rotation nearest to them decides (polar decomposition); of its columns the one that is
    nearest to a canonical axis chooses first, the first of equal ones.
    """
    columns = np.frombuffer(axes).reshape(3, 3)
    left, _, right = np.linalg.svd(columns / np.sqrt(np.sum(columns * columns, axis=0)))
    rotation = left @ right
    canonical, flips = [0, 0, 0], [False, False, False]
    for stored in np.argsort(np.min(-(rotation**2), axis=0), kind="stable"):
        nearest = int(np.argmax(np.abs(rotation[:, stored])))
        canonical[stored], flips[stored] = nearest, bool(rotation[nearest, stored] < 0)
        rotation[nearest] = 0.0
    x, y, z = canonical
    flip_x, flip_y, flip_z = flips
    return Orientation((x, y, z), (flip_x, flip_y, flip_z))


def _transpose_last(
    array: np.ndarray[Any, np.dtype[Scalar]], order: list[int]
) -> np.ndarray[Any, np.dtype[Scalar]]:
    """Permute the last three axes; leading ones (channels, classes) stay."""
    lead = array.ndim - 3
    return array.transpose([*range(lead), *(lead + axis for axis in order)])
