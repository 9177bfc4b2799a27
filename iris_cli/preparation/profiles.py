"""Profiles: how voxel values become network input. A model is bound to one profile by name.

A profile is a recipe in three rooms, looked up by that name: voxels here (`iris-1`) and in `mass`
(`mass-1`), where references are looked at (`task.encoding.RECIPES`), and from a query to labels
(`inference.case.RECIPES`). docs/models.md compares them step by step.

`iris-1` (CONTRACT): statistics come from the whole volume on its native grid, before any crop or
resampling, for references and queries alike.

    ct      clip to [-1000, 600] HU, then (x + 100) / 300
    other   MR, PET, microscopy: a value that fills more than 20 % of the volume is background and
            left out of the statistics; clip to the 0.5 and 99.5 percentiles of the rest; subtract
            the mean and divide by the standard deviation of the (clipped) rest

Values that are not finite become the smallest finite one, are counted, and are refused above 1 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from iris_cli.errors import DataRefused, UsageError

Modality = Literal["ct", "other"]
PROFILE = "iris-1"
MODALITIES: tuple[Modality, ...] = ("ct", "other")

CT_RANGE_HU = (-1000.0, 600.0)
CT_CENTRE_HU = -100.0
CT_SCALE_HU = 300.0

CT_GUESS_LOW_HU = -200.0  # air or lung somewhere
CT_GUESS_HIGH_HU = 300.0  # bone somewhere

BACKGROUND_SHARE = 0.2
PERCENTILES = (0.5, 99.5)
SMALLEST_DEVIATION = 1e-6
NONFINITE_LIMIT = 0.01

_BLOCK = 1 << 20

# Distinct values, rising, and how often each is there.
_Counts = tuple[npt.NDArray[Any], npt.NDArray[np.intp]]


@dataclass(frozen=True)
class Normalised:
    """A normalised volume: float32 (z, y, x), its smallest value, and how it was made."""

    array: npt.NDArray[np.float32]
    fill: float
    statistics: dict[str, float]
    nonfinite: int


def guess_modality(array: npt.NDArray[Any]) -> Modality:
    """`ct` where the 0.5 percentile is below -200 and the 99.5 one above 300, else `other`."""
    values, _ = replace_nonfinite(array)
    low, high = np.percentile(values, PERCENTILES)
    return "ct" if low < CT_GUESS_LOW_HU and high > CT_GUESS_HIGH_HU else "other"


@dataclass(frozen=True)
class Normalisation:
    """How the voxels of one volume become network input: known from all of them, done to any part.

    values: the whole volume (z, y, x), every value finite. function: any part of it to float32,
    voxel by voxel. fill: the smallest normalised value. nonfinite: voxels that were replaced.
    """

    values: npt.NDArray[Any]
    function: Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]
    fill: float
    statistics: dict[str, float]
    nonfinite: int

    def planes(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """The normalised planes start..stop (z)."""
        native = self.values[start:stop]
        result = np.empty(native.shape, np.float32)
        for plane, target in zip(native, result, strict=True):
            target[...] = self.function(plane)  # in float64 on the way
        return result


def normalise(array: npt.NDArray[Any], modality: str, *, file: Path | None = None) -> Normalised:
    """Normalise a whole native volume by profile iris-1; parameters and errors as below."""
    fitted = fit_normalisation(array, modality, file=file)
    whole = fitted.planes(0, len(array))
    return Normalised(whole, fitted.fill, fitted.statistics, fitted.nonfinite)


def fit_normalisation(
    array: npt.NDArray[Any], modality: str, *, file: Path | None = None
) -> Normalisation:
    """The normalisation of a whole native volume by profile iris-1.

    array: (z, y, x), any real type. file: named in the refusal.
    raises DataRefused above 1 % of values that are not finite, UsageError for another modality.
    """
    if modality not in MODALITIES:
        raise UsageError(
            f"profile {PROFILE} knows no modality {modality!r}",
            file=file,
            expected=" or ".join(MODALITIES),
        )
    values, nonfinite = replace_nonfinite(array, file=file)
    function, statistics = (_ct, {}) if modality == "ct" else _other(values)
    # Clipping and scaling keep the order of values.
    fill = float(function(values.min(keepdims=True))[0, 0, 0])
    return Normalisation(values, function, fill, statistics, nonfinite)


def replace_nonfinite(
    array: npt.NDArray[Any], *, file: Path | None = None
) -> tuple[npt.NDArray[Any], int]:
    """The array with NaN and infinities set to its smallest finite value, and their number."""
    if not np.issubdtype(array.dtype, np.floating):
        return array, 0
    finite = np.isfinite(array)
    nonfinite = int(array.size - np.count_nonzero(finite))
    if nonfinite == 0:
        return array, 0
    if nonfinite > NONFINITE_LIMIT * array.size:
        raise DataRefused(
            "too many voxels are NaN or infinite",
            file=file,
            found=f"{nonfinite} of {array.size} voxels ({100 * nonfinite / array.size:.2f} %)",
            expected=f"at most {100 * NONFINITE_LIMIT:g} %",
            fix="repair the image, or leave the case out",
        )
    return np.where(finite, array, array[finite].min()), nonfinite


def _ct(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    result = values.astype(np.float32)
    np.clip(result, *CT_RANGE_HU, out=result)
    result -= np.float32(CT_CENTRE_HU)
    result /= np.float32(CT_SCALE_HU)
    return result


def _other(
    values: npt.NDArray[Any],
) -> tuple[Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]], dict[str, float]]:
    statistics: dict[str, float] = {}
    counted = _counted(values)
    background = _prevailing(counted or _candidates(values), values.size)
    if background is not None:
        statistics["background"] = float(background)
        if bool((values == background).all()):
            background = None  # nothing else is there, so there is no rest to leave it out of
    if counted is None:
        found = _percentiles(values.reshape(-1), background)
    else:
        found = _counted_percentiles(counted, background)
    low, high = (float(p) for p in found)
    mean, deviation = _moments(values.reshape(-1), background, low, high)
    deviation = max(deviation, SMALLEST_DEVIATION)
    statistics |= {"low": low, "high": high, "mean": mean, "deviation": deviation}
    return partial(_standardised, low=low, high=high, mean=mean, deviation=deviation), statistics


def _standardised(
    values: npt.NDArray[Any], *, low: float, high: float, mean: float, deviation: float
) -> npt.NDArray[np.float32]:
    exact = np.clip(values.astype(np.float64), low, high)
    exact -= mean
    exact /= deviation
    return exact.astype(np.float32)


def _blocks(flat: npt.NDArray[Any], background: float | None) -> Iterator[npt.NDArray[Any]]:
    """The values that are not background, in blocks of a fixed order."""
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        yield block if background is None else block[block != background]


def _percentiles(flat: npt.NDArray[Any], background: float | None) -> npt.NDArray[Any]:
    """Percentiles of the rest, which is copied once: NumPy would copy it again to sort it."""
    rest = np.empty(sum(block.size for block in _blocks(flat, background)), flat.dtype)
    start = 0
    for block in _blocks(flat, background):
        rest[start : start + block.size] = block
        start += block.size
    found: npt.NDArray[Any] = np.percentile(rest, PERCENTILES, overwrite_input=True)
    return found


def _moments(
    flat: npt.NDArray[Any], background: float | None, low: float, high: float
) -> tuple[float, float]:
    """Mean and standard deviation of the clipped rest, in float64.

    A whole copy in float64 would be four times the volume.
    """

    def clipped() -> Iterator[npt.NDArray[np.float64]]:
        for block in _blocks(flat, background):
            yield np.clip(block.astype(np.float64), low, high)

    size = sum(block.size for block in _blocks(flat, background))
    mean = math.fsum(float(block.sum()) for block in clipped()) / size
    squares = math.fsum(float(np.square(block - mean).sum()) for block in clipped())
    return mean, math.sqrt(squares / size)


def is_counted(dtype: np.dtype[Any]) -> bool:
    """Whether values of this type are counted one by one, for which no copy of them is made."""
    return dtype.kind in "iu" and dtype.itemsize <= 2 and dtype.isnative


def _counted(values: npt.NDArray[Any]) -> _Counts | None:
    """All values there are; None for types with too many of them."""
    if not is_counted(values.dtype):
        return None
    size = 1 << 8 * values.dtype.itemsize
    flat = values.reshape(-1).view(f"u{values.dtype.itemsize}")
    table = np.zeros(size, np.intp)
    for block in _blocks(flat, None):
        table += np.bincount(block, minlength=size)
    lowest = int(np.iinfo(values.dtype).min)
    table = np.roll(table, -lowest)  # negative values are stored behind the positive ones
    found = np.flatnonzero(table)
    return found + lowest, table[found]


def _counted_percentiles(counted: _Counts, background: float | None) -> npt.NDArray[Any]:
    """As `_percentiles`, and as NumPy interpolates, bit for bit."""
    values, counts = counted
    if background is not None:
        values, counts = values[values != background], counts[values != background]
    ends = np.cumsum(counts)
    at = np.true_divide(PERCENTILES, 100) * (ends[-1] - 1)
    below = np.floor(at).astype(np.intp)
    share = at - below
    low = values[np.searchsorted(ends, below, side="right")]
    high = values[np.searchsorted(ends, np.minimum(below + 1, ends[-1] - 1), side="right")]
    step = high - low
    found: npt.NDArray[Any] = np.where(share >= 0.5, high - step * (1 - share), low + step * share)
    return found


def background_value(values: npt.NDArray[Any]) -> float | None:
    """The value that fills more than 20 % of the volume (the most frequent, lowest on a tie)."""
    return _prevailing(_counted(values) or _candidates(values), values.size)


def _prevailing(found: _Counts, size: int) -> float | None:
    values, counts = found
    best = int(np.argmax(counts))
    return float(values[best]) if counts[best] > BACKGROUND_SHARE * size else None


def _candidates(values: npt.NDArray[Any]) -> _Counts:
    """The only values that can fill more than 20 % of a volume.

    In sorted order such a value covers one of the four inner fifths' borders: no sort, no
    histogram, exact for any type.
    """
    flat = values.reshape(-1)
    borders = [k * flat.size // 5 for k in range(1, 5)]
    candidates = np.unique(np.partition(flat, borders)[borders])
    counts = np.array([np.count_nonzero(flat == c) for c in candidates], np.intp)
    return candidates, counts
