"""Means with their bootstrap intervals, over tables (cases, classes) that may have gaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SAMPLES = 2000
CONFIDENCE = 0.95

Table = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean and the bounds of its bootstrap interval; None where there is nothing to say."""

    mean: float | None
    low: float | None = None
    high: float | None = None

    def to_json(self) -> dict[str, float | None]:
        return {"mean": self.mean, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class TableMeans:
    """Mean of every column over rows, and the mean of these means (the headline)."""

    columns: tuple[Interval, ...]
    headline: Interval


def table_means(
    table: Table, subjects: Sequence[str], *, seed: int = 0, samples: int = SAMPLES
) -> TableMeans:
    """Column means and headline with 95 % percentile bootstrap intervals over subjects.

    table: (cases, classes), nan where a class is not scored in a case. subjects: one per case;
        all cases of a subject are drawn together.
    A column without a number has no mean and does not enter the headline; a bootstrap sample that
    misses a column leaves it out likewise. Fewer than two subjects give no interval.
    """
    if table.ndim != 2 or table.shape[0] != len(subjects):
        raise ValueError(f"{table.shape} table for {len(subjects)} subjects")
    ones = np.ones((1, len(subjects)))
    columns, headline = _weighted_means(table, ones)
    drawn_columns, drawn_headline = _weighted_means(table, _draws(subjects, seed, samples))
    several = len(set(subjects)) > 1
    return TableMeans(
        tuple(
            _interval(columns[0, i], drawn_columns[:, i], several) for i in range(table.shape[1])
        ),
        _interval(headline[0], drawn_headline, several),
    )


def _draws(subjects: Sequence[str], seed: int, samples: int) -> Table:
    """(samples, cases): how often each case is drawn. Subjects are numbered by name, so that the
    order of the cases does not change the result."""
    names, index = np.unique(np.asarray(subjects, dtype=object).astype(str), return_inverse=True)
    drawn = np.random.default_rng(seed).integers(0, len(names), (samples, len(names)))
    offset = drawn + np.arange(samples)[:, None] * len(names)
    counts = np.bincount(offset.ravel(), minlength=samples * len(names))
    return counts.reshape(samples, len(names))[:, index].astype(np.float64)


def _weighted_means(table: Table, weights: Table) -> tuple[Table, Table]:
    """Column means (rows of weights, classes) and their means, nan where nothing was drawn."""
    known = ~np.isnan(table)
    total = weights @ known
    sums = weights @ np.where(known, table, 0.0)
    means = np.divide(sums, total, out=np.full_like(sums, np.nan), where=total > 0)
    seen = ~np.isnan(means)
    count = seen.sum(axis=1)
    headline = np.divide(
        np.where(seen, means, 0.0).sum(axis=1),
        count,
        out=np.full(len(means), np.nan),
        where=count > 0,
    )
    return means, headline


def _interval(mean: float, drawn: Table, several: bool) -> Interval:
    if np.isnan(mean):
        return Interval(None)
    usable = drawn[~np.isnan(drawn)]
    if not several or usable.size == 0:
        return Interval(float(mean))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(usable, [tail, 100 - tail])
    return Interval(float(mean), float(low), float(high))
