"""Maps as a row of slices (n, C, Y, X) in channels-last order, normalised slab by slab.

A slab is small enough to stay in the cache from its normalisation to its convolution, so the
normalised map, the up-sampled map and the concatenation of maps never exist as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

SLAB_BYTES = 2**23


class Slices(Protocol):
    """One map of depth Z, read a slab at a time, from low to high."""

    depth: int
    slice_bytes: int

    def slab(self, low: int, high: int) -> Tensor:
        """Slices low..high - 1, where 0 <= low < high <= depth: (high - low, C, Y, X)."""


class StoredSlices:
    """A map in memory: (C, Z, Y, X) -> a view of it, where it is channels-last already."""

    def __init__(self, volume: Tensor) -> None:
        self._slices = volume.transpose(0, 1)
        self.depth = volume.shape[1]
        self.slice_bytes = self._slices[0].nbytes

    def slab(self, low: int, high: int) -> Tensor:
        return self._slices[low:high].contiguous(memory_format=torch.channels_last)


class UpsampledSlices:
    """A map (C, d, h, w) as it is up-sampled to `size`: trilinear, align_corners, in fp32."""

    def __init__(self, volume: Tensor, size: torch.Size) -> None:
        self._low = volume.transpose(0, 1)
        self._size = size[1:]
        self._planes: dict[int, Tensor] = {}
        self.depth = size[0]
        self.slice_bytes = volume.shape[0] * size[1] * size[2] * 4

    def slab(self, low: int, high: int) -> Tensor:
        steps, last = max(self.depth - 1, 1), self._low.shape[0] - 1
        self._keep_from(low * last // steps)
        size = (high - low, self._low.shape[1], *self._size)
        out = torch.empty(size, memory_format=torch.channels_last)
        for z in range(low, high):
            below, rest = divmod(z * last, steps)
            planes = self._plane(below), self._plane(min(below + 1, last))
            torch.lerp(*planes, rest / steps, out=out[z - low : z - low + 1])
        return out

    def _plane(self, index: int) -> Tensor:
        """(1, C, Y, X), up-sampled within the plane."""
        if index not in self._planes:
            low = self._low[index : index + 1].float()
            self._planes[index] = F.interpolate(
                low.contiguous(memory_format=torch.channels_last),
                size=tuple(self._size),
                mode="bilinear",
                align_corners=True,
            )
        return self._planes[index]

    def _keep_from(self, first: int) -> None:
        for index in [known for known in self._planes if known < first]:
            del self._planes[index]


class NormedSlices:
    """InstanceNorm and ReLU of one or several maps, joined along channels; zero outside."""

    def __init__(self, parts: Iterable[Slices], eps: float, kind: torch.dtype) -> None:
        self._parts = [(part, *moments(part)) for part in parts]
        self._kept: Tensor | None = None
        self.eps, self.kind = eps, kind
        self.depth = self._parts[0][0].depth
        self.slice_bytes = sum(part.slice_bytes for part, _, _ in self._parts)

    def slab(self, low: int, high: int) -> Tensor:
        """Slices low..high - 1, which may lie outside of the map: (high - low, C, Y, X).

        Valid until the next call.
        """
        first, last, at = max(low, 0), min(high, self.depth), 0
        out: Tensor | None = None
        for part, mean, variance in self._parts:
            scaled = F.batch_norm(part.slab(first, last), mean, variance, eps=self.eps)
            scaled = scaled.to(self.kind)
            if out is None:
                out = self._room(high - low, scaled)
                out[: first - low] = 0
                out[last - low :] = 0
            channels = slice(at, at + scaled.shape[1])
            torch.clamp_min(scaled, 0, out=out[first - low : last - low, channels])
            at = channels.stop
        assert out is not None
        return out

    def _room(self, count: int, like: Tensor) -> Tensor:
        """(count, C of all parts, Y, X). Kept: fresh memory costs more than the arithmetic."""
        if self._kept is None or len(self._kept) < count:
            size = (count, sum(len(mean) for _, mean, _ in self._parts), *like.shape[2:])
            self._kept = torch.empty(size, dtype=self.kind, memory_format=torch.channels_last)
        return self._kept[:count]


def moments(slices: Slices) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel: (C,), (C,) float32.

    Two passes over every slab while it is in the cache, slabs joined in float64 by the update of
    Chan, Golub and LeVeque: one long fp32 sum over a large map is wrong in the third digit.
    """
    count, mean, squares = 0, torch.zeros(()).double(), torch.zeros(()).double()
    buffer: Tensor | None = None
    for low, high in slabs(slices.depth, slices.slice_bytes, 1):
        slab = slices.slab(low, high).float()
        if buffer is None:
            buffer = torch.empty_like(slab)  # kept: fresh memory costs more than the arithmetic
        here = slab.numel() // slab.shape[1]
        centre = slab.sum(dim=(0, 2, 3)) / here
        rest = torch.sub(slab, centre[:, None, None], out=buffer[: high - low])
        spread = rest.square_().sum(dim=(0, 2, 3))
        shift = centre.double() - mean
        squares = squares + spread + shift.square() * (count * here / (count + here))
        count += here
        mean = mean + shift * (here / count)
    return mean.float(), (squares / count).float()


def slabs(depth: int, slice_bytes: int, multiple: int) -> Iterator[tuple[int, int]]:
    """Ranges of slices that fit into the cache together; a `multiple` of slices each."""
    step = max(SLAB_BYTES // max(slice_bytes, 1) // multiple, 1) * multiple
    for low in range(0, depth, step):
        yield low, min(low + step, depth)
