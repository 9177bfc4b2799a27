"""Profile iris-1: the numbers of CONTRACT, computed by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iris_cli.errors import DataRefused, UsageError
from iris_cli.preparation.profiles import (
    background_value,
    guess_modality,
    normalise,
    replace_nonfinite,
)


def volume_of(values: list[float], dtype: str = "float32") -> np.ndarray:
    return np.array(values, dtype=dtype).reshape(1, 1, -1)


def test_ct_is_clipped_and_scaled_by_fixed_numbers() -> None:
    hounsfield = volume_of([-3000, -1000, -100, 0, 200, 600, 3071])
    result = normalise(hounsfield, "ct")
    expected = [-3.0, -3.0, 0.0, 1 / 3, 1.0, 700 / 300, 700 / 300]
    np.testing.assert_allclose(result.array.ravel(), expected, rtol=1e-6)
    assert result.fill == -3.0
    assert result.array.dtype == np.float32


def test_ct_does_not_depend_on_the_field_of_view() -> None:
    hounsfield = np.random.default_rng(0).integers(-1024, 2000, (6, 7, 8))
    whole = normalise(hounsfield, "ct").array
    part = normalise(hounsfield[2:5, 1:6, 3:], "ct").array
    np.testing.assert_array_equal(whole[2:5, 1:6, 3:], part)


def test_other_without_background_uses_all_voxels() -> None:
    # 0..200: percentiles 0.5 and 99.5 of 201 equally spaced values are exactly 1 and 199.
    values = np.arange(201, dtype=np.float32).reshape(3, 67, 1)
    result = normalise(values, "other")
    clipped = np.clip(np.arange(201.0), 1, 199)
    assert result.statistics["low"] == pytest.approx(1.0)
    assert result.statistics["high"] == pytest.approx(199.0)
    assert "background" not in result.statistics
    expected = (clipped - clipped.mean()) / clipped.std()
    np.testing.assert_allclose(result.array.ravel(), expected, rtol=1e-5, atol=1e-6)
    assert result.fill == pytest.approx(expected[0], rel=1e-5)


def test_background_is_left_out_of_the_statistics() -> None:
    tissue = np.arange(1, 202, dtype=np.float32)
    with_air = np.concatenate([np.zeros(300, np.float32), tissue]).reshape(1, 3, 167)
    result = normalise(with_air, "other")
    assert result.statistics["background"] == 0.0
    assert result.statistics["low"] == pytest.approx(2.0)
    assert result.statistics["mean"] == pytest.approx(101.0)
    alone = normalise(tissue.reshape(1, 3, 67), "other")
    np.testing.assert_array_equal(result.array.ravel()[300:], alone.array.ravel())
    # Air is clipped to the 0.5 percentile of the tissue like everything else.
    assert result.array.ravel()[0] == result.fill == alone.fill


@pytest.mark.parametrize("count", [20, 21])
def test_background_needs_more_than_a_fifth(count: int) -> None:
    values = np.concatenate([np.full(count, 7.0), np.arange(100.0, 200.0 - count)])
    assert values.size == 100
    assert background_value(values) == (7.0 if count > 20 else None)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60))
def test_background_is_the_most_frequent_value_lowest_on_a_tie(values: list[int]) -> None:
    counts = {v: values.count(v) for v in values}
    best = min(counts, key=lambda v: (-counts[v], v))
    expected = best if counts[best] > 0.2 * len(values) else None
    assert background_value(np.array(values)) == expected


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["uint8", "int8", "uint16", "int16"]),
    st.lists(st.integers(-128, 127), min_size=1, max_size=80),
    st.integers(1, 250),
)
def test_values_that_are_counted_give_what_sorting_them_gives(
    name: str, values: list[int], step: int
) -> None:
    few = np.array(values) * (step if name.endswith("16") else 1) + (name[0] == "u") * 128 * step
    counted = few.astype(name).reshape(1, 1, -1)  # in 8 bits some wrap around: as good as any
    sorted_ = counted.astype(np.int32)
    ours, theirs = normalise(counted, "other"), normalise(sorted_, "other")
    assert ours.statistics == theirs.statistics
    np.testing.assert_array_equal(ours.array, theirs.array)


def test_background_may_be_any_value_and_any_type() -> None:
    assert background_value(np.array([-1024] * 4 + [3, 4, 5], dtype=np.int16)) == -1024
    assert background_value(np.array([0.5] * 4 + [3, 4, 5], dtype=np.float64)) == 0.5


def test_constant_volume_becomes_zero() -> None:
    result = normalise(np.full((2, 3, 4), 1e6, np.float32), "other")
    np.testing.assert_array_equal(result.array, 0)
    assert result.fill == 0.0


def test_scale_and_offset_of_the_scanner_change_nothing() -> None:
    rng = np.random.default_rng(1)
    values = rng.gamma(2.0, 50.0, (8, 9, 10)).astype(np.float32)
    values[:4] = 0
    first = normalise(values, "other").array
    second = normalise(values * 1000 + 0, "other").array
    np.testing.assert_allclose(first, second, atol=1e-4)


def test_nonfinite_voxels_become_the_smallest_finite_value_and_are_counted() -> None:
    values = np.arange(400, dtype=np.float32).reshape(4, 10, 10)
    values[0, 0, 5], values[1, 0, 0], values[3, 9, 9] = np.nan, np.inf, -np.inf
    replaced, count = replace_nonfinite(values)
    assert count == 3
    assert replaced[0, 0, 5] == replaced[1, 0, 0] == replaced[3, 9, 9] == 0.0
    assert normalise(values, "other").nonfinite == 3


def test_more_than_one_percent_nonfinite_is_refused_with_the_numbers() -> None:
    values = np.zeros((10, 10, 2), np.float32)
    values[:3, 0, 0] = np.nan
    with pytest.raises(DataRefused, match="3 of 200"):
        normalise(values, "other")
    values[2, 0, 0] = 0
    assert normalise(values, "other").nonfinite == 2


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-1000, 700, "ct"), (-201, 301, "ct"), (-200, 700, "other"), (-1000, 300, "other"),
     (0, 4000, "other")],
)  # fmt: skip
def test_modality_is_guessed_by_air_and_bone(low: int, high: int, expected: str) -> None:
    values = np.zeros((1, 10, 100), np.int16)
    values[0, 0, :20] = low
    values[0, 1, :20] = high
    assert guess_modality(values) == expected


def test_unknown_modality_is_refused() -> None:
    with pytest.raises(UsageError, match="mri"):
        normalise(np.zeros((2, 2, 2)), "mri")
