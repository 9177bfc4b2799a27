"""Parts that are taken away, by size and by class."""

from __future__ import annotations

import numpy as np
import pytest

from iris_cli.errors import UsageError
from iris_cli.inference.postprocess import AS_DECIDED, Cleaning, clean
from iris_cli.inference.statistics import Labels

NAMES = {1: "liver", 5: "node"}
SPACING = (10.0, 10.0, 5.0)  # half a millilitre for each voxel


def scene() -> Labels:
    """Of both classes parts of 6, 2 and 1 voxels."""
    labels = np.zeros((8, 9, 9), np.uint8)
    for value, x in ((1, 0), (5, 5)):
        labels[0, 0, x : x + 2] = value
        labels[3:5, 2:5, x] = value
        labels[7, 8, x] = value
    return labels


def sizes(labels: Labels, value: int) -> set[tuple[int, ...]]:
    return {tuple(index) for index in np.argwhere(labels == value)}


def test_of_a_named_class_the_largest_part_stays() -> None:
    labels = scene()
    removed = clean(labels, SPACING, NAMES, Cleaning(keep_largest=("liver",)))
    assert removed == {"liver": {"components": 2, "voxels": 3}}
    assert (labels == 1).sum() == 6
    assert (labels == 5).sum() == 9


def test_parts_below_a_volume_go_and_a_named_class_has_its_own() -> None:
    labels = scene()
    removed = clean(labels, SPACING, NAMES, Cleaning(min_volume_ml=((None, 0.6), ("node", 2.0))))
    assert removed == {
        "liver": {"components": 1, "voxels": 1},
        "node": {"components": 2, "voxels": 3},
    }
    labels = scene()
    assert clean(labels, SPACING, NAMES, Cleaning(min_volume_ml=(("node", 1.0),))) == {
        "node": {"components": 1, "voxels": 1}  # a part of just that volume stays
    }


def test_a_class_may_go_whole() -> None:
    labels = scene()
    both = Cleaning(keep_largest=("liver",), min_volume_ml=(("liver", 99.0),))
    assert clean(labels, SPACING, NAMES, both)["liver"]["voxels"] == 9
    assert not (labels == 1).any()


def test_of_equal_parts_the_first_stays() -> None:
    labels = np.zeros((3, 3, 3), np.uint8)
    labels[0, 0, 0] = labels[2, 2, 2] = 1
    clean(labels, SPACING, NAMES, Cleaning(keep_largest=("liver",)))
    assert sizes(labels, 1) == {(0, 0, 0)}


def test_nothing_is_taken_by_default_and_unknown_names_are_refused() -> None:
    labels = scene()
    assert clean(labels, SPACING, NAMES, AS_DECIDED) == {}
    assert np.array_equal(labels, scene())
    assert not AS_DECIDED
    assert AS_DECIDED.parameters() == {}
    for cleaning in (Cleaning(("lver",)), Cleaning(min_volume_ml=((None, 1.0), ("lver", 2.0)))):
        with pytest.raises(UsageError, match="no class 'lver'") as caught:
            cleaning.check(list(NAMES.values()))
        assert "'liver'" in str(caught.value.fix)
