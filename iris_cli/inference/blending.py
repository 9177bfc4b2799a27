"""Windows to blended logits, slab by slab, without all logits of a volume or of a window.

Logits of a window are linear in the decoder's last map. Two forms of what waits to be finished give
the same sums in the same order:

- `KeptMaps` holds that map of every window until the slabs it reaches into are finished. Its size
  does not depend on the number of classes.
- `RunningSums` holds one sum per class and voxel, as deep as a window: smaller where there are few
  classes, or a map has many channels at full resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from iris_cli.inference.windows import Layout
from iris_cli.network.logit_map import LogitMap
from iris_cli.task.crops import Shape3

Groups = Sequence[Sequence[int]]
"""Of every group of classes that is decoded together, the positions whose logits are wanted."""

# A window is cut down to what is still needed of it in steps of this part of its depth.
TRIM = 1 / 8
# Logits of a window that are multiplied out at once, where they are added up at once.
CHUNK_VALUES = 1 << 22


class Blend(Protocol):
    """Weighted sums of the windows' logits."""

    def add(self, start: Shape3, maps: Sequence[LogitMap]) -> None:
        """A window: its logits, one item of a batch, for every group."""

    def weighted(self, low: int, high: int, group: int, classes: Sequence[int]) -> Tensor:
        """Sum of weight times logit over the windows: (k, ...) float32, of rows low..high - 1."""

    def release(self, below: int) -> None:
        """Rows below this one will not be asked for again."""


class KeptMaps:
    """The maps of all windows that reach into rows not yet released."""

    def __init__(self, layout: Layout, weight: Tensor, store: torch.device) -> None:
        self._layout = layout
        self._weight = weight
        self._store = store
        self._windows: list[_Kept] = []

    def add(self, start: Shape3, maps: Sequence[LogitMap]) -> None:
        kept = [LogitMap(m.features.to(self._store), m.weights, m.offsets) for m in maps]
        self._windows.append(_Kept(start, tuple(kept), 0))

    def weighted(self, low: int, high: int, group: int, classes: Sequence[int]) -> Tensor:
        layout, device = self._layout, self._weight.device
        total = torch.zeros((len(classes), *layout.rows(low, high)), device=device)
        for window in self._windows:
            overlap = layout.overlap(window.start, low, high)
            if overlap is None:
                continue
            inside, seen = overlap
            logits = window.logits(group, classes, layout.axis, seen[layout.axis])
            across = _whole(seen, layout.axis)
            total[(slice(None), *inside)].addcmul_(
                logits[(slice(None), *across)], self._weight[seen]
            )
        return total

    def release(self, below: int) -> None:
        axis, depth = self._layout.axis, self._layout.depth
        self._windows = [w for w in self._windows if w.start[axis] + depth > below]
        step = max(1, int(depth * TRIM))
        # One by one in place: whole maps and copies of all of them would be there at once.
        for i, window in enumerate(self._windows):
            if below - window.start[axis] - window.first >= step:
                self._windows[i] = window.trimmed(axis, below)


@dataclass(frozen=True)
class _Kept:
    """A window and its maps, which begin with its voxel `first` along the axis."""

    start: Shape3
    maps: tuple[LogitMap, ...]
    first: int

    def logits(self, group: int, classes: Sequence[int], axis: int, rows: slice) -> Tensor:
        low, high = rows.start - self.first, rows.stop - self.first
        return self.maps[group].logits_of(classes, axis, low, high)[0]

    def trimmed(self, axis: int, below: int) -> _Kept:
        cut = [one.from_voxel(axis, below - self.start[axis] - self.first) for one in self.maps]
        return _Kept(self.start, tuple(m for m, _ in cut), self.first + cut[0][1])


class RunningSums:
    """One weighted sum per class and voxel, of rows not yet released.

    slack: rows that may still be asked for below the beginning of a window that is added.
    """

    def __init__(
        self, layout: Layout, weight: Tensor, store: torch.device, groups: Groups, slack: int
    ) -> None:
        self._layout = layout
        self._weight = weight.to(store)
        self._device = weight.device
        self._groups = groups
        self._first = [sum(map(len, groups[:i])) for i in range(len(groups))]
        depth = min(layout.shape[layout.axis], layout.depth + slack)
        classes = sum(map(len, groups))
        self._sums = torch.zeros((classes, *layout.rows(0, depth)), device=store)
        self._base = 0
        self._below = 0

    def add(self, start: Shape3, maps: Sequence[LogitMap]) -> None:
        layout, axis = self._layout, self._layout.axis
        self._make_room(start[axis] + layout.depth)
        high = self._base + self._sums.shape[1 + axis]
        overlap = layout.overlap(start, self._base, high)
        if overlap is None:  # rows were asked for that lie further apart than a window is deep
            return
        inside, seen = overlap
        plane = layout.patch[0] * layout.patch[1] * layout.patch[2] // layout.depth
        step = max(1, CHUNK_VALUES // (plane * len(self._sums)))
        for group, found in enumerate(maps):
            first, classes = self._first[group], self._groups[group]
            sums = self._sums[(slice(first, first + len(classes)), *inside)]
            for row in range(seen[axis].start, seen[axis].stop, step):
                stop = min(row + step, seen[axis].stop)
                logits = found.logits_of(classes, axis, row, stop)[0]
                part = _with(seen, axis, slice(row, stop))
                sums.narrow(1 + axis, row - seen[axis].start, stop - row).addcmul_(
                    logits[(slice(None), *_whole(seen, axis))].to(sums.device), self._weight[part]
                )

    def weighted(self, low: int, high: int, group: int, classes: Sequence[int]) -> Tensor:
        self._make_room(high)  # where windows were skipped, none was added there
        rows = [self._first[group] + self._groups[group].index(index) for index in classes]
        part = self._sums.narrow(1 + self._layout.axis, low - self._base, high - low)
        return torch.stack([part[row] for row in rows]).to(self._device)

    def release(self, below: int) -> None:
        self._below = below

    def _make_room(self, end: int) -> None:
        """Move the sums down, over rows that were released, until row `end - 1` has its place."""
        axis = 1 + self._layout.axis
        size = self._sums.shape[axis]
        shift = self._below - self._base
        if min(end, self._layout.shape[self._layout.axis]) <= self._base + size or not shift:
            return
        kept = max(0, size - shift)
        for sums in self._sums:  # class by class: the copy is small
            rows = sums.narrow(axis - 1, size - kept, kept).clone()
            sums.narrow(axis - 1, 0, kept).copy_(rows)
            sums.narrow(axis - 1, kept, size - kept).zero_()
        self._base = self._below


def _with(part: tuple[slice, ...], axis: int, rows: slice) -> tuple[slice, ...]:
    return tuple(rows if dim == axis else one for dim, one in enumerate(part))


def _whole(part: tuple[slice, ...], axis: int) -> tuple[slice, ...]:
    """The part of logits that were cut along the axis already."""
    return _with(part, axis, slice(None))
