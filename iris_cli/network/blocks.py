"""Convolution blocks of encoder and decoder, and the fold between voxels and channels.

Normalisation is InstanceNorm without parameters and without running statistics: train and eval
are the same function. All blocks are pre-activated; sums are not normalised.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONV_NORM_EPS = 1e-4


def norm_relu(x: Tensor, eps: float = CONV_NORM_EPS) -> Tensor:
    """InstanceNorm (biased variance, no affine), then ReLU; statistics are summed in fp32.

    x: (B, C, Z, Y, X) -> same shape and dtype.
    """
    return F.relu(F.instance_norm(x, eps=eps), inplace=True)


class NormReluConv(nn.Module):
    """InstanceNorm, ReLU, convolution without bias. The convolution can be called alone."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(
            channels_in, channels_out, kernel_size, padding=kernel_size // 2, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C_in, Z, Y, X) -> (B, C_out, Z, Y, X)."""
        return self.conv(norm_relu(x))  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """conv2(conv1(x)) + shortcut(x), every part pre-activated; the shortcut is x if it can be.

    Where there is a shortcut convolution it reads the same normalised tensor as conv1, so both
    run as one convolution with twice the outputs.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int) -> None:
        super().__init__()
        self.conv1 = NormReluConv(channels_in, channels_out, kernel_size)
        self.conv2 = NormReluConv(channels_out, channels_out, kernel_size)
        self.shortcut = (
            NormReluConv(channels_in, channels_out, kernel_size)
            if channels_in != channels_out
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C_in, Z, Y, X) -> (B, C_out, Z, Y, X)."""
        if self.shortcut is None:
            return x + self.conv2(self.conv1(x))  # type: ignore[no-any-return]
        weight = torch.cat([self.conv1.conv.weight, self.shortcut.conv.weight])
        both = F.conv3d(norm_relu(x), weight, padding=weight.shape[-1] // 2)
        inner, shortcut = both.chunk(2, dim=1)
        return shortcut + self.conv2(inner)  # type: ignore[no-any-return]


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
