"""The network over all windows of a volume, and their blended logits cell by cell."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iris_cli.inference.blending import Blend, CellLogits
from iris_cli.inference.windows import Cell, Layout
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.network.logit_map import LogitMap
from iris_cli.network.precision import autocast_type, compute_in
from iris_cli.task.crops import cut

OnWindow = Callable[[int, int], None]
Maps = tuple[LogitMap, ...]
# Around a window that is looked at for being empty, in parts of the patch.
MARGIN = 1 / 8


@dataclass(frozen=True)
class Query:
    """A working image and what surrounds it.

    image: (Z, Y, X) float, normalised. fill: stands outside of it.
    """

    image: npt.NDArray[np.float32]
    fill: float


class Decoding:
    """The network with the tokens of a task: windows in, maps of their logits out."""

    def __init__(
        self,
        network: IrisNetwork,
        tokens: Sequence[Tensor],
        groups: Sequence[Sequence[int]],
        device: torch.device | str,
        precision: str,
    ) -> None:
        self.device = torch.device(device)
        self._network = network.to(self.device).eval()
        self._kind = autocast_type(precision, self.device)
        stages = [stage.to(self.device) for stage in tokens]
        self._groups = [[stage[list(group)] for stage in stages] for group in groups]

    def __call__(self, crops: npt.NDArray[np.float32]) -> list[Maps]:
        """crops: (B, Z, Y, X) -> of each window, the logits of every group."""
        with torch.inference_mode(), compute_in(self._kind, self.device):
            images = torch.from_numpy(crops)[:, None].to(self.device)
            features = self._network.encode_image(images)
            batches = []
            for left, stages in zip(reversed(range(len(self._groups))), self._groups, strict=True):
                expanded = [stage.expand(len(crops), -1, -1, -1) for stage in stages]
                found = self._network.decode_map(features, expanded, overwrite=not left)
                batches.append(found.windows())
            return list(zip(*batches, strict=True))


class SlidingWindow:
    """Blended logits of a volume, cell by cell (`windows.Layout`).

    skipped: cells whose window is not computed (see `empty_windows`). window_batch: windows in one
    pass. Windows that hold one value throughout have the same logits, which are computed once.
    """

    def __init__(
        self,
        decode: Decoding,
        query: Query,
        layout: Layout,
        blend: Blend,
        *,
        skipped: frozenset[Cell] = frozenset(),
        window_batch: int = 1,
        on_window: OnWindow | None = None,
    ) -> None:
        self._decode = decode
        self._query = query
        self._layout = layout
        self._blend = blend
        self._skipped = skipped
        self._window_batch = window_batch
        self._on_window = on_window
        self._cells = layout.cells()
        self._constant: dict[float, Maps] = {}
        self.windows = len(self._cells)
        self.done = 0
        self.shared = 0

    def finished(self) -> Iterator[tuple[Cell, CellLogits]]:
        """Every cell, as soon as its window is done; its logits are asked for before the next."""
        for first in range(0, len(self._cells), self._window_batch):
            cells = self._cells[first : first + self._window_batch]
            self._run(cells)
            for cell in cells:
                yield cell, self._blend.finish(cell)

    def _run(self, cells: Sequence[Cell]) -> None:
        wanted = [cell for cell in cells if cell not in self._skipped]
        patch = self._layout.patch
        starts = map(self._layout.start, wanted)
        crops = [cut(self._query.image, start, patch, self._query.fill) for start in starts]
        keys = [_constant(crop) for crop in crops]
        known = dict(self._constant)
        fresh = {i for i, key in enumerate(keys) if key is None or key not in (*known, *keys[:i])}
        found = self._compute(crops, sorted(fresh))
        known |= {key: found[i] for i, key in enumerate(keys) if i in fresh and key is not None}
        for index, (cell, key) in enumerate(zip(wanted, keys, strict=True)):
            self._blend.add(cell, found.pop(index) if key is None else known[key])
        self._constant = dict(list(known.items())[-1:])
        self.shared += len(wanted) - len(fresh)
        self.done += len(cells)
        if self._on_window is not None:
            self._on_window(self.done, self.windows)

    def _compute(
        self, crops: Sequence[npt.NDArray[np.float32]], which: Sequence[int]
    ) -> dict[int, Maps]:
        if not which:
            return {}
        return dict(zip(which, self._decode(np.stack([crops[i] for i in which])), strict=True))


def empty_windows(query: Query, layout: Layout) -> frozenset[Cell]:
    """Cells in whose windows nothing lies, nor within `MARGIN` of a window around them.

    Something is what is brighter than half-way from `fill`, the darkest value, to 0: in CT above
    -550 HU, else half-way to the mean of the foreground. One such voxel is enough to be computed.
    """
    bright = query.image > query.fill / 2
    margins = [math.ceil(MARGIN * size) for size in layout.patch]
    found = []
    for cell in layout.cells():
        around = tuple(
            slice(max(0, part.start - margin), part.stop + margin)
            for part, margin in zip(layout.window(cell), margins, strict=True)
        )
        if not bright[around].any():
            found.append(cell)
    return frozenset(found)


def _constant(crop: npt.NDArray[np.float32]) -> float | None:
    """The value of a crop that holds one value throughout."""
    first = float(crop.flat[0])
    return first if bool((crop == first).all()) else None
