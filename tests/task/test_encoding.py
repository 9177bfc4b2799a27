"""References to tokens: what is averaged, what is noted, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from iris_cli.dataset.classes import ClassLabel
from iris_cli.errors import DataRefused, UsageError
from iris_cli.model.model import Model
from iris_cli.preparation.prepare import prepare_image
from iris_cli.task import encoding
from iris_cli.task.crops import choose_crops, cut
from iris_cli.task.encoding import encode_references
from iris_cli.task.likeness import token_distance
from iris_cli.task.task_file import Task
from iris_cli.volume.grid import Grid
from iris_cli.volume.reading import read_image
from iris_cli.volume.writing import write_image
from tests.inference.whole_volume import predict_logits
from tests.task.conftest import PATCH, MakeReference, ball

A, B = ClassLabel("a", (1,), 1), ClassLabel("b", (2,), 2)
SHAPE = (24, 30, 40)


def two_balls(shift: int = 0) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[ball(SHAPE, (12, 12, 12 + shift), 6)] = 1
    labels[ball(SHAPE, (12, 18, 28 + shift), 5)] = 2
    return labels


def assert_tokens_equal(first: Task, second: Task) -> None:
    for one, other in zip(first.tokens, second.tokens, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_header_says_what_the_tokens_rest_on(
    model: Model, make_reference: MakeReference
) -> None:
    task = encode_references(model, [make_reference("r", two_balls())], [A, B], licence="CC0")
    header = task.header
    assert header.model.fingerprint == model.card.fingerprint
    assert (header.profile, header.modality, header.channel) == ("iris-1", "other", 0)
    assert header.spacing_mm == 1.5
    assert header.groups == ((0, 1),)
    assert header.licence == "CC0"
    assert header.expected_quality is None
    assert [stage.shape for stage in task.tokens] == [(2, 3, 16), (2, 3, 16), (2, 3, 8)]
    entry = header.classes[0]
    assert (entry.name, entry.value, entry.references, entry.crops) == ("a", 1, 1, 1)
    assert entry.voxels == (two_balls() == 1).sum()
    assert entry.coverage == 1.0
    assert header.warnings == ()


def test_a_task_names_no_file(model: Model, make_reference: MakeReference) -> None:
    small = two_balls()
    small[small == 2] = 0
    small[3, 3, 3:5] = 2
    references = [make_reference("Jane_Doe", small), make_reference("Jane_Doe2", 0 * small)]
    task = encode_references(model, references, [A, B])
    text = json.dumps(task.header.model_dump(mode="json"))
    assert "Jane" not in text
    assert any("reference 1" in warning for warning in task.header.warnings)
    assert any("reference 2 shows none" in warning for warning in task.header.warnings)


def test_swapping_two_labels_swaps_their_logits(
    model: Model, make_reference: MakeReference
) -> None:
    labels = two_balls()
    swapped = np.where(labels == 1, 2, np.where(labels == 2, 1, 0)).astype(np.uint8)
    image = np.random.default_rng(5).normal(size=(40, 32, 36)).astype(np.float32)
    logits = []
    for name, array in (("x", labels), ("y", swapped)):
        task = encode_references(model, [make_reference(name, array)], [A, B])
        tokens = [torch.from_numpy(stage) for stage in task.tokens]
        logits.append(predict_logits(model.network, tokens, image, -3.0, (32, 32, 32)))
    assert float((logits[0] - logits[1].flip(0)).abs().max()) < 1e-4
    assert float((logits[0][0] - logits[0][1]).abs().max()) > 1e-2


def test_several_references_are_averaged_over_those_that_have_the_class(
    model: Model, make_reference: MakeReference
) -> None:
    first = make_reference("one", two_balls(), seed=1)
    second = make_reference("two", np.where(two_balls(3) == 1, 1, 0).astype(np.uint8), seed=2)
    both = encode_references(model, [first, second], [A, B])
    one = encode_references(model, [first], [A, B])
    two = encode_references(model, [second], [A])
    for stage, (joint, alone, other) in enumerate(
        zip(both.tokens, one.tokens, two.tokens, strict=True)
    ):
        np.testing.assert_allclose(joint[0], (alone[0] + other[0]) / 2, atol=1e-5, err_msg=stage)
        np.testing.assert_allclose(joint[1], alone[1], atol=1e-5)
    assert [entry.references for entry in both.header.classes] == [2, 1]
    tokens = ([stage[0] for stage in task.tokens] for task in (one, two))
    apart = pytest.approx(token_distance(*tokens), rel=1e-3)
    assert both.header.token_distances == {"a": (apart, apart)}
    assert one.header.token_distances == {}


def test_a_class_that_nobody_contoured_in_a_reference_is_left_out_there(
    model: Model, make_reference: MakeReference
) -> None:
    # Voxels of b in the second reference are somebody's leftovers: not contoured means unknown.
    first = make_reference("one", two_balls(), seed=1)
    second = make_reference("two", two_balls(3), seed=2, not_annotated=frozenset({"b"}))
    task = encode_references(model, [first, second], [A, B])
    alone = encode_references(model, [first], [A, B])
    for joint, one in zip(task.tokens, alone.tokens, strict=True):
        np.testing.assert_allclose(joint[1], one[1], atol=1e-5)
        assert not np.allclose(joint[0], one[0], atol=1e-3)
    assert [entry.references for entry in task.header.classes] == [2, 1]


def test_tokens_of_several_crops_are_weighted_by_what_they_show(
    model: Model, make_reference: MakeReference
) -> None:
    labels = np.zeros((20, 20, 70), np.uint8)
    labels[8:12, 8:12, 2:62] = 1
    labels[4:16, 4:16, 2:12] = 1
    reference = make_reference("tube", labels)
    task = encode_references(model, [reference], [ClassLabel("tube", (1,), 1)], spacing_mm=1.5)
    patch = (PATCH,) * 3
    prepared = prepare_image(read_image(reference.image), "other", 1.5)
    crops = choose_crops({"tube": labels == 1}, patch).crops
    weights = [crop.voxels["tube"] for crop in crops]
    assert len(set(weights)) > 1, "a plain mean would pass"
    singles = []
    for crop in crops:
        image = cut(prepared.array, crop.start_zyx, patch, prepared.fill)
        mask = cut((labels == 1).astype(np.float32), crop.start_zyx, patch, 0)
        with torch.inference_mode():
            features = model.network.encode_image(torch.from_numpy(image)[None, None])
            tokens = model.network.encode_task(features, torch.from_numpy(mask)[None, None])
        singles.append([stage[0].numpy() for stage in tokens])
    for found, stages in zip(task.tokens, zip(*singles, strict=True), strict=True):
        wanted = sum(w * stage for w, stage in zip(weights, stages, strict=True)) / sum(weights)
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        assert np.abs(found - np.mean(stages, axis=0)).max() > 1e-3
    assert task.header.classes[0].crops == len(crops)
    assert task.header.classes[0].coverage > 0.9


def test_small_coverage_is_a_warning(model: Model, make_reference: MakeReference) -> None:
    labels = np.zeros((20, 20, 300), np.uint8)
    labels[8:12, 8:12, 2:298] = 1
    tube = ClassLabel("tube", (1,), 1)
    task = encode_references(model, [make_reference("tube", labels)], [tube], spacing_mm=1.5)
    assert task.header.classes[0].crops == 4
    assert any("show 43% of its voxels" in warning for warning in task.header.warnings)


def test_a_structure_that_nearly_vanishes_becomes_a_soft_mask(
    model: Model, make_reference: MakeReference
) -> None:
    labels = two_balls()
    labels[labels == 2] = 0
    labels[4, 4, 4:6] = 2
    labels[20, 20, 33] = 3
    c = ClassLabel("c", (3,), 3)
    task = encode_references(
        model, [make_reference("r", labels, spacing_xyz=(0.5,) * 3)], [A, B, c], spacing_mm=1.5
    )
    a, b, c_entry = task.header.classes
    assert (a.soft, b.soft, c_entry.soft) == (False, True, True)
    assert b.voxels < 8
    assert sum("soft mask" in warning for warning in task.header.warnings) == 2
    assert all(np.isfinite(stage).all() for stage in task.tokens)


def test_a_mask_of_few_voxels_on_an_equal_grid_stays_binary(
    model: Model, make_reference: MakeReference
) -> None:
    labels = two_balls()
    labels[labels == 2] = 0
    labels[4, 4, 4:8] = 2
    task = encode_references(model, [make_reference("r", labels)], [A, B], spacing_mm=1.5)
    assert task.header.classes[1].voxels == 4
    assert any("only 4 voxels" in warning for warning in task.header.warnings)


def test_the_spacing_follows_the_rule_or_the_user(
    model: Model, make_reference: MakeReference
) -> None:
    reference = make_reference("r", two_balls(), spacing_xyz=(0.5, 0.5, 0.5))
    # b: 515 voxels of 0.125 mm3; cbrt(64.4) / 6 = 0.668 mm, less than 14 mm / (0.6 x 32).
    task = encode_references(model, [reference], [A, B])
    assert task.header.spacing_mm == pytest.approx(0.668, abs=0.001)
    assert "64.38 mm3" in task.header.spacing_reason
    asked = encode_references(model, [reference], [A, B], spacing_mm=2.0)
    assert asked.header.spacing_mm == 2.0
    assert "asked" in asked.header.spacing_reason


def test_an_empty_class_is_refused_with_file_and_class(
    model: Model, make_reference: MakeReference
) -> None:
    labels = np.where(two_balls() == 1, 1, 0).astype(np.uint8)
    with pytest.raises(DataRefused) as caught:
        encode_references(model, [make_reference("case_012", labels)], [A, B])
    assert caught.value.exit_code == 4
    assert caught.value.problem == "case_012_seg: reference has no voxel of class 'b' (label 2)"
    assert "case_012_seg.nii.gz" in str(caught.value.file)
    assert "labels present 0, 1" in str(caught.value.found)


def test_an_empty_label_map_is_refused_by_name(model: Model, make_reference: MakeReference) -> None:
    empty = np.zeros(SHAPE, np.uint8)
    references = [make_reference("x", empty), make_reference("y", empty)]
    with pytest.raises(DataRefused, match="nothing but zeros") as caught:
        encode_references(model, references, [A])
    assert "x_seg.nii.gz" in str(caught.value)
    assert "y_seg.nii.gz" in str(caught.value)


def test_all_missing_classes_are_named_at_once(model: Model, make_reference: MakeReference) -> None:
    more = [ClassLabel(f"c{value}", (value,), value) for value in (3, 4)]
    with pytest.raises(DataRefused, match=r"'c3' \(label 3\)") as caught:
        encode_references(model, [make_reference("x", two_balls())], [A, B, *more])
    assert "also missing: c4" in str(caught.value.found)


def test_a_class_annotated_nowhere_is_refused(model: Model, make_reference: MakeReference) -> None:
    reference = make_reference("x", two_balls(), not_annotated=frozenset({"b"}))
    with pytest.raises(DataRefused, match="annotated in no reference"):
        encode_references(model, [reference], [A, B])


def test_undeclared_values_are_refused_with_file_and_values(
    model: Model, make_reference: MakeReference
) -> None:
    labels = two_balls()
    labels[0, 0, 0] = 7
    reference = make_reference("x", labels)
    with pytest.raises(DataRefused, match="x_seg") as caught:
        encode_references(model, [reference], [A, B])
    assert caught.value.found == "7"
    ignored = encode_references(model, [reference], [A, B], ignore_value=7)
    assert any("ignored value" in warning for warning in ignored.header.warnings)
    other = encode_references(model, [reference], [A, B], other_values=[7])
    assert other.header.warnings == ()


def test_another_grid_is_refused_and_rounding_is_noted(
    model: Model, make_reference: MakeReference
) -> None:
    def grid(shift: float) -> Grid:
        return Grid.from_spacing(SHAPE, (1.5, 1.5, 1.5), (3.0 + shift, -2.0, 7.0))

    with pytest.raises(DataRefused, match="not on the grid") as caught:
        encode_references(model, [make_reference("x", two_balls(), label_grid=grid(2))], [A, B])
    assert "origin (5, -2, 7)" in str(caught.value.found)
    assert "origin (3, -2, 7)" in str(caught.value.expected)
    rounded = make_reference("y", two_balls(), label_grid=grid(0.06))
    task = encode_references(model, [rounded], [A, B])
    assert any("rounding" in warning for warning in task.header.warnings)
    exact = encode_references(model, [make_reference("z", two_balls())], [A, B])
    assert_tokens_equal(task, exact)


def test_modalities_must_agree_unless_given(model: Model, make_reference: MakeReference) -> None:
    references = [make_reference("x", two_balls()), make_reference("y", two_balls(), ct=True)]
    with pytest.raises(DataRefused, match="one modality") as caught:
        encode_references(model, references, [A, B])
    assert "x.nii.gz: other, y.nii.gz: ct" in str(caught.value.found)
    assert encode_references(model, references, [A], other_values=[2], modality="ct")


def test_regions_are_the_union_of_their_values(model: Model, make_reference: MakeReference) -> None:
    reference = make_reference("x", two_balls())
    both = (two_balls() > 0).astype(np.uint8)
    region = encode_references(model, [reference], [ClassLabel("ab", (1, 2), 1)], spacing_mm=1.5)
    union = encode_references(model, [make_reference("y", both)], [A], spacing_mm=1.5)
    assert_tokens_equal(region, union)


def test_references_that_do_not_stay_in_memory_give_the_same_task(
    model: Model, make_reference: MakeReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    references = [make_reference("x", two_balls()), make_reference("y", two_balls(2), seed=3)]
    kept = encode_references(model, references, [A, B])
    monkeypatch.setattr(encoding, "KEPT_VOXELS", 0)
    monkeypatch.setattr(encoding, "CLASSES_AT_ONCE", 1)
    again = encode_references(model, references, [A, B])
    assert again.header == kept.header
    assert_tokens_equal(again, kept)


def test_two_runs_give_the_same_task(model: Model, make_reference: MakeReference) -> None:
    reference = make_reference("x", two_balls())
    first = encode_references(model, [reference], [A, B])
    assert encode_references(model, [reference], [A, B]).fingerprint() == first.fingerprint()


def test_nothing_to_encode_is_a_usage_error(model: Model, make_reference: MakeReference) -> None:
    with pytest.raises(UsageError):
        encode_references(model, [], [A])
    with pytest.raises(UsageError):
        encode_references(model, [make_reference("x", two_balls())], [])


def test_a_spacing_larger_than_all_classes_is_refused_with_both_numbers(
    model: Model, make_reference: MakeReference
) -> None:
    reference = make_reference("x", two_balls())
    for spacing in (1000.0, 1e7):
        with pytest.raises(UsageError, match="larger than all classes") as caught:
            encode_references(model, [reference], [A, B], spacing_mm=spacing)
        assert caught.value.found == f"{spacing:.4g} mm"
        assert "at most 42 mm" in str(caught.value.expected)


def test_an_image_that_is_not_finite_is_refused_by_name(
    model: Model, make_reference: MakeReference
) -> None:
    reference = make_reference("x", two_balls())
    image = read_image(reference.image)
    write_image(reference.image, np.full(SHAPE, np.nan, np.float32), image.native)
    with pytest.raises(DataRefused, match="NaN") as caught:
        encode_references(model, [reference], [A, B])
    assert caught.value.file == str(reference.image)
