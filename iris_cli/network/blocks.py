"""Convolution blocks of encoder and decoder, and the fold between voxels and channels.

Normalisation is InstanceNorm without parameters and without running statistics: train and eval
are the same function. All blocks are pre-activated; sums are not normalised.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iris_cli.network.kernels.residual_stack import FilterCache, run_residual_stack, serves

CONV_NORM_EPS = 1e-4
SMALL_EDGE = 2


def norm_relu(x: Tensor, eps: float = CONV_NORM_EPS) -> Tensor:
    """InstanceNorm (biased variance, no affine), then ReLU; statistics are summed in fp32.

    x: (B, C, Z, Y, X) -> same shape and dtype.
    """
    # One group per channel is InstanceNorm; its CPU kernel is five times faster in fp32, and an
    # in-place ReLU on its output costs no copy in the backward pass.
    return F.relu(F.group_norm(x, x.shape[1], eps=eps), inplace=True)


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """Convolution of odd kernel, stride 1, without bias, that keeps the size of the grid.

    x: (B, C_in, Z, Y, X), weight: (C_out, C_in, k, k, k) -> (B, C_out, Z, Y, X).
    On a CPU the bfloat16 gradient of the weight is wrong, at times not finite, where an edge has
    two voxels: oneDNN of PyTorch 2.13 reads memory it never wrote (edges of 1, 3 and more are
    right). Such grids cost nothing and are computed in fp32.
    """
    padding = weight.shape[-1] // 2
    if x.device.type == "cpu" and min(x.shape[2:]) <= SMALL_EDGE:
        with torch.autocast("cpu", enabled=False):
            return F.conv3d(x.float(), weight.float(), padding=padding)
    return F.conv3d(x, weight, padding=padding)


class NormReluConv(nn.Module):
    """InstanceNorm, ReLU, convolution without bias. The convolution can be called alone."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(
            channels_in, channels_out, kernel_size, padding=kernel_size // 2, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C_in, Z, Y, X) -> (B, C_out, Z, Y, X)."""
        return convolve(norm_relu(x), self.conv.weight)


class ResidualBlock(nn.Module):
    """conv2(conv1(x)) + shortcut(x), every part pre-activated; the shortcut is x if it can be.

    Where there is a shortcut convolution it reads the same normalised tensor as conv1, so both
    run as one convolution with twice the outputs.

    exact: kernels of inference put least rounding error before speed.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel_size: int, *, exact: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = NormReluConv(channels_in, channels_out, kernel_size)
        self.conv2 = NormReluConv(channels_out, channels_out, kernel_size)
        self.shortcut = (
            NormReluConv(channels_in, channels_out, kernel_size)
            if channels_in != channels_out
            else None
        )
        self.filters = (FilterCache(exact=exact), FilterCache(exact=exact))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C_in, Z, Y, X) -> (B, C_out, Z, Y, X)."""
        if self.shortcut is None:
            return x + self.conv2(self.conv1(x))  # type: ignore[no-any-return]
        weight = torch.cat([self.conv1.conv.weight, self.shortcut.conv.weight])
        both = convolve(norm_relu(x), weight)
        inner, shortcut = both.chunk(2, dim=1)
        return shortcut + self.conv2(inner)  # type: ignore[no-any-return]


def residual_stack(
    blocks: Iterable[nn.Module], x: Tensor, below: Tensor | None = None, *, overwrite: bool = False
) -> Tensor:
    """Residual blocks in a row on x, or on [x, `below` up-sampled to the size of x].

    blocks: `ResidualBlock`s. x: (B, C, Z, Y, X), below: (B, c, z, y, x) -> (B, C_out, Z, Y, X).
    overwrite: x is not needed any more.
    """
    if serves(x):
        return run_residual_stack(blocks, x, below, eps=CONV_NORM_EPS, overwrite=overwrite)
    if below is not None:
        x = torch.cat([x, upsample(below, x.shape[2:]).to(x.dtype)], dim=1)
    for block in blocks:
        x = block(x)
    return x


def linear_matrix(points: int, nodes: int, device: torch.device) -> Tensor:
    """Linear interpolation (align_corners) from `nodes` to `points` values: (points, nodes)."""
    identity = torch.eye(nodes, device=device)[None]
    return F.interpolate(identity, size=points, mode="linear", align_corners=True)[0].T


def upsample(x: Tensor, size: torch.Size) -> Tensor:
    """Trilinear up-sampling with align_corners, in fp32: (B, C, d, h, w) -> (B, C, *size) fp32.

    One matrix product per axis: on a CPU three times faster than the direct kernel.
    """
    with torch.autocast(x.device.type, enabled=False):
        z, y, x_ = (linear_matrix(n, m, x.device) for n, m in zip(size, x.shape[2:], strict=True))
        planes = z @ x.float().flatten(0, 1).flatten(2)
        rows = y @ planes.reshape(*planes.shape[:2], *x.shape[3:])
        return (rows @ x_.T).reshape(*x.shape[:2], *size)


def fold(x: Tensor, size: int) -> Tensor:
    """Move blocks of size^3 voxels into channels (space to depth).

    x: (B, C, Z, Y, X) -> (B, C * size^3, Z / size, Y / size, X / size). Channel
    c * size^3 + (z_off * size + y_off) * size + x_off holds voxel (z * size + z_off, ...).
    """
    if size == 1:
        return x
    b, c, z, y, x_ = x.shape
    blocks = x.reshape(b, c, z // size, size, y // size, size, x_ // size, size)
    return blocks.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(
        b, c * size**3, z // size, y // size, x_ // size
    )


def unfold(x: Tensor, size: int) -> Tensor:
    """The inverse of `fold`: (B, C * size^3, z, y, x) -> (B, C, z * size, y * size, x * size)."""
    if size == 1:
        return x
    b, c, z, y, x_ = x.shape
    blocks = x.reshape(b, c // size**3, size, size, size, z, y, x_)
    return blocks.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(
        b, c // size**3, z * size, y * size, x_ * size
    )
