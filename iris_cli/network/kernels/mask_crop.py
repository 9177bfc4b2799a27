"""Masks cut to the cells they touch: outside them, masks and all that follows are zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from iris_cli.network.blocks import fold, linear_matrix

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class MaskCrop:
    """One mask where it is not zero, with at least one voxel of margin inside the volume.

    mask: (z, y, x) bool or number, a view of the whole mask. start, size: where the crop begins
    and how large the whole mask is, in voxels. Start and edges are multiples of the deepest cell.
    """

    mask: Tensor
    start: tuple[int, int, int]
    size: tuple[int, int, int]

    def cells(self, stride: int) -> Box:
        """The place of the crop on a grid of cells of so many voxels."""
        z, y, x = (
            slice(a // stride, (a + n) // stride)
            for a, n in zip(self.start, self.mask.shape, strict=True)
        )
        return z, y, x

    def norm_relu(self, size: int, eps: float) -> Tensor:
        """InstanceNorm and ReLU of the folded whole mask: (1, size^3, z, y, x) float32.

        Zero voxels lie below the mean of a mask in [0, 1], so the ReLU leaves nothing of them and
        the crop is all there is. Binary masks need no formula of their own.
        """
        values = fold(self.mask.float()[None, None], size)
        z, y, x = self.size
        count, axes = z * y * x / size**3, (2, 3, 4)
        mean = values.sum(axes, keepdim=True) / count
        outside = count - values[0, 0].numel()
        squares = (values - mean).square().sum(axes, keepdim=True) + outside * mean.square()
        return (values - mean).relu_() / torch.sqrt(squares / count + eps)


def crop_masks(masks: Tensor, cell: int, margin: int) -> list[MaskCrop]:
    """Cut every mask to the cells that it and a margin around it touch.

    masks: (K, Z, Y, X) bool or number in [0, 1]; cell divides every edge; cell, margin in voxels.
    An empty mask keeps one cell.
    """
    _, *size = masks.shape
    whole = (size[0], size[1], size[2])
    crops = []
    for mask, (low, high) in zip(masks, _bounds(masks), strict=True):
        first = [max(a - margin, 0) // cell * cell for a in low]
        last = [min(-(-(b + margin) // cell) * cell, n) for b, n in zip(high, size, strict=True)]
        z, y, x = (slice(a, b) for a, b in zip(first, last, strict=True))
        crops.append(MaskCrop(mask[z, y, x], (first[0], first[1], first[2]), whole))
    return crops


def _bounds(masks: Tensor) -> list[tuple[list[int], list[int]]]:
    """Lowest touched voxel and the one after the highest, per mask and axis; 0 and 1 if empty."""
    values = masks.view(torch.uint8) if masks.dtype == torch.bool else masks
    planes = values.amax(1)
    lines = [values.flatten(2).amax(2), planes.amax(2), planes.amax(1)]
    low, high = [], []
    for line in lines:
        touched = (line > 0).to(torch.uint8)
        none = touched.amax(1) == 0
        low.append(touched.argmax(1))
        high.append((touched.shape[1] - touched.flip(1).argmax(1)).masked_fill(none, 1))
    both = torch.stack([torch.stack(low, 1), torch.stack(high, 1)], 1).tolist()
    return [(a, b) for a, b in both]


class UpsampleTransposed:
    """Transpose of trilinear up-sampling (align_corners) from several coarse grids to one fine."""

    def __init__(
        self, fine: Sequence[int], coarse: Sequence[Sequence[int]], device: torch.device
    ) -> None:
        self._coarse = [tuple(size) for size in coarse]
        self._matrices = [
            [linear_matrix(n, m, device) for n, m in zip(fine, size, strict=True)]
            for size in coarse
        ]
        self._along_x = torch.cat([x for _, _, x in self._matrices], dim=1)

    def __call__(self, crop: MaskCrop) -> list[Tensor]:
        """The mask on every coarse grid: (d, h, w) float32 each. All share the first product."""
        z, y, x = crop.cells(1)
        widths = [size[2] for size in self._coarse]
        reduced = torch.split(crop.mask.float() @ self._along_x[x], widths, dim=2)
        out = []
        for rows, (along_z, along_y, _), size in zip(
            reduced, self._matrices, self._coarse, strict=True
        ):
            planes = along_y[y].T @ rows
            out.append((along_z[z].T @ planes.flatten(1)).reshape(size))
        return out
