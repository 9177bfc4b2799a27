from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iris_cli.training.catalogue import read_catalogue
from iris_cli.training.looks import number_labels, read_image, read_labels
from iris_cli.training.views import View
from tests.training.stores import FILL, SHAPE, balls


@given(
    seed=st.integers(0, 1000),
    dtype=st.sampled_from(["uint8", "uint16", "int16", "int32"]),
    columns=st.lists(st.lists(st.integers(1, 30), max_size=3), min_size=1, max_size=6),
)
def test_numbers_and_table_tell_the_masks_of_the_label_map(
    seed: int, dtype: str, columns: list[list[int]]
) -> None:
    label = np.random.default_rng(seed).integers(0, 20, (4, 5, 6)).astype(dtype)
    if not any(columns):
        return
    numbers, table = number_labels(label, columns)
    assert not table[0].any()
    for k, values in enumerate(columns):
        np.testing.assert_array_equal(table[numbers.numpy(), k], np.isin(label, values))


def test_values_that_nobody_asks_for_are_background() -> None:
    label = np.array([[[0, 1, 2, 77]]], np.uint8)
    numbers, _ = number_labels(label, [(1,), (1, 2)])
    assert numbers.ravel().tolist()[0] == numbers.ravel().tolist()[3] == 0


@pytest.mark.parametrize(("scale", "step"), [(1.0, 1.0), (2.0, 2.0)])
def test_only_a_region_is_read_and_halved_where_the_view_is_coarse(
    tmp_path: Path, scale: float, step: float
) -> None:
    case = read_catalogue([balls(tmp_path)]).sets[0].cases[0]
    view = View(np.array([13.0, 15.0, 20.0]), np.eye(3) * scale)
    image, frame = read_image(case, view, 8)
    labels, label_frame, table = read_labels(case, view, 8, [(1,), (1, 2)])
    assert frame.step == step
    assert label_frame.step == 1
    assert all(a < b for a, b in zip(labels.shape, SHAPE, strict=True))
    assert image.numel() <= labels.numel()
    assert table.shape[1] == 3


def test_a_view_beside_the_volume_is_all_fill(tmp_path: Path) -> None:
    case = read_catalogue([balls(tmp_path)]).sets[0].cases[0]
    view = View(np.full(3, 500.0), np.eye(3))
    assert read_image(case, view, 8)[0].unique().tolist() == [FILL]
    labels, _, table = read_labels(case, view, 8, [(1,)])
    assert not table[labels.numpy()].any()
