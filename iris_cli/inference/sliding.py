"""The network over all windows of a volume, as far as their blended logits are asked for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iris_cli.inference.blending import Blend
from iris_cli.inference.windows import Layout
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.network.logit_map import LogitMap
from iris_cli.network.precision import autocast_type, compute_in
from iris_cli.task.crops import Shape3, cut

OnWindow = Callable[[int, int], None]
Maps = tuple[LogitMap, ...]
# Where no window was computed there is nothing to divide by, and the logit is 0.
SMALLEST_WEIGHT = 1e-12
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
            for stages in self._groups:
                expanded = [stage.expand(len(crops), -1, -1, -1) for stage in stages]
                batches.append(self._network.decode_map(features, expanded).windows())
            return list(zip(*batches, strict=True))


class SlidingWindow:
    """Blended logits of a volume, from the first row on; windows run when a row needs them.

    skipped: windows that are not computed (see `empty_windows`). window_batch: windows of one layer
    in one pass. Windows that hold one value throughout have the same logits, which are computed
    once.
    """

    def __init__(
        self,
        decode: Decoding,
        query: Query,
        layout: Layout,
        weight: Tensor,
        blend: Blend,
        *,
        skipped: frozenset[Shape3] = frozenset(),
        window_batch: int = 1,
        on_window: OnWindow | None = None,
    ) -> None:
        self._decode = decode
        self._query = query
        self._layout = layout
        self._weight = weight
        self._blend = blend
        self._skipped = skipped
        self._window_batch = window_batch
        self._on_window = on_window
        self._layers = layout.layers()
        self._next_layer = 0
        self._added: list[Shape3] = []
        self._constant: dict[float, Maps] = {}
        self.windows = sum(map(len, self._layers))
        self.done = 0
        self.shared = 0

    def advance(self, stop: int) -> None:
        """Run every window that reaches into rows below `stop`."""
        axis = self._layout.axis
        while self._next_layer < len(self._layers):
            layer = self._layers[self._next_layer]
            if layer[0][axis] >= stop:
                return
            for first in range(0, len(layer), self._window_batch):
                self._run(layer[first : first + self._window_batch])
            self._next_layer += 1

    def total_weight(self, low: int, high: int) -> Tensor:
        """Sum of the windows' weights in the rows low..high - 1."""
        total = torch.zeros(self._layout.rows(low, high), device=self._weight.device)
        for start in self._added:
            overlap = self._layout.overlap(start, low, high)
            if overlap is not None:
                total[overlap[0]] += self._weight[overlap[1]]
        return total.clamp_(min=SMALLEST_WEIGHT)

    def logits(self, rows: slice, group: int, classes: Sequence[int], total: Tensor) -> Tensor:
        """Blended logits of some classes of a group: (k, ...) float32, of finished rows.

        total: `total_weight` of these rows.
        """
        return self._blend.weighted(rows.start, rows.stop, group, classes).div_(total)

    def release(self, below: int) -> None:
        """Rows below this one will not be asked for again."""
        axis, depth = self._layout.axis, self._layout.depth
        self._added = [start for start in self._added if start[axis] + depth > below]
        self._blend.release(below)

    def _run(self, starts: Sequence[Shape3]) -> None:
        wanted = [start for start in starts if start not in self._skipped]
        crops = [cut(self._query.image, s, self._layout.patch, self._query.fill) for s in wanted]
        keys = [_constant(crop) for crop in crops]
        known = dict(self._constant)
        fresh = {i for i, key in enumerate(keys) if key is None or key not in (*known, *keys[:i])}
        found = self._compute(crops, sorted(fresh))
        known |= {key: found[i] for i, key in enumerate(keys) if i in fresh and key is not None}
        for index, (start, key) in enumerate(zip(wanted, keys, strict=True)):
            self._blend.add(start, found[index] if key is None else known[key])
            self._added.append(start)
        self._constant = dict(list(known.items())[-1:])
        self.shared += len(wanted) - len(fresh)
        self.done += len(starts)
        if self._on_window is not None:
            self._on_window(self.done, self.windows)

    def _compute(
        self, crops: Sequence[npt.NDArray[np.float32]], which: Sequence[int]
    ) -> dict[int, Maps]:
        if not which:
            return {}
        return dict(zip(which, self._decode(np.stack([crops[i] for i in which])), strict=True))


def empty_windows(query: Query, layout: Layout) -> frozenset[Shape3]:
    """Windows in which nothing lies, nor within `MARGIN` of a window around them.

    Something is what is brighter than half-way from `fill`, the darkest value, to 0: in CT above
    -550 HU, else half-way to the mean of the foreground. One such voxel is enough to be computed.
    """
    bright = query.image > query.fill / 2
    margins = [math.ceil(MARGIN * size) for size in layout.patch]
    found = []
    for start in itertools.chain.from_iterable(layout.layers()):
        around = tuple(
            slice(max(0, first - margin), first + size + margin)
            for first, size, margin in zip(start, layout.patch, margins, strict=True)
        )
        if not bright[around].any():
            found.append(start)
    return frozenset(found)


def _constant(crop: npt.NDArray[np.float32]) -> float | None:
    """The value of a crop that holds one value throughout."""
    first = float(crop.flat[0])
    return first if bool((crop == first).all()) else None
