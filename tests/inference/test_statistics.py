"""Volumes, intensities, connected parts: slab by slab as in one piece."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from iris_cli.inference.statistics import Components, measure, values_at_border

VALUES = (7, 2, 300)


def blobs(seed: int, dtype: npt.DTypeLike = np.uint16) -> npt.NDArray[Any]:
    """A label map of winding parts of three classes and one that nobody asks for."""
    generator = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(generator.normal(size=(4, 14, 15, 16)), (0, 1, 1, 1))
    winner = smooth.argmax(axis=0)
    labels = np.array([2, 7, 300, 9])[winner] * (smooth.max(axis=0) > 0.25)
    return labels.astype(dtype)


@pytest.mark.parametrize("slab_voxels", [1, 500, 10**6])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_slabs_count_what_the_whole_volume_has(slab_voxels: int, dtype: npt.DTypeLike) -> None:
    for seed in range(3):
        labels = blobs(seed, dtype)
        image = np.random.default_rng(seed).normal(size=labels.shape).astype(np.float32)
        image[3, 4, 5] = np.nan
        found = measure(labels, image, (2.0, 1.5, 1.0), VALUES, slab_voxels=slab_voxels)
        assert sorted(found) == sorted(VALUES)
        for value, one in found.items():
            mask = labels == value
            assert one.voxels == mask.sum()
            assert one.volume_ml == pytest.approx(mask.sum() * 0.003)
            assert one.mean_intensity == pytest.approx(np.nanmean(image[mask].astype(float)))
            assert one.components == ndimage.label(mask, np.ones((3, 3, 3)))[1]


@pytest.mark.parametrize("slab_voxels", [1, 500, 10**6])
def test_components_are_removed_whole_across_slabs(slab_voxels: int) -> None:
    labels = blobs(5)
    parts, count = ndimage.label(labels == 7, np.ones((3, 3, 3)))
    assert count > 2
    sizes = np.bincount(parts.ravel())[1:]
    components = Components(labels, VALUES, slab_voxels=slab_voxels)
    assert sorted(part.voxels for part in components.of(7)) == sorted(sizes.tolist())
    small = [part.number for part in components.of(7) if part.voxels < sizes.max()]
    expected = np.where(np.isin(parts, np.flatnonzero(sizes < sizes.max()) + 1), 0, labels)
    components.remove(small)
    assert np.array_equal(labels, expected)


def test_a_part_that_two_slabs_fork_is_one() -> None:
    labels = np.zeros((4, 3, 5), np.uint8)
    labels[0:3, 1, 0] = labels[0:3, 1, 4] = 1
    labels[3, 1, :] = 1
    labels[0, 1, 2] = 1
    assert [c.voxels for c in Components(labels, [1], slab_voxels=1).of(1)] == [11, 1]


def test_corners_connect_and_other_classes_do_not() -> None:
    labels = np.zeros((2, 2, 3), np.uint8)
    labels[0, 0, 0], labels[1, 1, 1], labels[1, 0, 1] = 1, 1, 2
    components = Components(labels, [1, 2], slab_voxels=1)
    assert len(components.of(1)) == 1
    assert len(components.of(2)) == 1


def test_the_border_is_the_first_and_last_plane_of_every_axis_that_has_more() -> None:
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[1:3, 1:3, 1:3] = 1
    labels[2, 3, 2] = 2
    assert values_at_border(labels) == {2}
    assert values_at_border(labels[2:3]) == {2}
    assert values_at_border(labels[1:3]) == {1, 2}


def test_a_class_without_voxels_has_no_intensity() -> None:
    labels = np.zeros((3, 3, 3), np.uint8)
    (found,) = measure(labels, np.ones((3, 3, 3)), (1, 1, 1), [4]).values()
    assert (found.voxels, found.mean_intensity, found.components) == (0, None, 0)
    assert not found.touches_border
