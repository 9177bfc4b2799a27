"""One mask file per class: nothing of an overlap is lost, and a missing file is no absence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from iris_cli.dataset.class_files import has_class_files, join_class_files
from iris_cli.dataset.dataset_json import write_dataset_json
from iris_cli.dataset.label_files import order_of_overlaps
from iris_cli.dataset.raw import read_raw_dataset
from iris_cli.errors import DataRefused
from iris_cli.evaluation.metrics import compute_overlaps
from iris_cli.preparation.integrity import check_dataset
from iris_cli.volume.grid import Grid
from iris_cli.volume.reading import read_labels
from iris_cli.volume.writing import write_image, write_labels

SHAPE = (4, 5, 6)
GRID = Grid.from_spacing(SHAPE, (1.0, 1.5, 2.0), (3.0, 4.0, 5.0))


def box(*edges: slice) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[edges] = 1
    return mask


ALL = slice(None)
MASKS = {
    "one": {
        "body": box(ALL, ALL, slice(0, 5)),  # 100 voxels
        "lung": box(slice(1, 3), slice(1, 4), slice(1, 3)),  # 12, inside the body
        "wire": box(slice(1, 2), slice(2, 3), ALL),  # 6: 5 in the body, 2 of them in the lung
    },
    "two": {"body": box(ALL, ALL, slice(0, 3)), "lung": np.zeros(SHAPE, np.uint8)},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, (case, masks) in enumerate(MASKS.items()):
        image = np.random.default_rng(number).normal(size=SHAPE).astype(np.float32)
        write_image(tmp_path / "images" / f"{case}.nii.gz", image, GRID)
        for name, mask in masks.items():
            write_labels(tmp_path / "masks" / case / f"{name}.nii.gz", mask * 255, GRID)
    return tmp_path


def test_every_class_is_found_again_voxel_by_voxel(folder: Path) -> None:
    assert has_class_files(folder / "masks")
    assert not has_class_files(folder / "images")
    joined = join_class_files(folder / "masks", folder / "joined")
    assert joined.not_annotated == {"two": ["wire"]}
    assert json.loads((folder / "joined" / "labels.json").read_text()) == joined.labels
    for case, masks in MASKS.items():
        label = read_labels(folder / "joined" / f"{case}.nii.gz")
        assert label.grid == GRID
        for name, mask in masks.items():
            np.testing.assert_array_equal(np.isin(label.array, joined.labels[name]), mask > 0)


def test_a_raw_data_set_of_overlapping_masks(folder: Path) -> None:
    joined = join_class_files(folder / "masks", folder / "labelsTr")
    (folder / "images").rename(folder / "imagesTr")
    write_dataset_json(
        folder,
        channel_names={"0": "MR"},
        labels=joined.labels,
        num_training=2,
        file_ending=".nii.gz",
        regions_class_order=order_of_overlaps(joined.labels),
        iris={"not_annotated": joined.not_annotated},
    )
    raw = read_raw_dataset(folder)
    assert check_dataset(raw).errors == ()
    classes = {label.name: label.values for label in raw.classes}
    assert sorted(classes) == ["body", "lung", "wire"]
    assert raw.case("two").not_annotated == {"wire"}
    truth = read_labels(folder / "labelsTr" / "one.nii.gz").array
    counts = {name: int(np.isin(truth, values).sum()) for name, values in classes.items()}
    assert counts == {"body": 100, "lung": 12, "wire": 6}
    # A prediction that calls all of the truth's wire body alone: the lung loses two voxels.
    (alone,) = (v for v in classes["body"] if all(v not in classes[n] for n in ("lung", "wire")))
    predicted = np.where(np.isin(truth, classes["wire"]), alone, truth)
    found = compute_overlaps(predicted, truth, classes)
    assert (found["lung"].tp, found["lung"].fn, found["lung"].fp) == (10, 2, 0)
    assert (found["wire"].tp, found["wire"].fn) == (0, 6)
    assert (found["body"].tp, found["body"].fp) == (100, 1)


def test_masks_on_different_grids_are_refused_with_numbers(folder: Path) -> None:
    moved = Grid.from_spacing(SHAPE, (1.0, 1.5, 2.0), (3.0, 4.0, 9.0))
    write_labels(folder / "masks" / "one" / "wire.nii.gz", MASKS["one"]["wire"], moved)
    with pytest.raises(DataRefused, match="not on one grid") as caught:
        join_class_files(folder / "masks", folder / "joined")
    assert "origin (3, 4, 9) mm" in str(caught.value.found)
