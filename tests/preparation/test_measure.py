"""Sizes of classes on the native grid, by hand-computed boxes."""

import numpy as np
import pytest

from iris_cli.preparation.measure import count_and_box, measure_classes

SPACING = (5.0, 2.0, 0.5)


def two_boxes(one: int, two: int) -> np.ndarray:
    label = np.zeros((10, 20, 30), np.int64)
    label[1:4, 2:7, 3:13] = one
    label[8:9, 18:20, 0:1] = two
    return label


@pytest.mark.parametrize(("one", "two"), [(1, 2), (300, 7), (70000, 2**31 - 1), (5, -3)])
def test_volume_and_extent_of_classes_with_any_values(one: int, two: int) -> None:
    facts, extent = measure_classes(
        two_boxes(one, two), SPACING, {"one": (one,), "two": (two,), "gone": (99,)}
    )
    assert list(facts) == ["one", "two"]
    assert facts["one"].voxels == 150
    assert facts["one"].volume_mm3 == 150 * 5.0
    assert facts["one"].extent_mm == (15.0, 10.0, 5.0)
    assert facts["two"].extent_mm == (5.0, 4.0, 0.5)
    assert extent == 40.0  # slices 1 to 8 of 5 mm


def test_region_is_measured_as_a_whole() -> None:
    facts, _ = measure_classes(two_boxes(1, 2), SPACING, {"both": (1, 2)})
    assert facts["both"].voxels == 152
    assert facts["both"].extent_mm == (40.0, 36.0, 6.5)


def test_empty_label_map_has_no_extent() -> None:
    assert measure_classes(np.zeros((3, 3, 3), np.uint8), SPACING, {"a": (1,)}) == ({}, 0.0)


@pytest.mark.parametrize("two", [9, 70000])
def test_counts_include_background_and_boxes_do_not(two: int) -> None:
    counts, boxes = count_and_box(two_boxes(3, two))
    assert counts == {0: 6000 - 152, 3: 150, two: 2}
    assert set(boxes) == {3, two}
