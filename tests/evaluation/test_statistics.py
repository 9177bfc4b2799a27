"""Means and bootstrap intervals of tables with gaps."""

from __future__ import annotations

import numpy as np
import pytest

from iris_cli.evaluation.statistics import Interval, table_means

NAN = float("nan")


def test_headline_is_the_mean_of_class_means_not_of_all_numbers() -> None:
    table = np.array([[1.0, 0.0], [0.5, NAN], [0.0, NAN]])
    means = table_means(table, ["a", "b", "c"])
    assert means.columns[0].mean == 0.5
    assert means.columns[1].mean == 0.0
    assert means.headline.mean == 0.25


def test_a_class_without_any_number_is_left_out() -> None:
    means = table_means(np.array([[0.5, NAN], [0.7, NAN]]), ["a", "b"])
    assert means.columns[1] == Interval(None)
    assert means.headline.mean == pytest.approx(0.6)
    assert table_means(np.full((2, 1), NAN), ["a", "b"]).headline == Interval(None)


def test_the_interval_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.1, 400)
    interval = table_means(values[:, None], [str(i) for i in range(400)]).columns[0]
    half = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half, abs=0.002)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.002)


def test_cases_of_a_subject_are_drawn_together() -> None:
    values = np.repeat(np.random.default_rng(0).normal(0.8, 0.1, 20), 10)[:, None]
    apart = table_means(values, [str(i) for i in range(200)]).headline
    together = table_means(values, [str(i // 10) for i in range(200)]).headline
    assert apart.low is not None
    assert apart.high is not None
    assert together.low is not None
    assert together.high is not None
    assert together.high - together.low > 2.5 * (apart.high - apart.low)


def test_order_of_cases_changes_nothing_and_the_seed_decides() -> None:
    generator = np.random.default_rng(3)
    table = generator.random((12, 3))
    subjects = [f"s{i // 2}" for i in range(12)]
    order = generator.permutation(12)
    first = table_means(table, subjects)
    second = table_means(table[order], [subjects[i] for i in order])
    assert second.headline.low == pytest.approx(first.headline.low)
    assert second.headline.high == pytest.approx(first.headline.high)
    assert table_means(table, subjects) == first
    assert table_means(table, subjects, seed=1).headline.low != first.headline.low


def test_one_subject_gives_no_interval() -> None:
    means = table_means(np.array([[0.5], [0.7]]), ["a", "a"])
    assert means.headline == Interval(pytest.approx(0.6), None, None)
