"""Windows to blended logits, cell by cell, without all logits of a volume or of a window.

Logits of a window are linear in the decoder's last map. Two forms of what waits to be finished give
the same sums:

- `KeptMaps` holds that map, cut by the cells it reaches into, until each of them is finished. Its
  size does not depend on the number of classes.
- `RunningSums` holds one sum per class and voxel of such cells: smaller where there are few
  classes, or a map has many channels at full resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from iris_cli.inference.windows import Cell, Layout, Part, common, corner, seen_from, shape_of
from iris_cli.network.logit_map import LogitMap, Share, weighted_sum
from iris_cli.task.crops import Shape3
from iris_cli.volume.scores import Scores

Groups = Sequence[Sequence[int]]
"""Of every group of classes that is decoded together, the positions whose logits are wanted."""

# Where no window was computed there is nothing to divide by, and the logit is 0.
SMALLEST_WEIGHT = 1e-12
# Logits of a window that are multiplied out at once, where they are added up at once.
CHUNK_VALUES = 1 << 22


class Blend(Protocol):
    """Weighted means of the windows' logits."""

    def add(self, cell: Cell, maps: Sequence[LogitMap]) -> None:
        """The window of a cell: its logits, one item of a batch, for every group."""

    def finish(self, cell: Cell) -> CellLogits:
        """The blended logits of a cell all of whose windows were added; they do not wait on."""


class CellLogits(Protocol):
    """The blended logits of a cell."""

    def __call__(self, box: Part, group: int, rows: slice) -> Scores:
        """box: of the volume, within `Layout.needed`. rows: of the wanted classes of a group.

        Logits are 0 where no window was computed.
        """


class KeptMaps:
    """The maps of all windows that reach into cells not yet finished."""

    def __init__(self, layout: Layout, weight: Tensor, store: torch.device, groups: Groups) -> None:
        self._layout, self._weight, self._store = layout, weight, store
        self._groups = groups
        self._waiting: dict[Cell, list[_Kept]] = {}

    def add(self, cell: Cell, maps: Sequence[LogitMap]) -> None:
        start = self._layout.start(cell)
        chosen = [one.of_classes(some) for one, some in zip(maps, self._groups, strict=True)]
        for other, box in self._layout.reached(cell):
            kept = _Kept.of(start, box, chosen, self._store)
            self._waiting.setdefault(other, []).append(kept)

    def finish(self, cell: Cell) -> CellLogits:
        needed, device = self._layout.needed(cell), self._weight.device
        origin, kept = corner(needed), self._waiting.pop(cell, [])
        total = torch.zeros(shape_of(needed), device=device)
        for one in kept:
            total[seen_from(origin, one.box)] += self._weight[one.seen]
        total.clamp_(min=SMALLEST_WEIGHT)
        shares = [self._weight[one.seen] / total[seen_from(origin, one.box)] for one in kept]
        sizes = [len(group) for group in self._groups]
        return _MapLogits([one.on(device) for one in kept], shares, sizes, device)


@dataclass(frozen=True)
class _Kept:
    """A part of a window.

    box: of the volume. seen: the same, of the window. maps: of every group; they begin with voxel
    `first` of the volume.
    """

    box: Part
    seen: Part
    maps: tuple[LogitMap, ...]
    first: Shape3

    @classmethod
    def of(cls, start: Shape3, box: Part, maps: Sequence[LogitMap], store: torch.device) -> _Kept:
        seen = seen_from(start, box)
        cut = [one.cut(seen) for one in maps]
        z, y, x = (a + b for a, b in zip(start, cut[0][1], strict=True))
        return cls(box, seen, tuple(one for one, _ in cut), (z, y, x)).on(store)

    def on(self, device: torch.device) -> _Kept:
        """With the maps in the memory of a device; the classifiers stay where they are."""
        maps = (LogitMap(one.features.to(device), one.weights, one.offsets) for one in self.maps)
        return _Kept(self.box, self.seen, tuple(maps), self.first)


@dataclass(frozen=True)
class _MapLogits:
    """Blended logits from maps.

    shares: of every window in its voxels, 1 together. sizes: classes of every group.
    """

    kept: Sequence[_Kept]
    shares: Sequence[Tensor]
    sizes: Sequence[int]
    device: torch.device

    def __call__(self, box: Part, group: int, rows: slice) -> Scores:
        found = []
        for one, share in zip(self.kept, self.shares, strict=True):
            part = common(one.box, box)
            if part is not None:
                there, inside = seen_from(one.first, part), seen_from(corner(box), part)
                weight = share[seen_from(corner(one.box), part)]
                found.append(Share(one.maps[group].of_classes(rows), there, inside, weight))
        if found:
            return Scores(*weighted_sum(found, shape_of(box)))
        classes = len(range(self.sizes[group])[rows])
        return Scores(torch.zeros((classes, *shape_of(box)), device=self.device))


class RunningSums:
    """One weighted sum per class and voxel, and that of the weights, of cells not yet finished."""

    def __init__(self, layout: Layout, weight: Tensor, store: torch.device, groups: Groups) -> None:
        self._layout, self._weight, self._store = layout, weight, store
        self._groups = groups
        self._first = [sum(map(len, groups[:i])) for i in range(len(groups))]
        self._waiting: dict[Cell, Tensor] = {}

    def add(self, cell: Cell, maps: Sequence[LogitMap]) -> None:
        start = self._layout.start(cell)
        for other, box in self._layout.reached(cell):
            needed = self._layout.needed(other)
            if other not in self._waiting:
                self._waiting[other] = self._zeros(needed)
            inside, seen = seen_from(corner(needed), box), seen_from(start, box)
            sums, weight = self._waiting[other][(slice(None), *inside)], self._weight[seen]
            sums[-1] += weight.to(self._store)
            step = max(1, CHUNK_VALUES // weight.numel())
            for first, group, one in zip(self._first, self._groups, maps, strict=True):
                for row in range(0, len(group), step):
                    some = one.of_classes(group[row : row + step])
                    logits = (some.logits_in(seen)[0] * weight).to(self._store)
                    sums[first + row : first + row + len(logits)] += logits

    def finish(self, cell: Cell) -> CellLogits:
        needed = self._layout.needed(cell)
        sums = self._waiting.pop(cell, None)
        sums = (self._zeros(needed) if sums is None else sums).to(self._weight.device)
        means = sums[:-1].div_(sums[-1].clamp_(min=SMALLEST_WEIGHT))
        return _SumLogits(
            corner(needed), self._first, [len(group) for group in self._groups], means
        )

    def _zeros(self, box: Part) -> Tensor:
        classes = sum(map(len, self._groups))
        return torch.zeros((classes + 1, *shape_of(box)), device=self._store)


@dataclass(frozen=True)
class _SumLogits:
    """Blended logits that are there. origin: first voxel. first, sizes: rows of every group."""

    origin: Shape3
    first: Sequence[int]
    sizes: Sequence[int]
    means: Tensor

    def __call__(self, box: Part, group: int, rows: slice) -> Scores:
        of_group = self.means.narrow(0, self.first[group], self.sizes[group])
        return Scores(of_group[(rows, *seen_from(self.origin, box))])
