"""Profile mass-1: the numbers of the published code, computed by hand on small arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from iris_cli.errors import DataRefused
from iris_cli.preparation.mass import body_box, guess_modality, normalise, prepare_query
from iris_cli.volume.grid import Grid
from iris_cli.volume.reading import Volume, read_image
from iris_cli.volume.writing import write_image

ORIGIN = (3.0, -2.0, 7.0)


def volume_of(tmp_path: Path, array: np.ndarray, spacing: float = 1.5) -> Volume:
    grid = Grid.from_spacing(array.shape, (spacing,) * 3, ORIGIN)
    return read_image(write_image(tmp_path / "q.nii.gz", array.astype(np.float32), grid))


def test_ct_is_clipped_and_brought_to_mean_zero_and_deviation_one() -> None:
    values, statistics = normalise(np.array([[[-3000.0, -991, 500, 3000]]]), "ct")
    # Clipped to -991, -991, 500, 500: mean -245.5, deviation 745.5.
    np.testing.assert_allclose(values.ravel(), [-1, -1, 1, 1], rtol=1e-6)
    assert statistics == {"low": -991, "high": 500, "mean": -245.5, "deviation": 745.5}


@pytest.mark.parametrize("modality", ["mr", "pet", "other"])
def test_others_are_clipped_to_their_own_percentiles(modality: str) -> None:
    """0..100: the 2nd and 98th percentiles of 101 equally spaced values are 2 and 98."""
    values, statistics = normalise(np.arange(101.0).reshape(1, 1, -1), modality)
    clipped = np.clip(np.arange(101.0), 2, 98)
    assert (statistics["low"], statistics["high"]) == (2, 98)
    np.testing.assert_allclose(values.ravel(), (clipped - 50) / clipped.std(), rtol=1e-5)


def test_a_constant_image_only_loses_its_mean() -> None:
    values, _ = normalise(np.full((2, 2, 2), 7.0), "mr")
    assert not values.any()


def test_one_nan_makes_everything_nan_and_infinities_are_clipped() -> None:
    array = np.arange(100.0).reshape(1, 10, 10)
    array[0, 0, 0] = np.nan
    values, statistics = normalise(array, "mr")
    assert np.isnan(values).all()
    assert "mean" not in statistics  # a receipt is JSON
    array[0, 0, 0] = -np.inf
    assert np.isfinite(normalise(array, "mr")[0]).all()
    with pytest.raises(DataRefused, match="no voxel holds a finite number"):
        normalise(np.full((2, 2, 2), np.nan), "mr")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-201, 301, "ct"), (-200, 301, "mr"), (-201, 300, "mr"), (0, 6, "pet"), (0, 5, "mr"),
     (-1, 4000, "mr"), (0, 4000, "pet")],
)  # fmt: skip
def test_the_modality_is_guessed_by_both_ends(low: int, high: int, expected: str) -> None:
    """Both ends hold more than half a percent; what is not finite is not counted."""
    values = np.full((1, 10, 100), max(0, low), np.float32)
    values[0, 0, :20], values[0, 1, :20], values[0, 2, 0] = low, high, np.nan
    assert guess_modality(values) == expected


def two_bodies() -> np.ndarray:
    """A large body with a hole and a small one, in air, on 60 x 100 x 100 voxels."""
    array = np.full((60, 100, 100), -1000.0, np.float32)
    array[20:40, 40:60, 40:62] = 30
    array[28:32, 48:52, 48:52] = -1000
    array[20:40, 5:10, 5:10] = 30
    return array


def test_a_query_is_cut_to_the_largest_body_with_a_margin() -> None:
    """16 voxels along z, 32 along y and x, within the volume; the small body is cut away."""
    assert body_box(two_bodies(), "ct") == (slice(4, 56), slice(8, 92), slice(8, 94))


def test_what_is_body_is_relative_to_the_bright_values_where_it_is_no_ct() -> None:
    """Everything above a thousandth of the 99th percentile, 100 here, by size alone.

    The bright plane itself is lost: closing takes two voxels off at the border of the volume.
    """
    array = np.full((60, 100, 100), 0.1, np.float32)
    array[20:40, 40:60, 40:62] = -0.101
    array[:1] = 100
    assert body_box(array, "mr") == (slice(4, 56), slice(8, 92), slice(8, 94))
    array[:1] = 0.0
    # Now 0.1 is far more than a thousandth of 0.101: everything is body.
    assert body_box(array, "mr") == (slice(0, 60), slice(0, 100), slice(0, 100))


def test_gaps_of_four_voxels_are_closed_before_parts_are_told_apart() -> None:
    array = np.full((20, 20, 120), -1000.0, np.float32)
    array[5:15, 5:15, 40:50] = 0
    array[5:15, 5:15, 54:60] = 0
    assert body_box(array, "ct")[2] == slice(8, 92)
    array[5:15, 5:15, 54:55] = -1000
    assert body_box(array, "ct")[2] == slice(8, 82)


def test_an_image_of_air_is_not_cut() -> None:
    assert body_box(np.full((3, 4, 5), -1000.0), "ct") == (slice(0, 3), slice(0, 4), slice(0, 5))


def test_a_query_is_resampled_then_cut_then_normalised(tmp_path: Path) -> None:
    prepared = prepare_query(volume_of(tmp_path, two_bodies()), "ct", 1.5)
    cut = two_bodies()[4:56, 8:92, 8:94]
    np.testing.assert_array_equal(prepared.array, normalise(cut, "ct")[0])
    assert prepared.fill == 0.0
    np.testing.assert_allclose(
        prepared.grid.affine[:3, 3], [3 + 8 * 1.5, -2 + 8 * 1.5, 7 + 4 * 1.5], rtol=1e-6
    )
    coarse = prepare_query(volume_of(tmp_path, two_bodies(), spacing=1.0), "ct", 1.5)
    assert coarse.grid.spacing_xyz == pytest.approx((1.5, 1.5, 1.5))
    assert coarse.array.shape == (40, 67, 67)  # the body is 13 voxels, its margin all the rest


def test_auto_guesses_from_the_query_and_says_what(tmp_path: Path) -> None:
    array = two_bodies()
    array[25:40, 40:60, 40:62] = 400
    volume = volume_of(tmp_path, array)
    guessed, given = prepare_query(volume, "auto", 1.5), prepare_query(volume, "ct", 1.5)
    np.testing.assert_array_equal(guessed.array, given.array)
    assert guessed.notes == ("modality guessed from the voxels: ct",)
    assert given.notes == ()
    assert prepare_query(volume_of(tmp_path, array + 2000), "auto", 1.5).notes[0].endswith("pet")


def test_voxels_that_are_not_finite_are_counted_and_said(tmp_path: Path) -> None:
    array = two_bodies()
    array[30, 45, 45] = np.nan
    prepared = prepare_query(volume_of(tmp_path, array), "ct", 1.5)
    assert np.isnan(prepared.array).all()
    assert prepared.nonfinite == 1
    assert len(prepared.notes) == 2
    with pytest.raises(DataRefused) as caught:
        prepare_query(volume_of(tmp_path, np.full((4, 4, 4), np.nan)), "auto", 1.5)
    assert str(caught.value.file).endswith("q.nii.gz")
