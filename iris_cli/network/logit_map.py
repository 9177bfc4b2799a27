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


@dataclass(frozen=True)
class LogitMap:
    """What the logits of K classes are made of.

    features: (B, c0, z, y, x) at the resolution of the network, in the precision it computes in.
    They may wait in the host's memory: `logits_of` takes what it needs to where the weights are.
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

    def logits_of(self, classes: Sequence[int], axis: int, low: int, high: int) -> Tensor:
        """A part of them: (B, len(classes), ...) float32, of voxels low..high - 1 along `axis`.

        classes: indices. axis: 0 (z), 1 (y) or 2 (x). low, high: voxels at full resolution.
        """
        first, fold = low // self.fold, self.fold
        features = self.features.narrow(2 + axis, first, -(-high // fold) - first)
        features = features.to(self.weights.device)
        chosen = torch.as_tensor(classes, device=self.weights.device)
        weights = self.weights.index_select(1, chosen)
        offsets = None if self.offsets is None else self.offsets.index_select(1, chosen)
        logits = _multiply_out(features, weights, offsets)
        return logits.narrow(2 + axis, low - first * fold, high - low)

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

    def from_voxel(self, axis: int, low: int) -> tuple[LogitMap, int]:
        """A copy of voxel `low` on along `axis`, or a few more, and the voxel it begins with."""
        first = low // self.fold
        size = self.features.shape[2 + axis] - first
        features = self.features.narrow(2 + axis, first, size).clone()
        return LogitMap(features, self.weights, self.offsets), first * self.fold


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
