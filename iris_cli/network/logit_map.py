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

PRODUCTS_AT_ONCE = 1 << 19


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

    def cells(self, box: Box) -> Tensor:
        """What the logits of a box of voxels are made of, of one item: (c0, z, y, x)."""
        part, _ = self._cells(box)
        return self.features[(0, slice(None), *part)]

    @property
    def classifier(self) -> Tensor:
        """Of one item, for each place in a cell: (fold^3, K, c0 + 1), the offset last."""
        weights = self.weights[0]
        offsets = weights.new_zeros(weights.shape[:2]) if self.offsets is None else self.offsets[0]
        return torch.cat([weights, offsets[..., None]], dim=2).transpose(0, 1)

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
        z, y, x = _cells_of(box, fold)
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

    @property
    def lead(self) -> Shape3:
        """How far into a cell of the map the box begins."""
        pairs = zip(self.there, self.inside, strict=True)
        z, y, x = ((a.start - b.start) % self.map.fold for a, b in pairs)
        return z, y, x

    def within(self, lead: Shape3) -> Box:
        """`inside`, counted from the beginning of the first cell of the box."""
        z, y, x = (slice(p.start + n, p.stop + n) for p, n in zip(self.inside, lead, strict=True))
        return z, y, x


def weighted_sum(shares: Sequence[Share], shape: Shape3) -> tuple[Tensor, Tensor | None]:
    """Sum of the weighted logits of several maps of the same classes, in a box of voxels.

    returns: maps (R, ...) and their factors (K, R), of which the sums are made; or the sums
    (K, ...) themselves and None where cells are unfolded.
    """
    first = shares[0].map
    if first.fold > 1 or first.offsets is not None:
        return _unfolded_sum(shares, shape), None
    maps = first.weights.new_zeros(len(shares), first.features.shape[1], *shape)
    for one, part in zip(shares, maps, strict=True):
        features = one.map.features[(0, slice(None), *one.there)]
        torch.mul(features, one.weight, out=part[(slice(None), *one.inside)])
    return maps.flatten(0, 1), torch.cat([one.map.weights[0, :, 0] for one in shares], dim=1)


def _unfolded_sum(shares: Sequence[Share], shape: Shape3) -> Tensor:
    """Maps whose cells lie alike in the box are summed before they are unfolded: (K, ...)."""
    total: Tensor | None = None
    alike: dict[Shape3, list[Share]] = {}
    for one in shares:
        alike.setdefault(one.lead, []).append(one)
    for lead, some in alike.items():
        z, y, x = (slice(first, first + n) for first, n in zip(lead, shape, strict=True))
        part = _summed_cells(some, lead, shape)[:, z, y, x]
        total = part if total is None else total + part
    assert total is not None
    return total


def _summed_cells(shares: Sequence[Share], lead: Shape3, shape: Shape3) -> Tensor:
    """(K, Z, Y, X) of whole cells around a box that begins `lead` voxels into the first one.

    Every voxel of a cell has a weight and a classifier of its own, so there is one product for
    each of the fold^3 places in a cell. Offsets are the factors of one more map, of ones.
    """
    first = shares[0].map
    fold, channels = first.fold, first.features.shape[1]
    z, y, x = (-(-(a + n) // fold) for a, n in zip(lead, shape, strict=True))
    maps = first.weights.new_zeros(fold**3, len(shares), channels + 1, z, y, x)
    for number, one in enumerate(shares):
        weight = first.weights.new_zeros(z * fold, y * fold, x * fold)
        weight[one.within(lead)] = one.weight
        cells = _cells_of(one.within(lead), fold)
        places = _folded(weight, fold)[(slice(None), None, *cells)]
        features = one.map.cells(one.there)
        part = maps[(slice(None), number, slice(None), *cells)]
        torch.mul(features, places, out=part[:, :channels])
        part[:, channels:] = places
    mix = torch.cat([one.map.classifier for one in shares], dim=2)
    found = torch.bmm(mix, maps.flatten(1, 2).flatten(2))
    blocks = found.view(fold, fold, fold, -1, z, y, x).permute(3, 4, 0, 5, 1, 6, 2)
    return blocks.reshape(-1, z * fold, y * fold, x * fold)


def _cells_of(box: Box, fold: int) -> Box:
    z, y, x = (slice(part.start // fold, -(-part.stop // fold)) for part in box)
    return z, y, x


def _folded(voxels: Tensor, fold: int) -> Tensor:
    """(Z, Y, X) -> (fold^3, z, y, x)."""
    z, y, x = (n // fold for n in voxels.shape)
    blocks = voxels.view(z, fold, y, fold, x, fold).permute(1, 3, 5, 0, 2, 4)
    return blocks.reshape(fold**3, z, y, x)


def _multiply_out(features: Tensor, weights: Tensor, offsets: Tensor | None) -> Tensor:
    with torch.autocast(features.device.type, enabled=False):
        flat = features.float().flatten(2)
        rows = weights.flatten(1, 2)
        if offsets is None:
            logits = _products(rows, flat)
        else:
            logits = torch.baddbmm(offsets.flatten(1)[:, :, None], rows, flat)
        shaped = logits.reshape(*logits.shape[:2], *features.shape[2:])
        return unfold(shaped, _edge(weights))


def _products(rows: Tensor, maps: Tensor) -> Tensor:
    """`torch.bmm` of (B, R, C) and (B, C, N), on a CPU some voxels at a time.

    A result of many rows is so written page by page; whole, it is written row by row.
    """
    if torch.is_grad_enabled() or maps.device.type != "cpu":
        return torch.bmm(rows, maps)
    out = rows.new_empty(*rows.shape[:2], maps.shape[2])
    step = max(1, PRODUCTS_AT_ONCE // rows.shape[1])
    for low in range(0, maps.shape[2], step):
        out[:, :, low : low + step] = torch.bmm(rows, maps[:, :, low : low + step])
    return out


def _edge(weights: Tensor) -> int:
    """Of a block of fold^3 voxels: (B, K, fold^3, c0) -> fold."""
    voxels = weights.shape[2]
    return next(edge for edge in range(1, voxels + 1) if edge**3 >= voxels)
