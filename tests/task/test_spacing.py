"""The spacing rule, by hand-computed cases (CONTRACT.md, Spacing of a task)."""

from __future__ import annotations

import numpy as np
import pytest

from iris_cli.task.spacing import (
    ReferenceSize,
    measure_labels,
    spacing_of_references,
    task_spacing,
)


def test_hippocampus_is_worked_at_its_own_millimetre() -> None:
    # E / (0.6 * 96) = 45 / 57.6 = 0.78; cbrt(1600) / 6 = 11.696 / 6 = 1.95: below n, so n.
    choice = task_spacing(1.5, 96, 1.0, 45.0, 1600.0)
    assert choice.spacing_mm == 1.0
    assert "not finer than 1 mm" in choice.reason
    assert "45 mm" in choice.reason


def test_liver_stays_at_the_models_spacing() -> None:
    # 220 / 57.6 = 3.8; cbrt(1.5e6) / 6 = 114.5 / 6 = 19: nothing asks for less than 1.5.
    choice = task_spacing(1.5, 96, 0.75, 220.0, 1.5e6)
    assert choice.spacing_mm == 1.5
    assert choice.reason == "1.5 mm: the model's own 1.5 mm"


def test_a_small_class_beside_a_large_one_asks_for_a_finer_grid() -> None:
    # cbrt(216) / 6 = 1: six voxels across.
    choice = task_spacing(1.5, 96, 0.5, 220.0, 216.0)
    assert choice.spacing_mm == pytest.approx(1.0)
    assert "216 mm3" in choice.reason


def test_extent_decides_between_native_and_own_spacing() -> None:
    # 69.12 / 57.6 = 1.2; cbrt(1e5) / 6 = 7.7.
    choice = task_spacing(1.5, 96, 0.5, 69.12, 1e5)
    assert choice.spacing_mm == pytest.approx(1.2)
    assert "69.12 mm" in choice.reason


def test_coarse_data_are_not_worked_finer_than_they_are() -> None:
    choice = task_spacing(1.5, 96, 3.0, 30.0, 500.0)
    assert choice.spacing_mm == 3.0
    assert "not finer" in choice.reason


def test_mouse_brain_and_micrometre_data_are_worked_at_their_own_spacing() -> None:
    # Mouse: 12 / 57.6 = 0.208; cbrt(400) / 6 = 1.2.
    assert task_spacing(1.5, 96, 0.1, 12.0, 400.0).spacing_mm == pytest.approx(12 / 57.6)
    # Nuclei: cbrt(5e-7) / 6 = 0.0079 / 6 = 0.00132 > n = 0.0005.
    micro = task_spacing(1.5, 96, 0.0005, 0.2, 5e-7)
    assert micro.spacing_mm == pytest.approx(5e-7 ** (1 / 3) / 6)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_senseless_numbers_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite positive"):
        task_spacing(1.5, 96, bad, 45.0, 1600.0)


def test_measure_labels_gives_extent_and_volumes_in_millimetres() -> None:
    labels = np.zeros((10, 12, 14), np.uint8)
    labels[2:5, 3:7, 4:12] = 1  # 3 x 4 x 8
    labels[2, 3, 1] = 2
    size = measure_labels(labels, (3.0, 1.0, 0.5), {"a": (1,), "b": (2,), "c": (9,), "ab": (1, 2)})
    assert size.spacing_min_mm == 0.5
    assert size.extent_mm == 9.0  # z: 3 x 3 mm; x: 11 x 0.5 mm
    assert size.volumes_mm3 == {"a": 96 * 1.5, "b": 1.5, "ab": 97 * 1.5}


def test_medians_over_references_and_smallest_class_decide() -> None:
    sizes = [
        ReferenceSize(0.5, 60.0, {"a": 9000.0, "b": 1000.0}),
        ReferenceSize(1.0, 70.0, {"a": 8000.0}),
        ReferenceSize(0.8, 90.0, {"a": 7000.0, "b": 3000.0}),
        ReferenceSize(2.0, 0.0, {}),
    ]
    expected = task_spacing(1.5, 96, 0.5, 70.0, 2000.0)
    assert spacing_of_references(1.5, 96, sizes) == expected
    with pytest.raises(ValueError, match="no reference"):
        spacing_of_references(1.5, 96, sizes[3:])


def test_measure_labels_tells_which_classes_are_cut() -> None:
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[1:3, 1:4, 1:3] = 1
    labels[2, 2, 5] = 2
    classes = {"a": (1,), "b": (2,), "ab": (1, 2), "c": (3,)}
    assert measure_labels(labels, (1.0, 1.0, 1.0), classes).cut == {"b", "ab"}
    assert measure_labels(labels[2:3], (1.0, 1.0, 1.0), classes).cut == {"b", "ab"}
