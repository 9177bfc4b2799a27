"""Windows of the sliding window: where they begin, what they finish, how much a voxel counts.

source: CONTRACT.md, Query to labels: step of half a patch, last window flush with the border,
volumes smaller than the patch padded (centred), Gaussian weight with a floor.
"""

from __future__ import annotations

import bisect
import functools
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
Cell = tuple[int, int, int]


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
    """The windows of a volume, and the cells in which it is finished.

    shape: (Z, Y, X) of the volume. Every window has a cell, named by its number along each axis:
    from where the window begins to where the next one does. No later window reaches into it, so
    when a window is done its cell is finished.
    """

    shape: Shape3
    patch: Shape3

    @functools.cached_property
    def starts(self) -> tuple[tuple[int, ...], ...]:
        """First voxels of the windows, per axis; negative where the axis is shorter."""
        return tuple(axis_starts(n, size) for n, size in zip(self.shape, self.patch, strict=True))

    @property
    def cuts(self) -> tuple[tuple[int, ...], ...]:
        """First voxels of the cells, per axis."""
        return tuple((0, *starts[1:]) for starts in self.starts)

    def cells(self) -> list[Cell]:
        """All cells in the order of their windows: layer by layer along the longest axis.

        A layer is smallest across that axis, and what waits to be finished is about half a layer.
        """
        slow = self._slow
        places = [slow.index(axis) for axis in range(3)]
        raster = itertools.product(*(range(len(self.starts[axis])) for axis in slow))
        return [(i[places[0]], i[places[1]], i[places[2]]) for i in raster]

    def start(self, cell: Cell) -> Shape3:
        """First voxel of the window of a cell; negative where the volume is smaller."""
        z, y, x = (starts[i] for starts, i in zip(self.starts, cell, strict=True))
        return z, y, x

    def window(self, cell: Cell) -> Part:
        """The window of a cell; it sticks out of a smaller volume."""
        ends = zip(self.start(cell), self.patch, strict=True)
        z, y, x = (slice(first, first + size) for first, size in ends)
        return z, y, x

    def needed(self, cell: Cell) -> Part:
        """The cell and one row before it on every axis: what its voxels are interpolated from."""
        z, y, x = (self._needed(axis, i) for axis, i in enumerate(cell))
        return z, y, x

    def reached(self, cell: Cell) -> list[tuple[Cell, Part]]:
        """Cells, from this one on, whose `needed` part the window reaches into, and how far."""
        window = self.window(cell)
        found = []
        for z, y, x in itertools.product(*map(self._reach, range(3), cell)):
            box = common(window, self.needed((z, y, x)))
            if box is not None:
                found.append(((z, y, x), box))
        return found

    def waiting(self) -> tuple[int, int]:
        """Most voxels that wait to be finished: of the windows, and of the cells they reach."""
        rows = [self._rows(axis) for axis in self._slow]
        kept = _most_waiting([r.sum(axis=1) for r in rows], [r.sum(axis=0) for r in rows])
        # A cell waits as a whole from the first window that reaches it.
        needed = [
            np.array([_length(self._needed(a, i)) for i in range(len(r))])
            for a, r in zip(self._slow, rows, strict=True)
        ]
        begun = [
            np.bincount((r > 0).argmax(axis=0), n, len(n)).astype(np.int64)
            for r, n in zip(rows, needed, strict=True)
        ]
        return kept, _most_waiting(begun, needed)

    @property
    def _slow(self) -> list[int]:
        """The axes, that of most windows first."""
        return sorted(range(3), key=lambda axis: -len(self.starts[axis]))

    def _rows(self, axis: int) -> npt.NDArray[np.int64]:
        """Along an axis: rows of window i that lie in the `needed` part of cell j."""
        count = len(self.starts[axis])
        found = np.zeros((count, count), np.int64)
        for i, first in enumerate(self.starts[axis]):
            for j in self._reach(axis, i):
                part = self._needed(axis, j)
                stop = min(first + self.patch[axis], part.stop)
                found[i, j] = max(0, stop - max(first, part.start))
        return found

    def _needed(self, axis: int, i: int) -> slice:
        cuts = self.cuts[axis]
        stop = cuts[i + 1] if i + 1 < len(cuts) else self.shape[axis]
        return slice(max(0, cuts[i] - 1), stop)

    def _reach(self, axis: int, i: int) -> range:
        """Windows along an axis that begin no later than the row behind window `i`."""
        starts = self.starts[axis]
        return range(i, bisect.bisect_right(starts, starts[i] + self.patch[axis]))


def _most_waiting(
    come: Sequence[npt.NDArray[np.int64]], go: Sequence[npt.NDArray[np.int64]]
) -> int:
    """Most voxels between what came with a window and what went when its cell was finished.

    Both are products over the axes, slowest first, of the rows of every window and cell.
    """
    came, gone = (
        np.cumsum(np.multiply.outer(np.multiply.outer(z, y), x)) for z, y, x in (come, go)
    )
    came[1:] -= gone[:-1]
    return int(came.max())


def _length(part: slice) -> int:
    return int(part.stop - part.start)


def shape_of(box: Part) -> Shape3:
    """Voxels of a box along every axis."""
    z, y, x = (part.stop - part.start for part in box)
    return z, y, x


def common(one: Part, other: Part) -> Part | None:
    """What lies in two boxes, None where nothing does."""
    z, y, x = (
        slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)
    )
    return (z, y, x) if all(part.start < part.stop for part in (z, y, x)) else None


def seen_from(origin: Shape3, box: Part) -> Part:
    """A box counted from another first voxel."""
    z, y, x = (slice(a.start - o, a.stop - o) for a, o in zip(box, origin, strict=True))
    return z, y, x


def corner(box: Part) -> Shape3:
    """First voxel of a box."""
    return box[0].start, box[1].start, box[2].start


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
