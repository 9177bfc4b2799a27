"""One volume to one working image: normalised whole, then resampled."""

from pathlib import Path

import numpy as np
import pytest

from iris_cli.errors import DataRefused
from iris_cli.preparation.prepare import prepare_image
from iris_cli.preparation.profiles import normalise
from iris_cli.volume.reading import read_image
from iris_cli.volume.writing import write_image
from tests.preparation.raw_sets import blobs, grid, picture


def written(tmp_path: Path, array: np.ndarray, spacing: tuple[float, float, float]) -> Path:
    return write_image(tmp_path / "image.nii.gz", array, grid(array.shape, spacing))


def test_at_its_own_spacing_the_image_is_only_normalised(tmp_path: Path) -> None:
    array = picture(blobs(3), 3)
    volume = read_image(written(tmp_path, array, (1.5, 1.5, 1.5)))
    prepared = prepare_image(volume, "other", 1.5)
    np.testing.assert_array_equal(prepared.array, normalise(array, "other").array)
    assert prepared.grid.shape_zyx == array.shape
    assert prepared.fill == prepared.array.min()


def test_statistics_come_from_the_native_grid(tmp_path: Path) -> None:
    array = picture(blobs(3), 3)
    volume = read_image(written(tmp_path, array, (1.0, 1.0, 2.0)))
    prepared = prepare_image(volume, "other", 3.0)
    native = normalise(array, "other")
    assert prepared.statistics == native.statistics
    assert prepared.fill == native.fill
    assert prepared.grid.shape_zyx == (8, 6, 7)
    assert prepared.grid.spacing_xyz == pytest.approx((3, 3, 3))
    np.testing.assert_allclose(prepared.grid.centre_mm, volume.grid.centre_mm)


def test_refusal_names_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, np.full((4, 4, 4), np.nan), (1, 1, 1))
    with pytest.raises(DataRefused) as caught:
        prepare_image(read_image(path), "other", 1.0)
    assert caught.value.file == str(path)
