"""Logits that are not multiplied out yet: the last map of the decoder and the classes' classifiers.

Logits are linear in the map, and there are as many of them as classes. Whoever needs only a part of
them, or adds them up at once, multiplies out that part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from iris_cli.network.blocks import unfold

Shape3 = tuple[int, int, int]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class LogitMap:
    """What the logits of K classes are made of.

    features: (B, c0, z, y, x) at the resolution of the network, in the precision it computes in.
    They may wait in the host's memory: `logits_in` takes what it needs to where the weights are.
    weights: (B, K, fold^3, c0) float32. offsets: (B, K, fold^3) float32, None where there are none.
    """

    features: Tensor
    weights: Tensor
    offsets: Tensor | None

    @property
    def fold(self) -> int:
        """Edge of the voxel block that one voxel of the map stands for."""
        return _edge(self.weights)

    def logits(self) -> Tensor:
        """Everything multiplied out: (B, K, Z, Y, X) float32."""
        return _multiply_out(self.features, self.weights, self.offsets)

    def of_classes(self, classes: Sequence[int] | slice) -> LogitMap:
        """The same of some classes. classes: their indices."""
        chosen = classes if isinstance(classes, slice) else list(classes)
        offsets = None if self.offsets is None else self.offsets[:, chosen]
        return LogitMap(self.features, self.weights[:, chosen], offsets)

    def logits_in(self, box: Box) -> Tensor:
        """Of a box of voxels (z, y, x) at full resolution: (B, K, ...) float32."""
        part, first = self._cells(box)
        features = self.features[(..., *part)].to(self.weights.device)
        logits = _multiply_out(features, self.weights, self.offsets)
        z, y, x = (slice(a.start - f, a.stop - f) for a, f in zip(box, first, strict=True))
        return logits[..., z, y, x]

    def windows(self) -> list[LogitMap]:
        """Each item of the batch by itself."""
        return [
            LogitMap(
                self.features[item : item + 1],
                self.weights[item : item + 1],
                None if self.offsets is None else self.offsets[item : item + 1],
            )
            for item in range(len(self.features))
        ]

    def cut(self, box: Box) -> tuple[LogitMap, Shape3]:
        """A copy for a box of voxels, or a few more, and the voxel it begins with."""
        part, first = self._cells(box)
        features = self.features[(..., *part)].clone(memory_format=torch.contiguous_format)
        return LogitMap(features, self.weights, self.offsets), first

    def _cells(self, box: Box) -> tuple[Box, Shape3]:
        """Voxels of the map that stand for a box, and the first voxel of the first of them."""
        fold = self.fold
        z, y, x = (slice(part.start // fold, -(-part.stop // fold)) for part in box)
        return (z, y, x), (z.start * fold, y.start * fold, x.start * fold)


@dataclass(frozen=True)
class Share:
    """What a map adds to the logits of a box.

    map: one item. there: its voxels. inside: where they lie in the box. weight: of each of them.
    """

    map: LogitMap
    there: Box
    inside: Box
    weight: Tensor


def weighted_sum(shares: Sequence[Share], shape: Shape3) -> tuple[Tensor, Tensor | None]:
    """Sum of the weighted logits of several maps of the same classes, in a box of voxels.

    returns: maps (R, ...) and their factors (K, R), of which the sums are made; or the sums
    (K, ...) themselves and None where cells are unfolded.
    """
    device = shares[0].weight.device
    first = shares[0].map
    if first.fold > 1 or first.offsets is not None:
        total = torch.zeros((first.weights.shape[1], *shape), device=device)
        for one in shares:
            logits = one.map.logits_in(one.there)[0]
            total[(slice(None), *one.inside)] += logits * one.weight
        return total, None
    maps = torch.zeros((len(shares), first.features.shape[1], *shape), device=device)
    for one, part in zip(shares, maps, strict=True):
        features = one.map.features[(0, slice(None), *one.there)]
        torch.mul(features, one.weight, out=part[(slice(None), *one.inside)])
    return maps.flatten(0, 1), torch.cat([one.map.weights[0, :, 0] for one in shares], dim=1)


def _multiply_out(features: Tensor, weights: Tensor, offsets: Tensor | None) -> Tensor:
    with torch.autocast(features.device.type, enabled=False):
        flat = features.float().flatten(2)
        rows = weights.flatten(1, 2)
        if offsets is None:
            logits = torch.bmm(rows, flat)
        else:
            logits = torch.baddbmm(offsets.flatten(1)[:, :, None], rows, flat)
        shaped = logits.reshape(*logits.shape[:2], *features.shape[2:])
        return unfold(shaped, _edge(weights))


def _edge(weights: Tensor) -> int:
    """Of a block of fold^3 voxels: (B, K, fold^3, c0) -> fold."""
    voxels = weights.shape[2]
    return next(edge for edge in range(1, voxels + 1) if edge**3 >= voxels)
