"""From a working image to native labels in one sweep, slab by slab.

A slab of labels asks for the logits it is made of; windows run until they are finished; they are
interpolated class by class with a running arg-max, and forgotten. What is in memory at a time does
not depend on the length of the scan, nor, but for a slab of a few classes, on their number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iris_cli.errors import IrisError
from iris_cli.inference.blending import Blend, Groups, KeptMaps, RunningSums
from iris_cli.inference.memory import AS_IT_COMES, CLASS_BLOCKS, Means, Sizes
from iris_cli.inference.sliding import (
    Decoding,
    OnWindow,
    Query,
    SlidingWindow,
    empty_windows,
)
from iris_cli.inference.windows import Layout, gaussian_weight
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.network.precision import Precision
from iris_cli.task.crops import Shape3
from iris_cli.volume.grid import Grid
from iris_cli.volume.scores import ScoreSlab, Winner, ranked_values, score_slabs

Labels = np.ndarray[Any, np.dtype[Any]]
MakeLabels = Callable[[Shape3, np.dtype[Any]], Labels]
OnScores = Callable[[ScoreSlab, int, Tensor], None]
"""Called with a slab, a label value, and the logits of its class everywhere in the slab."""


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
    def positions(self) -> Groups:
        """In each of these groups, the positions of the wanted classes."""
        kept = set(self.keep)
        return [[i for i, index in enumerate(group) if index in kept] for group in self.run]

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
    layout = Layout.along_longest(working.shape_zyx, patch)
    rows = max(2, layout.depth // 2)
    weight = torch.from_numpy(gaussian_weight(patch)).to(how.device)
    skipped = empty_windows(query, layout) if how.skip_empty else frozenset()
    window = SlidingWindow(
        Decoding(network, wanted.tokens, wanted.run, how.device, how.precision),
        query,
        layout,
        weight,
        _blend(network, layout, weight, wanted.positions, how, rows),
        skipped=skipped,
        window_batch=how.means.window_batch,
        on_window=how.on_window,
    )
    ranked = ranked_values(wanted.values)
    labels = how.make_labels(native.shape_zyx, ranked.dtype)
    tally = _Tally(len(ranked))
    with torch.inference_mode():
        for slab in score_slabs(
            working, native, axis=layout.axis, voxels=how.means.slab_voxels, source_rows=rows
        ):
            window.release(slab.source.start)
            window.advance(slab.source.stop)
            scores = _scores(window, slab, wanted, layout, how)
            if how.on_scores is not None:
                scores = _told(scores, slab, ranked[1:].tolist(), how.on_scores)
            winner = slab.winner(scores)
            tally.add(winner)
            part = tuple(slab.target if d == layout.axis else slice(None) for d in range(3))
            labels[part] = ranked[winner.rank.cpu().numpy()]
    counts = WindowCounts(window.windows, window.shared, len(skipped))
    return Segmentation(labels, *tally.by_value(ranked[1:].tolist()), counts)


def _blend(
    network: IrisNetwork,
    layout: Layout,
    weight: Tensor,
    positions: Groups,
    how: How,
    rows: int,
) -> Blend:
    store = torch.device("cpu") if how.means.on_host else weight.device
    classes = sum(map(len, positions))
    sizes = Sizes.of(network.config, layout, classes, len(positions), how.precision)
    if sizes.sums <= sizes.maps:
        return RunningSums(layout, weight, store, positions, slack=rows)
    return KeptMaps(layout, weight, store)


def _scores(
    window: SlidingWindow, slab: ScoreSlab, wanted: Wanted, layout: Layout, how: How
) -> Iterator[Tensor]:
    """Blended logits of the classes by ascending label, a few classes at a time."""
    low, high = slab.source.start, slab.source.stop
    total = window.total_weight(low, high)
    together = max(1, CLASS_BLOCKS * how.means.slab_voxels // total.numel())
    for group, members in itertools.groupby(wanted.by_value(), key=lambda place: place[0]):
        positions = [position for _, position in members]
        for first in range(0, len(positions), together):
            some = positions[first : first + together]
            logits = window.logits(slab.source, group, some, total)
            refuse_no_numbers(logits, how.precision)
            yield from logits


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


def _told(
    scores: Iterator[Tensor], slab: ScoreSlab, values: Sequence[int], on_scores: OnScores
) -> Iterator[Tensor]:
    for value, score in zip(values, scores, strict=True):
        on_scores(slab, value, slab.everywhere(score))
        yield score


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
