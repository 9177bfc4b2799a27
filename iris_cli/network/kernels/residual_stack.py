"""Residual blocks in inference on a CPU: channels-last, slab by slab, in place.

The definition is `blocks.residual_stack`. Here the statistics of a map are taken first; then
normalisation, ReLU, convolution and residual sum run on a slab of slices while it is in the cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from iris_cli.network.kernels.depth_filter import SMALLEST_DEPTH, SlabFilter, choose_filter
from iris_cli.network.kernels.slices import NormedSlices, StoredSlices, UpsampledSlices, slabs

if TYPE_CHECKING:
    from iris_cli.network.blocks import ResidualBlock

SERVED = (torch.float32, torch.bfloat16)


def serves(x: Tensor) -> bool:
    """Whether these kernels run: no gradient is wanted, on a CPU, in fp32 or bfloat16."""
    return not torch.is_grad_enabled() and x.device.type == "cpu" and x.dtype in SERVED


def compute_type(x: Tensor) -> torch.dtype:
    """The type a convolution of x is computed in, inside or outside of autocast."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


class FilterCache:
    """The filter of some weights, made once, and again when the weights have changed."""

    def __init__(self) -> None:
        self._weights: tuple[Tensor, ...] = ()
        self._stamp: tuple[tuple[int, int], ...] = ()
        self._filters: dict[tuple[torch.dtype, bool], SlabFilter] = {}

    def filter(self, weights: Sequence[Tensor], depth: int, kind: torch.dtype) -> SlabFilter:
        """The filter with the outputs of all weights (C_out, C_in, k, k, k), one after another."""
        stamp = tuple((0 if w.is_inference() else w._version, w.data_ptr()) for w in weights)
        same = len(weights) == len(self._weights) and all(map(_is, weights, self._weights))
        if not same or stamp != self._stamp:
            # The weights are held so that no other tensor can take their place unnoticed.
            self._weights, self._stamp, self._filters = tuple(weights), stamp, {}
        key = (kind, depth >= SMALLEST_DEPTH)
        if key not in self._filters:
            self._filters[key] = choose_filter(torch.cat(list(weights)), depth, kind)
        return self._filters[key]


def run_residual_stack(
    blocks: Iterable[nn.Module],
    x: Tensor,
    below: Tensor | None,
    *,
    eps: float,
    overwrite: bool,
) -> Tensor:
    """Blocks in a row on x, or on [x, below up-sampled to the grid of x].

    blocks: `ResidualBlock`s. x: (B, C, Z, Y, X), below: (B, c, z, y, x) or None
    -> (B, C_out, Z, Y, X) channels-last. overwrite: x may be used up.
    """
    kind = compute_type(x)
    stack = [cast("ResidualBlock", block) for block in blocks]
    items = []
    with torch.autocast("cpu", enabled=False):
        for i, volume in enumerate(x):
            lower, mine = None if below is None else below[i], overwrite
            for block in stack:
                run = _Run(block, eps, kind)
                volume, lower, mine = run(volume, lower, overwrite=mine), None, True
            items.append(volume.permute(1, 2, 3, 0))
    # Stacked as voxels x channels: the channels stay last.
    result = items[0][None] if len(items) == 1 else torch.stack(items)
    return result.permute(0, 4, 1, 2, 3)


class _Run:
    """One block on one map (C, Z, Y, X)."""

    def __init__(self, block: ResidualBlock, eps: float, kind: torch.dtype) -> None:
        self._block, self._eps, self._kind = block, eps, kind

    def __call__(self, x: Tensor, below: Tensor | None, *, overwrite: bool) -> Tensor:
        block = self._block
        parts = [StoredSlices(x), *([] if below is None else [UpsampledSlices(below, x.shape[1:])])]
        normed = NormedSlices(parts, self._eps, self._kind)
        widths = [block.conv1.conv.out_channels]
        weights = [block.conv1.conv.weight]
        if block.shortcut is not None:
            widths *= 2
            weights.append(block.shortcut.conv.weight)
        inner, *rest = outputs = [self._empty(width, x.shape) for width in widths]
        first = block.filters[0].filter(weights, normed.depth, self._kind)
        for low, high, slab in convolved(normed, first):
            for output, part in zip(outputs, slab.split(widths, dim=1), strict=True):
                output[low:high] = part
        result = rest[0] if rest else (x if overwrite else x.clone()).transpose(0, 1)
        normed = NormedSlices([StoredSlices(inner.transpose(0, 1))], self._eps, self._kind)
        second = block.filters[1].filter([block.conv2.conv.weight], normed.depth, self._kind)
        for low, high, slab in convolved(normed, second):
            result[low:high].add_(slab)
        return result.transpose(0, 1)

    def _empty(self, channels: int, shape: torch.Size) -> Tensor:
        _, z, y, x = shape
        size = (z, channels, y, x)
        return torch.empty(size, dtype=self._kind, memory_format=torch.channels_last)


def convolved(normed: NormedSlices, kernel: SlabFilter) -> Iterator[tuple[int, int, Tensor]]:
    """The convolution of a map, slab by slab: low, high, (high - low, C_out, Y, X)."""
    for low, high in slabs(normed.depth, normed.slice_bytes, kernel.multiple):
        count = -(-(high - low) // kernel.multiple) * kernel.multiple
        slab = normed.slab(low - kernel.halo, low + count + kernel.halo)
        yield low, high, kernel(slab)[: high - low]


def _is(a: object, b: object) -> bool:
    return a is b
