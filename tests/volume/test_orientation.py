"""Canonical orientation: nibabel's choice, exact, and exactly undone (R6, first part)."""

from __future__ import annotations

import pickle
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings

from iris_cli.volume.grid import Affine, Grid
from iris_cli.volume.orientation import AS_IT_IS, canonical_orientation
from tests.volume.examples import TILTS, forty_eight_axes, grids, oriented_grid, some_labels


@pytest.mark.parametrize("tilt", TILTS)
def test_forty_eight_orientations_agree_with_nibabel_and_come_back(tilt: str) -> None:
    stored = some_labels()
    for axes in forty_eight_axes():
        grid = oriented_grid(axes, TILTS[tilt])
        orientation = canonical_orientation(grid)
        canonical, canonical_grid = orientation.apply(stored, grid)
        theirs = nibabel.as_closest_canonical(nibabel.Nifti1Image(stored.T, grid.affine))
        np.testing.assert_array_equal(canonical, np.asarray(theirs.dataobj).T)
        np.testing.assert_allclose(canonical_grid.affine, theirs.affine, atol=1e-12)
        assert canonical.flags.c_contiguous
        np.testing.assert_array_equal(orientation.restore(canonical), stored)
        assert canonical_orientation(canonical_grid) == AS_IT_IS
        assert orientation.restore(canonical).flags.c_contiguous


def test_canonical_axes_grow_to_right_anterior_superior() -> None:
    # Stored posterior-left-inferior: x runs to P, y to L, z to I, as openkbp is.
    axes = np.array([[0, -1, 0], [-1, 0, 0], [0, 0, -1]], dtype=float)
    grid = oriented_grid(axes, np.eye(3))
    stored = some_labels()
    canonical, canonical_grid = canonical_orientation(grid).apply(stored, grid)
    assert canonical.shape == (4, 6, 5)
    assert canonical[0, 0, 0] == stored[-1, -1, -1]
    assert canonical[0, 0, 1] == stored[-1, -2, -1]
    np.testing.assert_allclose(canonical_grid.direction, np.eye(3), atol=1e-12)


def quarter_turns() -> list[Affine]:
    """Turns by 45 degrees about one and two axes: two or three columns are equally near."""
    c = np.sqrt(0.5)
    about_z = np.array([[c, -c, 0], [c, c, 0], [0, 0, 1]])
    order = [1, 2, 0]
    turns = [about_z, about_z[np.ix_(order, order)], about_z.T]
    return [*turns, *(a @ b for a in turns for b in turns)]


def test_ties_and_all_others_go_as_nibabel_decides() -> None:
    generator = np.random.default_rng(5)
    others = [generator.normal(size=(3, 3)) for _ in range(200)]  # sheared
    tied = [turn @ axes for turn in quarter_turns() for axes in forty_eight_axes()]
    for axes in (*tied, *others):
        affine = np.eye(4)
        affine[:3, :3] = axes * (0.7, 0.7, 3.0)
        table = nibabel.io_orientation(affine)
        orientation = canonical_orientation(Grid((2, 3, 4), affine))
        assert orientation.axes_xyz == tuple(table[:, 0].astype(int))
        assert orientation.flips_xyz == tuple(table[:, 1] < 0)


@settings(max_examples=80, deadline=None)
@given(grids())
def test_every_voxel_keeps_its_place(grid: Grid) -> None:
    stored = np.arange(np.prod(grid.shape_zyx)).reshape(grid.shape_zyx)
    orientation = canonical_orientation(grid)
    canonical, canonical_grid = orientation.apply(stored, grid)
    np.testing.assert_array_equal(orientation.restore(canonical), stored)
    value = stored[-1, 0, -1]
    place = np.argwhere(canonical == value)[0][::-1]
    x, _, z = grid.shape_xyz
    np.testing.assert_allclose(
        canonical_grid.voxel_to_world(place),
        grid.voxel_to_world((x - 1, 0, z - 1)),
        atol=1e-9 * max(grid.extent_mm_zyx),
    )


def test_leading_axes_are_left_alone() -> None:
    grid = oriented_grid(forty_eight_axes()[13], TILTS["oblique"])
    orientation = canonical_orientation(grid)
    stored = np.stack([some_labels(), some_labels() + 1])
    canonical: np.ndarray[Any, Any] = orientation.apply_array(stored)
    np.testing.assert_array_equal(canonical[1], orientation.apply_array(stored[1]))
    np.testing.assert_array_equal(orientation.restore(canonical), stored)


def test_canonical_volumes_are_not_copied() -> None:
    grid = Grid.from_spacing((4, 5, 6), (1, 2, 3))
    stored = some_labels()
    canonical, _ = canonical_orientation(grid).apply(stored, grid)
    assert np.shares_memory(canonical, stored)


def test_orientations_travel_to_worker_processes() -> None:
    orientation = canonical_orientation(oriented_grid(forty_eight_axes()[5], TILTS["steep"]))
    assert pickle.loads(pickle.dumps(orientation)) == orientation
