"""What a label map says of its classes: volume, intensity, connected parts, edge of the scan.

All of it is counted slab by slab, so that memory does not grow with the scan.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Labels = npt.NDArray[Any]
Pieces = npt.NDArray[np.int64]
"""The number of the piece that every voxel belongs to, 0 for background."""

SLAB_VOXELS = 1 << 19
# Voxels that share a face, an edge or a corner are connected.
NEIGHBOURS = np.ones((3, 3, 3), np.int8)
# Label values up to here are looked up in a table of as many entries.
TABLE = 1 << 16


@dataclass(frozen=True)
class ClassStatistics:
    """One class of a label map.

    mean_intensity: of the image in its own unit, over finite voxels; None where there are none.
    components: parts of voxels that share a face, an edge or a corner. touches_border: some voxel
    lies on the first or last plane of an axis (axes of one plane do not count).
    """

    voxels: int
    volume_ml: float
    mean_intensity: float | None
    components: int
    touches_border: bool


def measure(
    labels: Labels,
    image: npt.NDArray[Any],
    spacing_zyx: Sequence[float],
    values: Sequence[int],
    *,
    slab_voxels: int = SLAB_VOXELS,
) -> dict[int, ClassStatistics]:
    """Statistics of every value. labels, image: (Z, Y, X) on one grid; spacing_zyx: mm."""
    ranks = len(values) + 1
    voxels, finite, sums = (np.zeros(ranks) for _ in range(3))
    for rows, slab in ranked_slabs(labels, values, slab_voxels):
        flat, intensity = slab.ravel(), np.asarray(image[rows], np.float64).ravel()
        counted = np.isfinite(intensity)
        voxels += np.bincount(flat, minlength=ranks)
        finite += np.bincount(flat[counted], minlength=ranks)
        sums += np.bincount(flat[counted], intensity[counted], minlength=ranks)
    parts = Components(labels, values, slab_voxels=slab_voxels)
    border = values_at_border(labels)
    millilitres = math.prod(spacing_zyx) / 1000
    return {
        value: ClassStatistics(
            voxels=int(voxels[rank]),
            volume_ml=float(voxels[rank] * millilitres),
            mean_intensity=float(sums[rank] / finite[rank]) if finite[rank] else None,
            components=len(parts.of(value)),
            touches_border=value in border,
        )
        for rank, value in enumerate(sorted(values), start=1)
    }


def values_at_border(labels: Labels) -> set[int]:
    """Values on the first or last plane of an axis that has more than one."""
    found: set[int] = set()
    for axis, length in enumerate(labels.shape):
        for index in (0, -1) if length > 1 else ():
            found.update(np.unique(labels.take(index, axis)).tolist())
    return found - {0}


def ranked_slabs(
    labels: Labels, values: Sequence[int], slab_voxels: int
) -> Iterator[tuple[slice, npt.NDArray[np.int32]]]:
    """Planes of a slab, and for its voxels 1 + the position of their value in ascending order.

    Voxels of any other value have 0.
    """
    wanted = np.array(sorted(values))
    table = None
    if wanted[-1] < TABLE and labels.dtype.itemsize <= 2:
        table = np.zeros(np.iinfo(labels.dtype).max + 1, np.int32)
        table[wanted] = np.arange(1, len(wanted) + 1)
    planes = max(1, slab_voxels // max(1, labels[0].size))
    for start in range(0, len(labels), planes):
        rows = slice(start, min(start + planes, len(labels)))
        slab = np.asarray(labels[rows])
        if table is not None:
            yield rows, table[slab]
            continue
        position = np.searchsorted(wanted, slab).clip(max=len(wanted) - 1)
        yield rows, np.where(wanted[position] == slab, position + 1, 0).astype(np.int32)


@dataclass(frozen=True)
class Component:
    """A connected part of one class. number: for `Components.remove`."""

    number: int
    voxels: int


class Components:
    """The connected parts of every class.

    A component is made of pieces, its parts within one slab of the sweep; pieces of neighbouring
    slabs that touch are joined.
    """

    def __init__(
        self, labels: Labels, values: Sequence[int], *, slab_voxels: int = SLAB_VOXELS
    ) -> None:
        self._labels, self._values, self._slab_voxels = labels, sorted(values), slab_voxels
        ranks, sizes = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
        links: list[npt.NDArray[np.int64]] = [np.zeros((0, 2), np.int64)]
        above: tuple[Pieces, npt.NDArray[np.int32]] | None = None
        for _, slab, pieces, found in self._sweep():
            ranks.append(found.ranks)
            sizes.append(found.sizes)
            if above is not None:
                links.append(_touching(*above, pieces[0], slab[0]))
            above = pieces[-1].copy(), slab[-1].copy()
        self._ranks, self._sizes = np.concatenate(ranks), np.concatenate(sizes)
        self._first = _first_of_joined(len(self._ranks), np.concatenate(links))

    def of(self, value: int) -> list[Component]:
        """The parts of a class, in the order in which they begin."""
        mine = np.flatnonzero(self._ranks == self._values.index(value) + 1)
        voxels = np.bincount(self._first[mine], self._sizes[mine])
        return [Component(int(n), int(voxels[n])) for n in np.unique(self._first[mine])]

    def remove(self, numbers: Collection[int]) -> None:
        """Make these components background, in the labels themselves."""
        gone = np.isin(self._first, list(numbers))
        for rows, _, pieces, _ in self._sweep():
            self._labels[rows][gone[pieces]] = 0

    def _sweep(
        self,
    ) -> Iterator[tuple[slice, npt.NDArray[np.int32], Pieces, _Found]]:
        """Planes of a slab, the ranks and the pieces of its voxels, and what these pieces are."""
        first = 1
        for rows, slab in ranked_slabs(self._labels, self._values, self._slab_voxels):
            pieces, found = _find_pieces(slab, first)
            first += len(found.ranks)
            yield rows, slab, pieces, found


@dataclass(frozen=True)
class _Found:
    """Rank and voxels of every piece of a slab."""

    ranks: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]


def _find_pieces(slab: npt.NDArray[np.int32], first: int) -> tuple[Pieces, _Found]:
    pieces = np.zeros(slab.shape, np.int64)
    ranks, sizes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    boxes: Sequence[tuple[slice, ...] | None] = ndimage.find_objects(slab)
    for rank, box in enumerate(boxes, start=1):
        if box is None:
            continue
        mask = slab[box] == rank
        parts, count = ndimage.label(mask, NEIGHBOURS)
        pieces[box][mask] = parts[mask].astype(np.int64) + (first - 1)
        first += count
        ranks.append(np.full(count, rank, np.int64))
        sizes.append(np.bincount(parts.ravel(), minlength=count + 1)[1:])
    return pieces, _Found(np.concatenate(ranks), np.concatenate(sizes))


def _touching(
    above: Pieces,
    above_ranks: npt.NDArray[np.int32],
    below: Pieces,
    below_ranks: npt.NDArray[np.int32],
) -> npt.NDArray[np.int64]:
    """Pairs of pieces of one class, (n, 2), that touch across two neighbouring planes."""
    height, width = below.shape
    above, above_ranks = np.pad(above, 1), np.pad(above_ranks, 1)
    pairs = []
    for dy, dx in itertools.product(range(3), repeat=2):
        part = np.s_[dy : dy + height, dx : dx + width]
        same = (below_ranks > 0) & (above_ranks[part] == below_ranks)
        pairs.append(np.unique(np.stack([above[part][same], below[same]], axis=1), axis=0))
    return np.unique(np.concatenate(pairs), axis=0)


def _first_of_joined(count: int, links: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For every piece the first one of its component."""
    graph = coo_array((np.ones(len(links), np.int8), (links[:, 0], links[:, 1])), (count, count))
    _, component = connected_components(graph, directed=False)
    _, first = np.unique(component, return_index=True)
    return np.asarray(first[component], np.int64)
