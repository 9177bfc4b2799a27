"""Resampling as ITK does it: by hand on small arrays, and against SimpleITK itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from iris_cli.volume.grid import Grid
from iris_cli.volume.itk_resampling import first_voxel_grid, resample_linear, resample_nearest
from iris_cli.volume.reading import read_image

ORIGIN = (3.0, -2.0, 7.0)


def line(values: list[float], spacing: float) -> tuple[np.ndarray, Grid]:
    """Values along x."""
    array = np.array(values, np.float32).reshape(1, 1, -1)
    return array, Grid.from_spacing(array.shape, (spacing, 1.5, 1.5), ORIGIN)


@pytest.mark.parametrize(
    ("size", "spacing", "expected"),
    [(3, 2.0, 4), (5, 1.0, 3), (10, 0.9, 6), (1, 0.3, 1), (3, 0.75, 2), (5, 0.75, 2), (4, 1.5, 4)],
)
def test_the_size_is_rounded_halves_to_even_and_never_zero(
    size: int, spacing: float, expected: int
) -> None:
    """3.33, 1.5 and 2.5 voxels are 3, 2 and 2."""
    grid = first_voxel_grid(Grid.from_spacing((4, 4, size), (spacing, 1.5, 1.5), ORIGIN), 1.5)
    assert grid.shape_zyx == (4, 4, expected)
    np.testing.assert_allclose(grid.affine[:3, 3], ORIGIN)
    assert grid.spacing_xyz == pytest.approx((1.5, 1.5, 1.5))


def test_an_image_is_read_linearly_from_its_first_voxel_on() -> None:
    array, grid = line([10, 20, 40], 2.0)
    target = first_voxel_grid(grid, 1.5)
    # 0, 0.75, 1.5 and 2.25: the last one is beyond the last centre, but not outside.
    expected = [10, 17.5, 30, 40]
    np.testing.assert_allclose(resample_linear(array, grid, target).ravel(), expected, rtol=1e-6)


def test_half_a_voxel_beyond_the_last_centre_is_outside_and_zero() -> None:
    array, grid = line([10, 20], 2.0)
    # 2 * 2 / 1.5 = 2.67 is 3 voxels: 0, 0.75 and 1.5, which is the far end itself.
    target = first_voxel_grid(grid, 1.5)
    np.testing.assert_allclose(resample_linear(array, grid, target).ravel(), [10, 17.5, 0])
    assert resample_nearest(array, grid, target).ravel().tolist() == [10, 20, 0]


def test_nothing_is_smoothed_before_it_is_thinned_out() -> None:
    array, grid = line([0, 9, 0, 0, 9, 0, 0], 0.5)
    target = first_voxel_grid(grid, 1.5)
    assert resample_linear(array, grid, target).ravel().tolist() == [0, 0]


def test_labels_are_those_of_the_nearest_voxel_the_upper_of_two() -> None:
    array, grid = line([1, 2], 3.0)
    target = first_voxel_grid(grid, 1.5)
    # 0, 0.5, 1 and 1.5.
    assert resample_nearest(array, grid, target).ravel().tolist() == [1, 2, 2, 0]


def test_a_thin_structure_can_vanish() -> None:
    array, grid = line([0, 5, 0, 0, 0, 0], 0.5)
    assert not resample_nearest(array, grid, first_voxel_grid(grid, 1.5)).any()


def test_a_label_map_elsewhere_is_read_where_it_lies() -> None:
    labels = np.arange(1, 9, dtype=np.uint8).reshape(2, 2, 2)
    source = Grid.from_spacing((2, 2, 2), (1, 1, 1), (1, 0, 0))
    target = Grid.from_spacing((2, 2, 3), (1, 1, 1), (0, 0, 0))
    found = resample_nearest(labels, source, target)
    np.testing.assert_array_equal(found[:, :, 1:], labels)
    assert not found[:, :, 0].any()


def test_other_axes_are_read_too_but_not_linearly() -> None:
    turned = np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], float)
    source, target = Grid((3, 3, 3), turned), Grid.from_spacing((3, 3, 3), (1, 1, 1), (-2, 0, 0))
    labels = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    # World x = -j and y = i of the source: rows become columns, turned round.
    expected = labels[:, ::-1, :].transpose(0, 2, 1)
    np.testing.assert_array_equal(resample_nearest(labels, source, target), expected)
    with pytest.raises(ValueError, match="same axes"):
        resample_linear(labels, source, target)


def _sitk_resampled(path: Path, linear: bool) -> tuple[np.ndarray, Any]:
    """The published steps with SimpleITK: turn to RAS, 1.5 mm from the first voxel."""
    import SimpleITK as sitk

    image = sitk.DICOMOrient(sitk.ReadImage(str(path), sitk.sitkFloat32), "RAS")
    edges = zip(image.GetSize(), image.GetSpacing(), strict=True)
    resampled = sitk.Resample(
        image,
        [max(1, round(size * spacing / 1.5)) for size, spacing in edges],
        sitk.Transform(),
        sitk.sitkLinear if linear else sitk.sitkNearestNeighbor,
        image.GetOrigin(),
        [1.5] * 3,
        image.GetDirection(),
        0.0,
        sitk.sitkFloat32,
    )
    return sitk.GetArrayFromImage(resampled), image.GetDirection()


@pytest.mark.parametrize(
    ("axes", "spacing"),
    [("RAS", (2.03, 0.83, 1.1)), ("LPS", (1.5, 1.5, 1.5)), ("PIR", (3.04, 1.21, 0.7)),
     ("SAL", (0.91, 4.07, 2.21)), ("ILA", (2.3, 0.61, 5.03))],
)  # fmt: skip
def test_canonical_volumes_are_those_that_itk_turns_to_ras(
    tmp_path: Path, axes: str, spacing: tuple[float, float, float]
) -> None:
    # No voxel centre lies half way between two: which is nearest would hang on ITK's rounding.
    shape = (7, 9, 11)
    values = np.random.default_rng(len(axes)).normal(size=shape).astype(np.float32)
    ornt = nibabel.orientations.axcodes2ornt(axes)
    affine = np.zeros((4, 4))
    for axis, (direction, sign) in enumerate(ornt):
        affine[int(direction), axis] = sign * spacing[axis]
    affine[:, 3] = (10, -20, 5, 1)
    path = tmp_path / f"{axes}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, affine), path)

    volume = read_image(path)
    grid = first_voxel_grid(volume.grid, 1.5)
    linear, direction = _sitk_resampled(path, linear=True)
    assert np.allclose(direction, (-1, 0, 0, 0, -1, 0, 0, 0, 1))
    assert grid.shape_zyx == linear.shape
    found = resample_linear(volume.array, volume.grid, grid)
    np.testing.assert_allclose(found, linear, atol=1e-5)
    nearest, _ = _sitk_resampled(path, linear=False)
    np.testing.assert_array_equal(resample_nearest(volume.array, volume.grid, grid), nearest)
