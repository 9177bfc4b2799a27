"""Convolution of a slab of slices: plain, in short sums, or with half the multiplications.

Minimal filtering along depth, F(4, 3): six slices become six combinations of slices, each of them
is convolved in the plane by its own 3x3 kernel, and combinations of the results are four slices of
the output. Six plane convolutions instead of twelve; the rest are additions, done while a slab is
in the cache. Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016),
equations 12 and 13 applied to one axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

OUTPUTS, INPUTS = 4, 6
NEAR, FAR = 2 / 3, 3 / 2
"""The filter evaluates polynomials at 0, +-NEAR, +-FAR and infinity. Their product is 1; the usual
points 1 and 2 have three times the rounding error."""
SMALLEST_DEPTH = 12


class SlabFilter(Protocol):
    """A convolution without bias of (n + 2 * halo, C_in, Y, X) slices to (n, C_out, Y, X)."""

    @property
    def halo(self) -> int: ...

    @property
    def multiple(self) -> int:
        """n must be a multiple of this."""

    def __call__(self, slab: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class DirectFilter:
    """As torch does it. weight: (C_out, C_in, k, k, k)."""

    weight: Tensor
    multiple = 1

    @classmethod
    def of(cls, weight: Tensor, kind: torch.dtype) -> DirectFilter:
        return cls(weight.detach().to(kind, memory_format=torch.channels_last_3d))

    @property
    def halo(self) -> int:
        return self.weight.shape[-1] // 2

    def __call__(self, slab: Tensor) -> Tensor:
        volume, padding = slab.transpose(0, 1)[None], (0, self.halo, self.halo)
        onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        if slab.dtype is torch.float32 and onednn:
            # Torch would not ask oneDNN for small maps, and take ten times as long.
            one = (1, 1, 1)
            out = torch.mkldnn_convolution(volume, self.weight, None, padding, one, one, 1)
        else:
            out = F.conv3d(volume, self.weight, padding=padding)
        return out[0].transpose(0, 1)


@dataclass(frozen=True)
class PlaneFilter:
    """The sum of three plane convolutions. planes: three kernels (C_out, C_in, 3, 3).

    On channels-last maps oneDNN adds up all C_in * 27 products of an output one after another;
    three sums of a third of that are nearer to the truth, by 1.7 at 32 to 64 channels.
    """

    planes: tuple[Tensor, ...]
    halo = 1
    multiple = 1

    @classmethod
    def of(cls, weight: Tensor, kind: torch.dtype) -> PlaneFilter:
        """weight: (C_out, C_in, 3, 3, 3)."""
        planes = weight.detach().unbind(2)
        return cls(tuple(p.to(kind, memory_format=torch.channels_last) for p in planes))

    def __call__(self, slab: Tensor) -> Tensor:
        count = len(slab) - 2 * self.halo
        first, *others = self.planes
        out = F.conv2d(slab[:count], first, padding=1)
        for low, plane in enumerate(others, start=1):
            out += F.conv2d(slab[low : low + count], plane, padding=1)
        return out


@dataclass(frozen=True)
class DepthFilter:
    """F(4, 3) along depth. planes: six kernels (C_out, C_in, 3, 3).

    Its rounding error is 2 to 2.5 times that of `PlaneFilter`.
    """

    planes: tuple[Tensor, ...]
    halo = 1
    multiple = OUTPUTS

    @classmethod
    def of(cls, weight: Tensor, kind: torch.dtype) -> DepthFilter:
        """weight: (C_out, C_in, 3, 3, 3). Combined in its own type, then rounded to `kind`."""
        first, middle, last = weight.detach().unbind(2)
        near, far = first + NEAR**2 * last, first + FAR**2 * last
        near_share, far_share = 2 * (NEAR**2 - FAR**2), 2 * FAR**2 * (FAR**2 - NEAR**2)
        planes = (
            first,
            (near + NEAR * middle) / near_share,
            (near - NEAR * middle) / near_share,
            (far + FAR * middle) / far_share,
            (far - FAR * middle) / far_share,
            last,
        )
        return cls(tuple(p.to(kind, memory_format=torch.channels_last) for p in planes))

    def __call__(self, slab: Tensor) -> Tensor:
        groups = (slab.shape[0] - 2 * self.halo) // OUTPUTS
        d = [slab[i : i + OUTPUTS * (groups - 1) + 1 : OUTPUTS] for i in range(INPUTS)]
        m = [
            F.conv2d(plane, kernel, padding=1)
            for plane, kernel in zip(_combine_inputs(d), self.planes, strict=True)
        ]
        out = torch.empty_like(m[0][:1].expand(OUTPUTS * groups, -1, -1, -1))
        _combine_outputs(m, [out[i::OUTPUTS] for i in range(OUTPUTS)])
        return out


def choose_filter(
    weight: Tensor, depth: int, kind: torch.dtype, *, exact: bool = False
) -> SlabFilter:
    """The fastest filter for maps of this depth, or the one of least rounding error.

    In bfloat16 the combinations would be rounded before they are multiplied: twice the error of the
    plain convolution for little gain, so there it stays plain.
    """
    if weight.shape[-1] == 3 and kind is torch.float32:
        if exact:
            return PlaneFilter.of(weight, kind)
        if depth >= SMALLEST_DEPTH:
            return DepthFilter.of(weight, kind)
    return DirectFilter.of(weight, kind)


def _combine_inputs(d: Sequence[Tensor]) -> Iterator[Tensor]:
    """Six slices -> six planes, each to be read before the next is asked for.

    With a = NEAR, b = FAR, s = a^2 + b^2:

    d0 - s d2 + d4, (d4 - b^2 d2) +- a (d3 - b^2 d1), (d4 - a^2 d2) +- b (d3 - a^2 d1),
    d1 - s d3 + d5.
    """
    both = NEAR**2 + FAR**2
    plane = d[0] + d[4]
    yield plane.sub_(d[2], alpha=both)
    even, odd = torch.empty_like(plane), torch.empty_like(plane)
    for point, other in ((NEAR, FAR), (FAR, NEAR)):
        torch.sub(d[4], d[2], alpha=other**2, out=even)
        torch.sub(d[3], d[1], alpha=other**2, out=odd)
        yield torch.add(even, odd, alpha=point, out=plane)
        yield torch.sub(even, odd, alpha=point, out=plane)
    yield torch.add(d[1], d[5], out=plane).sub_(d[3], alpha=both)


def _combine_outputs(m: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Six planes -> four slices; with n, n' = m1 +- m2 (which carry a^2), f, f' = m3 +- m4:

    m0 + b^2 n + f, b n' + b f', n + b^2 f, a n' + b^3 f' + m5. Overwrites m.
    """
    near, far = m[1] + m[2], m[3] + m[4]
    near_odd, far_odd = m[1].sub_(m[2]), m[3].sub_(m[4])
    torch.add(m[0].add_(near, alpha=FAR**2), far, out=out[0])
    torch.add(near_odd, far_odd, out=out[1]).mul_(FAR)
    torch.add(near, far, alpha=FAR**2, out=out[2])
    torch.add(m[5].add_(near_odd, alpha=NEAR), far_odd, alpha=FAR**3, out=out[3])
