"""Windows of the sliding window: where they begin and how much each of their voxels counts.

source: CONTRACT.md, Query to labels: step of half a patch, last window flush with the border,
volumes smaller than the patch padded (centred), Gaussian weight with a floor.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iris_cli.task.crops import Shape3, start_range

STEP = 0.5
SIGMA = 1 / 8
FLOOR = 1e-3

Part = tuple[slice, slice, slice]


def axis_starts(length: int, size: int) -> tuple[int, ...]:
    """First voxels of the windows on one axis; negative where the axis is shorter than a window."""
    first, last = start_range(length, size)
    return (*range(first, last, max(1, int(size * STEP))), last)


def window_starts(shape_zyx: Sequence[int], patch: Shape3) -> list[Shape3]:
    """First voxels (z, y, x) of all windows, in order of z, then y, then x."""
    axes = [axis_starts(length, size) for length, size in zip(shape_zyx, patch, strict=True)]
    return [(z, y, x) for z, y, x in itertools.product(*axes)]


@dataclass(frozen=True)
class Layout:
    """The windows of a volume and the axis along which it is finished slab by slab.

    shape: (Z, Y, X) of the volume. axis: 0 (z), 1 (y) or 2 (x).
    """

    shape: Shape3
    patch: Shape3
    axis: int

    @classmethod
    def along_longest(cls, shape: Sequence[int], patch: Shape3) -> Layout:
        """Slabs are smallest across the longest axis; z where several are equal."""
        z, y, x = shape
        return cls((z, y, x), patch, int(np.argmax(shape)))

    @property
    def depth(self) -> int:
        """Of a window, along the axis."""
        return self.patch[self.axis]

    def layers(self) -> list[list[Shape3]]:
        """Windows by where they begin along the axis, in order: what is done slab by slab."""
        starts = sorted(window_starts(self.shape, self.patch), key=self._along)
        return [list(layer) for _, layer in itertools.groupby(starts, key=self._along)]

    def rows(self, low: int, high: int) -> Shape3:
        """Shape of the volume's rows low..high - 1 along the axis."""
        z, y, x = (high - low if dim == self.axis else n for dim, n in enumerate(self.shape))
        return z, y, x

    def overlap(self, start: Shape3, low: int, high: int) -> tuple[Part, Part] | None:
        """Where a window lies in the rows low..high - 1, and which part of it that is."""
        inside, seen = [], []
        for dim, (first, size) in enumerate(zip(start, self.patch, strict=True)):
            begin, end = (low, high) if dim == self.axis else (0, self.shape[dim])
            bottom, top = max(first, begin), min(first + size, end)
            if bottom >= top:
                return None
            inside.append(slice(bottom - begin, top - begin))
            seen.append(slice(bottom - first, top - first))
        return (inside[0], inside[1], inside[2]), (seen[0], seen[1], seen[2])

    def _along(self, start: Shape3) -> int:
        return start[self.axis]


def gaussian_weight(patch: Shape3, floor: float = FLOOR) -> npt.NDArray[np.float32]:
    """(Z, Y, X) weight of a window's voxels: 1 in the middle, at least `floor`.

    Without a floor the corners of a volume, which lie in the corner of one window only, would be
    divided by numbers near zero.
    """
    axes = []
    for size in patch:
        distance = np.arange(size) - (size - 1) / 2
        profile = np.exp(-0.5 * (distance / (size * SIGMA)) ** 2)
        axes.append(profile / profile.max())
    weight = axes[0][:, None, None] * axes[1][:, None] * axes[2]
    floored: npt.NDArray[np.float32] = np.maximum(weight, floor).astype(np.float32)
    return floored
