"""Overlap of two label maps per class, all classes from one pass over the voxels.

The pass counts how often each pair (value in the truth, value in the prediction) occurs; every
overlap measure of every class, regions included, is a sum of such counts. No one-hot array exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Labels = np.ndarray[Any, np.dtype[Any]]

# Values below this are their own index; larger ones are looked up in a sorted table.
_DIRECT_VALUES = 1024
_BLOCK_VOXELS = 1 << 22


@dataclass(frozen=True)
class Overlap:
    """Voxels of one class: in both label maps (tp), in one of them (fp, fn), in none (tn)."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def n_pred(self) -> int:
        return self.tp + self.fp

    @property
    def n_ref(self) -> int:
        return self.tp + self.fn

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN), in [0, 1]; nan where neither label map has the class."""
        either = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / either if either else math.nan

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN), in [0, 1]; nan where neither label map has the class."""
        either = self.tp + self.fp + self.fn
        return self.tp / either if either else math.nan


# Name in summaries -> value of an overlap. The names and their meaning are nnU-Net's.
METRICS: Mapping[str, Callable[[Overlap], float]] = {
    "Dice": lambda overlap: overlap.dice,
    "IoU": lambda overlap: overlap.iou,
    "FP": lambda overlap: overlap.fp,
    "TP": lambda overlap: overlap.tp,
    "FN": lambda overlap: overlap.fn,
    "TN": lambda overlap: overlap.tn,
    "n_pred": lambda overlap: overlap.n_pred,
    "n_ref": lambda overlap: overlap.n_ref,
}


def compute_overlaps(
    prediction: Labels,
    truth: Labels,
    classes: Mapping[str, Sequence[int]],
    *,
    ignore_value: int | None = None,
) -> dict[str, Overlap]:
    """Overlap of every class.

    prediction, truth: (Z, Y, X) integers of one shape. classes: name -> its values, several for a
    region. ignore_value: voxels with this value in the truth count nowhere.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"shapes differ: {prediction.shape} and {truth.shape}")
    truth_values, predicted_values, pairs = _count_pairs(truth, prediction)
    if ignore_value is not None:
        pairs[truth_values == ignore_value] = 0
    total = int(pairs.sum())
    result = {}
    for name, values in classes.items():
        rows = np.isin(truth_values, values)
        columns = np.isin(predicted_values, values)
        tp = int(pairs[np.ix_(rows, columns)].sum())
        fp = int(pairs[:, columns].sum()) - tp
        fn = int(pairs[rows].sum()) - tp
        result[name] = Overlap(tp, fp, fn, total - tp - fp - fn)
    return result


def compute_metrics(prediction: Labels, truth: Labels) -> Overlap:
    """Overlap of two masks (bool, or numbers of which any but 0 belongs to the class)."""
    return compute_overlaps(prediction != 0, truth != 0, {"mask": (1,)})["mask"]


def _count_pairs(
    first: Labels, second: Labels
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Values of both arrays and (values of first, values of second) counts of their pairs."""
    first_values, second_values = _values(first), _values(second)
    shape = (len(first_values), len(second_values))
    counts = np.zeros(shape[0] * shape[1], dtype=np.int64)
    flat, other = first.reshape(-1), second.reshape(-1)
    for start in range(0, flat.size, _BLOCK_VOXELS):
        block = slice(start, start + _BLOCK_VOXELS)
        code = _index(flat[block], first_values) * shape[1] + _index(other[block], second_values)
        counts += np.bincount(code, minlength=counts.size)
    return first_values, second_values, counts.reshape(shape)


def _values(labels: Labels) -> npt.NDArray[np.int64]:
    """Values that may occur: all up to the largest where that is small, else those that do."""
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if low >= 0 and high < _DIRECT_VALUES:
        return np.arange(high + 1, dtype=np.int64)
    return np.unique(labels).astype(np.int64)


def _index(block: Labels, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    if len(values) and values[0] == 0 and values[-1] == len(values) - 1:
        return block.astype(np.int64)
    return np.searchsorted(values, block).astype(np.int64)
