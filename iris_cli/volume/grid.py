"""`Grid`: where the voxels of a volume are, in millimetres.

A grid is a shape and an affine, nothing else: no array and no file. The affine maps voxel indices
in file order (x, y, z) to RAS+ millimetres, and an index means the *centre* of its voxel, so the
field of view reaches half a voxel beyond the first and last index. Arrays are `(z, y, x)`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from iris_cli.errors import DataRefused
from iris_cli.files.hashing import hash_json

Affine = npt.NDArray[np.float64]

EQUAL_VOXELS = 0.01
"""Largest move of a corner, in units of the smallest voxel edge, of grids that are equal."""

ROUNDING_VOXELS = 0.1
"""The same for grids that are equal by rounding of their headers."""

SAME_SPACING = 1e-3
"""Relative difference below which a spacing is the working spacing, and nothing is resampled."""

PARTIAL_VOXEL = 1e-3
"""Part of a voxel of the field of view that is not worth another voxel of the working grid."""

ORTHONORMAL = 1e-6
"""Cosine between axes up to which they are called perpendicular (float32 headers reach 2e-7)."""

DEGENERATE = 1e-4
"""Volume of the unit axes' parallelepiped under which the axes span no space."""


class GridMatch(Enum):
    """How well two grids agree; see `Grid.compare`."""

    EQUAL = "equal"
    ROUNDING = "equal by rounding"
    DIFFERENT = "different"


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape and affine of a volume; valid once built.

    shape_zyx: voxels per axis in array order, each at least 1.
    affine: (4, 4) float64, voxel indices (x, y, z) to RAS+ mm; kept read-only.
    raises DataRefused where the shape is empty or the affine is not finite, not affine, or spans
    no space.
    """

    shape_zyx: tuple[int, int, int]
    affine: Affine

    def __post_init__(self) -> None:
        shape = tuple(int(size) for size in self.shape_zyx)
        if len(shape) != 3 or min(shape) < 1:
            raise DataRefused(
                "a grid needs three axes of at least one voxel",
                found=f"shape (z, y, x) {shape}",
                expected="three positive sizes",
            )
        # Adding zero turns -0.0 into 0.0, which would hash differently for no reason.
        affine = np.array(self.affine, dtype=np.float64) + 0.0
        _check_affine(affine, shape)
        affine.setflags(write=False)
        object.__setattr__(self, "shape_zyx", shape)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def from_spacing(
        cls,
        shape_zyx: Sequence[int],
        spacing_xyz: Sequence[float],
        origin_mm: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> Grid:
        """Axis-aligned RAS+ grid; `origin_mm` is the centre of voxel 0."""
        affine = np.diag([*spacing_xyz, 1.0]).astype(np.float64)
        affine[:3, 3] = origin_mm
        z, y, x = shape_zyx
        return cls((z, y, x), affine)

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> Grid:
        """Inverse of `to_json`; raises DataRefused for anything else."""
        try:
            z, y, x = obj["shape_zyx"]
            return cls((z, y, x), np.array(obj["affine"], dtype=np.float64))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataRefused):
                raise
            raise DataRefused(
                "this is no grid",
                found=repr(obj)[:200],
                expected='{"shape_zyx": [z, y, x], "affine": [4 rows of 4 numbers]}',
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Shape and affine as plain lists; floats keep every digit."""
        return {"shape_zyx": list(self.shape_zyx), "affine": self.affine.tolist()}

    def hash(self) -> str:
        """sha256 (hex) of shape and affine."""
        return hash_json(self.to_json())

    @property
    def shape_xyz(self) -> tuple[int, int, int]:
        z, y, x = self.shape_zyx
        return (x, y, z)

    @property
    def spacing_xyz(self) -> tuple[float, float, float]:
        """Edges of a voxel in mm: lengths of the affine's columns."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return (x, y, z)

    @property
    def spacing_zyx(self) -> tuple[float, float, float]:
        x, y, z = self.spacing_xyz
        return (z, y, x)

    @property
    def direction(self) -> Affine:
        """(3, 3): unit vectors of the x, y and z axis as columns, in RAS+."""
        axes: Affine = self.affine[:3, :3] / np.array(self.spacing_xyz)
        return axes

    @property
    def extent_mm_zyx(self) -> tuple[float, float, float]:
        """Edges of the field of view: shape times spacing."""
        (nz, ny, nx), (sz, sy, sx) = self.shape_zyx, self.spacing_zyx
        return (nz * sz, ny * sy, nx * sx)

    @property
    def centre_mm(self) -> Affine:
        """(3,) RAS+ mm: centre of the field of view."""
        return self.voxel_to_world((np.array(self.shape_xyz) - 1) / 2)

    @property
    def corners_mm(self) -> Affine:
        """(8, 3) RAS+ mm: outer corners of the field of view, half a voxel beyond the centres."""
        ends = [(-0.5, size - 0.5) for size in self.shape_xyz]
        return self.voxel_to_world(np.array(list(itertools.product(*ends))))

    @property
    def is_orthonormal(self) -> bool:
        """Whether the axes are perpendicular to each other."""
        return _skew(self.direction) <= ORTHONORMAL

    def voxel_to_world(self, index_xyz: npt.ArrayLike) -> Affine:
        """(..., 3) voxel indices (x, y, z), integer at voxel centres, to (..., 3) RAS+ mm."""
        index = np.asarray(index_xyz, dtype=np.float64)
        world: Affine = index @ self.affine[:3, :3].T + self.affine[:3, 3]
        return world

    def world_to_voxel(self, world_mm: npt.ArrayLike) -> Affine:
        """(..., 3) RAS+ mm to (..., 3) voxel indices (x, y, z), integer at voxel centres."""
        offset = np.asarray(world_mm, dtype=np.float64) - self.affine[:3, 3]
        index: Affine = offset @ np.linalg.inv(self.affine[:3, :3]).T
        return index

    def contains(self, world_mm: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Which of the (..., 3) points in RAS+ mm lie inside the field of view."""
        index = self.world_to_voxel(world_mm)
        inside = (index >= -0.5) & (index <= np.array(self.shape_xyz) - 0.5)
        return np.asarray(inside.all(axis=-1))

    def compare(self, other: Grid) -> GridMatch:
        """Equal, equal by rounding, or different, by how far a corner moves.

        The unit is the smallest voxel edge of both; other shapes are different at once.
        """
        if self.shape_zyx != other.shape_zyx:
            return GridMatch.DIFFERENT
        moved = float(np.linalg.norm(self.corners_mm - other.corners_mm, axis=1).max())
        voxels = moved / min(self.spacing_xyz + other.spacing_xyz)
        if voxels <= EQUAL_VOXELS:
            return GridMatch.EQUAL
        return GridMatch.ROUNDING if voxels <= ROUNDING_VOXELS else GridMatch.DIFFERENT

    def working(self, spacing_mm: float) -> Grid:
        """The working grid at a spacing: isotropic, same axes, same centre of the field of view.

        Sizes are `max(1, ceil(extent / spacing - 1e-3))`. The grid itself comes back where its
        spacing is `spacing_mm` within 1e-3 (relative, so that the unit does not matter).
        """
        if not (np.isfinite(spacing_mm) and spacing_mm > 0):
            raise DataRefused("a working spacing must be a positive number", found=spacing_mm)
        if all(abs(edge - spacing_mm) <= SAME_SPACING * spacing_mm for edge in self.spacing_xyz):
            return self
        z, y, x = (
            max(1, int(np.ceil(extent / spacing_mm - PARTIAL_VOXEL)))
            for extent in self.extent_mm_zyx
        )
        axes = self.direction * spacing_mm
        return Grid((z, y, x), _centred(axes, (x, y, z), self.centre_mm))

    def crop(self, start_zyx: Sequence[int], shape_zyx: Sequence[int]) -> Grid:
        """The grid of a box of this one; the box may reach outside (padding)."""
        affine = self.affine.copy()
        affine[:3, 3] = self.voxel_to_world(tuple(start_zyx)[::-1])
        z, y, x = shape_zyx
        return Grid((z, y, x), affine)

    def repaired(self) -> Grid:
        """The nearest grid with perpendicular axes, if only rounding is in the way, else itself.

        Rounding means that no corner moves by more than `ROUNDING_VOXELS` of a voxel; spacing and
        centre of the field of view stay. Sheared grids come back unchanged.
        """
        if self.is_orthonormal:
            return self
        left, _, right = np.linalg.svd(self.direction)
        axes = (left @ right) * np.array(self.spacing_xyz)
        perpendicular = Grid(self.shape_zyx, _centred(axes, self.shape_xyz, self.centre_mm))
        return self if self.compare(perpendicular) is GridMatch.DIFFERENT else perpendicular

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grid):
            return NotImplemented
        return self.shape_zyx == other.shape_zyx and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash((self.shape_zyx, self.affine.tobytes()))

    def __reduce__(self) -> tuple[Any, ...]:
        # Built again on the other side, so that the affine is checked and read-only there too.
        return (Grid, (self.shape_zyx, np.array(self.affine)))


def _check_affine(affine: Affine, shape_zyx: Sequence[int]) -> None:
    if affine.shape != (4, 4):
        raise DataRefused(
            "an affine is a matrix of 4 x 4", found=f"shape {affine.shape}", expected="(4, 4)"
        )
    if not np.isfinite(affine).all():
        raise DataRefused(
            "the affine holds numbers that are not finite",
            found=affine.tolist(),
            expected="finite numbers",
        )
    if not np.array_equal(affine[3], [0.0, 0.0, 0.0, 1.0]):
        raise DataRefused(
            "the last row of the affine is wrong", found=affine[3].tolist(), expected="0, 0, 0, 1"
        )
    with np.errstate(all="ignore"):
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        extent = np.array(shape_zyx[::-1]) * spacing
        usable = np.isfinite(extent).all() and bool((spacing > 0).all())
        volume = float(np.linalg.det(affine[:3, :3] / spacing)) if usable else 0.0
    if not usable:
        raise DataRefused(
            "a voxel spacing is zero or not finite",
            found=f"spacing (x, y, z) {spacing.tolist()} mm",
            expected="three positive numbers",
        )
    if not abs(volume) >= DEGENERATE:
        raise DataRefused(
            "the axes of the volume do not span space (two of them are parallel)",
            found=affine[:3, :3].tolist(),
            expected="three independent axes",
        )


def _skew(direction: Affine) -> float:
    return float(np.abs(direction.T @ direction - np.eye(3)).max())


def _centred(axes: Affine, shape_xyz: Sequence[int], centre_mm: Affine) -> Affine:
    """(4, 4) affine with these columns whose field of view has its centre at `centre_mm`."""
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = centre_mm - axes @ ((np.array(shape_xyz) - 1) / 2)
    return affine
