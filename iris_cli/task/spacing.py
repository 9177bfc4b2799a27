"""The working spacing of a task, with the reason in words.

`s = clip(s0, n, max(n, min(E / (0.6 P), cbrt(V) / 6)))`: the model's own spacing by default, finer
where a structure is small, coarser only where the data are. Lengths are millimetres. numpy only:
planning and `iris encode-task` use the same rule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

# The classes together shall span at least this part of the patch,
EXTENT_SHARE = 0.6
# and the smallest class shall be this many voxels across.
VOXELS_ACROSS = 6.0


@dataclass(frozen=True)
class SpacingChoice:
    """A working spacing in mm and why it is that."""

    spacing_mm: float
    reason: str


@dataclass(frozen=True)
class ReferenceSize:
    """What the rule needs to know of one labelled volume.

    spacing_min_mm: smallest native spacing; extent_mm: longest edge of the box around all classes;
    volumes_mm3: volume per class, classes without a voxel left out. cut: classes that reach the
    first or last plane of an axis that has more than one.
    """

    spacing_min_mm: float
    extent_mm: float
    volumes_mm3: Mapping[str, float]
    cut: frozenset[str] = frozenset()


def task_spacing(
    s0: float,
    patch: int,
    native_spacing_min: float,
    extent_mm_median: float,
    volume_mm3_median: float,
) -> SpacingChoice:
    """The spacing at which a task is worked.

    s0: the model's own spacing (mm). patch: edge of its patch (voxels).
    native_spacing_min: n, the smallest native spacing of the references (mm).
    extent_mm_median: E, longest extent of the union of the classes, median over references.
    volume_mm3_median: V, volume of the smallest class, median over references.
    source: CONTRACT.md, Spacing of a task.
    """
    values = (s0, patch, native_spacing_min, extent_mm_median, volume_mm3_median)
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise ValueError(f"spacing rule needs finite positive numbers, got {values}")
    by_extent = extent_mm_median / (EXTENT_SHARE * patch)
    by_volume = math.cbrt(volume_mm3_median) / VOXELS_ACROSS
    wanted = min(by_extent, by_volume)
    spacing = min(max(s0, native_spacing_min), max(native_spacing_min, wanted))
    if by_extent <= by_volume:
        cause = (
            f"the classes span {extent_mm_median:.4g} mm and shall fill {EXTENT_SHARE:.0%} "
            f"of the patch of {patch} voxels"
        )
    else:
        across = math.cbrt(volume_mm3_median)
        cause = (
            f"the smallest class has {volume_mm3_median:.4g} mm3 ({across:.3g} mm across) "
            f"and shall be {VOXELS_ACROSS:g} voxels across"
        )
    return SpacingChoice(spacing, _reason(spacing, s0, native_spacing_min, wanted, cause))


def spacing_of_references(
    s0: float, patch: int, references: Sequence[ReferenceSize]
) -> SpacingChoice:
    """`task_spacing` with its numbers taken from measured references.

    n is the smallest spacing of all; E the median of their extents; V the smallest of the classes'
    median volumes. References without any voxel count for n only.
    """
    shown = [item for item in references if item.volumes_mm3]
    if not shown:
        raise ValueError("no reference has a voxel of any class")
    names = sorted({name for item in shown for name in item.volumes_mm3})
    volumes = [
        median([item.volumes_mm3[name] for item in shown if name in item.volumes_mm3])
        for name in names
    ]
    return task_spacing(
        s0,
        patch,
        min(item.spacing_min_mm for item in references),
        median([item.extent_mm for item in shown]),
        min(volumes),
    )


def measure_labels(
    labels: np.ndarray[Any, np.dtype[Any]],
    spacing_zyx: Sequence[float],
    classes: Mapping[str, Sequence[int]],
) -> ReferenceSize:
    """The numbers of one label map.

    labels: (Z, Y, X) integers; spacing_zyx: mm; classes: name -> values (several for a region).
    """
    values, counts = np.unique(labels, return_counts=True)
    voxels = dict(zip(values.tolist(), counts.tolist(), strict=True))
    voxel_mm3 = math.prod(spacing_zyx)
    volumes = {
        name: sum(voxels.get(value, 0) for value in wanted) * voxel_mm3
        for name, wanted in classes.items()
    }
    present = {name: volume for name, volume in volumes.items() if volume > 0}
    wanted_values = sorted({value for wanted in classes.values() for value in wanted})
    inside = np.isin(labels, wanted_values)
    extent = 0.0
    for axis, spacing in enumerate(spacing_zyx):
        others = tuple(other for other in range(3) if other != axis)
        where = np.flatnonzero(inside.any(axis=others))
        if where.size:
            extent = max(extent, float(where[-1] - where[0] + 1) * spacing)
    border = _values_at_border(labels)
    cut = frozenset(name for name in present if border & set(classes[name]))
    return ReferenceSize(float(min(spacing_zyx)), extent, present, cut)


def _values_at_border(labels: np.ndarray[Any, np.dtype[Any]]) -> set[int]:
    planes = [
        labels.take(index, axis)
        for axis, length in enumerate(labels.shape)
        for index in (0, -1)
        if length > 1
    ]
    return {int(value) for plane in planes for value in np.unique(plane)}


def _reason(spacing: float, s0: float, native: float, wanted: float, cause: str) -> str:
    own = f"the model's own {s0:.4g} mm"
    if spacing == s0:
        return f"{spacing:.4g} mm: {own}"
    if spacing > s0:
        return f"{spacing:.4g} mm instead of {own}: the data are not finer"
    if wanted < native:
        return (
            f"{spacing:.4g} mm instead of {own}: {cause} (asks for {wanted:.3g} mm), "
            f"and the data are not finer than {native:.4g} mm"
        )
    return f"{spacing:.4g} mm instead of {own}: {cause}"
