"""Where the encoder looks at a reference: crops of the model's patch over the voxels of classes.

The same function serves `iris encode-task` and training. Positions are voxels `(z, y, x)` of the
working grid; `start` is the first voxel of a crop and is negative only on an axis where the volume
is smaller than the patch (the volume then lies centred in the crop). Nothing here depends on names
or on the order of the classes: swapping two classes swaps their crops.

Rules (CONTRACT.md, References to tokens): up to `max_crops` crops per class, chosen greedily to
cover the most voxels not yet covered, each filled by the class to at most `FILL_MAX` where that is
possible (an all-ones mask encodes as nothing), inside the volume before padding; classes that fit
one crop share it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

Shape3 = tuple[int, int, int]
Points = npt.NDArray[np.int64]
Array = np.ndarray[Any, np.dtype[Any]]

FILL_MAX = 0.6
MAX_CROPS = 4
# Candidate starts lie on a grid of patch / CANDIDATES voxels: finer ones cover a few voxels more
# and cost eight times as much with every halving.
CANDIDATES = 8
# Crops are chosen by at most this many voxels of a class; what they show is counted on all of them.
SAMPLE = 50_000
# A sample misjudges how far a class fills a crop by less than this part.
SAMPLE_MARGIN = 0.02
# A further crop costs one encoder pass: it has to show at least this part of its class.
GAIN_MIN = 0.01
# A crop that is there already is taken if it shows nearly as much as the best new one.
SHARE_MIN = 0.9


@dataclass(frozen=True)
class Crop:
    """One crop of the patch: its first voxel and how many voxels of which class it shows."""

    start_zyx: Shape3
    voxels: Mapping[str, int]

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that are encoded in this crop."""
        return tuple(self.voxels)


@dataclass(frozen=True)
class CropPlan:
    """The crops of one reference and, per class, the part of its voxels that some crop shows."""

    crops: tuple[Crop, ...]
    coverage: Mapping[str, float]

    def of(self, name: str) -> tuple[Crop, ...]:
        """The crops in which one class is encoded."""
        return tuple(crop for crop in self.crops if name in crop.voxels)


def choose_crops(
    masks: Mapping[str, Array], patch: Shape3, *, max_crops: int = MAX_CROPS
) -> CropPlan:
    """Crops for the classes of one reference given as masks.

    masks: class name -> (Z, Y, X), a voxel belongs to the class where the value is above 0; all
        of one shape. A class without a voxel gets no crop and a coverage of 0.
    patch: edges (z, y, x) in voxels.
    """
    if not masks:
        return CropPlan((), {})
    shapes = {name: mask.shape for name, mask in masks.items()}
    shape = next(iter(shapes.values()))
    if len(shape) != 3 or any(other != shape for other in shapes.values()):
        raise ValueError(f"masks of one reference must be (Z, Y, X) of one shape, got {shapes}")
    points = {name: np.argwhere(mask > 0).astype(np.int64) for name, mask in masks.items()}
    return choose_crops_of_points(
        points, (shape[0], shape[1], shape[2]), patch, max_crops=max_crops
    )


def choose_crops_of_points(
    points: Mapping[str, Points],
    shape_zyx: Shape3,
    patch: Shape3,
    *,
    voxels: Mapping[str, int] | None = None,
    wanted: Collection[str] | None = None,
    max_crops: int = MAX_CROPS,
) -> CropPlan:
    """As `choose_crops`, from voxel positions instead of masks.

    points: class name -> (n, 3) positions (z, y, x). They may be a sample of the class; `voxels`
        then gives its true number of voxels, by which how far it fills a crop is estimated.
    wanted: the classes that the plan is to hold, with the crops that it would give them among all
        classes; None: all. Fewer are found sooner.
    """
    totals = dict.fromkeys(points, 0) | {name: len(found) for name, found in points.items()}
    if voxels is not None:
        totals |= dict(voxels)
    found = [
        _Class(name, points[name], totals[name] / len(points[name]), shape_zyx, patch)
        for name in points
        if len(points[name])
    ]
    found.sort(key=lambda item: item.geometry_key)
    starts: list[Shape3] = _shared_starts([item for item in found if item.fits])
    chosen = {item.name: [_covering(item, starts)] for item in found if item.fits}
    names = set(points if wanted is None else wanted)
    # A class shares the crops of those before it; those after it do not concern it.
    last = max((i for i, item in enumerate(found) if item.name in names), default=-1)
    for item in found[: last + 1]:
        if not item.fits:
            chosen[item.name] = _greedy_starts(item, starts, max_crops)
    return _plan(
        {name: points[name] for name in points if name in names},
        totals,
        patch,
        {name: found_starts for name, found_starts in chosen.items() if name in names},
    )


def class_points(labels: Array, classes: Mapping[str, Sequence[int]]) -> dict[str, Points]:
    """Voxel positions (n, 3) of every class of a label map, in one pass over the volume.

    labels: (Z, Y, X) integers. classes: name -> its values (several for a region).
    """
    flat = labels.ravel()
    where = np.flatnonzero(flat)
    order = np.argsort(flat[where], kind="stable")
    values = flat[where][order]
    result: dict[str, Points] = {}
    for name, wanted in classes.items():
        parts = []
        for value in sorted(set(wanted)):
            first, last = np.searchsorted(values, [value, value + 1])
            parts.append(where[order[first:last]])
        index = np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.int64)
        result[name] = np.stack(np.unravel_index(index, labels.shape), axis=1).astype(np.int64)
    return result


def cut(array: Array, start_zyx: Sequence[int], patch: Sequence[int], fill: float) -> Array:
    """The crop of `patch` voxels from `start_zyx` on, padded with `fill` outside the array.

    array: (..., Z, Y, X); leading axes are kept. returns: a new C-contiguous array of its dtype.
    """
    result = np.full((*array.shape[:-3], *patch), fill, dtype=array.dtype)
    source: list[slice] = []
    target: list[slice] = []
    for first, size, length in zip(start_zyx, patch, array.shape[-3:], strict=True):
        low, high = max(first, 0), min(first + size, length)
        if low >= high:
            return result
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    zs, ys, xs = source
    zt, yt, xt = target
    result[..., zt, yt, xt] = array[..., zs, ys, xs]
    return result


def start_range(length: int, size: int) -> tuple[int, int]:
    """First and last start of a crop of `size` voxels on an axis of `length` voxels."""
    if length >= size:
        return 0, length - size
    centred = -((size - length) // 2)
    return centred, centred


class _Class:
    """One class while its crops are chosen."""

    def __init__(
        self, name: str, points: Points, weight: float, shape: Shape3, patch: Shape3
    ) -> None:
        self.name = name
        self.points = _sample(points)
        self.weight = weight * len(points) / len(self.points)
        self.patch = np.asarray(patch, np.int64)
        self.first = points.min(axis=0)
        self.last = points.max(axis=0)
        ranges = np.asarray([start_range(n, p) for n, p in zip(shape, patch, strict=True)])
        self.low, self.high = ranges[:, 0], ranges[:, 1]
        margin = SAMPLE_MARGIN if len(self.points) < len(points) else 0.0
        self.limit = FILL_MAX * math.prod(patch) * (1 - margin)
        fits = bool(np.all(self.last - self.first < self.patch))
        self.fits = fits and len(points) * weight <= self.limit
        self.voxels = len(points)

    @property
    def geometry_key(self) -> tuple[Any, ...]:
        """Order of treatment: widest first, by position only, never by name."""
        widest = int(np.prod(self.last - self.first + 1))
        return (-widest, -self.voxels, *self.first.tolist(), *self.last.tolist())

    def interval(self) -> tuple[Points, Points]:
        """Lowest and highest start (z, y, x) of the crops that hold the whole class."""
        return np.maximum(self.last - self.patch + 1, self.low), np.minimum(self.first, self.high)

    def candidates(self) -> list[Points]:
        """Starts (z, y, x) to choose from: those that show any of it at all."""
        sides = zip(self.low, self.high, self.patch, self.first, self.last, strict=True)
        result = []
        for low, high, size, first, last in sides:
            starts = _candidates(int(low), int(high), int(size))
            result.append(starts[(starts > first - size) & (starts <= last)])
        return result

    def inside(self, start: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Which of the points the crop at `start` shows."""
        return _inside(self.points, start, self.patch)

    def fill_allowed(self, shown: int) -> bool:
        return shown * self.weight <= self.limit


def _inside(points: Points, start: Sequence[int], patch: Points) -> npt.NDArray[np.bool_]:
    result = np.ones(len(points), dtype=bool)
    for axis in range(3):
        result &= (points[:, axis] >= start[axis]) & (points[:, axis] < start[axis] + patch[axis])
    return result


def _sample(points: Points) -> Points:
    if len(points) <= SAMPLE:
        return points
    # Drawn, not every n-th: those would lie in planes.
    drawn = np.random.default_rng(0).choice(len(points), SAMPLE, replace=False)
    return points[np.sort(drawn)]


def _shared_starts(classes: Sequence[_Class]) -> list[Shape3]:
    """One start per group of classes that fit one crop together, first group that takes them."""
    groups: list[dict[str, Points]] = []
    for item in classes:
        low, high = item.interval()
        for group in groups:
            joint_low = np.maximum(group["low"], low)
            joint_high = np.minimum(group["high"], high)
            if np.all(joint_low <= joint_high):
                group["low"], group["high"] = joint_low, joint_high
                group["first"] = np.minimum(group["first"], item.first)
                group["last"] = np.maximum(group["last"], item.last)
                break
        else:
            groups.append({"low": low, "high": high, "first": item.first, "last": item.last})
    starts = []
    for group in groups:
        patch = classes[0].patch
        centred = (group["first"] + group["last"] + 1 - patch) // 2
        starts.append(_shape3(np.clip(centred, group["low"], group["high"])))
    return starts


def _covering(item: _Class, starts: Sequence[Shape3]) -> Shape3:
    low, high = item.interval()
    for start in starts:
        if np.all(low <= start) and np.all(start <= high):
            return start
    raise AssertionError(f"no shared crop holds {item.name}")


def _greedy_starts(item: _Class, starts: list[Shape3], max_crops: int) -> list[Shape3]:
    """Starts for a class that does not fit one crop; new ones are appended to `starts`."""
    axes = item.candidates()
    shown = _box_sums(item.points, axes, item.patch)
    open_points = np.ones(len(item.points), dtype=bool)
    chosen: list[Shape3] = []
    while len(chosen) < max_crops and open_points.any():
        gains = _box_sums(item.points[open_points], axes, item.patch) if chosen else shown
        start = _best_start(item, axes, shown * item.weight, gains)
        gain = int((item.inside(start) & open_points).sum())
        for other in starts:
            inside = item.inside(other)
            shared_gain = int((inside & open_points).sum())
            if shared_gain >= SHARE_MIN * gain and item.fill_allowed(int(inside.sum())):
                start, gain = other, shared_gain
                break
        if gain < (GAIN_MIN * len(item.points) if chosen else 1):
            break
        chosen.append(start)
        if start not in starts:
            starts.append(start)
        open_points &= ~item.inside(start)
    return chosen


def _best_start(
    item: _Class,
    axes: Sequence[Points],
    filled: npt.NDArray[np.floating[Any]],
    gains: npt.NDArray[np.int64],
) -> Shape3:
    """The candidate that shows most open voxels among those filled at most to FILL_MAX.

    Where every crop is filled further, the one that is filled least.
    axes: the candidates (z, y, x). filled, gains: their voxels of the class, and open points.
    """
    allowed = (filled <= item.limit) & (gains > 0)
    if allowed.any():
        best = int(np.where(allowed, gains, -1).argmax())
    else:
        best = int(np.where(gains > 0, filled, np.inf).argmin())
    index = np.unravel_index(best, gains.shape)
    start = _shape3([axis[i] for axis, i in zip(axes, index, strict=True)])
    return _recentred(item, start, bool(allowed.any()))


def _recentred(item: _Class, start: Shape3, allowed: bool) -> Shape3:
    """The crop moved so that what it shows lies in its middle, where that breaks no rule."""
    seen = item.points[item.inside(start)]
    centred = (seen.min(axis=0) + seen.max(axis=0) + 1 - item.patch) // 2
    moved = _shape3(np.clip(centred, item.low, item.high))
    if not allowed or not item.fill_allowed(int(item.inside(moved).sum())):
        return start
    return moved


def _candidates(low: int, high: int, size: int) -> npt.NDArray[np.int64]:
    step = max(1, size // CANDIDATES)
    return np.unique(np.append(np.arange(low, high, step, dtype=np.int64), high))


def _box_sums(points: Points, axes: Sequence[Points], patch: Points) -> npt.NDArray[np.int64]:
    """How many points each candidate crop shows: (candidates z, y, x).

    The candidates that show one point are a box among the candidates. Adding 1 to a box is adding
    1 or -1 at its eight corners and summing up along every axis at the end.
    """
    sides = []
    for axis, size, place in zip(axes, patch, points.T, strict=True):
        first = np.searchsorted(axis, place - size, side="right")
        sides.append(((first, 1), (np.searchsorted(axis, place, side="right"), -1)))
    shape = tuple(len(axis) + 1 for axis in axes)
    sums = np.zeros(math.prod(shape), np.int64)
    for (z, at_z), (y, at_y), (x, at_x) in product(*sides):
        corners = np.bincount((z * shape[1] + y) * shape[2] + x, minlength=len(sums))
        sums += at_z * at_y * at_x * corners
    sums = sums.reshape(shape)
    for i in range(3):
        np.cumsum(sums, axis=i, out=sums)
    return sums[:-1, :-1, :-1]


def _plan(
    points: Mapping[str, Points],
    voxels: Mapping[str, int],
    patch: Shape3,
    chosen: Mapping[str, Sequence[Shape3]],
) -> CropPlan:
    """Count what the chosen crops show, on all points."""
    size = np.asarray(patch, np.int64)
    shown = {name: np.zeros(len(points[name]), dtype=bool) for name in chosen}
    crops = []
    for start in sorted({start for starts in chosen.values() for start in starts}):
        counted = {}
        for name in points:
            if start in chosen.get(name, ()):
                inside = _inside(points[name], start, size)
                shown[name] |= inside
                counted[name] = round(int(inside.sum()) * voxels[name] / len(points[name]))
        crops.append(Crop(start, counted))
    coverage = {name: float(shown[name].mean()) if name in shown else 0.0 for name in points}
    return CropPlan(tuple(crops), coverage)


def _shape3(values: Any) -> Shape3:
    z, y, x = (int(value) for value in values)
    return z, y, x
