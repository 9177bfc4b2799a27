"""Grids: the numbers of CONTRACT.md, computed by hand, and the laws they must keep."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iris_cli.errors import DataRefused
from iris_cli.volume.grid import Grid, GridMatch
from tests.volume.examples import TILTS, forty_eight_axes, grids, oriented_grid


def box(shape_zyx: tuple[int, int, int], spacing_xyz: tuple[float, float, float]) -> Grid:
    return Grid.from_spacing(shape_zyx, spacing_xyz)


def moved(grid: Grid, **by_mm: float) -> Grid:
    affine = grid.affine.copy()
    for axis, distance in by_mm.items():
        affine["xyz".index(axis), 3] += distance
    return Grid(grid.shape_zyx, affine)


def test_the_affine_takes_indices_in_file_order() -> None:
    affine = [[0, 0, 3, 10], [1, 0, 0, 20], [0, 2, 0, 30], [0, 0, 0, 1]]
    grid = Grid((5, 6, 7), np.array(affine))
    assert grid.voxel_to_world((1, 0, 0)).tolist() == [10, 21, 30]
    assert grid.voxel_to_world((0, 1, 0)).tolist() == [10, 20, 32]
    assert grid.voxel_to_world((0, 0, 1)).tolist() == [13, 20, 30]
    assert grid.shape_xyz == (7, 6, 5)
    assert grid.spacing_xyz == (1, 2, 3)
    assert grid.spacing_zyx == (3, 2, 1)
    assert grid.extent_mm_zyx == (15, 12, 7)


def test_the_field_of_view_reaches_half_a_voxel_beyond_the_centres() -> None:
    grid = box((2, 3, 4), (1, 2, 3))
    assert grid.centre_mm.tolist() == [1.5, 2.0, 1.5]
    assert grid.corners_mm.min(axis=0).tolist() == [-0.5, -1.0, -1.5]
    assert grid.corners_mm.max(axis=0).tolist() == [3.5, 5.0, 4.5]
    assert grid.contains([[-0.49, -0.99, -1.49], [-0.51, 0, 0], [3.49, 4.99, 4.49]]).tolist() == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("distance", "match"),
    [
        (0.0, GridMatch.EQUAL),
        (0.0049, GridMatch.EQUAL),
        (0.0051, GridMatch.ROUNDING),
        (0.049, GridMatch.ROUNDING),
        (0.051, GridMatch.DIFFERENT),
    ],
)
def test_grids_match_by_corners_in_units_of_the_smallest_edge(
    distance: float, match: GridMatch
) -> None:
    grid = box((4, 5, 6), (2.0, 0.5, 3.0))
    for axis in "xyz":
        assert grid.compare(moved(grid, **{axis: distance})) is match
        assert moved(grid, **{axis: distance}).compare(grid) is match


def test_a_difference_of_spacing_counts_where_it_adds_up_at_the_corner() -> None:
    # 100 voxels of 1 mm, centre of voxel 0 fixed: the far corner moves by 99.5 x the difference.
    grid = box((1, 1, 100), (1, 1, 1))
    assert grid.compare(box((1, 1, 100), (1.0001, 1, 1))) is GridMatch.EQUAL
    assert grid.compare(box((1, 1, 100), (1.0002, 1, 1))) is GridMatch.ROUNDING
    assert grid.compare(box((1, 1, 100), (1.0011, 1, 1))) is GridMatch.DIFFERENT


def test_other_shapes_are_different() -> None:
    assert box((4, 5, 6), (1, 1, 1)).compare(box((4, 5, 7), (1, 1, 1))) is GridMatch.DIFFERENT


def test_working_grid_by_hand() -> None:
    # Extents x 30, y 40, z 30 mm; 30 / 1.5 = 20, 40 / 1.5 = 26.7 -> 27.
    grid = box((10, 20, 30), (1, 2, 3))
    working = grid.working(1.5)
    assert working.shape_zyx == (20, 27, 20)
    assert working.spacing_xyz == (1.5, 1.5, 1.5)
    # x: centre 14.5, first voxel 9.5 voxels before; y: centre 19, 13 voxels; z: centre 13.5.
    np.testing.assert_allclose(working.affine[:3, 3], [0.25, -0.5, -0.75], atol=1e-12)


@pytest.mark.parametrize(
    ("extent", "size"), [(20.0009, 20), (20.0011, 21), (19.5, 20), (20, 20), (0.0005, 1)]
)
def test_a_thousandth_of_a_voxel_is_no_voxel(extent: float, size: int) -> None:
    assert box((1, 1, 1), (extent, 3, 3)).working(1.0).shape_xyz[0] == size


def test_nothing_is_resampled_within_a_thousandth_of_the_working_spacing() -> None:
    near = box((8, 8, 8), (1.4986, 1.5, 1.5014))
    assert near.working(1.5) is near
    assert box((8, 8, 8), (1.498, 1.5, 1.5)).working(1.5).spacing_xyz == (1.5, 1.5, 1.5)
    # The rule does not depend on the unit: a micrometre is no thousandth of its own spacing.
    assert box((8, 8, 8), (0.0005, 0.0005, 0.001)).working(0.001).shape_xyz == (4, 4, 8)


@settings(max_examples=60, deadline=None)
@given(grids(), st.floats(0.3, 8))
def test_working_grids_keep_axes_and_centre(grid: Grid, factor: float) -> None:
    spacing = factor * min(grid.spacing_xyz)
    working = grid.working(spacing)
    np.testing.assert_allclose(working.centre_mm, grid.centre_mm, rtol=1e-9, atol=1e-9 * spacing)
    np.testing.assert_allclose(working.direction, grid.direction, atol=1e-9)
    if working is not grid:
        np.testing.assert_allclose(working.spacing_xyz, spacing)
        for extent, ours in zip(grid.extent_mm_zyx, working.extent_mm_zyx, strict=True):
            assert extent - 2e-3 * spacing <= ours < extent + spacing


@settings(max_examples=60, deadline=None)
@given(grids())
def test_grids_survive_json_pickle_and_world_coordinates(grid: Grid) -> None:
    for copy in (Grid.from_json(grid.to_json()), pickle.loads(pickle.dumps(grid))):
        assert copy == grid
        assert hash(copy) == hash(grid)
        assert copy.hash() == grid.hash()
        assert not copy.affine.flags.writeable
    assert grid.compare(grid) is GridMatch.EQUAL
    index = np.array([0.0, 1.5, 3.0])
    np.testing.assert_allclose(grid.world_to_voxel(grid.voxel_to_world(index)), index, atol=1e-6)


def test_crops_stay_in_place() -> None:
    grid = oriented_grid(forty_eight_axes()[17], TILTS["oblique"])
    crop = grid.crop((1, -2, 3), (2, 9, 2))
    assert crop.shape_zyx == (2, 9, 2)
    np.testing.assert_allclose(crop.voxel_to_world((0, 2, 0)), grid.voxel_to_world((3, 0, 1)))


def test_rounding_of_perpendicular_axes_is_repaired_and_shear_is_kept() -> None:
    grid = oriented_grid(np.eye(3), TILTS["oblique"], (20, 20, 20))
    noisy = grid.affine.copy()
    noisy[0, 1] += 2e-4
    repaired = Grid(grid.shape_zyx, noisy).repaired()
    assert repaired.is_orthonormal
    assert repaired.compare(grid) is not GridMatch.DIFFERENT
    np.testing.assert_allclose(repaired.centre_mm, Grid(grid.shape_zyx, noisy).centre_mm)
    sheared = grid.affine.copy()
    sheared[0, 1] += 0.1
    kept = Grid(grid.shape_zyx, sheared)
    assert kept.repaired() is kept
    assert grid.repaired() is grid


def test_repairing_keeps_the_handedness() -> None:
    mirrored = oriented_grid(np.diag([-1.0, 1.0, 1.0]), TILTS["oblique"], (9, 9, 9))
    noisy = mirrored.affine.copy()
    noisy[1, 0] += 1e-4
    assert np.linalg.det(Grid((9, 9, 9), noisy).repaired().direction) < 0


@pytest.mark.parametrize(
    ("affine", "problem"),
    [
        (np.eye(3), "4 x 4"),
        (np.diag([1.0, np.nan, 1.0, 1.0]), "not finite"),
        (np.diag([1.0, np.inf, 1.0, 1.0]), "not finite"),
        (np.diag([1.0, 0.0, 1.0, 1.0]), "spacing is zero"),
        (np.diag([1.0, 1e200, 1.0, 1.0]), "spacing is zero or not finite"),
        (np.diag([1.0, 1.0, 1.0, 2.0]), "last row"),
        (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "do not span"),
    ],
)
def test_impossible_affines_are_refused(affine: Any, problem: str) -> None:
    with pytest.raises(DataRefused, match=problem):
        Grid((2, 2, 2), affine)


@pytest.mark.parametrize("shape", [(0, 2, 2), (2, 2), (2, -1, 2)])
def test_impossible_shapes_are_refused(shape: Any) -> None:
    with pytest.raises(DataRefused, match="three axes"):
        Grid(shape, np.eye(4))


@pytest.mark.parametrize("obj", [{}, {"shape_zyx": [1, 2], "affine": []}, None, {"shape_zyx": 3}])
def test_json_that_is_no_grid_is_refused(obj: Any) -> None:
    with pytest.raises(DataRefused):
        Grid.from_json(obj)


@pytest.mark.parametrize("spacing", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_working_spacings_are_refused(spacing: float) -> None:
    with pytest.raises(DataRefused, match="working spacing"):
        box((2, 2, 2), (1, 1, 1)).working(spacing)


def test_signs_of_zero_make_no_difference() -> None:
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[0, 1] = -0.0
    assert Grid((2, 2, 2), affine).hash() == Grid((2, 2, 2), np.eye(4)).hash()
