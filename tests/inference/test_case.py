"""One query to native labels: the decision rule, picked classes, orientation, refusals."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from iris_cli.errors import DataRefused, UsageError
from iris_cli.inference.case import kept_classes, predict_volume
from iris_cli.model.model import Model
from iris_cli.preparation.prepare import prepare_image
from iris_cli.task.task_file import ModelRecord, Task
from iris_cli.volume.grid import Grid
from iris_cli.volume.reading import Volume, read_image
from iris_cli.volume.writing import write_image
from tests.inference.conftest import MakeTask, WriteQuery, noise
from tests.inference.whole_volume import decide, predict_logits

PATCH = (32, 32, 32)


@pytest.fixture
def volume(write_query: WriteQuery) -> Volume:
    return read_image(write_query("q.nii.gz"))


def logits_of(model: Model, task: Task, volume: Volume) -> np.ndarray:
    prepared = prepare_image(volume, task.header.modality, task.header.spacing_mm)
    tokens = [torch.from_numpy(stage) for stage in task.tokens]
    logits = predict_logits(model.network, tokens, prepared.array, prepared.fill, PATCH)
    return logits.numpy()


def test_labels_are_the_arg_max_over_classes_and_background(
    model: Model, make_task: MakeTask, volume: Volume
) -> None:
    task = make_task()
    prediction = predict_volume(model, task, volume)
    expected = decide(logits_of(model, task, volume), [5, 4, 3, 2])
    np.testing.assert_array_equal(prediction.labels, expected)
    assert len(np.unique(expected)) > 2
    assert prediction.labels.dtype == np.uint8
    assert prediction.voxels == {f"c{i}": int((expected == 5 - i).sum()) for i in range(4)}
    assert prediction.windows.all == 2
    assert prediction.flags == ()


def test_picked_classes_are_the_arg_max_over_the_kept_ones(
    model: Model, make_task: MakeTask, volume: Volume
) -> None:
    task = make_task()
    logits = logits_of(model, task, volume)
    prediction = predict_volume(model, task, volume, classes=["c2", "c0"])
    np.testing.assert_array_equal(prediction.labels, decide(logits[[0, 2]], [5, 3]))
    assert list(prediction.voxels) == ["c0", "c2"]


def test_an_unknown_class_is_refused_with_the_nearest_name(make_task: MakeTask) -> None:
    header = make_task().header
    assert kept_classes(header, None) == [0, 1, 2, 3]
    with pytest.raises(UsageError, match="c0, c1, c2, c3") as caught:
        kept_classes(header, ["c0", "c11"])
    assert "did you mean 'c1'" in str(caught.value)
    with pytest.raises(UsageError):
        kept_classes(header, [])


def test_labels_come_back_on_the_native_grid(
    model: Model, make_task: MakeTask, write_query: WriteQuery
) -> None:
    volume = read_image(write_query("q.nii.gz", (21, 40, 40), spacing_xyz=(1.0, 1.0, 2.5)))
    prediction = predict_volume(model, make_task(), volume)
    assert prediction.labels.shape == volume.array.shape
    assert prediction.windows.all == 2  # 35 x 27 x 27 working voxels


@pytest.mark.parametrize("spacing_xyz", [(1.5, 1.5, 1.5), (0.875, 1.25, 2.0)])
def test_eight_stored_orientations_give_equal_voxels(
    model: Model, make_task: MakeTask, tmp_path: Path, spacing_xyz: tuple[float, float, float]
) -> None:
    shape = (30, 33, 20)
    image, task = noise(shape), make_task()
    grid = Grid.from_spacing(shape, spacing_xyz, (30.0, -20.0, 70.0))
    found = []
    for flips in itertools.product([1, -1], repeat=3):
        affine = grid.affine.copy()
        for axis, flip in enumerate(flips):
            if flip < 0:
                affine[:3, 3] += affine[:3, axis] * (grid.shape_xyz[axis] - 1)
                affine[:3, axis] *= -1
        stored = image.T[:: flips[0], :: flips[1], :: flips[2]]
        path = tmp_path / f"{''.join('+-'[flip < 0] for flip in flips)}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(stored, affine), path)
        volume = read_image(path)
        np.testing.assert_array_equal(volume.array, image)
        found.append(predict_volume(model, task, volume).labels)
    assert len(np.unique(found[0])) > 2
    for labels in found[1:]:
        np.testing.assert_array_equal(labels, found[0])


def test_another_look_than_the_tasks_modality_is_flagged(
    model: Model, make_task: MakeTask, tmp_path: Path
) -> None:
    shape = (20, 20, 20)
    image = noise(shape)
    image[:8] -= 900
    image[12:] += 900
    grid = Grid.from_spacing(shape, (1.5, 1.5, 1.5))
    image[0, 0, 0] = np.nan
    volume = read_image(write_image(tmp_path / "q.nii.gz", image, grid))
    flags = predict_volume(model, make_task(), volume).flags
    assert any("look like modality ct; worked as other" in flag for flag in flags)
    assert any(flag.startswith("1 voxels were not finite") for flag in flags)
    as_ct = predict_volume(model, make_task(modality="ct"), volume).flags
    assert not any("look like" in flag for flag in as_ct)


def test_a_task_of_another_model_is_refused_by_both_names(
    model: Model, make_task: MakeTask, volume: Volume
) -> None:
    other = ModelRecord(name="universal", version="3", fingerprint="0" * 64)
    with pytest.raises(DataRefused, match="another model") as caught:
        predict_volume(model, make_task(model=other), volume)
    text = str(caught.value)
    assert "tiny 1" in text
    assert "universal 3" in text
    assert "iris task refresh" in text
