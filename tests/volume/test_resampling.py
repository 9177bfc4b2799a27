"""Resampling against independent answers: SciPy, brute force, and numbers by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from iris_cli.errors import UsageError
from iris_cli.volume import resampling
from iris_cli.volume.grid import Grid
from iris_cli.volume.orientation import canonical_orientation
from iris_cli.volume.resampling import (
    iter_image_slabs,
    resample_image,
    resample_labels,
    resample_mask,
)
from iris_cli.volume.scores import resample_scores_to_labels
from tests.volume.examples import (
    TILTS,
    forty_eight_axes,
    grids,
    oriented_grid,
    some_labels,
    voxel_centres_mm,
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def line(spacing: float, count: int, origin: float = 0.0) -> Grid:
    """Voxels along x only."""
    return Grid.from_spacing((1, 1, count), (spacing, 1, 1), (origin, 0, 0))


def rotated(grid: Grid, shape_zyx: tuple[int, int, int], spacing: float) -> Grid:
    """A grid with the same centre and axes turned by 40 degrees."""
    axes = TILTS["steep"] * spacing
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = grid.centre_mm - axes @ ((np.array(shape_zyx[::-1]) - 1) / 2)
    return Grid(shape_zyx, affine)


def scipy_linear(array: np.ndarray[Any, Any], source: Grid, target: Grid) -> np.ndarray[Any, Any]:
    index = source.world_to_voxel(voxel_centres_mm(target))[..., ::-1]
    return np.asarray(
        ndimage.map_coordinates(array, np.moveaxis(index, -1, 0), order=1, mode="nearest")
    )


# Images


def test_half_voxels_by_hand() -> None:
    # 4 voxels of 1 mm, field of view -0.5..3.5; as 2 mm: centres at 0.5 and 2.5 (no prefilter
    # in a mask), as 0.5 mm: centres at -0.25, 0.25, ... and the ends clamped.
    ramp = np.array([[[0, 1, 2, 3]]], dtype=np.float32)
    grid = line(1, 4)
    fine = resample_image(ramp, grid, line(0.5, 8, -0.25))
    np.testing.assert_allclose(fine[0, 0], [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3], atol=1e-6)
    mask = np.array([[[True, False, False, True]]])
    np.testing.assert_allclose(resample_mask(mask, grid, line(2, 2, 0.5))[0, 0], [0.5, 0.5])


def test_the_prefilter_by_hand() -> None:
    # Ratio 2: sigma 0.5 voxel, reach 2; weights g = exp(-2 k^2), summed over both neighbours.
    impulse = np.zeros((1, 1, 9), np.float32)
    impulse[0, 0, 4] = 1
    g = np.exp(-2.0 * np.arange(-2, 3) ** 2)
    g /= g.sum()
    # Centre of target voxel 2 lies at source 4.5, between 4 and 5.
    out = resample_image(impulse, line(1, 9), line(2, 4, 0.5))
    np.testing.assert_allclose(out[0, 0, 2], (g[2] + g[1]) / 2, rtol=1e-6)
    np.testing.assert_allclose(out[0, 0, 1], (g[0] + g[1]) / 2, rtol=1e-6)


@pytest.mark.parametrize("factor", [0.4, 0.9, 1.3, 2.0, 3.7])
def test_images_agree_with_scipy(factor: float) -> None:
    grid = oriented_grid(np.eye(3), TILTS["oblique"], (9, 14, 17), (0.8, 1.1, 2.3))
    target = grid.working(factor)
    image = np.random.default_rng(0).normal(size=grid.shape_zyx)
    expected = image
    for axis, spacing in enumerate(grid.spacing_zyx):
        sigma = max(0.0, 0.5 * (factor / spacing - 1))
        if sigma > 1e-3:
            expected = ndimage.gaussian_filter1d(
                expected, sigma, axis=axis, mode="nearest", radius=int(np.ceil(4 * sigma))
            )
    expected = scipy_linear(expected, grid, target)
    np.testing.assert_allclose(resample_image(image, grid, target), expected, atol=2e-6)
    assert resample_image(image, grid, target).dtype == np.float32


@pytest.mark.parametrize("spacing", [0.7, 1.5, 3.1])
@pytest.mark.parametrize("native", [(0.8, 0.8, 1.5), (1.0, 1.0, 5.0), (3.0, 1.0, 1.0)])
def test_slabs_of_any_size_are_equal_bit_for_bit_to_the_whole(
    monkeypatch: pytest.MonkeyPatch, spacing: float, native: tuple[float, float, float]
) -> None:
    grid = Grid.from_spacing((21, 30, 23), native, (0, 0, 0))
    target = grid.working(spacing)
    rng = np.random.default_rng(0)
    image = rng.normal(size=grid.shape_zyx).astype(np.float32)
    labels = np.repeat(rng.integers(0, 9, (7, 30, 23)), 3, axis=0).astype(np.uint16)
    whole = resample_image(image, grid, target), resample_labels(labels, grid, target)
    asked: list[int] = []

    def planes(start: int, stop: int) -> np.ndarray[Any, Any]:
        asked.append(stop - start)
        return image[start:stop]

    for voxels in (1, 2500):
        monkeypatch.setattr(resampling, "SLAB_VOXELS", voxels)
        monkeypatch.setattr(resampling, "CORNER_VOXELS", voxels)
        slabs = np.concatenate([part for _, part in iter_image_slabs(planes, grid, target)])
        np.testing.assert_array_equal(slabs.view(np.uint32), whole[0].view(np.uint32))
        np.testing.assert_array_equal(resample_labels(labels, grid, target), whole[1])
    assert max(asked) < grid.shape_zyx[0]


def test_turned_grids_agree_with_scipy() -> None:
    grid = oriented_grid(np.eye(3), np.eye(3), (9, 14, 17), (0.8, 1.1, 2.3))
    target = rotated(grid, (10, 12, 11), 0.7)
    image = np.random.default_rng(0).normal(size=grid.shape_zyx)
    index_steps = np.linalg.norm(np.linalg.inv(grid.affine)[:3] @ target.affine[:, :3], axis=1)
    expected = image
    for axis, ratio in enumerate(index_steps[::-1]):
        sigma = max(0.0, 0.5 * (ratio - 1))
        if sigma > 1e-3:
            expected = ndimage.gaussian_filter1d(
                expected, sigma, axis=axis, mode="nearest", radius=int(np.ceil(4 * sigma))
            )
    expected = scipy_linear(expected, grid, target)
    np.testing.assert_allclose(resample_image(image, grid, target), expected, atol=1e-4)


def test_sheared_grids_agree_with_scipy() -> None:
    affine = np.diag([1.0, 1.2, 2.0, 1.0])
    affine[0, 2] = 0.7
    grid = Grid((8, 9, 10), affine)
    image = np.random.default_rng(1).normal(size=grid.shape_zyx)
    straight = Grid.from_spacing((8, 9, 10), (0.9, 0.9, 0.9), (2, 2, 2))
    np.testing.assert_allclose(
        resample_mask(image > 0, grid, straight),
        scipy_linear((image > 0).astype(float), grid, straight),
        atol=1e-4,
    )


@settings(max_examples=40, deadline=None)
@given(grids(), st.floats(0.4, 4))
def test_constant_images_stay_constant(grid: Grid, factor: float) -> None:
    canonical = canonical_orientation(grid).apply_grid(grid)
    target = canonical.working(factor * min(grid.spacing_xyz))
    out = resample_image(np.full(canonical.shape_zyx, 7.0), canonical, target)
    assert out.shape == target.shape_zyx
    np.testing.assert_allclose(out, 7, rtol=1e-5)


def test_equal_grids_change_nothing() -> None:
    grid = oriented_grid(np.eye(3), TILTS["oblique"])
    affine = grid.affine.copy()
    affine[0, 3] += 0.005
    nearly = Grid(grid.shape_zyx, affine)
    image = np.random.default_rng(0).normal(size=grid.shape_zyx).astype(np.float32)
    np.testing.assert_array_equal(resample_image(image, grid, nearly), image)
    np.testing.assert_array_equal(resample_labels(some_labels(), grid, nearly), some_labels())
    np.testing.assert_array_equal(resample_mask(image > 0, grid, nearly), image > 0)
    scores = np.stack([image, -image - 0.1])
    expected = np.select([image > 0, image < -0.1], [3, 2], 0)
    np.testing.assert_array_equal(resample_scores_to_labels(scores, grid, nearly, [3, 2]), expected)


def test_the_input_is_left_alone() -> None:
    grid = Grid.from_spacing((4, 5, 6), (1, 1, 1))
    image = np.random.default_rng(0).normal(size=grid.shape_zyx).astype(np.float32)
    before = image.copy()
    out = resample_image(image, grid, grid)
    out[:] = 0
    resample_image(image, grid, grid.working(1.7))
    np.testing.assert_array_equal(image, before)


# Labels


def one_hot_answer(
    labels: np.ndarray[Any, Any], source: Grid, target: Grid
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Arg-max over the linear weights of every class, and its lead over the runner-up."""
    values = np.unique(labels)
    weights = np.stack([scipy_linear((labels == v).astype(float), source, target) for v in values])
    ranked = np.sort(weights, axis=0)
    return values[weights.argmax(axis=0)], ranked[-1] - ranked[-2]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "int64"])
def test_labels_agree_with_a_one_hot_of_all_classes(dtype: str) -> None:
    grid = oriented_grid(np.eye(3), TILTS["oblique"], (7, 9, 8), (0.8, 1.1, 2.3))
    labels = some_labels(grid.shape_zyx, top=4).astype(dtype) * np.array(5).astype(dtype)
    for target in (grid.working(0.6), grid.working(1.9), rotated(grid, (9, 8, 9), 0.9)):
        ours = resample_labels(labels, grid, target)
        expected, lead = one_hot_answer(labels, grid, target)
        clear = lead > 1e-4
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(ours[clear], expected[clear])
        assert ours.dtype == labels.dtype


@pytest.mark.parametrize(
    ("pair", "expected"), [([1, 2], 1), ([2, 1], 1), ([0, 3], 0), ([3, 0], 0), ([-1, 0], -1)]
)
def test_ties_of_labels_go_to_the_lower_value(pair: list[int], expected: int) -> None:
    labels = np.array([[pair]], dtype=np.int16)
    assert resample_labels(labels, line(1, 2), line(1, 1, 0.5))[0, 0, 0] == expected


def test_the_background_is_a_class_like_others() -> None:
    # Around the centre of a 2 x 2 x 1 square: 2 corners of background, one of 1, one of 2.
    labels = np.array([[[0, 0], [1, 2]]], dtype=np.uint8)
    source = Grid.from_spacing((1, 2, 2), (1, 1, 1))
    target = Grid.from_spacing((1, 1, 1), (1, 1, 1), (0.5, 0.5, 0))
    assert resample_labels(labels, source, target)[0, 0, 0] == 0
    labels = np.array([[[0, 2], [1, 2]]], dtype=np.uint8)
    assert resample_labels(labels, source, target)[0, 0, 0] == 2


@settings(max_examples=40, deadline=None)
@given(grids(), st.floats(0.3, 3))
def test_no_label_is_invented(grid: Grid, factor: float) -> None:
    canonical = canonical_orientation(grid).apply_grid(grid)
    labels = some_labels(canonical.shape_zyx, top=300)
    target = canonical.working(factor * min(grid.spacing_xyz))
    assert set(np.unique(resample_labels(labels, canonical, target))) <= set(np.unique(labels))


# Scores


def linear_scores(grid: Grid, normal: np.ndarray[Any, Any], centre: Any) -> np.ndarray[Any, Any]:
    """Signed distance in mm from a plane."""
    return np.asarray((voxel_centres_mm(grid) - centre) @ normal)


@pytest.mark.parametrize("tilt", TILTS)
def test_scores_linear_in_the_world_come_back_within_a_tenth_of_a_millimetre(tilt: str) -> None:
    """R6: native grid -> canonical -> working grid -> scores -> labels -> native grid."""
    normal = np.array([0.48, 0.64, 0.6])
    for axes in forty_eight_axes():
        native = oriented_grid(axes, TILTS[tilt], (7, 16, 14), (0.9, 1.2, 3.5))
        orientation = canonical_orientation(native)
        canonical = orientation.apply_grid(native)
        working = canonical.working(1.5)
        near = linear_scores(working, normal, native.centre_mm)
        scores = np.stack([near, -near - 4]).astype(np.float32)
        labels = orientation.restore(resample_scores_to_labels(scores, working, canonical, [1, 2]))
        truth = linear_scores(native, normal, native.centre_mm)
        expected = np.select([truth > 0, truth < -4], [1, 2], 0)
        # Beyond the outermost working centres there is nothing to interpolate: clamped.
        index = working.world_to_voxel(voxel_centres_mm(native))
        inside = ((index >= 0) & (index <= np.array(working.shape_xyz) - 1)).all(axis=-1)
        away = np.minimum(abs(truth), abs(truth + 4)) > 0.1
        assert (inside & away).mean() > 0.6
        np.testing.assert_array_equal(labels[inside & away], expected[inside & away])


def brute_scores(
    scores: np.ndarray[Any, Any], source: Grid, target: Grid, values: list[int]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    logits = np.stack(
        [np.zeros(target.shape_zyx), *(scipy_linear(s, source, target) for s in scores)]
    )
    ranked = np.sort(logits, axis=0)
    return np.array([0, *values])[logits.argmax(axis=0)], ranked[-1] - ranked[-2]


@pytest.mark.parametrize("shift", [0.0, -2.0, 3.0])
def test_scores_agree_with_a_full_stack_of_logits(shift: float) -> None:
    working = oriented_grid(np.eye(3), TILTS["oblique"], (6, 7, 8), (1.5, 1.5, 1.5))
    scores = np.random.default_rng(4).normal(size=(5, 6, 7, 8)).astype(np.float32) + shift
    values = [9, 2, 300, 4, 7]
    grown = working.working(0.61)
    for target in (grown, working.working(2.3), rotated(working, (9, 9, 9), 0.9)):
        labels = resample_scores_to_labels(scores, working, target, values)
        expected, lead = brute_scores(scores, working, target, values)
        assert labels.dtype == np.uint16
        np.testing.assert_array_equal(labels[lead > 1e-4], expected[lead > 1e-4])


def test_scores_far_apart_are_found_in_their_boxes() -> None:
    """Classes in opposite corners: only parts of a slab are looked at."""
    working = Grid.from_spacing((12, 12, 12), (1, 1, 1))
    target = working.working(0.45)
    scores = np.full((3, 12, 12, 12), -5.0, np.float32)
    scores[0, :2, :2, :2] = 4
    scores[1, 9:, 5:7, 11] = 3
    labels = resample_scores_to_labels(scores, working, target, [1, 2, 3])
    expected, lead = brute_scores(scores, working, target, [1, 2, 3])
    np.testing.assert_array_equal(labels[lead > 1e-4], expected[lead > 1e-4])
    assert set(np.unique(labels)) == {0, 1, 2}


def test_ties_of_scores_go_to_the_lower_value() -> None:
    grid = line(1, 3)
    scores = np.array([[0.0, 2.0, 2.0], [0.0, 2.0, 3.0]], np.float32)[:, None, None]
    assert resample_scores_to_labels(scores, grid, grid, [5, 4])[0, 0].tolist() == [0, 4, 4]
    assert resample_scores_to_labels(scores, grid, grid, [4, 5])[0, 0].tolist() == [0, 4, 5]


def test_scores_may_be_half_precision_tensors() -> None:
    grid = Grid.from_spacing((4, 4, 4), (1, 1, 1))
    scores = torch.full((1, 4, 4, 4), 2.0, dtype=torch.float16)
    for target in (grid, grid.working(0.7)):
        assert (resample_scores_to_labels(scores, grid, target, [6]) == 6).all()


@pytest.mark.parametrize("values", [[1], [1, 1], [0, 1], [-1, 2]])
def test_scores_without_a_value_of_their_own_are_refused(values: list[int]) -> None:
    grid = line(1, 3)
    with pytest.raises(UsageError, match="label value of its own"):
        resample_scores_to_labels(np.zeros((2, 1, 1, 3), np.float32), grid, grid, values)


def test_arrays_of_another_shape_than_their_grid_are_refused() -> None:
    with pytest.raises(UsageError, match="do not fit"):
        resample_image(np.zeros((1, 1, 4)), line(1, 3), line(1, 3))
    with pytest.raises(UsageError, match="do not fit"):
        resample_labels(np.zeros((1, 1, 4), int), line(1, 3), line(1, 3))


@pytest.mark.parametrize("axes", forty_eight_axes()[::7])
def test_slabs_make_no_difference(axes: np.ndarray[Any, Any], monkeypatch: Any) -> None:
    grid = canonical_orientation(oriented_grid(axes, TILTS["steep"])).apply_grid(
        oriented_grid(axes, TILTS["steep"])
    )
    target = grid.working(0.8)
    labels = some_labels(grid.shape_zyx)
    whole = resample_labels(labels, grid, target)
    monkeypatch.setattr(resampling, "CORNER_VOXELS", 1)
    np.testing.assert_array_equal(resample_labels(labels, grid, target), whole)
