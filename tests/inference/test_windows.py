"""Windows cover the volume, stand where the contract says, and weigh what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iris_cli.inference.windows import Layout, axis_starts, gaussian_weight, window_starts


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


def test_layers_are_windows_that_begin_together_along_the_longest_axis() -> None:
    layout = Layout.along_longest((40, 70, 32), (32, 32, 32))
    assert layout.axis == 1
    layers = layout.layers()
    assert [layer[0][1] for layer in layers] == [0, 16, 32, 38]
    assert layers[1] == [(0, 16, 0), (8, 16, 0)]
    every = [start for layer in layers for start in layer]
    assert sorted(every) == window_starts((40, 70, 32), (32, 32, 32))
    assert Layout.along_longest((40, 40, 40), (32, 32, 32)).axis == 0


def test_a_window_meets_rows_where_both_are() -> None:
    layout = Layout((70, 40, 20), (32, 32, 32), 0)
    inside, seen = layout.overlap((16, 8, -6), 40, 60) or ((), ())
    assert inside == (slice(0, 8), slice(8, 40), slice(0, 20))
    assert seen == (slice(24, 32), slice(0, 32), slice(6, 26))
    assert layout.overlap((16, 8, -6), 48, 60) is None
    assert layout.rows(40, 60) == (20, 40, 20)


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
