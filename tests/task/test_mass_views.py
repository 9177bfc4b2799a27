"""Profile mass-1 looks at references: one window for each class, with what that costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from iris_cli.dataset.classes import ClassLabel
from iris_cli.errors import DataRefused
from iris_cli.model.model import Model, ModelCard
from iris_cli.preparation.mass import guess_modality, normalise
from iris_cli.task.crops import cut
from iris_cli.task.encoding import encode_references
from iris_cli.task.mass_views import MassRecipe, prepare_window, window_start
from iris_cli.task.task_file import Task, read_task, write_task
from iris_cli.volume.grid import Grid
from iris_cli.volume.reading import read_image
from iris_cli.volume.writing import write_image
from tests.task.conftest import PATCH, MakeReference, ball

A, B = ClassLabel("a", (1,), 1), ClassLabel("b", (2,), 2)
SHAPE = (24, 30, 60)
WINDOW = (PATCH, PATCH, PATCH)


@pytest.fixture(scope="module")
def mass_model(model: Model) -> Model:
    card = ModelCard.of(model.network, name="mass", s0=1.5, patch=PATCH, profile="mass-1")
    return Model(model.network, card)


def two_balls() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[ball(SHAPE, (12, 12, 12), 6)] = 1
    labels[ball(SHAPE, (12, 18, 44), 5)] = 2
    return labels


def tokens_of(model: Model, image: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """Tokens (m + 1, C) per stage of one class, straight from the network."""
    with torch.inference_mode():
        features = model.network.encode_image(torch.from_numpy(image)[None, None])
        tokens = model.network.encode_task(features, torch.from_numpy(mask)[None, None])
    return [stage[0, 0].numpy() for stage in tokens]


def assert_row_equal(task: Task, row: int, expected: list[np.ndarray]) -> None:
    for stage, other in zip(task.tokens, expected, strict=True):
        np.testing.assert_allclose(stage[row], other, atol=1e-5)


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [((4, 4, 4), (8, 8, 8), (-10, -10, -10)), ((2, 3, 20), (3, 6, 60), (-14, -12, 24))],
)
def test_the_window_lies_around_the_middle_of_the_box(
    first: tuple[int, ...], last: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    """Middles 2.5 and 4.5 are the even voxels 2 and 4; half a window of 32 is 16."""
    points = np.array([first, last, first], np.int64)
    assert window_start(points, WINDOW) == expected


def test_the_window_is_padded_with_raw_zeros_that_count_as_tissue() -> None:
    raw = np.full((2, 2, 2), 100, np.float32)
    window = prepare_window(raw, (-1, -1, -1), (4, 4, 4), "ct")
    # 8 voxels of 100 and 56 of 0: mean 12.5, deviation 12.5 * sqrt(7).
    np.testing.assert_allclose(window[1:3, 1:3, 1:3], 7 / np.sqrt(7), rtol=1e-6)
    np.testing.assert_allclose(window[0], -1 / np.sqrt(7), rtol=1e-6)


def test_each_class_has_a_window_of_its_own_normalised_by_itself(
    mass_model: Model, make_reference: MakeReference
) -> None:
    labels = two_balls()
    reference = make_reference("r", labels)
    task = encode_references(mass_model, [reference], [B, A])
    raw = read_image(reference.image).array
    for row, (value, start) in enumerate([(2, (-4, 2, 28)), (1, (-4, -4, -4))]):
        image = normalise(cut(raw, start, WINDOW, 0.0), "mr")[0]
        mask = cut(labels == value, start, WINDOW, False)
        assert_row_equal(task, row, tokens_of(mass_model, image, mask))
    header = task.header
    assert (header.profile, header.modality, header.spacing_mm) == ("mass-1", "auto", 1.5)
    assert header.groups == ((0, 1),)
    assert [entry.crops for entry in header.classes] == [1, 1]
    assert header.classes[1].voxels == (labels == 1).sum()
    assert header.warnings == ()


def test_a_window_that_misses_its_class_encodes_an_empty_mask(
    mass_model: Model, make_reference: MakeReference
) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[12, 15, [2, 57]] = 1
    reference = make_reference("r", labels)
    task = encode_references(mass_model, [reference], [A])
    raw = read_image(reference.image).array
    start = (12 - 16, 15 - 16, 30 - 16)  # the middle of 2 and 57 is 29.5, so 30
    image = normalise(cut(raw, start, WINDOW, 0.0), "mr")[0]
    assert_row_equal(task, 0, tokens_of(mass_model, image, np.zeros(WINDOW, bool)))
    assert (task.header.classes[0].coverage, task.header.classes[0].voxels) == (0.0, 2)
    assert task.header.warnings == ("class 'a': its crops show 0% of its voxels",)


def test_what_a_window_does_not_reach_is_not_seen_and_said(
    mass_model: Model, make_reference: MakeReference
) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[10:12, 10:12, 10:58] = 1  # 48 voxels long, the window has 32
    task = encode_references(mass_model, [make_reference("r", labels)], [A])
    assert task.header.classes[0].coverage == pytest.approx(32 / 48)
    assert "67%" in task.header.warnings[0]


def test_tokens_are_the_plain_mean_over_references(
    mass_model: Model, make_reference: MakeReference
) -> None:
    labels = two_balls()
    one, other = make_reference("x", labels), make_reference("y", labels * (labels == 1), seed=1)
    both = encode_references(mass_model, [one, other], [A, B])
    alone = [encode_references(mass_model, [r], [A], other_values=[2]) for r in (one, other)]
    mean = [(x[0] + y[0]) / 2 for x, y in zip(alone[0].tokens, alone[1].tokens, strict=True)]
    assert_row_equal(both, 0, mean)
    assert [entry.references for entry in both.header.classes] == [2, 1]


def test_a_class_that_vanishes_at_the_working_spacing_is_left_out(
    mass_model: Model, make_reference: MakeReference
) -> None:
    """Voxels of 0.5 mm: every third one is read, and class b has none of them."""
    labels = np.zeros((60, 60, 60), np.uint8)
    labels[20:40, 20:40, 20:40] = 1
    labels[20, 20, 4] = 2
    reference = make_reference("r", labels, spacing_xyz=(0.5, 0.5, 0.5))
    task = encode_references(mass_model, [reference], [A, B])
    assert [entry.name for entry in task.header.classes] == ["a"]
    assert task.header.spacing_mm == 1.5
    assert task.header.warnings == (
        "class 'b' has no voxel left at 1.5 mm in reference 1 and is skipped there",
        "class 'b' is shown by no reference and was left out",
    )
    with pytest.raises(DataRefused, match="no class of the references is left") as caught:
        encode_references(mass_model, [reference], [B], other_values=[1])
    assert "no voxel left at 1.5 mm" in str(caught.value.found)


def test_an_absent_class_is_left_out_but_not_all_of_them(
    mass_model: Model, make_reference: MakeReference
) -> None:
    labels = two_balls()
    reference = make_reference("x", labels * (labels == 1))
    task = encode_references(mass_model, [reference], [A, B])
    assert [entry.name for entry in task.header.classes] == ["a"]
    assert task.header.warnings == ("class 'b' is shown by no reference and was left out",)
    with pytest.raises(DataRefused, match="no voxel of class 'b'"):
        encode_references(mass_model, [reference], [B], other_values=[1])


def test_a_label_map_on_another_grid_is_read_where_it_lies_and_said(
    mass_model: Model, make_reference: MakeReference
) -> None:
    shifted = Grid.from_spacing(SHAPE, (1.5, 1.5, 1.5), (3.0 + 6, -2.0, 7.0))
    elsewhere = make_reference("x", two_balls(), label_grid=shifted)
    moved = np.zeros_like(two_balls())
    moved[..., 4:] = two_balls()[..., :-4]
    raw = read_image(elsewhere.image).array
    task = encode_references(mass_model, [elsewhere], [A, B])
    start = (-4, -4, 0)
    image = normalise(cut(raw, start, WINDOW, 0.0), "mr")[0]
    mask = cut(moved == 1, start, WINDOW, False)
    assert_row_equal(task, 0, tokens_of(mass_model, image, mask))
    assert "not on the grid of its image and is read where it lies" in task.header.warnings[0]


def test_a_modality_is_taken_from_the_user_alone_and_a_spacing_too(
    mass_model: Model, make_reference: MakeReference
) -> None:
    """An image with air and bone whose windows show neither is taken for another modality."""
    labels = np.zeros((72, 40, 40), np.uint8)
    labels[ball(labels.shape, (36, 20, 20), 4)] = 1
    reference = make_reference("r", labels, ct=True)
    raw = read_image(reference.image).array
    assert guess_modality(raw) == "ct"
    guessed = encode_references(mass_model, [reference], [A], declared="ct")
    given = encode_references(mass_model, [reference], [A], modality="ct", spacing_mm=1.5)
    assert (guessed.header.modality, given.header.modality) == ("auto", "ct")
    start = (36 - 16, 20 - 16, 20 - 16)
    window, mask = cut(raw, start, WINDOW, 0.0), cut(labels == 1, start, WINDOW, False)
    for task, modality in ((guessed, "mr"), (given, "ct")):
        expected = tokens_of(mass_model, normalise(window, modality)[0], mask)
        assert_row_equal(task, 0, expected)
    coarse = encode_references(mass_model, [reference], [A], spacing_mm=3.0)
    assert coarse.header.spacing_mm == 3.0
    assert coarse.header.classes[0].voxels == np.count_nonzero(labels[::2, ::2, ::2])


def test_half_precision_is_for_cuda_alone() -> None:
    recipe = MassRecipe()
    assert recipe.precision("bf16", "cuda:1") == "bf16"
    assert recipe.precision("bf16", "cpu") == recipe.precision("fp16", "mps") == "fp32"


def test_a_reference_that_is_not_finite_makes_no_task(
    mass_model: Model, make_reference: MakeReference, tmp_path: Path
) -> None:
    reference = make_reference("r", two_balls())
    image = read_image(reference.image)
    image.array[12, 12, 12] = np.nan
    write_image(reference.image, image.array, image.native)
    task = encode_references(mass_model, [reference], [A, B])
    with pytest.raises(DataRefused, match="not finite"):
        write_task(tmp_path / "t.task.pt", task)


def test_a_task_of_the_profile_reads_back(
    mass_model: Model, make_reference: MakeReference, tmp_path: Path
) -> None:
    task = encode_references(mass_model, [make_reference("r", two_balls())], [A, B])
    assert read_task(write_task(tmp_path / "t.task.pt", task)).header == task.header
