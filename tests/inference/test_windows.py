"""Windows cover the volume, stand where the contract says, and weigh what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iris_cli.inference.windows import (
    Layout,
    axis_starts,
    common,
    gaussian_weight,
    seen_from,
    shape_of,
    window_starts,
)
from iris_cli.task.crops import Shape3


@pytest.mark.parametrize(
    ("length", "size", "expected"),
    [
        (96, 96, (0,)),
        (97, 96, (0, 1)),
        (144, 96, (0, 48)),
        (145, 96, (0, 48, 49)),
        (200, 96, (0, 48, 96, 104)),
        (90, 96, (-3,)),
        (1, 32, (-15,)),
    ],
)
def test_windows_step_half_a_patch_and_end_flush(
    length: int, size: int, expected: tuple[int, ...]
) -> None:
    assert axis_starts(length, size) == expected


@given(st.integers(1, 300), st.integers(1, 100))
def test_windows_cover_every_voxel_without_repeats(length: int, size: int) -> None:
    starts = axis_starts(length, size)
    assert list(starts) == sorted(set(starts))
    seen = np.zeros(length, bool)
    for start in starts:
        seen[max(0, start) : start + size] = True
    assert seen.all()
    if length >= size:
        assert starts[0] == 0
        assert starts[-1] == length - size


def test_windows_of_a_volume_are_the_product_of_its_axes() -> None:
    starts = window_starts((40, 32, 20), (32, 32, 32))
    assert starts == [(0, 0, -6), (8, 0, -6)]


SIZES = st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(1, 50))
WINDOW = (16, 8, 20)


@settings(max_examples=20, deadline=None)
@given(SIZES)
def test_every_voxel_is_in_one_cell_that_no_later_window_reaches(shape: Shape3) -> None:
    layout = Layout(shape, WINDOW)
    owner = np.full(shape, -1)
    cells = layout.cells()
    assert sorted(map(layout.start, cells)) == window_starts(shape, WINDOW)
    for number, cell in enumerate(cells):
        parts = zip(layout.needed(cell), cell, strict=True)
        own = tuple(slice(part.start + (i > 0), part.stop) for part, i in parts)
        assert (owner[own] == -1).all()
        owner[own] = number
    for number, cell in enumerate(cells):
        window = tuple(slice(max(0, part.start), part.stop) for part in layout.window(cell))
        assert (owner[window] >= number).all()


@settings(max_examples=10, deadline=None)
@given(SIZES)
def test_a_window_is_given_to_all_cells_that_need_it(shape: Shape3) -> None:
    layout = Layout(shape, WINDOW)
    for cell in layout.cells()[::5]:
        reached = dict(layout.reached(cell))
        for other in layout.cells():
            assert reached.get(other) == common(layout.window(cell), layout.needed(other)) or (
                min(b - a for a, b in zip(cell, other, strict=True)) < 0
            )


def test_layers_follow_each_other_along_the_longest_axis() -> None:
    cells = Layout((40, 70, 32), (32, 32, 32)).cells()
    assert cells[:3] == [(0, 0, 0), (1, 0, 0), (0, 1, 0)]
    assert Layout((40, 40, 40), (32, 32, 32)).cells()[1] == (0, 0, 1)


def test_what_waits_does_not_grow_with_the_length() -> None:
    short, long = (Layout((n, 64, 64), (32, 32, 32)).waiting() for n in (128, 1024))
    assert short == long
    assert long[0] < 10 * 32**3  # two layers have eighteen windows
    assert Layout((20, 20, 20), (32, 32, 32)).waiting() == (20**3, 20**3)


def test_boxes_meet_where_both_are() -> None:
    one = (slice(16, 48), slice(8, 40), slice(-6, 26))
    found = common(one, (slice(40, 60), slice(0, 40), slice(0, 40)))
    assert found == (slice(40, 48), slice(8, 40), slice(0, 26))
    assert seen_from((16, 8, -6), found) == (slice(24, 32), slice(0, 32), slice(6, 32))
    assert shape_of(found) == (8, 32, 26)
    assert common(one, (slice(48, 60), slice(0, 40), slice(0, 40))) is None


def test_the_weight_is_a_gaussian_of_an_eighth_of_the_patch_with_a_floor() -> None:
    weight = gaussian_weight((16, 8, 33))
    assert weight.shape == (16, 8, 33)
    assert weight.dtype == np.float32
    assert weight.max() == 1.0
    assert weight.min() == np.float32(1e-3)
    # One sigma (33 / 8 voxels, so 4 of them) from the middle along x.
    expected = math.exp(-0.5 * (4 / (33 / 8)) ** 2)
    assert weight[7, 3, 16 + 4] / weight[7, 3, 16] == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(weight, weight[::-1, ::-1, ::-1])
