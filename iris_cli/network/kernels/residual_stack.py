"""Residual blocks in inference on a CPU: channels-last, slab by slab, in place.

The definition is `blocks.residual_stack`. Here the statistics of a map are taken first; then
normalisation, ReLU, convolution and residual sum run on a slab of slices while it is in the cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from iris_cli.network.kernels.depth_filter import SMALLEST_DEPTH, SlabFilter, choose_filter
from iris_cli.network.kernels.slices import (
    NormedSlices,
    Slices,
    StoredSlices,
    UpsampledSlices,
    slabs,
)

if TYPE_CHECKING:
    from iris_cli.network.blocks import ResidualBlock

SERVED = (torch.float32, torch.bfloat16)
_Found = tuple[int, int, Tensor]


def serves(x: Tensor) -> bool:
    """Whether these kernels run: no gradient is wanted, on a CPU, in fp32 or bfloat16."""
    return not torch.is_grad_enabled() and x.device.type == "cpu" and x.dtype in SERVED


def compute_type(x: Tensor) -> torch.dtype:
    """The type a convolution of x is computed in, inside or outside of autocast."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


class _Made(NamedTuple):
    """Filters by type and whether maps are deep, and what they were made of.

    The weights are held so that no other tensor can take their place unnoticed.
    """

    weights: tuple[Tensor, ...]
    stamp: tuple[tuple[int, int], ...]
    filters: Mapping[tuple[torch.dtype, bool], SlabFilter]


class FilterCache:
    """The filter of some weights, made once, and again when the weights have changed.

    exact: least rounding error before speed. Threads may share the cache: they may make a filter
    twice, and never get one of other weights.
    """

    def __init__(self, *, exact: bool = False) -> None:
        self._exact = exact
        self._made = _Made((), (), {})

    @property
    def is_used(self) -> bool:
        """Whether a filter was made."""
        return bool(self._made.filters)

    def filter(self, weights: Sequence[Tensor], depth: int, kind: torch.dtype) -> SlabFilter:
        """The filter with the outputs of all weights (C_out, C_in, k, k, k), one after another."""
        stamp = tuple((0 if w.is_inference() else w._version, w.data_ptr()) for w in weights)
        made = self._made
        same = len(weights) == len(made.weights) and all(map(_is, weights, made.weights))
        if not same or stamp != made.stamp:
            made = _Made(tuple(weights), stamp, {})
        key = (kind, depth >= SMALLEST_DEPTH and not self._exact)
        found = made.filters.get(key)
        if found is None:
            found = choose_filter(torch.cat(list(weights)), depth, kind, exact=self._exact)
            self._made = made._replace(filters={**made.filters, key: found})
        return found


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
    -> (B, C_out, Z, Y, X) channels-last. overwrite: x may be used up, and hold the result.
    """
    kind = compute_type(x)
    stack = [cast("ResidualBlock", block) for block in blocks]
    items = []
    with torch.autocast("cpu", enabled=False):
        for i, volume in enumerate(x):
            lower, mine = None if below is None else below[i], overwrite
            for block in stack:
                slices: list[Slices] = [StoredSlices(volume)]
                if lower is not None:
                    slices.append(UpsampledSlices(lower, volume.shape[1:]))
                normed = NormedSlices(slices, eps, kind)
                volume = _run_block(block, normed, volume, overwrite=mine)
                lower, mine = None, True
            items.append(volume.permute(1, 2, 3, 0))
    # Stacked as voxels x channels: the channels stay last.
    result = items[0][None] if len(items) == 1 else torch.stack(items)
    return result.permute(0, 4, 1, 2, 3)


def _run_block(block: ResidualBlock, normed: NormedSlices, x: Tensor, *, overwrite: bool) -> Tensor:
    """x: (C, Z, Y, X), normed: the same, normalised, and what is joined to it.

    Besides x two maps exist at most, and one where the result may be written over x.
    """
    weights, outputs = [block.conv1.conv.weight], [_empty(block.conv1.conv, x, normed.kind)]
    if block.shortcut is None:
        result = (x if overwrite else x.clone()).transpose(0, 1)
    else:
        result = x.transpose(0, 1)
        if not overwrite or not _has_place_for(block.shortcut.conv, result, normed.kind):
            result = _empty(block.shortcut.conv, x, normed.kind)
        weights.append(block.shortcut.conv.weight)
        outputs.append(result)
    first = block.filters[0].filter(weights, normed.depth, normed.kind)
    widths = [len(weight) for weight in weights]
    for low, high, slab in _one_behind(convolved(normed, first)):
        for output, part in zip(outputs, torch.split(slab, widths, dim=1), strict=True):
            output[low:high] = part
    normed = NormedSlices([StoredSlices(outputs[0].transpose(0, 1))], normed.eps, normed.kind)
    second = block.filters[1].filter([block.conv2.conv.weight], normed.depth, normed.kind)
    for low, high, slab in convolved(normed, second):
        result[low:high].add_(slab)
    return result.transpose(0, 1)


def _has_place_for(convolution: nn.Conv3d, slices: Tensor, kind: torch.dtype) -> bool:
    return slices.shape[1] == convolution.out_channels and slices.dtype is kind


def _empty(convolution: nn.Conv3d, x: Tensor, kind: torch.dtype) -> Tensor:
    """Slices (Z, C_out, Y, X) for what a convolution makes of a map (C, Z, Y, X)."""
    size = (x.shape[1], convolution.out_channels, *x.shape[2:])
    return torch.empty(size, dtype=kind, memory_format=torch.channels_last)


def convolved(normed: NormedSlices, kernel: SlabFilter) -> Iterator[_Found]:
    """The convolution of a map, slab by slab: low, high, (high - low, C_out, Y, X).

    A slab reads no slice of the last slab but one.
    """
    for low, high in slabs(normed.depth, normed.slice_bytes, max(kernel.multiple, kernel.halo)):
        count = -(-(high - low) // kernel.multiple) * kernel.multiple
        slab = kernel(normed.slab(low - kernel.halo, low + count + kernel.halo))
        yield low, high, slab[: high - low]


def _one_behind(found: Iterable[_Found]) -> Iterator[_Found]:
    """Each item when the next one is there: written over its input, it spares the next one's."""
    for item, _ in pairwise(chain(found, [None])):
        assert item is not None
        yield item


def _is(a: object, b: object) -> bool:
    return a is b
