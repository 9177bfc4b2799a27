"""Profile mass-1 from windows to labels: each rule by hand, and all of them against plain code."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from iris_cli.errors import IrisError, UsageError
from iris_cli.inference import case
from iris_cli.inference.case import predict_volume
from iris_cli.inference.mass import axis_starts, decide, keep_largest_parts, label
from iris_cli.inference.memory import Means
from iris_cli.inference.streaming import How
from iris_cli.inference.windows import gaussian_weight
from iris_cli.model.model import Model, ModelCard
from iris_cli.preparation.mass import prepare_query
from iris_cli.preparation.prepare import PreparedImage
from iris_cli.task import encoding
from iris_cli.task.task_file import ModelRecord, Task
from iris_cli.volume.grid import Grid
from iris_cli.volume.reading import Volume, read_image
from iris_cli.volume.writing import write_image
from tests.inference.conftest import PATCH, MakeTask, noise

WINDOW = (PATCH, PATCH, PATCH)
SPACING = (1.5, 1.5, 1.5)


@pytest.fixture(scope="module")
def mass_model(model: Model) -> Model:
    card = ModelCard.of(model.network, name="mass", s0=1.5, patch=PATCH, profile="mass-1")
    return Model(model.network, card)


@pytest.fixture(scope="module")
def task(mass_model: Model, make_task: MakeTask) -> Task:
    record = ModelRecord(name="mass", version="1", fingerprint=mass_model.card.fingerprint)
    return make_task(model=record, profile="mass-1", modality="auto")


@pytest.mark.parametrize(
    ("length", "size", "starts"),
    [(200, 128, (0, 64, 72)), (256, 128, (0, 64, 128)), (128, 128, (0,)), (90, 128, (0,)),
     (70, 32, (0, 16, 32, 38))],
)  # fmt: skip
def test_windows_begin_at_the_first_voxel_and_end_flush(
    length: int, size: int, starts: tuple[int, ...]
) -> None:
    assert axis_starts(length, size) == starts


def test_the_weight_has_no_floor() -> None:
    weight = gaussian_weight((128, 128, 128), floor=0.0)
    # Per axis exp(-(63.5^2 - 0.5^2) / (2 * 16^2)) at the first voxel, 1 at the two middle ones.
    expected = math.exp(-3 * (63.5**2 - 0.5**2) / (2 * 16**2))
    assert expected == pytest.approx(5.5e-11, rel=0.02)
    assert weight[0, 0, 0] == pytest.approx(expected, rel=1e-5)
    assert weight[63, 64, 63] == 1.0


def test_the_corners_of_a_volume_come_out_too_small() -> None:
    """A probability of 0.9 at a weight of 5.5e-11 is divided by 1e-8: nothing is left of it."""
    weight = torch.tensor([[[1.0, 5.5e-11]]])
    assert decide(0.9 * weight[None], weight, [3]).ravel().tolist() == [3, 0]


def test_the_largest_probability_from_a_half_up_wins_and_ties_go_to_the_lower_label() -> None:
    below = np.nextafter(np.float32(0.5), np.float32(0))
    probabilities = torch.tensor(
        [[0.5, 0.3, 0.7, 0.8, 0.2], [0.5, below, 0.6, 0.8, math.nan], [0.5, 0.4, 0.9, 0.8, 0.7]]
    )[:, None, None]
    found = decide(probabilities, torch.ones(1, 1, 5), [4, 7, 9])
    assert found.ravel().tolist() == [4, 0, 9, 4, 9]
    assert found.dtype == np.uint16
    assert decide(probabilities, torch.ones(1, 1, 5), [4, 7, 70_000]).dtype == np.uint32


def test_of_every_label_only_the_largest_part_of_face_neighbours_stays() -> None:
    labels = np.zeros((3, 3, 7), np.uint16)
    labels[0, 0, :3] = 1
    labels[1, 1, 3] = 1  # touches by an edge only
    labels[2, 2, 5:] = 1
    labels[0, 2, :2] = 5
    labels[2, 0, :2] = 5
    expected = np.zeros_like(labels)
    expected[0, 0, :3] = 1
    expected[0, 2, :2] = 5  # of equals the first
    np.testing.assert_array_equal(keep_largest_parts(labels), expected)
    assert labels[1, 1, 3] == 1


def plainly(model: Model, task: Task, image: np.ndarray) -> np.ndarray:
    """Labels on the working grid by the letter: one window at a time, all classes x volume."""
    shape = [max(n, PATCH) for n in image.shape]
    padded = np.zeros(shape, np.float32)
    padded[tuple(slice(0, n) for n in image.shape)] = image
    total, weights = np.zeros((4, *shape), np.float32), np.zeros(shape, np.float32)
    profile = np.exp(-((np.arange(PATCH) - 15.5) ** 2) / (2 * 4.0**2))
    profile /= profile.max()
    weight = (profile[:, None, None] * profile[:, None] * profile).astype(np.float32)
    tokens = [torch.from_numpy(stage)[None] for stage in task.tokens]
    axes = [sorted({*range(0, n - PATCH, PATCH // 2), n - PATCH}) for n in shape]
    for z in axes[0]:
        for y in axes[1]:
            for x in axes[2]:
                at = (slice(z, z + PATCH), slice(y, y + PATCH), slice(x, x + PATCH))
                with torch.inference_mode():
                    features = model.network.encode_image(torch.from_numpy(padded[at])[None, None])
                    p = torch.sigmoid(model.network.decode(features, tokens))[0].numpy()
                total[(slice(None), *at)] += p * weight
                weights[at] += weight
    p = total / np.maximum(weights, 1e-8)
    order = np.argsort([entry.value for entry in task.header.classes])
    chosen = p[order].argmax(axis=0)
    values = np.sort([entry.value for entry in task.header.classes])
    labels = np.where(p.max(axis=0) >= 0.5, values[chosen], 0)
    return labels[tuple(slice(0, n) for n in image.shape)].astype(np.uint16)


@pytest.mark.parametrize("shape", [(50, 30, 44), (20, 32, 33)])
@pytest.mark.parametrize(("window_batch", "on_host"), [(1, False), (3, True)])
def test_rows_of_windows_give_what_the_whole_volume_gives(
    mass_model: Model, task: Task, shape: tuple[int, int, int], window_batch: int, on_host: bool
) -> None:
    image = noise(shape) / 50
    grid = Grid.from_spacing(shape, SPACING, (3.0, -2.0, 7.0))
    prepared = PreparedImage(image, grid, 0.0, 0, {})
    seen: list[tuple[int, int]] = []
    how = How(means=Means(window_batch, on_host), on_window=lambda *done: seen.append(done))
    found = label(mass_model, task, prepared, grid, range(4), how)
    expected = plainly(mass_model, task, image)
    assert len(np.unique(expected)) > 2
    # Windows of one pass round otherwise than alone: a probability of 0.5 may be just below it.
    differ = np.count_nonzero(found.labels != keep_largest_parts(expected))
    assert differ <= (0 if window_batch == 1 else 1e-4 * image.size)
    count = math.prod(len(axis_starts(n, PATCH)) for n in shape)
    assert seen[-1] == (count, count)
    assert found.windows.all == count


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    """A block of tissue with a pattern at the upper end of a field of nothing."""
    array = np.zeros((60, 38, 45), np.float32)
    array[45:57, 8:28, 10:35] = 200 + noise((12, 20, 25))
    grid = Grid.from_spacing(array.shape, (1.0, 1.0, 1.0), (3.0, -2.0, 7.0))
    return read_image(write_image(tmp_path / "q.nii.gz", array, grid))


def test_labels_come_back_by_the_nearest_voxel_and_only_from_the_body(
    mass_model: Model, task: Task, volume: Volume
) -> None:
    prepared = prepare_query(volume, "auto", 1.5)
    assert prepared.array.shape == (26, 25, 30)  # of 40 planes; the margin along z is 16
    worked = keep_largest_parts(plainly(mass_model, task, prepared.array))
    first = np.rint((prepared.grid.affine[:3, 3] - volume.grid.affine[:3, 3]) / 1.5).astype(int)
    expected = np.zeros(volume.array.shape, np.uint16)
    for index in np.ndindex(expected.shape):
        # The middle of voxel i is at i mm, that of working voxel j at 1.5 (j + first) mm.
        place = [
            math.floor(i / 1.5 + 0.5) - int(f) for i, f in zip(index, first[::-1], strict=True)
        ]
        if all(0 <= p < n for p, n in zip(place, worked.shape, strict=True)):
            expected[index] = worked[tuple(place)]
    prediction = predict_volume(mass_model, task, volume)
    np.testing.assert_array_equal(prediction.labels, expected)
    assert prediction.labels.dtype == np.uint16
    assert len(np.unique(expected)) > 2
    assert prediction.flags == ("modality guessed from the voxels: pet",)
    assert prediction.voxels == {f"c{i}": int((expected == 5 - i).sum()) for i in range(4)}


def test_picked_classes_keep_the_group_whole(mass_model: Model, task: Task, volume: Volume) -> None:
    whole = predict_volume(mass_model, task, volume).labels
    picked = predict_volume(mass_model, task, volume, classes=["c0"]).labels
    assert set(np.unique(picked)) <= {0, 5}
    assert np.count_nonzero(picked) >= np.count_nonzero(whole == 5) > 0


def test_no_window_is_left_out(mass_model: Model, task: Task, volume: Volume) -> None:
    with pytest.raises(UsageError, match="works every window"):
        predict_volume(mass_model, task, volume, how=How(skip_empty=True))


def test_probabilities_on_the_native_grid_are_refused(
    mass_model: Model, task: Task, volume: Volume
) -> None:
    with pytest.raises(UsageError, match="gives no logits"):
        predict_volume(mass_model, task, volume, how=How(on_scores=lambda *_: None))


def test_one_nan_in_the_body_leaves_an_empty_label_map_and_a_flag(
    mass_model: Model, task: Task, volume: Volume
) -> None:
    volume.array[50, 20, 20] = np.nan
    prediction = predict_volume(mass_model, task, volume)
    assert not prediction.labels.any()
    assert any("nothing can be found" in flag for flag in prediction.flags)


def test_every_profile_a_card_may_name_has_its_recipes() -> None:
    names = set(ModelCard.model_fields["profile"].annotation.__args__)  # type: ignore[union-attr]
    assert names == set(case.RECIPES) == set(encoding.RECIPES)


def test_scores_that_are_no_numbers_are_an_error(
    mass_model: Model, task: Task, volume: Volume
) -> None:
    tokens = [stage.copy() for stage in task.tokens]
    tokens[-1][0] = np.nan
    with pytest.raises(IrisError, match="not finite in precision fp32"):
        predict_volume(mass_model, Task(task.header, tuple(tokens)), volume)
