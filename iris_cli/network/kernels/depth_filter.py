"""Convolution of a slab of slices, with half the multiplications where the kernel is 3x3x3.

Minimal filtering along depth, F(4, 3): six slices become six combinations of slices, each of them
is convolved in the plane by its own 3x3 kernel, and combinations of the results are four slices of
the output. Six plane convolutions instead of twelve; the rest are additions, done while a slab is
in the cache. Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016),
equations 12 and 13 applied to one axis.
"""

from __future__ import annotations

from collections.abc import Sequence
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
class DepthFilter:
    """F(4, 3) along depth. planes: six kernels (C_out, C_in, 3, 3)."""

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


def choose_filter(weight: Tensor, depth: int, kind: torch.dtype) -> SlabFilter:
    """The faster filter for maps of this depth.

    In bfloat16 the combinations would be rounded before they are multiplied: twice the error of the
    plain convolution for little gain, so there it stays plain.
    """
    if weight.shape[-1] == 3 and depth >= SMALLEST_DEPTH and kind is torch.float32:
        return DepthFilter.of(weight, kind)
    return DirectFilter.of(weight, kind)


def _combine_inputs(d: Sequence[Tensor]) -> list[Tensor]:
    """Six slices -> six planes; with a = NEAR, b = FAR, s = a^2 + b^2:

    d0 - s d2 + d4, (d4 - b^2 d2) +- a (d3 - b^2 d1), (d4 - a^2 d2) +- b (d3 - a^2 d1),
    d1 - s d3 + d5.
    """
    both = NEAR**2 + FAR**2
    near_even, near_odd = (torch.sub(d[i], d[i - 2], alpha=FAR**2) for i in (4, 3))
    far_even, far_odd = (torch.sub(d[i], d[i - 2], alpha=NEAR**2) for i in (4, 3))
    return [
        (d[0] + d[4]).sub_(d[2], alpha=both),
        torch.add(near_even, near_odd, alpha=NEAR),
        near_even.sub_(near_odd, alpha=NEAR),
        torch.add(far_even, far_odd, alpha=FAR),
        far_even.sub_(far_odd, alpha=FAR),
        (d[1] + d[5]).sub_(d[3], alpha=both),
    ]


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
