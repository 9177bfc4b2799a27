"""Windows of the sliding window: where they begin and how much each of their voxels counts.

source: CONTRACT.md, Query to labels: step of half a patch, last window flush with the border,
volumes smaller than the patch padded (centred), Gaussian weight with a floor.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from iris_cli.task.crops import Shape3, start_range

STEP = 0.5
SIGMA = 1 / 8
FLOOR = 1e-3


def axis_starts(length: int, size: int) -> tuple[int, ...]:
    """First voxels of the windows on one axis; negative where the axis is shorter than a window."""
    first, last = start_range(length, size)
    return (*range(first, last, max(1, int(size * STEP))), last)


def window_starts(shape_zyx: Sequence[int], patch: Shape3) -> list[Shape3]:
    """First voxels (z, y, x) of all windows, in order of z, then y, then x."""
    axes = [axis_starts(length, size) for length, size in zip(shape_zyx, patch, strict=True)]
    return [(z, y, x) for z, y, x in itertools.product(*axes)]


def gaussian_weight(patch: Shape3) -> npt.NDArray[np.float32]:
    """(Z, Y, X) weight of a window's voxels: 1 in the middle, at least `FLOOR`.

    Without a floor the corners of a volume, which lie in the corner of one window only, would be
    divided by numbers near zero.
    """
    axes = []
    for size in patch:
        distance = np.arange(size) - (size - 1) / 2
        profile = np.exp(-0.5 * (distance / (size * SIGMA)) ** 2)
        axes.append(profile / profile.max())
    weight = axes[0][:, None, None] * axes[1][:, None] * axes[2]
    floored: npt.NDArray[np.float32] = np.maximum(weight, FLOOR).astype(np.float32)
    return floored
