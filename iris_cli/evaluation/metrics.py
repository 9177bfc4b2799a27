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
# More pairs than this (32 MB of counts) are counted by those that occur.
_DENSE_PAIRS = 1 << 22


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
    predicted_as: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Overlap]:
    """Overlap of every class.

    prediction, truth: (Z, Y, X) integers of one shape. classes: name -> its values, several for a
    region. ignore_value: voxels with this value in the truth count nowhere.
    predicted_as: the values in `prediction` of classes that have others there.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"shapes differ: {prediction.shape} and {truth.shape}")
    truth_values, predicted_values, counts = _count_pairs(truth, prediction)
    if ignore_value is not None:
        counts[truth_values == ignore_value] = 0
    total = int(counts.sum())
    result = {}
    for name, values in classes.items():
        in_truth = np.isin(truth_values, values)
        predicted = np.isin(predicted_values, (predicted_as or {}).get(name, values))
        tp = int(counts[in_truth & predicted].sum())
        fp = int(counts[predicted].sum()) - tp
        fn = int(counts[in_truth].sum()) - tp
        result[name] = Overlap(tp, fp, fn, total - tp - fp - fn)
    return result


def compute_metrics(prediction: Labels, truth: Labels) -> Overlap:
    """Overlap of two masks (bool, or numbers of which any but 0 belongs to the class)."""
    return compute_overlaps(prediction != 0, truth != 0, {"mask": (1,)})["mask"]


def _count_pairs(
    first: Labels, second: Labels
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pairs of values that occur at one voxel: of the first, of the second, and how often.

    Memory grows with the pairs that occur, not with the product of the numbers of values, so that
    label maps of thousands of instances can be compared.
    """
    first_values, second_values = _values(first), _values(second)
    size = len(first_values) * len(second_values)
    flat, other = first.reshape(-1), second.reshape(-1)
    dense = np.zeros(size if size <= _DENSE_PAIRS else 0, dtype=np.int64)
    codes, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for start in range(0, flat.size, _BLOCK_VOXELS):
        block = slice(start, start + _BLOCK_VOXELS)
        code = _index(flat[block], first_values) * len(second_values)
        code += _index(other[block], second_values)
        if dense.size:
            dense += np.bincount(code, minlength=dense.size)
        else:
            codes, counts = _merged(codes, counts, *np.unique(code, return_counts=True))
    if dense.size:
        codes = np.flatnonzero(dense)
        counts = dense[codes]
    rows, columns = np.divmod(codes, max(1, len(second_values)))
    return first_values[rows], second_values[columns], counts


def _merged(
    codes: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    more: npt.NDArray[np.int64],
    more_counts: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Two sparse histograms added up."""
    merged, index = np.unique(np.concatenate([codes, more]), return_inverse=True)
    total = np.zeros(merged.size, np.int64)
    np.add.at(total, index.reshape(-1), np.concatenate([counts, more_counts]))
    return merged, total


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
