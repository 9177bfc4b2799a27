"""From a working image to native labels in one sweep, window by window.

Every window finishes a cell of the volume. Its logits are multiplied out and decided on the native
grid region by region, each some thousand voxels, and forgotten. What is in memory at a time does
not depend on the length of the scan, nor, but for the classes of one region, on their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iris_cli.errors import IrisError
from iris_cli.inference.blending import Blend, CellLogits, Groups, KeptMaps, RunningSums
from iris_cli.inference.memory import (
    AS_IT_COMES,
    LARGEST_EDGE,
    SMALLEST_EDGE,
    Means,
    Sizes,
    values_at_once,
)
from iris_cli.inference.sliding import (
    Decoding,
    OnWindow,
    Query,
    SlidingWindow,
    empty_windows,
)
from iris_cli.inference.windows import Layout, gaussian_weight, shape_of
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.network.precision import Precision
from iris_cli.task.crops import Shape3
from iris_cli.volume.grid import Grid
from iris_cli.volume.scores import (
    Box,
    Region,
    Scores,
    Winner,
    decide,
    decide_plainly,
    put,
    ranked_values,
    resampling,
)

Labels = np.ndarray[Any, np.dtype[Any]]
MakeLabels = Callable[[Shape3, np.dtype[Any]], Labels]
OnScores = Callable[[Box, int, Tensor], None]
"""Called with a box of the native grid, a label value, and the logits of its class there.

Boxes may overlap where the grids are turned against each other: the logit of a voxel is -infinity
in all of them but one."""


@dataclass(frozen=True)
class Wanted:
    """What is asked of a network: tokens of a task, and which of its classes to label.

    tokens: (K, M, C) per stage. groups: indices of the classes that are decoded together; a group
    runs whole or not at all. keep: indices of the classes to label. values: their labels.
    """

    tokens: Sequence[Tensor]
    groups: Sequence[Sequence[int]]
    keep: Sequence[int]
    values: Sequence[int]

    @property
    def run(self) -> list[list[int]]:
        """The groups that hold a wanted class."""
        return [list(group) for group in self.groups if set(group) & set(self.keep)]

    @property
    def positions(self) -> list[list[int]]:
        """In each of these groups, the positions of the wanted classes by ascending label."""
        label = dict(zip(self.keep, self.values, strict=True))
        return [
            sorted((i for i, k in enumerate(group) if k in label), key=lambda i: label[group[i]])
            for group in self.run
        ]

    @property
    def ranks(self) -> list[list[int]]:
        """1 + the place of their labels among all wanted ones, in the same order."""
        order = sorted(self.values)
        label = dict(zip(self.keep, self.values, strict=True))
        groups = zip(self.run, self.positions, strict=True)
        return [[1 + order.index(label[group[i]]) for i in some] for group, some in groups]

    def by_value(self) -> list[tuple[int, int]]:
        """(group, position) of the wanted classes, by ascending label."""
        place = {index: (g, i) for g, group in enumerate(self.run) for i, index in enumerate(group)}
        order = sorted(zip(self.values, self.keep, strict=True))
        return [place[index] for _, index in order]


@dataclass(frozen=True)
class WindowCounts:
    """Windows of a volume, and of them those that were not computed.

    shared: held one value throughout, as another one that was computed. skipped: were empty.
    """

    all: int
    shared: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Segmentation:
    """Labels, and per label value how many voxels it has and how sure they are.

    confidence: mean sigmoid of the winning logit, of values that have a voxel; empty where nobody
    took it.
    """

    labels: Labels
    voxels: dict[int, int]
    confidence: dict[int, float]
    windows: WindowCounts


@dataclass(frozen=True)
class How:
    """How a query is worked. Precision and `skip_empty` may change labels, nothing else does.

    skip_empty: windows without anything bright in or around them are background
    (`sliding.empty_windows`). on_window: called with (done, total). make_labels: gives the array of
    the labels, zeros. on_scores: told the logits of every wanted class on the native grid.
    """

    device: str = "cpu"
    precision: Precision = "fp32"
    skip_empty: bool = False
    means: Means = AS_IT_COMES
    on_window: OnWindow | None = None
    make_labels: MakeLabels = np.zeros
    on_scores: OnScores | None = None


def segment(
    network: IrisNetwork,
    wanted: Wanted,
    query: Query,
    working: Grid,
    native: Grid,
    patch: Shape3,
    how: How,
) -> Segmentation:
    """Labels on `native` from an image on `working`.

    raises IrisError where the network's output is not finite.
    """
    layout = Layout(working.shape_zyx, patch)
    weight = torch.from_numpy(gaussian_weight(patch)).to(how.device)
    skipped = empty_windows(query, layout) if how.skip_empty else frozenset()
    window = SlidingWindow(
        Decoding(network, wanted.tokens, wanted.run, how.device, how.precision),
        query,
        layout,
        _blend(network, layout, weight, wanted.positions, how),
        skipped=skipped,
        window_batch=how.means.window_batch,
        on_window=how.on_window,
    )
    decisions = _Decisions(wanted, native.shape_zyx, how)
    parts = resampling(working, native, layout.cuts, decisions.edge)
    with torch.inference_mode():
        for cell, logits in window.finished():
            for region in parts.regions(cell):
                decisions.add(region, logits)
    counts = WindowCounts(window.windows, window.shared, len(skipped))
    return decisions.segmentation(counts)


def _blend(
    network: IrisNetwork, layout: Layout, weight: Tensor, positions: Groups, how: How
) -> Blend:
    store = torch.device("cpu") if how.means.on_host else weight.device
    classes = sum(map(len, positions))
    sizes = Sizes.of(network.config, layout, classes, len(positions), how.precision)
    form = RunningSums if sizes.sums <= sizes.maps else KeptMaps
    return form(layout, weight, store, positions)


class _Decisions:
    """Labels, voxels and confidence of a volume, region by region.

    edge: rows of a region that pay.
    """

    def __init__(self, wanted: Wanted, shape: Shape3, how: How) -> None:
        self._how, self._ranks = how, wanted.ranks
        self._at_once = values_at_once(how.means, how.device)
        self._ranked = ranked_values(wanted.values)
        self._values = [0, *sorted(wanted.values)]
        self._labels = how.make_labels(shape, self._ranked.dtype)
        self._tally = _Tally(len(self._ranked))
        # Who is told all logits keeps something of every region and class: few, large regions.
        told = how.on_scores is not None
        self.edge = LARGEST_EDGE if told else _edge(self._at_once, len(wanted.values))

    def add(self, region: Region, logits: CellLogits) -> None:
        """Decide a region. logits: of its cell."""
        winner = self._winner(region, logits)
        if winner is not None:
            self._tally.add(winner)
            put(self._labels, region, self._ranked[winner.rank.cpu().numpy()])

    def segmentation(self, windows: WindowCounts) -> Segmentation:
        """What was decided, after the last region."""
        counted = self._tally.by_value(self._values[1:])
        return Segmentation(self._labels, *counted, windows)

    def _winner(self, region: Region, logits: CellLogits) -> Winner | None:
        """Of all classes, a few at a time where they are too many for a region of this size."""
        best: Winner | None = None
        voxels = max(math.prod(shape_of(region.source)), math.prod(shape_of(region.target)))
        together = max(1, self._at_once // voxels)
        for group, ranks in enumerate(self._ranks):
            for first in range(0, len(ranks), together):
                some = slice(first, first + together)
                scores = logits(region.source, group, some)
                refuse_no_numbers(scores.values, self._how.precision)
                found = self._decided(region, scores, ranks[some])
                best = best.or_better(found) if best and found else best or found
        return best

    def _decided(self, region: Region, scores: Scores, ranks: Sequence[int]) -> Winner | None:
        if self._how.on_scores is None:
            return decide(scores, region, ranks)
        logits = region.interpolate(scores)
        for rank, one in zip(ranks, logits, strict=True):
            self._how.on_scores(region.target, self._values[rank], one)
        return decide_plainly(logits, ranks)


def _edge(values: int, classes: int) -> int:
    return max(SMALLEST_EDGE, min(LARGEST_EDGE, round(math.cbrt(values / classes))))


def refuse_no_numbers(scores: Tensor, precision: str) -> None:
    """Refuse infinity and NaN: compared with another score they would pass for background.

    precision: that the network computed in.
    raises IrisError.
    """
    if bool(torch.isfinite(scores.sum())):  # one pass, and nothing as large as the scores
        return
    half = precision != "fp32"
    raise IrisError(
        f"the network's output is not finite in precision {precision}",
        found="infinity or NaN among the scores of the classes",
        expected="finite numbers",
        fix="use --precision fp32"
        if half
        else "check model and task: their weights or tokens may be damaged; try --device cpu",
    )


class _Tally:
    """Voxels and mean confidence of every rank."""

    def __init__(self, ranks: int) -> None:
        self.voxels = np.zeros(ranks, np.int64)
        self._sums = np.zeros(ranks)

    def add(self, winner: Winner) -> None:
        rank, ranks = winner.rank.flatten().int(), len(self.voxels)
        sure = torch.bincount(rank, winner.score.flatten().double().sigmoid_(), minlength=ranks)
        self.voxels += torch.bincount(rank, minlength=ranks).cpu().numpy()
        self._sums += sure.cpu().numpy()

    def by_value(self, values: Sequence[int]) -> tuple[dict[int, int], dict[int, float]]:
        """Voxels, and mean sigmoid of the winning score where there are some, of every label."""
        voxels = dict(zip(values, self.voxels[1:].tolist(), strict=True))
        sums = dict(zip(values, self._sums[1:].tolist(), strict=True))
        return voxels, {value: sums[value] / n for value, n in voxels.items() if n}
