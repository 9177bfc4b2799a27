"""Overlap counts, against the definition voxel by voxel (nnU-Net's evaluate_predictions)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iris_cli.evaluation import metrics
from iris_cli.evaluation.metrics import METRICS, Overlap, compute_metrics, compute_overlaps


def by_definition(
    prediction: np.ndarray, truth: np.ndarray, values: tuple[int, ...], ignore: int | None
) -> Overlap:
    use = np.ones(truth.shape, bool) if ignore is None else truth != ignore
    t, p = np.isin(truth, values), np.isin(prediction, values)
    return Overlap(
        int((t & p & use).sum()),
        int((~t & p & use).sum()),
        int((t & ~p & use).sum()),
        int((~t & ~p & use).sum()),
    )


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(0, 1, 2, 3), (0, 2, 700, 60000), (0, 1, 255, 256)]),
    st.sampled_from([None, 1, 3]),
)
def test_counts_equal_the_definition(
    seed: int, values: tuple[int, ...], ignored: int | None
) -> None:
    generator = np.random.default_rng(seed)
    truth = generator.choice(values, (3, 4, 5)).astype(np.uint16)
    prediction = generator.choice(values, (3, 4, 5)).astype(np.int32)
    ignore = None if ignored is None else values[ignored]
    classes = {"a": values[1:2], "b": values[2:3], "region": values[1:3], "never": (9,)}
    found = compute_overlaps(prediction, truth, classes, ignore_value=ignore)
    for name, wanted in classes.items():
        assert found[name] == by_definition(prediction, truth, wanted, ignore)


def test_blocks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    truth, prediction = generator.integers(0, 4, (2, 6, 7, 8)).astype(np.uint8)
    whole = compute_overlaps(prediction, truth, {"a": (1,), "b": (2, 3)})
    monkeypatch.setattr(metrics, "_BLOCK_VOXELS", 10)
    assert compute_overlaps(prediction, truth, {"a": (1,), "b": (2, 3)}) == whole


def test_dice_and_iou_by_hand() -> None:
    overlap = Overlap(tp=6, fp=2, fn=4, tn=88)
    assert overlap.dice == pytest.approx(12 / 18)
    assert overlap.iou == pytest.approx(6 / 12)
    assert {name: get(overlap) for name, get in METRICS.items() if name not in ("Dice", "IoU")} == {
        "FP": 2,
        "TP": 6,
        "FN": 4,
        "TN": 88,
        "n_pred": 8,
        "n_ref": 10,
    }


def test_a_class_in_neither_has_no_dice_and_a_false_positive_has_zero() -> None:
    assert math.isnan(Overlap(0, 0, 0, 10).dice)
    assert math.isnan(Overlap(0, 0, 0, 10).iou)
    assert Overlap(0, 3, 0, 7).dice == 0.0


def test_other_shapes_are_an_error() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        compute_overlaps(np.zeros((1, 2, 3), int), np.zeros((1, 2, 4), int), {})


def test_two_masks_overlap_by_hand() -> None:
    truth = np.array([[[True, True, False, False, False]]])
    found = compute_metrics(np.array([[[3, 0, 3, 0, 0]]]), truth)
    assert found == Overlap(tp=1, fp=1, fn=1, tn=2)


def test_thousands_of_instances_are_counted_without_a_table_of_all_pairs() -> None:
    import tracemalloc

    values = np.arange(20_000, dtype=np.int32).reshape(20, 40, 25)
    shifted = values + (values == 5)
    tracemalloc.start()
    found = compute_overlaps(shifted, values, {"five": (5,), "six": (6,), "last": (19_999,)})
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert found["five"] == Overlap(0, 0, 1, 19_999)
    assert found["six"] == Overlap(1, 1, 0, 19_998)
    assert found["last"] == Overlap(1, 0, 0, 19_999)


def test_few_and_many_pairs_are_counted_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    truth, prediction = generator.integers(0, 9, (2, 6, 7, 8)).astype(np.uint8)
    classes = {"a": (1,), "b": (2, 3), "never": (12,)}
    whole = compute_overlaps(prediction, truth, classes, ignore_value=4)
    monkeypatch.setattr(metrics, "_DENSE_PAIRS", 0)
    monkeypatch.setattr(metrics, "_BLOCK_VOXELS", 10)
    assert compute_overlaps(prediction, truth, classes, ignore_value=4) == whole
