"""Phantoms: the same seed gives the same scan, organs lie where the body has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from iris_cli.dataset.phantoms import CLASSES, make_phantom, write_phantom_dataset
from iris_cli.dataset.raw import read_raw_dataset
from iris_cli.volume.orientation import canonical_orientation
from iris_cli.volume.reading import read_image, read_labels

_VOXEL = 6.0


def _canonical(seed: int) -> tuple[np.ndarray, np.ndarray]:
    phantom = make_phantom(seed, voxel_mm=_VOXEL)
    orientation = canonical_orientation(phantom.grid)
    image, _ = orientation.apply(phantom.image, phantom.grid)
    labels, _ = orientation.apply(phantom.labels, phantom.grid)
    return image, labels


def test_a_seed_gives_the_same_voxels_and_another_seed_others() -> None:
    first, again, other = (make_phantom(seed, voxel_mm=_VOXEL) for seed in (3, 3, 4))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.grid.affine, again.grid.affine)
    assert first.image.shape != other.image.shape or not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("seed", range(6))
def test_every_class_is_there_and_lies_where_the_body_has_it(seed: int) -> None:
    image, labels = _canonical(seed)
    centre = {
        name: np.argwhere(labels == value).mean(axis=0) for name, value in CLASSES.items()
    }  # (z, y, x), growing to superior, anterior, right
    assert centre["liver"][2] > centre["spleen"][2]
    assert centre["kidney_right"][2] > centre["kidney_left"][2]
    assert centre["lungs"][0] > centre["liver"][0] > centre["kidney_right"][0]
    assert centre["spine"][1] < centre["aorta"][1] < centre["liver"][1]
    assert image[labels == CLASSES["lungs"]].mean() < -600
    assert image[labels == CLASSES["spine"]].mean() > 150
    assert image[labels == 0].mean() < -900


def test_phantoms_are_stored_in_mixed_orientations() -> None:
    orders = {canonical_orientation(make_phantom(seed, voxel_mm=12.0).grid) for seed in range(8)}
    assert len(orders) > 4


def test_a_data_set_of_phantoms_is_a_raw_folder(tmp_path: Path) -> None:
    folder = write_phantom_dataset(tmp_path / "torso", [1, 2], queries=[3], voxel_mm=12.0)
    raw = read_raw_dataset(folder)
    assert [case.role for case in raw.cases] == ["train", "train", "test"]
    assert {label.name: label.value for label in raw.classes} == CLASSES
    case = raw.cases[0]
    assert case.label is not None
    image, labels = read_image(case.images[0]), read_labels(case.label)
    phantom = make_phantom(1, voxel_mm=12.0)
    expected, _ = canonical_orientation(phantom.grid).apply(phantom.labels, phantom.grid)
    assert np.array_equal(labels.array, expected)
    assert image.array.dtype == np.int16
