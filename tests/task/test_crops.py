"""Crops of references: rules, and invariants over generated label maps."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iris_cli.task import crops
from iris_cli.task.crops import (
    choose_crops,
    choose_crops_of_points,
    class_points,
    cut,
    start_range,
)

PATCH = (16, 16, 16)


def boxes(
    shape: tuple[int, int, int], **where: tuple[slice, slice, slice]
) -> dict[str, np.ndarray]:
    masks = {}
    for name, index in where.items():
        masks[name] = np.zeros(shape, bool)
        masks[name][index] = True
    return masks


def test_classes_that_fit_one_crop_share_it() -> None:
    masks = boxes((40, 40, 40), a=np.s_[10:14, 10:14, 10:14], b=np.s_[15:20, 12:20, 11:19])
    plan = choose_crops(masks, PATCH)
    assert len(plan.crops) == 1
    assert plan.crops[0].voxels == {"a": 64, "b": 5 * 8 * 8}
    assert plan.coverage == {"a": 1.0, "b": 1.0}
    # centred on the box 10:20 of both
    assert plan.crops[0].start_zyx == (7, 7, 6)


def test_classes_too_far_apart_get_a_crop_each() -> None:
    masks = boxes((40, 40, 40), a=np.s_[2:6, 2:6, 2:6], b=np.s_[30:36, 30:36, 30:36])
    plan = choose_crops(masks, PATCH)
    assert [crop.classes for crop in plan.crops] == [("a",), ("b",)]
    assert plan.crops[0].start_zyx == (0, 0, 0)
    assert plan.crops[1].start_zyx == (24, 24, 24)


def test_a_large_class_gets_up_to_four_crops_and_its_coverage() -> None:
    mask = np.zeros((80, 20, 20), bool)
    mask[:, 7:13, 7:13] = True
    plan = choose_crops({"tube": mask}, PATCH)
    assert len(plan.crops) == 4
    assert plan.coverage["tube"] == pytest.approx(64 / 80)
    assert sum(crop.voxels["tube"] for crop in plan.crops) == 64 * 36


def test_a_class_that_fills_the_volume_is_shown_at_its_border() -> None:
    mask = np.zeros((48, 48, 48), bool)
    mask[8:40, 8:40, 8:40] = True  # larger than the patch: a crop inside would be all ones
    plan = choose_crops({"a": mask}, PATCH)
    assert plan.crops
    for crop in plan.crops:
        assert 0 < crop.voxels["a"] <= 0.6 * math.prod(PATCH)


def test_where_every_crop_is_too_full_the_emptiest_is_taken() -> None:
    mask = np.ones((24, 24, 24), bool)
    mask[0] = False
    plan = choose_crops({"a": mask}, PATCH)
    assert plan.crops[0].start_zyx[0] == 0
    assert plan.crops[0].voxels["a"] == 15 * 16 * 16


def test_a_volume_smaller_than_the_patch_lies_centred_in_its_crop() -> None:
    mask = np.zeros((9, 20, 16), bool)
    mask[4, 10, 8] = True
    plan = choose_crops({"a": mask}, PATCH)
    assert plan.crops[0].start_zyx == (-3, 2, 0)
    image = cut(mask.astype(np.float32), plan.crops[0].start_zyx, PATCH, -7.0)
    assert image.shape == PATCH
    assert (image[:3] == -7).all()
    assert (image[12:] == -7).all()
    assert image[7, 8, 8] == 1


def test_an_empty_class_has_no_crop_and_no_coverage() -> None:
    masks = boxes((20, 20, 20), a=np.s_[3:5, 3:5, 3:5], b=np.s_[0:0, 0:0, 0:0])
    plan = choose_crops(masks, PATCH)
    assert plan.of("b") == ()
    assert plan.coverage == {"a": 1.0, "b": 0.0}


def test_an_existing_crop_serves_a_large_class_that_it_shows_as_well() -> None:
    masks = boxes((16, 16, 30), small=np.s_[6:9, 6:9, 3:6], tube=np.s_[7:9, 7:9, 0:30])
    plan = choose_crops(masks, PATCH)
    assert len(plan.crops) == 2
    assert plan.coverage == {"small": 1.0, "tube": 1.0}


def test_sampled_points_estimate_how_far_a_class_fills_the_crop() -> None:
    mask = np.zeros((48, 48, 48), bool)
    mask[8:40, 8:40, 8:40] = True
    points = class_points(mask.astype(np.uint8), {"a": (1,)})["a"]
    sample = points[:: len(points) // 256]
    plan = choose_crops_of_points({"a": sample}, (48, 48, 48), PATCH, voxels={"a": len(points)})
    for crop in plan.crops:
        shown = cut(mask, crop.start_zyx, PATCH, False).mean()
        assert 0 < shown < 0.9


def test_a_very_large_class_is_counted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crops, "SAMPLE", 300)
    mask = np.zeros((40, 20, 20), bool)
    mask[2:38, 7:13, 7:13] = True
    plan = choose_crops({"a": mask}, PATCH)
    assert 0.85 < plan.coverage["a"] <= 1
    for crop in plan.crops:
        assert crop.voxels["a"] == cut(mask, crop.start_zyx, PATCH, False).sum()


def test_class_points_are_those_of_argwhere_with_regions_and_gaps() -> None:
    labels = np.random.default_rng(0).integers(0, 5, (5, 6, 7)).astype(np.uint16) * 300
    found = class_points(labels, {"a": (300,), "b": (600, 1200), "none": (7,)})
    np.testing.assert_array_equal(found["a"], np.argwhere(labels == 300))
    np.testing.assert_array_equal(found["b"], np.argwhere((labels == 600) | (labels == 1200)))
    assert found["none"].shape == (0, 3)


@st.composite
def label_maps(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    shape = draw(st.tuples(*[st.integers(3, 30)] * 3))
    classes = draw(st.integers(1, 4))
    labels = np.zeros(shape, np.uint8)
    for value in range(1, classes + 1):
        first = [draw(st.integers(0, n - 1)) for n in shape]
        last = [draw(st.integers(a + 1, n)) for a, n in zip(first, shape, strict=True)]
        labels[tuple(slice(a, b) for a, b in zip(first, last, strict=True))] = value
    return labels, classes


@settings(max_examples=40, deadline=None)
@given(label_maps())
def test_crops_stay_in_the_volume_show_their_class_and_count_it(
    generated: tuple[np.ndarray, int],
) -> None:
    labels, classes = generated
    patch = (8, 12, 10)
    masks = {str(value): labels == value for value in range(1, classes + 1)}
    plan = choose_crops(masks, patch)
    shown = {name: np.zeros(labels.shape, bool) for name in masks}
    for crop in plan.crops:
        for axis, first in enumerate(crop.start_zyx):
            low, high = start_range(labels.shape[axis], patch[axis])
            assert low <= first <= high
        for name, voxels in crop.voxels.items():
            assert voxels == cut(masks[name], crop.start_zyx, patch, False).sum() > 0
            index = tuple(
                slice(max(a, 0), a + p) for a, p in zip(crop.start_zyx, patch, strict=True)
            )
            shown[name][index] = True
    for name, mask in masks.items():
        assert 0 <= len(plan.of(name)) <= 4
        assert bool(plan.of(name)) == bool(mask.any())
        if mask.any():
            assert plan.coverage[name] == pytest.approx((shown[name] & mask).sum() / mask.sum())


@settings(max_examples=25, deadline=None)
@given(label_maps(), st.randoms(use_true_random=False))
def test_order_and_names_of_classes_change_nothing(
    generated: tuple[np.ndarray, int], random: object
) -> None:
    labels, classes = generated
    values = list(range(1, classes + 1))
    plan = choose_crops({f"c{value}": labels == value for value in values}, PATCH)
    random.shuffle(values)  # type: ignore[attr-defined]
    other = choose_crops({f"x{9 - value}": labels == value for value in values}, PATCH)
    renamed = {f"x{9 - value}": f"c{value}" for value in values}
    assert [
        (crop.start_zyx, {renamed[name]: voxels for name, voxels in crop.voxels.items()})
        for crop in other.crops
    ] == [(crop.start_zyx, dict(crop.voxels)) for crop in plan.crops]


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(*[st.integers(1, 9)] * 3),
    st.tuples(*[st.integers(-9, 12)] * 3),
    st.tuples(*[st.integers(1, 9)] * 3),
)
def test_cut_equals_indexing_of_a_padded_array(
    shape: tuple[int, int, int], start: tuple[int, int, int], patch: tuple[int, int, int]
) -> None:
    array = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    padded = np.pad(array, 24, constant_values=-1)
    index = tuple(slice(s + 24, s + 24 + p) for s, p in zip(start, patch, strict=True))
    np.testing.assert_array_equal(cut(array, start, patch, -1), padded[index])
    stacked = cut(np.stack([array, array + 1]), start, patch, -1)
    np.testing.assert_array_equal(stacked[0], padded[index])


def test_which_classes_share_a_crop_does_not_depend_on_their_order() -> None:
    # b fits one crop with a, and one with c, but not with both.
    masks = boxes(
        (16, 16, 40), a=np.s_[6:9, 6:9, 2:6], b=np.s_[6:9, 6:9, 14:17], c=np.s_[6:9, 6:9, 25:28]
    )
    plans = [
        choose_crops({name: masks[name] for name in order}, PATCH)
        for order in itertools.permutations("abc")
    ]
    for plan in plans:
        assert len(plan.crops) == 2
        assert [dict(crop.voxels) for crop in plan.crops] == [
            dict(crop.voxels) for crop in plans[0].crops
        ]


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_the_crops_of_one_class_are_those_among_all_of_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape, patch = (40, 50, 60), (13, 16, 20)
    points = {
        str(k): np.unique(np.clip(rng.normal(25, spread, (n, 3)), 0, 39).astype(np.int64), axis=0)
        for k, (n, spread) in enumerate([(200, 12.0), (90, 8.0), (30, 2.0), (400, 20.0)])
    }
    whole = choose_crops_of_points(points, shape, patch)
    for name in points:
        alone = choose_crops_of_points(points, shape, patch, wanted=[name])
        assert alone.coverage == {name: whole.coverage[name]}
        assert [(crop.start_zyx, crop.voxels) for crop in alone.crops] == [
            (crop.start_zyx, {name: crop.voxels[name]}) for crop in whole.of(name)
        ]


def test_box_sums_equal_counting_voxel_by_voxel() -> None:
    from iris_cli.task.crops import _box_sums, _candidates

    mask = np.random.default_rng(1).random((20, 9, 17)) < 0.2
    patch = np.asarray((8, 16, 5))
    axes = [
        _candidates(*start_range(n, int(p)), int(p)) for n, p in zip(mask.shape, patch, strict=True)
    ]
    sums = _box_sums(np.argwhere(mask), axes, patch)
    for index in itertools.product(*[range(len(axis)) for axis in axes]):
        start = [axis[i] for axis, i in zip(axes, index, strict=True)]
        assert sums[index] == cut(mask, start, patch, False).sum()
